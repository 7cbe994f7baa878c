"""Calibrator: every operator call of a plan timed once a pass, so that other measurements can take turns with it."""

from __future__ import annotations

import datetime
import random
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch

from dsocr_graph.errors import UnfinishedCalibrationError
from dsocr_graph.timing.allocator import pin_allocator, warm_heap
from dsocr_graph.timing.clocks import Clock, CpuClock, CudaClock
from dsocr_graph.timing.host_costs import measure_host_costs
from dsocr_graph.timing.journal import Journal
from dsocr_graph.timing.memory_limits import require_memory
from dsocr_graph.timing.microbench import Microbench, pass_seconds
from dsocr_graph.timing.nvml import GpuWatch, gpu_reader
from dsocr_graph.timing.operands import OperandMaker, cache_bytes, cold_bytes
from dsocr_graph.timing.plan import Plan, PlannedCall
from dsocr_graph.timing.yardsticks import Sentinels, measure_peaks
from modelmeter.machine import Machine
from modelmeter.predict.calibration import Calibration, Peaks, Sample, Sentinel
from modelmeter.units import format_seconds

Progress = Callable[[str], None]

_SENTINEL_EVERY = 30.0  # seconds
_REPORT_EVERY = 10.0  # seconds
_MAKING_SECONDS = 5e-3  # of the operands of one call
_BELOW_PEAK = 1.4  # how much longer than at peak rates calls take on average, before any was timed
_HEAP_MARGIN = 1.25  # what is freed is split up in time
_SHORTEST_SECONDS = 5e-6  # of a call
_COUNTED_TOGETHER = 256  # calls whose launches one session of the profiler counts; each session takes about 0.1 s


class Calibrator:
    """A calibration that goes on pass by pass, so that runs of the real model can take turns with it.

    Every pass times each call once, in a random order that is the same in every calibration: what disturbs a machine
    for some seconds then meets calls of all kinds. With a journal, a calibration that ended early goes on where it was.

    Parameters
    ----------
    plan : Plan
        The calls.
    machine : Machine
        What is calibrated, as `dsocr_graph.timing.machine.this_machine` returns it.
    device : str, optional
        Where, for one of several GPUs; by default the first of the machine's kind.
    journal : str or Path, optional
        File for what has been measured so far.
    progress : callable
        Told what is being done and how long it will take.

    Raises
    ------
    JournalError
        When the journal is of another machine, torch or plan.
    OutputError
        When it cannot be written.

    Examples
    --------
    Time a toy: `measure` stands for a run of the real model.

    >>> from modelmeter.dtypes import DType
    >>> from modelmeter.signature import Signature, TensorArgument
    >>> x = TensorArgument(dtype=DType.FP32, shape=(16, 64), strides=(64, 1))
    >>> signature = Signature(op="aten::exp", overload="default", arguments={"self": x})
    >>> call = PlannedCall(signature=signature, conditions={}, flops=1024, bytes=8192, origin="here")
    >>> from dsocr_graph.timing.machine import this_machine
    >>> calibrator = Calibrator(Plan(models=(), calls=(call,)), machine=this_machine("cpu", threads=1))
    >>> for _ in range(2):
    ...     calibrator.run_pass()
    >>> len(calibrator.calibration().samples[0].seconds)
    2
    """

    def __init__(
        self,
        plan: Plan,
        *,
        machine: Machine,
        device: str | None = None,
        journal: str | Path | None = None,
        progress: Progress = lambda message: None,
    ) -> None:
        self._plan = plan
        self._machine = machine
        self._device = torch.device(machine.kind if device is None else device)
        self._progress = progress
        self._journal = Journal(
            None if journal is None else Path(journal), machine=machine, plan=plan.identity, calls=len(plan.calls)
        )
        self._found = self._journal.findings
        self._earlier = max((sentinel.elapsed for sentinel in self._found.sentinels), default=0.0)
        self._begin = time.monotonic()
        self._pace = 1.0  # of the last pass in this process: seconds per second expected

    @property
    def passes(self) -> int:
        """Passes that are complete."""
        return self._found.passes

    @property
    def timed(self) -> int:
        """Calls that the next pass has timed already, before an interruption."""
        return len(self._plan.calls) - len(self._order())

    def next_pass_seconds(self) -> float:
        """Return how long the next pass will take, by earlier passes or else by the peaks of the machine."""
        return self._pace * sum(map(self._busy, self._order()))

    def run_pass(self) -> None:
        """Time every call once; after an interruption, those that the pass still lacks.

        Raises
        ------
        MeasurementMemoryError
            When the device has no memory for a call; the message names it.
        OperandError, UnknownOperatorError, OperatorArgumentError
            When a call cannot be made.
        """
        bench = self._prepared()
        order = self._order()
        countdown = _Countdown(
            f"pass {self.passes + 1}", list(map(self._busy, order)), len(self._plan.calls), self._progress
        )
        begin = time.monotonic()
        with GpuWatch(gpu_reader(self._device)) as watch:
            for first in range(0, len(order), _COUNTED_TOGETHER):
                self._run_part(bench, order[first : first + _COUNTED_TOGETHER], countdown)
            self._watch(due=True)
        state = watch.state()
        if state is not None:
            self._journal.add_gpu(state)
        self._pace = (time.monotonic() - begin) / sum(map(self._busy, order))

    def measure_host(self) -> None:
        """Measure what the host spends, also where an earlier process has: a later measurement takes its place."""
        torch.set_num_threads(self._machine.threads)
        pin_allocator()
        self._journal.add_host(measure_host_costs(self._device))

    def calibration(self) -> Calibration:
        """Return what has been measured so far.

        Raises
        ------
        UnfinishedCalibrationError
            Before the first pass is complete.
        """
        found = self._found
        if not self.passes or found.peaks is None or found.host is None:
            missing = sum(not seconds for seconds in found.seconds)
            raise UnfinishedCalibrationError(
                f"{missing:,} of {len(found.seconds):,} calls have not been timed yet; run a pass first"
            )
        return Calibration(
            machine=self._machine,
            date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            models=self._plan.models,
            peaks=found.peaks,
            host=found.host,
            samples=tuple(
                Sample(
                    signature=call.signature,
                    seconds=tuple(found.seconds[index]),
                    launches=found.launches[index],
                    conditions=call.conditions,
                    flops=call.flops,
                    bytes=call.bytes,
                )
                for index, call in enumerate(self._plan.calls)
            ),
            sentinels=tuple(found.sentinels),
            gpu=tuple(found.gpu),
        )

    def finish(self) -> None:
        """Take the journal away, once the calibration is kept elsewhere."""
        self._journal.remove()

    # --- parts

    @cached_property
    def _clock(self) -> Clock:
        if self._device.type == "cpu":
            return CpuClock(threads=self._machine.threads)
        return CudaClock(self._device)

    @cached_property
    def _bench(self) -> Microbench:
        cold = cold_bytes(self._device, self._plan.weight_bytes)
        largest = max(self._plan.calls, key=lambda call: call.bytes)
        require_memory(
            f"{largest.key}, of {largest.origin}, with the weights that are kept out of the caches",
            round((1 + _HEAP_MARGIN) * largest.bytes)
            + cold,  # its operands in the pool of random numbers, and room for its result
            self._device,
            "leave that point out: give smaller ones with --points",
        )
        operands = OperandMaker(self._plan.calls, self._device, cold_bytes=cold, cache_bytes=cache_bytes(self._device))
        if self._device.type == "cpu":
            warm_heap(round(_HEAP_MARGIN * largest.bytes))
        return Microbench(operands=operands, clock=self._clock, device=self._device)

    @cached_property
    def _sentinels(self) -> Sentinels:
        return Sentinels(self._clock, self._device)

    def _prepared(self) -> Microbench:
        """Set up the process, which other measurements may share, and measure what calls are compared with."""
        torch.set_num_threads(self._machine.threads)
        pin_allocator()
        self._peaks()
        if self._found.host is None:
            self.measure_host()
        return self._bench

    def _peaks(self) -> Peaks:
        if self._found.peaks is None:
            self._progress("measuring the best rates of the device")
            torch.set_num_threads(self._machine.threads)
            self._journal.add_peaks(measure_peaks(self._plan.dtypes, self._clock, self._device))
        assert self._found.peaks is not None
        return self._found.peaks

    def _order(self) -> list[int]:
        """Return the calls that the pass still lacks, in its order."""
        order = list(range(len(self._plan.calls)))
        random.Random(self.passes).shuffle(order)  # the same in every process
        return [index for index in order if len(self._found.seconds[index]) == self.passes]

    def _run_part(self, bench: Microbench, part: Sequence[int], countdown: _Countdown) -> None:
        """Time some calls, and count the launches of those that are new."""
        launches = self._launches(bench, part)
        for index in part:
            self._watch()
            self._journal.add_time(index, bench.seconds(self._plan.calls[index]), launches=launches[index])
            countdown.step()

    def _launches(self, bench: Microbench, part: Sequence[int]) -> dict[int, int]:
        known = {index: self._found.launches[index] for index in part if index in self._found.launches}
        new = [index for index in part if index not in known]
        counts = bench.launches([self._plan.calls[index] for index in new])
        return known | dict(zip(new, counts, strict=True))

    def _watch(self, *, due: bool = False) -> None:
        """Time the sentinels, every now and then."""
        elapsed = self._earlier + time.monotonic() - self._begin
        sentinels = self._found.sentinels
        if not due and sentinels and elapsed - sentinels[-1].elapsed < _SENTINEL_EVERY:
            return
        for name, seconds in self._sentinels.seconds().items():
            self._journal.add_sentinel(Sentinel(elapsed=elapsed, name=name, seconds=float(f"{seconds:.4g}")))

    def _busy(self, index: int) -> float:
        """Return how long a pass is busy with a call."""
        known = self._found.seconds[index]
        return _MAKING_SECONDS + pass_seconds(known[-1] if known else _at_peak(self._plan.calls[index], self._peaks()))


def _at_peak(call: PlannedCall, peaks: Peaks) -> float:
    """Return a first guess of the time of a call."""
    tensors = call.signature.tensors
    dtype = tensors[0].dtype.value if tensors else "fp32"
    rate = peaks.matrix_flops.get(dtype, peaks.vector_flops)
    return _SHORTEST_SECONDS + _BELOW_PEAK * max(call.flops / rate, call.bytes / peaks.bandwidth)


class _Countdown:
    """Tells, every now and then, how far a pass is and how long the rest of it will take."""

    def __init__(self, name: str, expected: Sequence[float], calls: int, progress: Progress) -> None:
        self._name = name
        self._expected = expected  # seconds, of each call that is still to be timed
        self._calls = calls  # of the plan
        self._progress = progress
        self._done = 0
        self._begin = self._reported = time.monotonic()

    def step(self) -> None:
        """Note that one more call was timed."""
        self._done += 1
        now = time.monotonic()
        missing = len(self._expected) - self._done
        if not missing or now - self._reported < _REPORT_EVERY:
            return
        self._reported = now
        share = sum(self._expected[: self._done]) / sum(self._expected)
        left = format_seconds((now - self._begin) * (1 - share) / share, digits=2)
        self._progress(f"{self._name}: {self._calls - missing:,} of {self._calls:,} calls, about {left} left")
