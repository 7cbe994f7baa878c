"""Microbenchmark: the time of one operator call."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from attrs import frozen

from dsocr_graph.timing.aten import overload_of
from dsocr_graph.timing.clocks import Clock, Run
from dsocr_graph.timing.launches import count_launches, count_launches_of_each
from dsocr_graph.timing.memory_limits import memory_explained
from dsocr_graph.timing.operands import OperandMaker
from dsocr_graph.timing.plan import PlannedCall

WINDOW_SECONDS = 2e-3
"""Length that windows of repeated executions aim at: long against what a clock reading takes."""

LONG_SECONDS = 0.2
"""A call that takes longer is timed once a pass, without a warm-up: a first execution costs little more beside it."""

_CALL_SECONDS = 0.06  # of windows; that many as fit, one at least
_MOST_WINDOWS = 5


@frozen(kw_only=True)
class Microbench:
    """Times the calls of a plan on one device.

    Attributes
    ----------
    operands : OperandMaker
        Makes what the calls are given.
    clock : Clock
        Of the device.
    device : torch.device
        Where the operands are.

    Examples
    --------
    >>> from dsocr_graph.timing.clocks import CpuClock
    >>> from modelmeter.dtypes import DType
    >>> from modelmeter.signature import Signature, TensorArgument
    >>> x = TensorArgument(dtype=DType.FP32, shape=(16, 64), strides=(64, 1))
    >>> signature = Signature(op="aten::exp", overload="default", arguments={"self": x})
    >>> call = PlannedCall(signature=signature, conditions={}, flops=1024, bytes=8192, origin="here")
    >>> cpu = torch.device("cpu")
    >>> bench = Microbench(
    ...     operands=OperandMaker([call], cpu, cold_bytes=0, cache_bytes=1 << 30), clock=CpuClock(threads=1), device=cpu
    ... )
    >>> 0 < bench.seconds(call) < 0.1
    True
    """

    operands: OperandMaker
    clock: Clock
    device: torch.device

    @torch.inference_mode()
    def seconds(self, call: PlannedCall) -> float:
        """Return the time of one execution: the median of a few windows, or of a long call the only one.

        Raises
        ------
        MeasurementMemoryError
            When the device has no memory for the call.
        OperandError, UnknownOperatorError, OperatorArgumentError
            When the call cannot be made.
        """
        with self._explained(call):
            run = self._run(call)
            run(self.clock.warmups)
            return _settled(self.clock, run)

    @torch.inference_mode()
    def launches(self, calls: Sequence[PlannedCall]) -> tuple[int, ...]:
        """Return how many kernels one execution of each call starts on the device; 0 on a CPU.

        Raises
        ------
        MeasurementMemoryError, OperandError, UnknownOperatorError, OperatorArgumentError
            As `seconds`.
        """
        if self.device.type == "cpu":
            return (0,) * len(calls)
        together = count_launches_of_each(self._each_once(calls), self.device)
        if together is not None:
            return together
        return tuple(count_launches(run, self.device) or 0 for run in self._each_once(calls))

    def _each_once(self, calls: Sequence[PlannedCall]) -> Iterator[Callable[[], None]]:
        """Yield one execution of each call, after another one: a first may load kernels and choose among them."""
        for call in calls:
            with self._explained(call):
                run = self._run(call)
                run(1)
                yield partial(run, 1)

    def _run(self, call: PlannedCall) -> Run:
        overload = overload_of(call.signature.op, call.signature.overload)
        executions = itertools.cycle(self.operands.executions(call))

        def run(repeats: int) -> None:
            for arguments in itertools.islice(executions, repeats):
                overload(**arguments)

        return run

    def _explained(self, call: PlannedCall) -> AbstractContextManager[None]:
        return memory_explained(
            f"{call.key}, of {call.origin},",
            round(call.bytes),
            self.device,
            "leave out the point it belongs to, with smaller ones given by --points, and go on",
        )


def _settled(clock: Clock, run: Run) -> float:
    """Return the time of one execution once windows are long enough; the first execution of all is a warm-up."""
    repeats = 1
    while True:
        window = clock.window(run, repeats)
        seconds = window()
        if seconds >= LONG_SECONDS:
            return seconds
        if repeats * seconds >= WINDOW_SECONDS / 2 or repeats == clock.most_repeats:
            break
        repeats = min(math.ceil(WINDOW_SECONDS / seconds), clock.most_repeats)
    return statistics.median(window() for _ in range(_windows(repeats * seconds)))


def pass_seconds(seconds: float) -> float:
    """Return how long a pass is busy with a call of some duration, making its operands left out.

    Examples
    --------
    >>> pass_seconds(1.5), round(pass_seconds(0.02), 3), round(pass_seconds(3e-6), 3)
    (1.5, 0.08, 0.012)
    """
    if seconds >= LONG_SECONDS:
        return seconds
    window = max(seconds, WINDOW_SECONDS)
    return window * (1 + _windows(window))


def _windows(seconds: float) -> int:
    """Return how many windows of some length a call gets."""
    return min(max(1, round(_CALL_SECONDS / seconds)), _MOST_WINDOWS)
