"""Service: a model and what it runs at any batch; the memory and the times of a batch, by page and stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import field, frozen

from modelmeter.binding import Binding
from modelmeter.capacity.checks import require_count
from modelmeter.capacity.errors import CapacityError
from modelmeter.costs import Amount, Time
from modelmeter.expert_counts import Routing, uniform_routing
from modelmeter.model import AnalyticModel
from modelmeter.predict.time_model import TimeModel
from modelmeter.reports.memory import largest_by_stage, run_memory, stage_memory
from modelmeter.reports.report import Breakdown, ItemReport, RunMemory
from modelmeter.reports.serving import DECODE, PREFILL
from modelmeter.workload import StageRun, Workload, WorkloadItem

_RunKey = tuple[str, int, tuple[tuple[str, int], ...], str | None]


@frozen(kw_only=True)
class _Batch:
    """The workload of one batch; what is worked out at its sizes for one device serves all devices."""

    workload: Workload
    bindings: Mapping[_RunKey, Binding]  # runs that are equal share one


@frozen(kw_only=True)
class Service:
    """A model, and the pages it serves as a workload at each batch.

    Parameters
    ----------
    model : AnalyticModel
        Its first token of a page comes from the stage "prefill", each further one from a run of "decode"; one that runs
        neither, such as an encoder, yields pages and no tokens.
    workload_of : callable
        Batch, a whole number from 1 up -> Workload, each item of which has so many documents.
    routing : Routing
        How tokens choose experts.
    peaks_are_lower_bounds : bool
        Whether a run may need more memory than the model says, as under some what-ifs: `WhatIf` says which.

    Examples
    --------
    >>> import modelmeter
    >>> from modelmeter.workload import StageRun, Workload, WorkloadItem
    >>> def workload_of(batch: int) -> Workload:
    ...     prefill = StageRun(stage="prefill", count=1, bindings={"B": batch, "S": 283, "N": 273})
    ...     return Workload(name="figures", items=(WorkloadItem(name="page", documents=batch, runs=(prefill,)),))
    >>> service = Service(model=modelmeter.load("deepseek-ocr"), workload_of=workload_of)
    >>> service.memory(1).decided_by, service.memory(64).decided_by
    ('load', 'prefill')
    """

    model: AnalyticModel
    workload_of: Callable[[int], Workload]
    routing: Routing = uniform_routing
    peaks_are_lower_bounds: bool = False
    _batches: dict[int, _Batch] = field(factory=dict[int, _Batch], init=False, eq=False, repr=False)
    # By batch and identity of the clock, which is held so that no other takes its place.
    _timed: dict[tuple[int, int], tuple[TimeModel, tuple[ItemReport, ...]]] = field(
        factory=dict, init=False, eq=False, repr=False
    )

    @property
    def yields_tokens(self) -> bool:
        """Whether pages have a first token; those of an encoder have none."""
        return any(run.stage == PREFILL for item in self._at(1).workload.items for run in item.runs)

    def require_tokens(self, asked: str) -> None:
        """Refuse a question about tokens of pages that have none.

        Raises
        ------
        CapacityError
            When the workload runs no stage that yields a token.
        """
        if not self.yields_tokens:
            workload = self._at(1).workload
            stages = ", ".join(dict.fromkeys(run.stage for item in workload.items for run in item.runs))
            raise CapacityError(
                f"{asked} is about tokens, and workload {workload.name!r} of {self.model.name} yields none: it runs "
                f"{stages} alone. Leave it out, or ask a model with the stage {PREFILL!r}"
            )

    def memory(self, batch: int) -> RunMemory:
        """Return the device memory of running a batch: every parameter, and the largest peak of a stage.

        Raises
        ------
        CapacityError
            When the batch is no whole number from 1 up, or the workload is of another.
        UnknownStageError, UnboundDimError
            When the workload runs a stage that the model does not have, or gives no size for one of its dims.
        """
        bound = self._at(batch)
        memories = (
            stage_memory(self.model.stage(run.stage), item.name, bound.bindings[_key(run)])
            for item in bound.workload.items
            for run in item.runs
        )
        return run_memory(self.model, largest_by_stage(self.model, memories))

    def timed(self, batch: int, clock: TimeModel) -> tuple[ItemReport, ...]:
        """Return the pages of a batch with their times by stage, and no further split.

        Raises
        ------
        CapacityError
            When the batch is no whole number from 1 up, or the workload is of another.
        ModelMeterError
            When the time model has no time for a run.
        """
        key = (batch, id(clock))
        if key not in self._timed:
            self._timed[key] = (clock, _timed(self.model, self._at(batch), clock))
        return self._timed[key][1]

    def _at(self, batch: int) -> _Batch:
        require_count(batch, "batch")
        if batch not in self._batches:
            workload = self.workload_of(batch)
            _check(workload, batch)
            self._batches[batch] = _Batch(
                workload=workload,
                bindings={
                    _key(run): Binding(bindings=run.bindings, count=run.count, sweep=run.sweep, routing=self.routing)
                    for item in workload.items
                    for run in item.runs
                },
            )
        return self._batches[batch]


def _key(run: StageRun) -> _RunKey:
    return (run.stage, run.count, tuple(sorted(run.bindings.items())), run.sweep)


def _check(workload: Workload, batch: int) -> None:
    of_tokens = any(run.stage in {PREFILL, DECODE} for item in workload.items for run in item.runs)
    for item in workload.items:
        where = f"item {item.name!r} of workload {workload.name!r}"
        if item.documents != batch:
            raise CapacityError(
                f"{where} has {item.documents} documents at batch {batch}; return a workload whose items all have "
                f"{batch} documents"
            )
        stages = [run.stage for run in item.runs]
        if of_tokens and PREFILL not in stages:
            raise CapacityError(
                f"{where} runs {', '.join(stages)}: no first token without the stage {PREFILL!r}; add a run of it"
            )


def _timed(model: AnalyticModel, batch: _Batch, clock: TimeModel) -> tuple[ItemReport, ...]:
    times: dict[_RunKey, Time] = {}
    for item in batch.workload.items:
        for run in item.runs:
            key = _key(run)
            if key not in times:
                times[key] = sum(clock.times(model, run, batch.bindings[key]).values(), Time())
    return tuple(_item_report(item, times) for item in batch.workload.items)


def _item_report(item: WorkloadItem, times: Mapping[_RunKey, Time]) -> ItemReport:
    stages: dict[str, Amount] = {}
    executions: dict[str, int] = {}
    for run in item.runs:
        stages[run.stage] = stages.get(run.stage, Amount(time=Time())) + Amount(time=times[_key(run)])
        executions[run.stage] = executions.get(run.stage, 0) + run.count
    return ItemReport(
        name=item.name,
        documents=item.documents,
        facts=item.facts,
        runs=item.runs,
        breakdown=Breakdown(
            total=sum(stages.values(), Amount(time=Time())),
            executions=executions,
            stages=stages,
            components={},
            categories={},
            modules={},
            module_categories={},
        ),
        memory=(),
    )
