"""What a prediction adds to the artefacts: sections of report.md, trace.json, and comparison.csv with a measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from attrs import evolve

from dsocr_graph.emit.comparison_csv import to_comparison_csv
from dsocr_graph.emit.markdown import to_markdown
from dsocr_graph.emit.markdown_comparison import comparison_sections
from dsocr_graph.emit.markdown_times import time_sections
from dsocr_graph.emit.trace import Execution, Lane, Track, measured_track, predicted_track, to_trace
from modelmeter.measurement import Measurement, StageMeasurement
from modelmeter.model import AnalyticModel
from modelmeter.predict.calibrated import Calibrated
from modelmeter.predict.kernel_time import SourceShare
from modelmeter.predict.time_model import TimeModel
from modelmeter.predict.timeline import CallTime
from modelmeter.reports import Report
from modelmeter.reports.comparison import StageComparison, compare
from modelmeter.workload import Workload, WorkloadItem


@runtime_checkable
class StatedTimeModel(TimeModel, Protocol):
    """A time model that says how its kernels' times were found."""

    def statement(self, model: AnalyticModel, workload: Workload) -> tuple[SourceShare, ...]:
        """Return what each family of operators has by each method."""
        ...


@runtime_checkable
class ScheduledTimeModel(TimeModel, Protocol):
    """A time model that places every call of a stage in time."""

    def calls(self, model: AnalyticModel, stage: str, bindings: Mapping[str, int]) -> tuple[CallTime, ...]:
        """Return the calls of one execution, in the order of the stage's schedule."""
        ...


def prediction_artefacts(
    model: AnalyticModel,
    report: Report,
    time_model: TimeModel,
    measurement: Measurement | None = None,
    *,
    command: str | None = None,
) -> dict[str, str]:
    """Return the files that predicted times add or change, by name.

    Parameters
    ----------
    model : AnalyticModel
        The model that was evaluated.
    report : Report
        Its evaluation with `time_model`.
    time_model : TimeModel
        What predicted the times.
    measurement : Measurement or None
        The same model measured, to be set beside the prediction.
    command : str or None
        The command that makes the files again.

    Returns
    -------
    dict of str to str
        "report.md"; "trace.json" when the time model places calls in time; "comparison.csv" when there is a
        measurement.

    Raises
    ------
    MeasurementMismatchError
        When the measurement is of another model, variant or version of the graph.
    """
    comparisons = () if measurement is None else compare_measured(model, time_model, measurement)
    sections = [*time_sections(report, _statement(model, report, time_model))]
    files: dict[str, str] = {}
    if measurement is not None:
        sections += comparison_sections(measurement, comparisons)
        files["comparison.csv"] = to_comparison_csv(comparisons)
    if isinstance(time_model, ScheduledTimeModel):
        files["trace.json"] = to_trace(model, executions(model, report, time_model, measurement))
    return {"report.md": to_markdown(model, report, command, sections=sections), **files}


def compare_measured(
    model: AnalyticModel, time_model: TimeModel, measurement: Measurement
) -> tuple[StageComparison, ...]:
    """Predict every measured stage and set the two side by side.

    A GPU's kernels are compared with a prediction of the device alone; what the device waits for the host while it is
    in a call is a cell of its own, the category host of the call's module.

    Raises
    ------
    MeasurementMismatchError
        When the measurement is of another model, variant or version of the graph.
    """
    if not isinstance(time_model, Calibrated):
        return compare(model, measurement, time_model)
    on_device = measurement.machine.kind != "cpu"
    kernels = evolve(time_model, runtime="cudagraph") if on_device else None
    variant = {"moe": time_model.moe} if "moe" in model.variant else {}
    return compare(model, measurement, time_model, kernels=kernels, variant=variant)


def executions(
    model: AnalyticModel, report: Report, time_model: ScheduledTimeModel, measurement: Measurement | None = None
) -> tuple[Execution, ...]:
    """Return what a trace shows: every measured execution, or else each stage at the sizes of its first run."""
    if measurement is not None:
        return tuple(_measured_execution(model, time_model, measurement, stage) for stage in measurement.stages)
    first: dict[str, Mapping[str, int]] = {}
    for run in (run for item in report.items for run in item.runs):
        first.setdefault(run.stage, run.bindings)
    return tuple(
        Execution(stage=stage, bindings=sizes, tracks=(_predicted(model, time_model, stage, sizes),))
        for stage, sizes in first.items()
    )


def _measured_execution(
    model: AnalyticModel, time_model: ScheduledTimeModel, measurement: Measurement, measured: StageMeasurement
) -> Execution:
    lane = Lane.CPU if measurement.machine.kind == "cpu" else Lane.DEVICE
    return Execution(
        stage=measured.stage,
        bindings=measured.bindings,
        tracks=(
            _predicted(model, time_model, measured.stage, measured.bindings),
            measured_track(measured.scaled_call_seconds, lane, measured.seconds),
        ),
    )


def _predicted(model: AnalyticModel, time_model: ScheduledTimeModel, stage: str, sizes: Mapping[str, int]) -> Track:
    calls = time_model.calls(model, stage, sizes)
    return predicted_track(calls, _lanes(time_model), sum(call.seconds for call in calls))


def _lanes(time_model: TimeModel) -> Sequence[Lane]:
    """Return where a prediction runs calls: a CPU does all itself; only eager execution has a host beside a device."""
    facts = time_model.facts
    if facts.device.key == "cpu":
        return (Lane.CPU,)
    return (Lane.HOST, Lane.DEVICE) if facts.runtime == "eager" else (Lane.DEVICE,)


def _statement(model: AnalyticModel, report: Report, time_model: TimeModel) -> tuple[SourceShare, ...]:
    if not isinstance(time_model, StatedTimeModel):
        return ()
    items = tuple(
        WorkloadItem(name=item.name, documents=item.documents, runs=item.runs, facts=item.facts)
        for item in report.items
    )
    return time_model.statement(model, Workload(name=report.workload, items=items, facts=report.workload_facts))
