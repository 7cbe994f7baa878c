"""Comparison: predicted beside measured seconds of the stages of a model, by module, category and in total."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
from attrs import evolve, field, frozen

from modelmeter.binding import Binding
from modelmeter.categories import Category
from modelmeter.costs import Draws, Time
from modelmeter.errors import ModelMeterError, UnknownNameError
from modelmeter.measurement import Measurement, StageMeasurement
from modelmeter.model import AnalyticModel, Leaf, Stage
from modelmeter.predict.time_model import TimeModel
from modelmeter.workload import StageRun

Cell = tuple[str, Category]
"""A module's id and a category of the calls that it runs itself."""

REST = "between calls (Python)"
"""Label of the time that no call accounts for."""

_FEWEST_EQUAL = 4
"""Calls of one leaf from which quartiles say something."""

_ROUNDING = 1e-9
"""A difference below this share of what is subtracted from is that of two orders of summation, and no time."""


class MeasurementMismatchError(ModelMeterError, ValueError):
    """A measurement of another model, variant or version of the graph than the one it is compared with."""


class UnknownMeasuredStageError(UnknownNameError):
    """A measured stage that the model does not have."""


@frozen(kw_only=True)
class Compared:
    """Some calls of one execution of a stage, predicted and measured.

    Examples
    --------
    >>> row = Compared(predicted=Time(memory=3.0, interval=(2.0, 4.5)), measured=4.0, calls=2, spread=0.1)
    >>> row.ratio, row.covered
    (0.75, True)
    """

    predicted: Time  # seconds
    measured: float  # seconds
    calls: int  # timed in one execution
    spread: float | None  # of calls that are alike: half their quartiles' range over their median; None: too few

    @property
    def ratio(self) -> float | None:
        """Predicted over measured; None where nothing was measured."""
        return self.predicted.seconds / self.measured if self.measured else None

    @property
    def covered(self) -> bool | None:
        """Whether the measured time lies in the predicted interval; None without an interval."""
        low, high = self.predicted.p10, self.predicted.p90
        return None if low is None or high is None else low <= self.measured <= high


@frozen(kw_only=True)
class StageComparison:
    """One execution of a stage, predicted and measured.

    Attributes
    ----------
    total : Compared
        The whole stage; its calls are of all kinds, so that they have no spread.
    runs : int
        Uninstrumented runs behind the total.
    spread : float
        Of those runs: half their quartiles' range over their median.
    cells : mapping of (module id, category) to Compared
        What modules run themselves, by category: kernels, or on a CPU calls with all that the host does until the next
        one. Views, and on a GPU what the device waits while the host is in a call, are the category `HOST` of the
        module. Empty when no call was timed.
    modules : mapping of str to Compared
        By module, everything below it included; a root is the sum of all cells.
    categories : mapping of Category to Compared
    attributed : float or None
        The timed calls over the run beside them, above 1 where timing them costs more or that run was faster
        (`modelmeter.measurement.StageMeasurement.attributed`); None when no call was timed.
    rest : Compared
        What runs between calls: the total less the cells.
    """

    stage: str
    bindings: Mapping[str, int]
    total: Compared
    runs: int
    spread: float
    cells: Mapping[Cell, Compared] = field(factory=dict[Cell, Compared])
    modules: Mapping[str, Compared] = field(factory=dict[str, Compared])
    categories: Mapping[Category, Compared] = field(factory=dict[Category, Compared])
    attributed: float | None = None

    @cached_property
    def rest(self) -> Compared:
        """What the cells leave of the total."""
        work = sum_compared(self.cells.values())
        return Compared(
            predicted=_less(self.total.predicted, work.predicted),
            measured=float(_left(self.total.measured, work.measured)),
            calls=0,
            spread=None,
        )


def compare(
    model: AnalyticModel,
    measurement: Measurement,
    time_model: TimeModel,
    *,
    kernels: TimeModel | None = None,
    variant: Mapping[str, str] | None = None,
) -> tuple[StageComparison, ...]:
    """Predict every stage of a measurement at its sizes, and set the two side by side.

    Parameters
    ----------
    model : AnalyticModel
        The model that was measured.
    measurement : Measurement
        How long its stages took.
    time_model : TimeModel
        Predicts the stages' totals.
    kernels : TimeModel or None
        Predicts the work of calls, where that differs: on a GPU, where kernels are measured apart from what the device
        waits for the host, it is the same model without a host (the runtime "cudagraph"). What the device waits is
        predicted by `time_model`. On a CPU None: a call's time is measured until the next one begins, host and all.
    variant : mapping of str to str or None
        What the prediction is of, where that is not the graph's variant: another way to run its experts.

    Raises
    ------
    MeasurementMismatchError
        When the measurement is of another model or variant, or timed other calls than the schedule has.
    UnknownMeasuredStageError
        When it has a stage that the model does not have.
    """
    check_same_model(model, measurement, {**model.variant, **(variant or {})})
    return tuple(
        compare_stage(
            model,
            measured,
            total=_sum(_times(time_model, model, measured).values()),
            cells=_cell_times(time_model, kernels, model, measured) if measured.call_seconds else {},
        )
        for measured in measurement.stages
    )


def check_same_model(model: AnalyticModel, measurement: Measurement, variant: Mapping[str, str]) -> None:
    """Refuse a measurement of another model or variant.

    Raises
    ------
    MeasurementMismatchError
        When the names or a fact of the variants differ; the message names each.
    """
    differences = [] if measurement.model == model.name else [f"the model is {measurement.model}, not {model.name}"]
    differences += [
        f"{fact} is {measurement.variant.get(fact, 'not given')}, not {variant.get(fact, 'not given')}"
        for fact in sorted(measurement.variant.keys() | variant.keys())
        if measurement.variant.get(fact) != variant.get(fact)
    ]
    if differences:
        raise MeasurementMismatchError(
            f"the measurement of {measurement.date} is of another model: {'; '.join(differences)}. Measure this one "
            "with `dsocr-graph measure`, or analyze the one that was measured"
        )


def compare_stage(
    model: AnalyticModel, measured: StageMeasurement, *, total: Time, cells: Mapping[Cell, Time]
) -> StageComparison:
    """Set one execution of a stage beside its prediction.

    Parameters
    ----------
    model : AnalyticModel
        The model that was measured.
    measured : StageMeasurement
        Its stage at some sizes.
    total : Time
        Predicted, of the stage.
    cells : mapping of (module id, category) to Time
        Predicted, of what the measured calls contain: as `TimeModel.times` gives them, or kernels and host apart.

    Raises
    ------
    MeasurementMismatchError
        When not each call of the schedule was timed.
    UnknownMeasuredStageError
        When the model does not have the stage.
    """
    stage = _stage(model, measured.stage)
    whole = Compared(predicted=total, measured=measured.seconds, calls=len(stage.schedule), spread=None)
    runs = len(measured.cpu_seconds or measured.wall_seconds)
    compared = _cells(model, stage, measured, cells) if measured.call_seconds else {}
    return StageComparison(
        stage=stage.name,
        bindings=measured.bindings,
        total=whole,
        runs=runs,
        spread=measured.spread,
        cells=compared,
        modules=_inclusive(model, compared),
        categories={
            category: sum_compared(row for (_, found), row in compared.items() if found is category)
            for category in Category
            if any(found is category for _, found in compared)
        },
        attributed=measured.attributed if measured.call_seconds else None,
    )


def sum_compared(rows: Iterable[Compared]) -> Compared:
    """Return some rows together; the spread is the mean, weighed by measured seconds, of those that have one."""
    rows = tuple(rows)
    spreads = [(row.spread, row.measured) for row in rows if row.spread is not None and row.measured]
    weight = sum(measured for _, measured in spreads)
    return Compared(
        predicted=_sum(row.predicted for row in rows),
        measured=sum(row.measured for row in rows),
        calls=sum(row.calls for row in rows),
        spread=sum(spread * measured for spread, measured in spreads) / weight if weight else None,
    )


# --- cells


def _cells(
    model: AnalyticModel, stage: Stage, measured: StageMeasurement, predicted: Mapping[Cell, Time]
) -> dict[Cell, Compared]:
    """Return predicted and measured time by module and category, in the order of the leaves, then the views."""
    records = (*model.leaves_by_stage[stage.name], *model.free_by_stage[stage.name])
    waiting = _by_record(model, stage, measured.scaled_waiting_seconds)
    rows: dict[Cell, list[Compared]] = {}
    for position, seconds in sorted(_by_record(model, stage, measured.scaled_call_seconds).items()):
        record, waits = records[position], waiting[position]
        cell = (record.module, record.category if isinstance(record, Leaf) else Category.HOST)
        work = [whole - wait for whole, wait in zip(seconds, waits, strict=True)]
        rows.setdefault(cell, []).append(
            Compared(predicted=Time(), measured=sum(work), calls=len(work), spread=_spread(work))
        )
        if any(waits):
            rows.setdefault((record.module, Category.HOST), []).append(
                Compared(predicted=Time(), measured=sum(waits), calls=0, spread=None)
            )
    for cell, time in predicted.items():
        rows.setdefault(cell, []).append(Compared(predicted=time, measured=0.0, calls=0, spread=None))
    return {cell: sum_compared(parts) for cell, parts in rows.items()}


def _by_record(model: AnalyticModel, stage: Stage, calls: Sequence[float]) -> dict[int, list[float]]:
    """Return the measured seconds of each call, by the position of its leaf or free call."""
    if len(calls) != len(stage.schedule):
        raise MeasurementMismatchError(
            f"the measurement of stage {stage.name!r} has {len(calls):,} timed calls, the graph of "
            f"{model.name} has {len(stage.schedule):,}: the two were made by different versions of the code or of "
            "torch. Measure again with this one"
        )
    seconds: dict[int, list[float]] = {}
    for position, time in zip(stage.schedule, calls, strict=True):
        seconds.setdefault(position, []).append(time)
    return seconds


def _spread(seconds: Sequence[float]) -> float | None:
    if len(seconds) < _FEWEST_EQUAL:
        return None
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return float((high - low) / 2 / middle) if middle else None


def _inclusive(model: AnalyticModel, cells: Mapping[Cell, Compared]) -> dict[str, Compared]:
    """Return the rows of modules with everything below them, parents before children."""
    parts: dict[str, list[Compared]] = {}
    for (module, _), row in cells.items():
        parts.setdefault(module, []).append(row)
    sums: dict[str, Compared] = {}
    for node in reversed(model.modules):  # children before parents
        if node.id not in parts:
            continue
        sums[node.id] = sum_compared(parts[node.id])
        if node.parent is not None:
            parts.setdefault(node.parent, []).append(sums[node.id])
    return {node.id: sums[node.id] for node in model.modules if node.id in sums}


# --- times


def _times(time_model: TimeModel, model: AnalyticModel, measured: StageMeasurement) -> Mapping[Cell, Time]:
    run = StageRun(stage=_stage(model, measured.stage).name, count=1, bindings=measured.bindings)
    return time_model.times(model, run, Binding(bindings=measured.bindings))


def _cell_times(
    time_model: TimeModel, kernels: TimeModel | None, model: AnalyticModel, measured: StageMeasurement
) -> Mapping[Cell, Time]:
    """Return predicted times by module and category; with kernels apart, the host of a module's calls as one cell."""
    whole = _times(time_model, model, measured)
    if kernels is None:
        return whole
    apart = _times(kernels, model, measured)
    cells = {cell: _work(time) for cell, time in apart.items() if cell[1] is not Category.HOST}
    for module in dict.fromkeys(module for module, _ in whole):
        everything = _sum(time for (found, _), time in whole.items() if found == module)
        work = _sum(time for (found, _), time in cells.items() if found == module)
        cells[module, Category.HOST] = _less(everything, work)
    return cells


def _stage(model: AnalyticModel, name: str) -> Stage:
    stage = next((stage for stage in model.stages if stage.name == name), None)
    if stage is None:
        raise UnknownMeasuredStageError(
            "stage", name, [stage.name for stage in model.stages], "The measurement has it, the model does not."
        )
    return stage


def _sum(times: Iterable[Time]) -> Time:
    return sum(times, Time())


def _work(time: Time) -> Time:
    """Return a time without what the host adds, which is the same in every run where nothing waits for it."""
    return evolve(time, host=0.0, draws=None if time.draws is None else time.draws - time.host, interval=None)


def _less(whole: Time, part: Time) -> Time:
    """Return what is left of a time, as time of the host; in each run the rest of that run."""
    draws: Draws | None = None
    if whole.draws is not None:
        draws = _left(whole.draws, part.seconds if part.draws is None else part.draws)
    return Time(host=float(_left(whole.seconds, part.seconds)), draws=draws)


def _left(whole: float | Draws, part: float | Draws) -> Draws:
    """Return what a part leaves of a whole: nothing where it is more, or where only rounding tells them apart."""
    left = np.subtract(whole, part)
    return np.where(left > _ROUNDING * np.asarray(whole), left, 0.0)
