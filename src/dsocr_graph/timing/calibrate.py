"""Calibrate: time every operator call that some models make, in several passes, and write one file."""

from __future__ import annotations

import datetime
import gzip
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import torch

from dsocr_graph.errors import OptionError, OutputError, PlanError, UnfinishedCalibrationError
from dsocr_graph.timing.allocator import pin_allocator, warm_heap
from dsocr_graph.timing.clocks import Clock, CpuClock, CudaClock
from dsocr_graph.timing.host_costs import measure_host_costs
from dsocr_graph.timing.journal import Journal
from dsocr_graph.timing.machine import this_machine
from dsocr_graph.timing.memory_limits import require_memory
from dsocr_graph.timing.microbench import Microbench, pass_seconds
from dsocr_graph.timing.operands import OperandMaker, cache_bytes, cold_bytes
from dsocr_graph.timing.plan import Plan, PlannedCall, Point, plan_calls
from dsocr_graph.timing.yardsticks import Sentinels, measure_peaks
from modelmeter.machine import Machine
from modelmeter.model import AnalyticModel
from modelmeter.predict.calibration import Calibration, Peaks, Sample, Sentinel, calibration_to_json

Progress = Callable[[str], None]

_SENTINEL_EVERY = 30.0  # seconds
_REPORT_EVERY = 10.0  # seconds
_MAKING_SECONDS = 5e-3  # of the operands of one call
_BELOW_PEAK = 1.4  # how much longer than at peak rates calls take on average, before any was timed
_HEAP_MARGIN = 1.25  # what is freed is split up in time
_SHORTEST_SECONDS = 5e-6  # of a call


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
        number, count = self.passes + 1, len(self._plan.calls)
        expected = list(map(self._busy, order))
        begin = reported = time.monotonic()
        for done, index in enumerate(order):
            now = time.monotonic()
            if done and now - reported >= _REPORT_EVERY:
                reported = now
                share = sum(expected[:done]) / sum(expected)
                left = (now - begin) * (1 - share) / share
                finished = count - len(order) + done
                self._progress(f"pass {number}: {finished:,} of {count:,} calls, about {duration(left)} left")
            self._watch()
            self._time(bench, index)
        self._watch(due=True)
        self._pace = (time.monotonic() - begin) / sum(map(self._busy, order))

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
            self._journal.add_host(measure_host_costs(self._device))
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

    def _time(self, bench: Microbench, index: int) -> None:
        call = self._plan.calls[index]
        seconds = bench.seconds(call)
        launches = self._found.launches.get(index)
        self._journal.add_time(index, seconds, launches=bench.launches(call) if launches is None else launches)

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


def calibrate(
    models: Sequence[tuple[AnalyticModel, Sequence[Point]]],
    *,
    device: str = "cpu",
    threads: int = 1,
    moe: str = "grouped",
    passes: int = 3,
    minutes: float | None = None,
    out: str | Path,
    progress: Progress = lambda message: None,
) -> Calibration:
    """Time the operator calls of some models on this machine and write a calibration file.

    Parameters
    ----------
    models : sequence of (AnalyticModel, sequence of Point)
        Compiled models, each with the stages and sizes whose calls are timed;
        `dsocr_graph.timing.plan.standard_points` returns the usual ones.
    device : str
        "cpu", "cuda" or "cuda:INDEX".
    threads : int
        Of torch, within an operator.
    moe : str
        "grouped", or "loop" to time the calls of the published loop over experts as well.
    passes : int
        How often each call is timed.
    minutes : float, optional
        Time for all of it: further passes end where the next would not fit. One pass has to.
    out : str or Path
        The file to write; compressed if its name ends in ".gz". Until it is complete, OUT.partial keeps what was
        measured, and the same call goes on from there.
    progress : callable
        Told what is being done and how long it will take.

    Raises
    ------
    OptionError
        For an unknown device, or fewer than one thread or pass.
    MissingDeviceError
        When CUDA is asked for and absent.
    PlanError
        When a point does not fit its model, or one pass does not fit `minutes`.
    JournalError
        When OUT.partial is of another machine, torch or plan.
    MeasurementMemoryError
        When the device has no memory for a call.
    OutputError
        When the file cannot be written.
    """
    if passes < 1:
        raise OptionError(f"passes is {passes}; every call is timed at least once")
    begin = time.monotonic()
    limit = float("inf") if minutes is None else minutes * 60
    target = Path(out)
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a directory; give --out the name of a file")
    machine = this_machine(device, threads=threads)
    plan = plan_calls(models, moe=moe)
    calibrator = Calibrator(
        plan, machine=machine, device=device, journal=target.with_name(f"{target.name}.partial"), progress=progress
    )
    progress(f"{machine.device}: {len(plan.calls):,} distinct calls, {calibrator.passes} of {passes} passes done")
    try:
        _run_passes(calibrator, passes, begin=begin, limit=limit, progress=progress)
    except KeyboardInterrupt:
        progress(f"interrupted; {target}.partial keeps what was measured, and the same command goes on from there")
        raise
    calibration = calibrator.calibration()
    _write(target, calibration)
    calibrator.finish()
    progress(f"fixed calls, repeated throughout, were up to {calibration.drift:.1%} off their median")
    return calibration


def _run_passes(calibrator: Calibrator, passes: int, *, begin: float, limit: float, progress: Progress) -> None:
    """Run passes until there are enough or the next one does not fit."""
    while calibrator.passes < passes:
        expected = calibrator.next_pass_seconds()
        left = limit - (time.monotonic() - begin)
        if expected > left and calibrator.passes:
            progress(f"another pass would take {duration(expected)}, {duration(left)} are left: this has to do")
            return
        if expected > left:
            enough = int((limit - left + 1.2 * expected) / 60) + 1
            raise PlanError(
                f"timing every call once would take about {duration(expected)}, {duration(left)} are left of the time "
                f"given; give more with --minutes {enough}, or plan less: single points with --points stage:DIM=SIZE, "
                "fewer of --mode"
            )
        progress(f"pass {calibrator.passes + 1} of {passes}, about {duration(expected)}")
        calibrator.run_pass()


def duration(seconds: float) -> str:
    """Write a duration as people say it.

    Examples
    --------
    >>> duration(42.3), duration(333)
    ('42 s', '5 min 33 s')
    """
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def _write(target: Path, calibration: Calibration) -> None:
    """Write the file under a temporary name, then rename it: no half file."""
    text = calibration_to_json(calibration).encode()
    data = gzip.compress(text, mtime=0) if target.suffix == ".gz" else text
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; {target}.partial keeps all that was measured. Make "
            "room, and give the same command again"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
