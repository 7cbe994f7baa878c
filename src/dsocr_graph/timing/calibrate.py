"""Calibrate: time every operator call that some models make, in several passes, and write one file."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dsocr_graph.errors import OptionError, OutputError, PlanError
from dsocr_graph.timing.calibrator import Calibrator, Progress
from dsocr_graph.timing.machine import this_machine
from dsocr_graph.timing.plan import Point, plan_calls
from modelmeter.model import AnalyticModel
from modelmeter.predict.calibration import Calibration, calibration_to_json
from modelmeter.units import format_seconds


def calibrate(
    models: Sequence[tuple[AnalyticModel, Sequence[Point]]],
    *,
    device: str = "cpu",
    threads: int = 1,
    moe: str = "grouped",
    row_lattice: bool = False,
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
        `dsocr_graph.timing.standard_sizes.standard_points` returns the usual ones.
    device : str
        "cpu", "cuda" or "cuda:INDEX".
    threads : int
        Of torch, within an operator.
    moe : str
        "grouped", or "loop" to time the calls of the published loop over experts as well.
    row_lattice : bool
        Also time products at many numbers of rows, as `dsocr_graph.timing.plan.plan_calls` says.
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
    plan = plan_calls(models, moe=moe, row_lattice=row_lattice)
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
        needs = format_seconds(expected, digits=2)
        if expected <= left:
            progress(f"pass {calibrator.passes + 1} of {passes}, about {needs}")
            calibrator.run_pass()
            continue
        has = format_seconds(max(0.0, left), digits=2)
        if calibrator.passes:
            progress(f"another pass would take {needs}, {has} are left: this has to do")
            return
        enough = int((limit - left + 1.2 * expected) / 60) + 1
        raise PlanError(
            f"timing every call once would take about {needs}, {has} are left of the time given; give more with "
            f"--minutes {enough}, or plan less: single points with --points stage:DIM=SIZE, fewer of --mode"
        )


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
