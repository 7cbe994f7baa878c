"""Operands of a comparison: reports, models by file or by name, and measurements, read and made sides."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import evolve, frozen

from modelmeter.compare.errors import CompareError, UnknownOperandError
from modelmeter.compare.from_measurement import measured_runs, side_of_measurement
from modelmeter.compare.from_report import side_of_report
from modelmeter.compare.side import Side
from modelmeter.errors import UnknownModelError
from modelmeter.evaluate import evaluate
from modelmeter.json_text import read_bytes
from modelmeter.measurement import Measurement, measurement_from_json
from modelmeter.model import AnalyticModel
from modelmeter.predict.time_model import TimeModel
from modelmeter.registry import available, registered
from modelmeter.reports.report import Report, read_report, report_from_json
from modelmeter.serialize import MODEL_FILE, looks_like_model, model_from_bytes, read_model
from modelmeter.workload import Workload, WorkloadItem

REPORT_FILE = "report.json"
"""The file that, with `MODEL_FILE`, makes a directory of `dsocr-graph analyze` an operand."""

CONFIG_FILE = "config.json"
"""The file that makes a directory a model of transformers, which is analyzed before it can be compared."""


@frozen(kw_only=True)
class Operand:
    """What a user named: a report, a measurement, or else a model."""

    label: str
    variant: str | None = None  # of a registered model, by its name
    report: Report | None = None
    measurement: Measurement | None = None
    model: AnalyticModel | None = None  # beside a report or a measurement: the one that it is of, if it is known

    @property
    def is_evaluated(self) -> bool:
        """Whether it is a model to evaluate: reports and measurements have figures of their own."""
        return self.report is None and self.measurement is None


def read_operand(text: str) -> Operand:
    """Read a report, a model, a measurement, a directory with a report, or a registered model ``NAME[:VARIANT]``.

    Raises
    ------
    UnknownOperandError
        When there is no such file and no such model, or a file is none of these.
    UnknownVariantError
        When a registered model has no such variant.
    ReportFileError, ModelFileError, MeasurementFileError
        When a file is damaged or of another schema version.

    Examples
    --------
    >>> read_operand("deepseek-ocr:tiny").model.variant["base_size"]
    '512'
    """
    if not text.strip():
        raise UnknownOperandError(
            "a side has no name; give a report.json or model.json of `dsocr-graph analyze`, its directory, a "
            "measurement, or NAME:VARIANT"
        )
    path = Path(text)
    if path.is_dir():
        return _read_directory(path, label=text)
    if path.exists():
        return _read_file(path, label=text)
    name, _, variant = text.partition(":")
    try:
        entry = registered(name)
    except UnknownModelError as error:
        raise UnknownOperandError(
            f"{text!r} is no file, no directory and no registered model ({error}); give a report.json or model.json of "
            "`dsocr-graph analyze`, its directory, a measurement, or NAME:VARIANT"
            + (f". If it is a factory package.module:function, {_analyze_first(text)}" if _is_factory(text) else "")
        ) from error
    chosen = variant or entry.default
    return Operand(label=f"{name}:{chosen}", variant=chosen, model=entry.load(chosen))


def sides_of(
    operands: Sequence[Operand],
    *,
    workload_of: Callable[[Operand], Workload],
    time_model: TimeModel | None = None,
) -> tuple[Side, ...]:
    """Return operands as sides: reports as they are, models evaluated at one workload.

    Beside a measurement, models are evaluated at what it ran.

    Parameters
    ----------
    operands : sequence of Operand
        Two or more.
    workload_of : callable
        Binds the workload to the stages of a model.
    time_model : TimeModel or None
        Predicts the times of models.

    Raises
    ------
    CompareError
        When there are fewer than two operands, or a report, of a whole workload, stands beside a measurement, of single
        executions.

    Examples
    --------
    >>> sides_of([read_operand("deepseek-ocr:tiny")], workload_of=lambda operand: None)
    Traceback (most recent call last):
    modelmeter.compare.errors.CompareError: a comparison needs two sides or more, given are 1; name another one
    """
    if len(operands) < 2:
        raise CompareError(f"a comparison needs two sides or more, given are {len(operands)}; name another one")
    measured = [operand.measurement for operand in operands if operand.measurement is not None]
    reports = [operand.label for operand in operands if operand.report is not None]
    if measured and reports:
        raise CompareError(
            f"{', '.join(reports)} is of a whole workload, a measurement of one execution of each stage: their figures "
            "have no unit in common. Give the model.json or the registered model instead, which is evaluated at what "
            "was measured"
        )
    labels = _labels(operands)
    operands = [_with_model(operand, operands) for operand in operands]
    bind = workload_of if not measured else lambda _: _measured_workload(measured[0])
    return tuple(_side(operand, label, bind, time_model) for operand, label in zip(operands, labels, strict=True))


def _with_model(operand: Operand, operands: Sequence[Operand]) -> Operand:
    """Return a measurement with the model beside it that was measured, where it was not known."""
    measurement = operand.measurement
    if measurement is None or operand.model is not None:
        return operand
    others = (other.model for other in operands if other.model is not None)
    return evolve(operand, model=next((model for model in others if _fits(model, measurement)), None))


def _side(
    operand: Operand, label: str, workload_of: Callable[[Operand], Workload], time_model: TimeModel | None
) -> Side:
    if operand.report is not None:
        return side_of_report(operand.report, label=label, model=operand.model)
    if operand.measurement is not None:
        return side_of_measurement(operand.measurement, label=label, model=operand.model)
    assert operand.model is not None
    report = evaluate(operand.model, workload_of(operand), time_model=time_model)
    return side_of_report(report, label=label, model=operand.model, clock=time_model)


def _measured_workload(measurement: Measurement) -> Workload:
    item = WorkloadItem(name="measured stages", documents=1, runs=measured_runs(measurement))
    return Workload(name="as measured", items=(item,))


def _labels(operands: Sequence[Operand]) -> list[str]:
    """Return a label for each operand, no two alike: of paths as many of the last parts as tell them apart."""
    texts = [operand.label.rstrip("/") for operand in operands]
    depth = max(text.count("/") for text in texts) + 1
    short = [["/".join(text.split("/")[-parts:]) for text in texts] for parts in range(1, depth + 1)]
    labels = next((names for names in short if len(set(names)) == len(set(texts))), texts)
    return [
        label if label not in labels[:index] else f"{label} ({labels[: index + 1].count(label)})"
        for index, label in enumerate(labels)
    ]


# --- files


def _read_directory(path: Path, *, label: str) -> Operand:
    report, model = path / REPORT_FILE, path / MODEL_FILE
    if report.is_file():
        read = read_report(report)
        return Operand(label=label, report=read, model=_same(read, read_model(model)) if model.is_file() else None)
    if model.is_file():
        return Operand(label=label, model=read_model(model))
    subject = label if (path / CONFIG_FILE).is_file() else "MODEL"
    raise UnknownOperandError(f"{label} holds neither a {REPORT_FILE} nor a {MODEL_FILE}; {_analyze_first(subject)}")


def _analyze_first(model: str) -> str:
    """Say how what `analyze` takes becomes a side; the directory is another one, as it writes many files."""
    return f"run `dsocr-graph analyze --model {model} --out DIRECTORY` and give that directory"


def _is_factory(text: str) -> bool:
    """Whether a text may be a factory as package.module:function."""
    module, _, function = text.partition(":")
    return function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _same(report: Report, model: AnalyticModel) -> AnalyticModel | None:
    """Return the model if it is the report's: files of two runs may lie in one directory."""
    ours = (report.model.name, report.model.variant, report.model.parameters)
    return model if ours == (model.name, model.variant, model.parameters) else None


def _read_file(path: Path, *, label: str) -> Operand:
    data = read_bytes(path, kind="operand", error=UnknownOperandError)
    keys = _keys(data)
    if "machine" in keys and "stages" in keys:
        measurement = measurement_from_json(data, source=label)
        return Operand(label=label, measurement=measurement, model=_measured_model(measurement))
    if "items" in keys and "workload" in keys:
        return Operand(label=label, report=report_from_json(data, source=label))
    if looks_like_model(data):
        return Operand(label=label, model=model_from_bytes(data, source=label))
    known = "give a file that `dsocr-graph analyze` or `dsocr-graph measure` writes"
    advice = f"it is a configuration: {_analyze_first(label)}" if "model_type" in keys else known
    raise UnknownOperandError(f"{label} is neither a report, a model nor a measurement; {advice}")


def _keys(data: bytes) -> frozenset[str]:
    """Return the keys of a JSON object; none of what is no such thing."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return frozenset()
    return frozenset(document) if isinstance(document, dict) else frozenset()


def _measured_model(measurement: Measurement) -> AnalyticModel | None:
    """Return the registered model that was measured, if it makes the calls that were timed."""
    if measurement.model not in available():
        return None
    entry = registered(measurement.model)
    models = (entry.load(variant) for variant in sorted(entry.variants))
    return next((model for model in models if _fits(model, measurement)), None)


def _fits(model: AnalyticModel, measurement: Measurement) -> bool:
    calls = {stage.name: len(stage.schedule) for stage in model.stages}
    return model.variant == measurement.variant and all(
        stage.stage in calls and len(stage.call_seconds) in {0, calls[stage.stage]} for stage in measurement.stages
    )
