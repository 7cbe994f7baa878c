"""Runs: one run of a workload as the devices of a layout share it, and what a device of one part makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attrs import evolve, frozen

from modelmeter.binding import Binding
from modelmeter.costs import Cost, Number
from modelmeter.devices import DeviceSpec
from modelmeter.devices.spec import Link
from modelmeter.evaluate import StageCost, evaluate_stage
from modelmeter.expert_counts import Routing
from modelmeter.model import AnalyticModel
from modelmeter.parallel.errors import LayoutError
from modelmeter.parallel.exchanges import Message
from modelmeter.parallel.layout import divisors
from modelmeter.parallel.links import Latency, seconds_of
from modelmeter.parallel.parts import Part, Sharding
from modelmeter.parallel.report import CollectiveReport, StageTime
from modelmeter.workload import StageRun, Workload, WorkloadItem


@frozen(kw_only=True)
class Terms:
    """What costs and times are counted by."""

    device: DeviceSpec
    link: Link | None
    latency: Latency
    routing: Routing
    fused: bool


@frozen(kw_only=True)
class SharedRun:
    """A run as one replica, or one encoder, has it."""

    run: StageRun  # with a share of the batch, or of the documents
    pieces: int  # into which each execution was cut for the pipeline


@frozen(kw_only=True)
class PartRun:
    """What one device of a part does in a run, and holds at most."""

    part: Part
    stage: str
    cost: Cost
    repeated: Cost
    kv_cache_bytes: Number
    activation_bytes: Number
    compute_seconds: float
    collectives: tuple[CollectiveReport, ...]

    @property
    def communication_seconds(self) -> float:
        """Seconds of all exchanges."""
        return sum(each.seconds for each in self.collectives)

    @property
    def seconds(self) -> float:
        """Compute and communication."""
        return self.compute_seconds + self.communication_seconds


def shared_runs(sharding: Sharding, workload: Workload) -> Iterator[SharedRun]:
    """Yield the runs of a workload, each with the share that one replica or encoder has.

    Raises
    ------
    LayoutError
        When a batch, or the documents to encode, cannot be shared evenly.
    """
    for item in workload.items:
        for run in item.runs:
            share = _documents if run.stage in sharding.plan.encoding else _batch
            yield share(sharding, item, run)


def _documents(sharding: Sharding, item: WorkloadItem, run: StageRun) -> SharedRun:
    """Return the share of one encoder: of a batch, or of executions for one document each."""
    encoders, dim = sharding.layout.vision_data, sharding.plan.batch
    batch = run.bindings.get(dim, 1)
    documents = batch if batch > 1 else run.count
    if documents % encoders:
        raise LayoutError(
            f"vision_data={encoders} encoders cannot share the {documents} documents of {item.name!r} in stage "
            f"{run.stage!r} evenly; degrees that can are {_listed(documents)}, or choose a multiple of {encoders} as "
            "the batch"
        )
    if batch > 1:
        return SharedRun(run=evolve(run, bindings={**run.bindings, dim: batch // encoders}), pieces=1)
    return SharedRun(run=evolve(run, count=run.count // encoders), pieces=1)


def _batch(sharding: Sharding, item: WorkloadItem, run: StageRun) -> SharedRun:
    dim, layout = sharding.plan.batch, sharding.layout
    pieces = 1 if run.sweep else layout.micro_batches
    parts = layout.data * pieces
    if parts == 1:
        return SharedRun(run=run, pieces=1)
    if dim not in run.bindings:
        raise LayoutError(
            f"data={layout.data} replicas with {pieces} micro-batches share the batch {dim}, which stage "
            f"{run.stage!r} of {sharding.model.name} does not have among its dims; leave data and micro_batches at 1"
        )
    batch = run.bindings[dim]
    if batch % parts:
        raise LayoutError(
            f"data={layout.data} replicas with {pieces} micro-batches cannot share the batch of {batch} of "
            f"{item.name!r} in stage {run.stage!r} evenly; products that can are {_listed(batch)}, or choose a "
            f"multiple of {parts} as the batch"
        )
    bindings = {**run.bindings, dim: batch // parts}
    return SharedRun(run=evolve(run, bindings=bindings, count=run.count * pieces), pieces=pieces)


def _listed(number: int) -> str:
    return ", ".join(map(str, divisors(number)))


# --- on one device


def run_part(part: Part, messages: Sequence[Message], shared: SharedRun, terms: Terms) -> PartRun:
    """Return what one device of a part does in a run."""
    run = shared.run
    found = _evaluated(part.model, run, terms)
    time = found.total.time
    # Each piece has keys and values of its own, and all of them are kept.
    cache = found.memory.peak_kv_cache_bytes * shared.pieces
    return PartRun(
        part=part,
        stage=run.stage,
        cost=found.total.cost,
        repeated=_evaluated(part.repeated, run, terms).total.cost,
        kv_cache_bytes=cache,
        activation_bytes=found.memory.peak_bytes - found.memory.peak_kv_cache_bytes,
        compute_seconds=0.0 if time is None else time.seconds,
        collectives=tuple(
            _collective(part, message, run, terms, terms.link)
            for message in messages
            if terms.link is not None and message.stage == run.stage
        ),
    )


def _evaluated(model: AnalyticModel, run: StageRun, terms: Terms) -> StageCost:
    # A workload may state sizes that no stage has, such as the columns of a crop grid.
    dims = model.stage(run.stage).dims
    sizes: dict[str, Any] = {dim: size for dim, size in run.bindings.items() if dim in dims}
    return evaluate_stage(
        model,
        run.stage,
        count=run.count,
        sweep=run.sweep,
        device=terms.device,
        routing=terms.routing,
        fused=terms.fused,
        **sizes,
    )


def _collective(part: Part, message: Message, run: StageRun, terms: Terms, link: Link) -> CollectiveReport:
    binding = Binding(bindings=run.bindings, count=run.count, sweep=run.sweep, routing=terms.routing)
    calls = message.calls * run.count
    moved = message.calls * binding.sum(message.bytes.text)
    sent = message.operation.sent_bytes(moved, ranks=message.ranks)
    return CollectiveReport(
        part=part.name,
        stage=run.stage,
        operation=message.operation.value,
        what=message.what,
        ranks=message.ranks,
        calls=calls,
        bytes=moved,
        sent_bytes=sent,
        seconds=seconds_of(
            message.operation, ranks=message.ranks, calls=calls, sent_bytes=sent, link=link, latency=terms.latency
        ),
    )


# --- along the pipeline


def stage_time(shared: SharedRun, runs: Sequence[PartRun]) -> StageTime:
    """Return how long the parts take that run one after the other, piece by piece.

    The first piece goes through all of them; each further one waits for the slowest: sum(t) + (m - 1) max(t) for m
    pieces of t seconds. With equal parts that is (m + p - 1) t.
    """
    slowest = max(runs, key=lambda run: run.seconds)
    rest = (shared.pieces - 1) / shared.pieces

    def path(seconds: Callable[[PartRun], float]) -> float:
        return sum(map(seconds, runs)) / shared.pieces + rest * seconds(slowest)

    return StageTime(
        stage=shared.run.stage,
        compute_seconds=path(lambda run: run.compute_seconds),
        communication_seconds=path(lambda run: run.communication_seconds),
        busy_seconds=slowest.seconds,
    )
