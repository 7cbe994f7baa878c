"""Calibrate: time every operator call that some models make, in several passes, and write one file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from dsocr_graph.emit.files import require_writable, write_artefacts
from dsocr_graph.errors import OptionError, OutputError, PlanError
from dsocr_graph.timing.calibrator import Calibrator, Progress
from dsocr_graph.timing.machine import this_machine
from dsocr_graph.timing.plan import Point, plan_calls
from modelmeter.model import AnalyticModel
from modelmeter.predict.calibration import Calibration, calibration_to_json
from modelmeter.serialize import compress
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
        For an unknown device, fewer than one thread or pass, or no time.
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
    machine = this_machine(device, threads=threads)
    target = Path(out)
    require_possible(passes=passes, minutes=minutes, out=target)
    begin = time.monotonic()
    limit = float("inf") if minutes is None else minutes * 60
    plan = plan_calls(models, moe=moe, row_lattice=row_lattice)
    calibrator = Calibrator(
        plan, machine=machine, device=device, journal=target.with_name(f"{target.name}.partial"), progress=progress
    )
    kept = f", {calibrator.timed:,} calls of the next" if calibrator.timed else ""
    progress(f"{machine.device}: {len(plan.calls):,} distinct calls, {calibrator.passes} of {passes} passes done{kept}")
    try:
        _run_passes(calibrator, passes, begin=begin, limit=limit, progress=progress)
    except KeyboardInterrupt:
        progress(f"interrupted; {target}.partial keeps what was measured, and the same command goes on from there")
        raise
    calibration = calibrator.calibration()
    _write(target, calibration)
    calibrator.finish()
    progress(f"fixed calls, repeated throughout, were typically {calibration.drift:.1%} off their median")
    return calibration


def require_possible(*, passes: int, minutes: float | None, out: Path) -> None:
    """Refuse what no calibration can be made with, before models are compiled for it.

    Raises
    ------
    OptionError
        For fewer than one pass, or no time.
    OutputError
        When the file cannot be written.

    Examples
    --------
    >>> require_possible(passes=0, minutes=None, out=Path("c.json"))
    Traceback (most recent call last):
    dsocr_graph.errors.OptionError: passes is 0; every call is timed at least once
    """
    if passes < 1:
        raise OptionError(f"passes is {passes}; every call is timed at least once")
    if minutes is not None and not minutes > 0:
        raise OptionError(f"minutes is {minutes}; give the time that one pass needs, at least")
    require_writable(out)


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
    text = calibration_to_json(calibration)
    try:
        write_artefacts(target.parent, {target.name: compress(text) if target.suffix == ".gz" else text})
    except OutputError as error:
        raise OutputError(
            f"{error}. {target}.partial keeps all that was measured, and the same command goes on from there"
        ) from error
