"""Timed calls: a captured stage replayed on a device, once per thing that is to be known of its calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from attrs import frozen
from torch import Tensor, nn

from dsocr_graph.ir import OpGraph
from dsocr_graph.timing.call_clocks import CallClock, DeviceClock, HostClock
from dsocr_graph.timing.completion import completion_shares
from dsocr_graph.timing.replay import replay


@frozen(kw_only=True)
class CallTimes:
    """What the calls of one stage took, in seconds, in the order of the schedule."""

    seconds: tuple[float, ...]  # by which each call delays the end of the stage
    device_seconds: tuple[float, ...] = ()  # on a GPU, of each call's kernels alone


def time_calls(
    graph: OpGraph,
    module: nn.Module,
    inputs: Callable[[], list[Tensor]],
    bindings: Mapping[str, int],
    *,
    device: torch.device,
    threads: int,
) -> CallTimes:
    """Time the calls of a captured stage.

    On a CPU one replay tells all. On a GPU one replay tells the device's time of each call and another, without events
    between the calls, the host's; what the device waits for the host is attributed by
    `dsocr_graph.timing.completion.completion_shares`.

    Parameters
    ----------
    graph, module, bindings
        As `dsocr_graph.timing.replay.replay` takes them.
    inputs : callable
        Returns the stage's inputs anew; a replay keeps none.
    device : torch.device
        Of the weights and inputs.
    threads : int
        Of torch, within an operator.

    Raises
    ------
    ReplayError, UnknownOperatorError, OperatorArgumentError, UnboundDimError
        As `replay`.
    """

    def replayed(clock: CallClock) -> tuple[float, ...]:
        return replay(graph, module, inputs(), bindings, clock).call_seconds

    if device.type == "cpu":
        return CallTimes(seconds=replayed(HostClock(threads=threads)))
    on_device = replayed(DeviceClock(device))
    on_host = replayed(HostClock(threads=threads, device=device))
    return CallTimes(seconds=completion_shares(on_host, on_device), device_seconds=on_device)


def median_times(passes: Sequence[CallTimes]) -> CallTimes:
    """Return the median of some passes, call by call; of no pass, no times.

    Examples
    --------
    >>> median_times([CallTimes(seconds=(1.0, 2.0)), CallTimes(seconds=(3.0, 2.0)), CallTimes(seconds=(2.0, 9.0))])
    CallTimes(seconds=(2.0, 2.0), device_seconds=())
    """
    return CallTimes(
        seconds=_medians([one.seconds for one in passes]),
        device_seconds=_medians([one.device_seconds for one in passes]),
    )


def _medians(passes: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(map(float, np.median(passes, axis=0))) if passes else ()
