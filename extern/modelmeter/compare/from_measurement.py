"""A measurement as a side of a comparison, alone or with the model that was measured."""

from __future__ import annotations

from modelmeter.compare.counterfactual import is_noise
from modelmeter.compare.metrics import Metric
from modelmeter.compare.model_tree import cached_stages, nodes_of_model
from modelmeter.compare.side import UNNAMED, VERSION, Piece, Side, model_facts, stage_sizes
from modelmeter.costs import Time
from modelmeter.measurement import Measurement, StageMeasurement
from modelmeter.model import AnalyticModel
from modelmeter.reports.comparison import compare_stage
from modelmeter.workload import StageRun


def side_of_measurement(measurement: Measurement, *, label: str, model: AnalyticModel | None = None) -> Side:
    """Return a measurement as a side: one execution of each of its stages, at its sizes.

    With the model, the time of each call belongs to the module that made it; what no call accounts for, and everything
    without the model, is not attributed.

    Raises
    ------
    MeasurementMismatchError
        When the measurement timed other calls than the model has.
    UnknownMeasuredStageError
        When it has a stage that the model does not have.
    """
    seconds: dict[Piece, float] = {}
    for stage in measurement.stages:
        by_module = {} if model is None else _by_module(model, stage)
        seconds |= {Piece(stage=stage.stage, module=module): time for module, time in by_module.items()}
        rest = stage.seconds - sum(by_module.values())
        if not is_noise(rest, [stage.seconds]):  # of sums in another order nothing is left but rounding
            seconds[Piece(stage=stage.stage, module=UNNAMED)] = rest
    return Side(
        label=label,
        facts=_measured_facts(measurement),
        totals={Metric.TIME: sum(stage.seconds for stage in measurement.stages)},
        work={piece: {Metric.TIME: time} for piece, time in seconds.items()},
        stages=stage_sizes(measured_runs(measurement)),
        cached=frozenset() if model is None else cached_stages(model),
        nodes={} if model is None else nodes_of_model(model),
        model=model,
    )


def _by_module(model: AnalyticModel, stage: StageMeasurement) -> dict[str, float]:
    """Return the measured seconds of what each module runs itself; nothing where no call was timed."""
    if not stage.call_seconds:
        return {}
    seconds: dict[str, float] = {}
    for (module, _), row in compare_stage(model, stage, total=Time(), cells={}).cells.items():
        seconds[module] = seconds.get(module, 0.0) + row.measured
    return seconds


def measured_runs(measurement: Measurement) -> tuple[StageRun, ...]:
    """Return what a measurement ran: each stage once, at its sizes.

    Examples
    --------
    >>> from modelmeter.machine import Machine
    >>> cpu = Machine(kind="cpu", device="a CPU", driver="", memory_bytes=1 << 30, threads=1, torch="2.13.0")
    >>> step = StageMeasurement(stage="decode", bindings={"B": 1, "T": 5}, warmups=1, wall_seconds=(2.0,))
    >>> measured = Measurement(
    ...     machine=cpu, date="2026-01-02", model="toy", variant={}, weights="random", stages=(step,)
    ... )
    >>> [(run.stage, run.count) for run in measured_runs(measured)]
    [('decode', 1)]
    >>> side_of_measurement(measured, label="run").totals[Metric.TIME]
    2.0
    """
    return tuple(StageRun(stage=stage.stage, count=1, bindings=stage.bindings) for stage in measurement.stages)


def _measured_facts(measurement: Measurement) -> dict[str, str]:
    machine = measurement.machine
    facts = {
        **model_facts(measurement.model, measurement.variant),
        "device": machine.device,
        "times": "measured",
        "driver": machine.driver,
        "threads": str(machine.threads),
        f"{VERSION}torch": machine.torch,
        "weights": measurement.weights,
        "date": measurement.date,
    }
    return {name: fact for name, fact in facts.items() if fact}  # a CPU has no driver
