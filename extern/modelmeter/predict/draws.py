"""Errors that calls share: the same standard normal draws for every call of a group, whoever asks."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from modelmeter.costs import Draws

Ranks = np.ndarray[Any, np.dtype[np.intp]]

COUNT = 64
"""Sampled runs behind an interval: p10 and p90 of so many are within 0.2 standard deviations of their limits."""


@lru_cache(maxsize=65536)
def log_errors(group: str, count: int = COUNT) -> Draws:
    """Return the errors of a group in each of some sampled runs, in standard deviations of its logarithm.

    Two calls that were interpolated between the same two measurements are wrong together, so their errors do not
    average out: they have one group, hence the same draws. Draw i of every group is of the same run.

    Parameters
    ----------
    group : str
        What the calls have in common (`modelmeter.predict.kernel_time.KernelTime.group`).
    count : int
        Sampled runs.

    Returns
    -------
    array of float, shape (count,)
        Standard normal draws with mean 0 and standard deviation 1, equal on every machine and in every process; not
        to be written to.

    Examples
    --------
    >>> import numpy as np
    >>> seconds = 0.002 * np.exp(0.05 * log_errors("gemm 1280 3840"))
    >>> seconds.shape, bool(np.all(seconds == 0.002 * np.exp(0.05 * log_errors("gemm 1280 3840"))))
    ((64,), True)
    """
    seed = int.from_bytes(blake2b(group.encode(), digest_size=16).digest(), "big")
    drawn = np.random.default_rng(seed).standard_normal(count)
    # Centred and scaled, as so few draws would else shift every prediction of a group.
    errors = (drawn - drawn.mean()) / drawn.std()
    errors.setflags(write=False)
    return errors


@lru_cache(maxsize=65536)
def run_order(group: str) -> Ranks:
    """Return the place of each sampled run among all, by the error that the group has in it: 0 errs least.

    Examples
    --------
    >>> order = run_order("gemm 1280 3840")
    >>> int(order[log_errors("gemm 1280 3840").argmax()])
    63
    """
    order = np.argsort(np.argsort(log_errors(group)))
    order.setflags(write=False)
    return order
