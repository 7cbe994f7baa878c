"""Setup: what a side was evaluated with, so that it can be evaluated again with one thing changed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from attrs import field, frozen

from modelmeter.categories import Category
from modelmeter.compare.metrics import Metric
from modelmeter.costs import Amount, Number
from modelmeter.devices import load_device
from modelmeter.errors import ModelMeterError
from modelmeter.evaluate import evaluate_stage
from modelmeter.expert_counts import Routing, uniform_routing
from modelmeter.model import AnalyticModel
from modelmeter.predict.roofline import Roofline
from modelmeter.predict.time_model import PredictionFacts, TimeModel
from modelmeter.reports.report import Report
from modelmeter.routing import parse_routing
from modelmeter.workload import StageRun

Cells = Mapping[tuple[str, str, Category], Mapping[Metric, Number]]
"""Own work by stage, module and category."""


@frozen(kw_only=True)
class ItemRun:
    """A run of an item, whole or a share of it."""

    item: str
    run: StageRun
    weight: float = 1  # how many times it counts: causes are told apart by shares of runs


@frozen(kw_only=True)
class Setup:
    """What a side was evaluated with.

    Attributes
    ----------
    model : AnalyticModel
    runs : tuple of ItemRun
        In order.
    routing : Routing
    routing_name : str
        As reports call it.
    clock : TimeModel or None
        None where there are no times, or it is not known what made them.
    """

    model: AnalyticModel = field(repr=False)
    runs: tuple[ItemRun, ...]
    routing: Routing
    routing_name: str
    clock: TimeModel | None

    @property
    def stages(self) -> dict[str, list[ItemRun]]:
        """The runs of each stage."""
        found: dict[str, list[ItemRun]] = {}
        for each in self.runs:
            found.setdefault(each.run.stage, []).append(each)
        return found

    def cells(self) -> Cells:
        """Return the work of all runs.

        Raises
        ------
        ModelMeterError
            When the model does not fit the runs, or the clock does not know its calls.
        """
        sums: dict[tuple[str, str, Category], dict[Metric, Number]] = {}
        for each in self.runs:
            for (module, category), figures in _run_cells(_Run(setup=self, run=each.run)).items():
                held = sums.setdefault((each.run.stage, module, category), {})
                for metric, number in figures.items():
                    held[metric] = held.get(metric, 0) + each.weight * number
        return sums


def setup_of(report: Report, model: AnalyticModel, clock: TimeModel | None = None) -> Setup | None:
    """Return what a report of a model was evaluated with; None where its routing is not known by name.

    Parameters
    ----------
    report : Report
    model : AnalyticModel
        The one that it is of.
    clock : TimeModel, optional
        What made its times; without it, the roofline of a device of the table is recognised.

    Examples
    --------
    >>> import modelmeter
    >>> from modelmeter.evaluate import evaluate
    >>> from modelmeter.workload import Workload, WorkloadItem
    >>> step = StageRun(stage="decode", count=1, bindings={"B": 1, "T": 10})
    >>> workload = Workload(name="step", items=(WorkloadItem(name="one", documents=1, runs=(step,)),))
    >>> model = modelmeter.load("deepseek-ocr", "tiny")
    >>> setup_of(evaluate(model, workload, device=modelmeter.load_device("h200")), model).clock.device.key
    'h200'
    """
    routing = _routing_named(report.routing, model)
    if routing is None:
        return None
    return Setup(
        model=model,
        runs=tuple(ItemRun(item=item.name, run=run) for item in report.items for run in item.runs),
        routing=routing,
        routing_name=report.routing,
        clock=_roofline_of(report.prediction) if clock is None else clock,
    )


def _routing_named(name: str, model: AnalyticModel) -> Routing | None:
    if name == uniform_routing.__name__:
        return uniform_routing
    try:
        return parse_routing(name, model)
    except (ModelMeterError, OSError):  # a function of a caller, or a histogram that is not there any more
        return None


def _roofline_of(prediction: PredictionFacts | None) -> TimeModel | None:
    if prediction is None:
        return None
    try:
        device = load_device(prediction.device.key)
    except ModelMeterError:  # of a table of the caller's
        return None
    clock = Roofline(device=device, fused=prediction.traffic == "fused")
    return clock if clock.facts == prediction else None


# --- one run


@frozen(kw_only=True, eq=False)
class _Run:
    """A run of a setup, equal to another one where model, sizes, routing and clock are the same."""

    setup: Setup
    run: StageRun

    @property
    def _key(self) -> tuple[object, ...]:
        setup, run = self.setup, self.run
        sizes = tuple(sorted((dim, size) for dim, size in run.bindings.items()))
        return id(setup.model), id(setup.clock), setup.routing_name, run.stage, run.count, run.sweep, sizes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Run) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=512)
def _run_cells(of: _Run) -> Mapping[tuple[str, Category], Mapping[Metric, Number]]:
    setup, run = of.setup, of.run
    known = {dim for each in setup.model.stages for dim in each.dims} | setup.model.dims.keys()
    sizes: dict[str, Any] = {dim: size for dim, size in run.bindings.items() if dim in known}
    cost = evaluate_stage(
        setup.model,
        run.stage,
        count=run.count,
        sweep=run.sweep,
        time_model=setup.clock,
        routing=setup.routing,
        **sizes,
    )
    return {key: figures_of(amount) for key, amount in cost.cells.items()}


def figures_of(amount: Amount) -> dict[Metric, Number]:
    """Return an amount of work as figures that add up.

    Examples
    --------
    >>> from modelmeter.costs import Cost
    >>> figures_of(Amount(cost=Cost(matmul_flops=4, bytes=6)))[Metric.FLOPS]
    4
    """
    figures: dict[Metric, Number] = {
        Metric.FLOPS: amount.cost.flops,
        Metric.BYTES: amount.cost.bytes,
        Metric.FUSED_BYTES: amount.cost.fused_bytes,
    }
    if amount.time is not None:
        figures[Metric.TIME] = amount.time.seconds
    return figures
