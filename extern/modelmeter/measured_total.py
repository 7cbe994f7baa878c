"""Measured total: which single executions stand for a workload, and its time from those that were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from modelmeter.errors import ModelMeterError
from modelmeter.measurement import Measurement, StageMeasurement
from modelmeter.workload import StageRun, Workload


class UnmeasuredRunError(ModelMeterError, LookupError):
    """A run of a workload that a measurement does not cover."""


def workload_points(workload: Workload) -> tuple[StageRun, ...]:
    """Return the distinct executions to measure for a workload: of a sweep the first, the middle and the last.

    Examples
    --------
    >>> from modelmeter.workload import WorkloadItem
    >>> decode = StageRun(stage="decode", count=101, bindings={"B": 1, "T": 900}, sweep="T")
    >>> workload = Workload(name="one page", items=(WorkloadItem(name="page", documents=1, runs=(decode,)),))
    >>> [point.bindings["T"] for point in workload_points(workload)]
    [900, 950, 1000]
    """
    points: dict[tuple[str, tuple[tuple[str, int], ...]], StageRun] = {}
    for run in _runs(workload):
        for bindings in _executions(run):
            point = StageRun(stage=run.stage, count=1, bindings=bindings)
            points.setdefault((run.stage, tuple(sorted(bindings.items()))), point)
    return tuple(points.values())


def _runs(workload: Workload) -> Iterable[StageRun]:
    return (run for item in workload.items for run in item.runs)


def _executions(run: StageRun) -> list[Mapping[str, int]]:
    if run.sweep is None:
        return [run.bindings]
    first, last = _ends(run, run.sweep)
    return [{**run.bindings, run.sweep: size} for size in sorted({first, (first + last) // 2, last})]


def _ends(run: StageRun, sweep: str) -> tuple[int, int]:
    return run.bindings[sweep], run.bindings[sweep] + run.count - 1


def measured_total(workload: Workload, measurement: Measurement) -> float:
    """Return how long a workload takes, from the stages that were measured. Unit: seconds.

    The executions of a sweep lie on straight lines between those that were measured.

    Parameters
    ----------
    workload : Workload
        What runs how often.
    measurement : Measurement
        Holds every point of `workload_points`, or at least the ends of each sweep.

    Raises
    ------
    UnmeasuredRunError
        When a run was not measured, or not up to both ends of its sweep.
    """
    return sum(_run_seconds(run, measurement) for run in _runs(workload))


def _run_seconds(run: StageRun, measurement: Measurement) -> float:
    if run.sweep is None:
        found = next((stage for stage in measurement.stages if _is_of(stage, run)), None)
        if found is None:
            raise UnmeasuredRunError(_message(run, measurement))
        return run.count * found.seconds
    first, last = _ends(run, run.sweep)
    times = {stage.bindings[run.sweep]: stage.seconds for stage in measurement.stages if _is_of(stage, run)}
    sizes = sorted(times)
    if not sizes or sizes[0] > first or sizes[-1] < last:
        raise UnmeasuredRunError(_message(run, measurement))
    return float(np.interp(np.arange(first, last + 1), sizes, [times[size] for size in sizes]).sum())


def _is_of(stage: StageMeasurement, run: StageRun) -> bool:
    """Whether a measured stage is an execution of a run, or one beside its sweep.

    A run may state sizes that the stage does not depend on, such as the columns of a grid beside its views and rows.
    """
    return stage.stage == run.stage and all(
        run.bindings.get(name) == size for name, size in stage.bindings.items() if name != run.sweep
    )


def _message(run: StageRun, measurement: Measurement) -> str:
    measured = [stage.bindings for stage in measurement.stages if stage.stage == run.stage]
    known = "; ".join(", ".join(f"{name}={size}" for name, size in sizes.items()) for sizes in measured)
    wanted = ", ".join(f"{name}={size}" for name, size in run.bindings.items())
    until = "" if run.sweep is None else f" to {run.sweep}={_ends(run, run.sweep)[1]}"
    return (
        f"{run.stage} at {wanted}{until} was not measured in full; measured are {known or 'no sizes of it'}. Measure "
        "the points of the workload: `dsocr-graph measure --workload`"
    )
