"""Completion: by how much each call delays the end of a stage whose calls a host starts and a device runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np


def completion_shares(host_seconds: Sequence[float], device_seconds: Sequence[float]) -> tuple[float, ...]:
    """Split the time of a stage among its calls: kernels to their call, idle time of the device to the host's call.

    The device runs the kernels of one call after those of the other. A call's kernels begin when the host is in the
    call, at the latest so that they end as the host leaves it, or once the device is done with what was queued before.
    While the device has nothing to run, it waits for the call that the host is in. The shares add up to the time until
    both are done.

    Parameters
    ----------
    host_seconds : sequence of float
        From entering each call to entering the next, on a host that is not slowed down by instruments.
    device_seconds : sequence of float
        Of each call's kernels; 0 for a call that starts none.

    Raises
    ------
    ValueError
        When the two are of different calls.

    Examples
    --------
    The host needs 3 s per call, the device 1 s: it waits for 2 s in each.

    >>> completion_shares([3.0, 3.0], [1.0, 1.0])
    (3.0, 3.0)

    A view keeps the host for 4 s, while the device runs dry.

    >>> completion_shares([1.0, 4.0, 1.0], [1.0, 0.0, 2.0])
    (1.0, 4.0, 2.0)
    """
    marks = [0.0, *accumulate(host_seconds)]  # when the host enters each call, and when it leaves the last
    edges, idle = [0.0], [0.0]  # the device's idle time until each of some moments; it grows evenly in between
    done = 0.0  # when the device is done with all calls so far
    for entered, left, busy in zip(marks[:-1], marks[1:], device_seconds, strict=True):
        if not busy:
            continue
        begin = max(done, entered, left - busy)
        edges += [done, begin]
        idle += [idle[-1], idle[-1] + begin - done]
        done = begin + busy
    if marks[-1] > done:
        edges += [done, marks[-1]]
        idle += [idle[-1], idle[-1] + marks[-1] - done]
    waits = np.diff(np.interp(marks, edges, idle))
    return tuple(map(float, waits + np.array(device_seconds)))
