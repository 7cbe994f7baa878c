"""Plan: which operator calls a calibration times, for which models at which sizes; imports no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property

from attrs import field, frozen

from dsocr_graph.errors import PlanError
from dsocr_graph.timing.row_lattice import at_more_rows
from modelmeter.defaults import MOE_FORMS
from modelmeter.expert_counts import Routing, uniform_routing
from modelmeter.model import AnalyticModel, Leaf
from modelmeter.predict.calibration import CalibratedModel, sample_key
from modelmeter.predict.expert_loop import GROUPED, Routed, calls_in_loop, loop_work, routing_sizes, spread_evenly
from modelmeter.predict.sites import site_of
from modelmeter.signature import Signature

Bindings = Mapping[str, int]


@frozen(kw_only=True)
class Point:
    """A stage at some sizes.

    Examples
    --------
    >>> Point(stage="decode", bindings={"B": 1, "T": 913}).text
    'decode B=1, T=913'
    """

    stage: str
    bindings: Bindings = field(converter=dict[str, int])

    @property
    def text(self) -> str:
        """The stage and its sizes in one line."""
        return f"{self.stage} {', '.join(f'{name}={size}' for name, size in self.bindings.items())}".rstrip()


@frozen(kw_only=True)
class PlannedCall:
    """One operator call to time."""

    signature: Signature  # with numbers
    conditions: Mapping[str, int]  # what else its time depends on; see `modelmeter.predict.calibration.Sample`
    flops: float  # of one execution, by the layer
    bytes: float  # of one execution, unfused, by the layer
    origin: str  # where it occurs first, for messages

    @cached_property
    def key(self) -> str:
        """The call and its conditions in one line, unique in a plan."""
        return sample_key(self.signature, self.conditions)


@frozen(kw_only=True)
class Plan:
    """All calls of a calibration, each once."""

    models: tuple[CalibratedModel, ...]
    calls: tuple[PlannedCall, ...]
    weight_bytes: int = 0  # of the largest of the models

    @cached_property
    def identity(self) -> str:
        """Equal for plans of the same calls in the same order, for the same models and sizes."""
        models = [f"{model.name} {sorted(model.variant.items())} {model.points}" for model in self.models]
        text = "\n".join([*models, *(call.key for call in self.calls)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """The floating-point types of the operands, by name."""
        tensors = (tensor for call in self.calls for tensor in call.signature.tensors)
        return tuple(sorted({tensor.dtype.value for tensor in tensors if tensor.dtype.is_floating}))


def plan_calls(
    models: Sequence[tuple[AnalyticModel, Sequence[Point]]], *, moe: str = "grouped", row_lattice: bool = False
) -> Plan:
    """Return the distinct calls of some models at some points.

    A grouped product of experts is planned for several numbers of active experts, since routing decides which it gets.

    Parameters
    ----------
    models : sequence of (AnalyticModel, sequence of Point)
        Compiled models, each with the points that it is to be timed at.
    moe : str
        "grouped", or "loop" to plan the calls of the published loop over experts as well, with rows spread over as many
        as are expected.
    row_lattice : bool
        Also plan every product whose rows vary at the numbers of rows of `dsocr_graph.timing.row_lattice.ROWS`: on a
        GPU its time has steps between the points.

    Raises
    ------
    PlanError
        When nothing is planned, `moe` is unknown, a point does not fit its model, or a model does not say which calls
        it makes.
    """
    if moe not in MOE_FORMS:
        raise PlanError(f"moe {moe!r} is not known; choose one of {', '.join(MOE_FORMS)}")
    calls: dict[str, PlannedCall] = {}
    for model, points in models:
        for point in points:
            check_point(model, point)
            leaves = model.leaves_by_stage[point.stage]
            for call in (call for leaf in leaves for call in _calls(model, leaf, point)):
                calls.setdefault(call.key, call)
            for call in _loop_calls(model, leaves, point) if moe == "loop" else ():
                calls.setdefault(call.key, call)
    if row_lattice:
        calls |= {call.key: call for call in _more_rows(models, calls.values())}
    if not calls:
        raise PlanError("nothing to calibrate: no model has a point; give at least one, such as decode:B=1,T=913")
    return Plan(
        models=tuple(
            CalibratedModel(
                name=model.name,
                variant=dict(model.variant),
                points=tuple((point.stage, dict(point.bindings)) for point in points),
            )
            for model, points in models
        ),
        calls=tuple(calls.values()),
        weight_bytes=max(model.parameter_bytes for model, _ in models),
    )


def _calls(model: AnalyticModel, leaf: Leaf, point: Point) -> Iterator[PlannedCall]:
    signature = _signature(model, leaf).at(point.bindings)
    for conditions in _conditions(signature):
        yield PlannedCall(
            signature=signature,
            conditions=conditions,
            flops=leaf.cost.matmul_flops.at(point.bindings) + leaf.cost.vector_flops.at(point.bindings),
            bytes=leaf.cost.bytes.at(point.bindings, routing=_routing(conditions)),
            origin=f"{leaf.module or 'the model'} in {point.text}",
        )


def _loop_calls(model: AnalyticModel, leaves: Sequence[Leaf], point: Point) -> Iterator[PlannedCall]:
    """Yield what the loop over experts calls in place of the grouped products and what surrounds them."""
    loops: dict[str, Routed] = {}  # by the module that holds the experts
    for leaf in leaves:
        if leaf.op == GROUPED:
            experts, per_token, tokens = routing_sizes(_signature(model, leaf).at(point.bindings))
            active = round(uniform_routing(experts, per_token, tokens))
            loops[leaf.module] = spread_evenly(tokens, per_token, experts, active)
    for leaf in (leaf for leaf in leaves if leaf.module in loops):
        for signature in calls_in_loop(_signature(model, leaf).at(point.bindings), loops[leaf.module]):
            work = loop_work(signature)
            origin = f"the loop of {leaf.module} in {point.text}"
            yield PlannedCall(signature=signature, conditions={}, flops=work.flops, bytes=work.bytes, origin=origin)


def _more_rows(
    models: Sequence[tuple[AnalyticModel, Sequence[Point]]], planned: Collection[PlannedCall]
) -> Iterator[PlannedCall]:
    """Yield the products of the models at the lattice of rows, those left out that are planned already."""
    taken = {site_of(call.signature, call.conditions) for call in planned}
    for model, points in models:
        # Layouts show where no axis is 1: at the largest sizes of each stage.
        largest = {point.stage: point for point in sorted(points, key=lambda point: math.prod(point.bindings.values()))}
        for stage, point in largest.items():
            for leaf in model.leaves_by_stage[stage]:
                for signature in at_more_rows(_signature(model, leaf), point.bindings):
                    site, work = site_of(signature, {}), loop_work(signature)
                    if site not in taken:
                        taken.add(site)
                        yield PlannedCall(
                            signature=signature,
                            conditions={},
                            flops=work.flops,
                            bytes=work.bytes,
                            origin=f"{leaf.module or 'the model'} in {stage} with {site.axes[0]} rows",
                        )


def _signature(model: AnalyticModel, leaf: Leaf) -> Signature:
    if leaf.signature is None:
        raise PlanError(
            f"leaf {leaf.id!r} of {model.name} does not say which operands its call takes; calibrate models that were "
            "compiled by this release of dsocr_graph, not ones written by hand"
        )
    return leaf.signature


def _conditions(signature: Signature) -> tuple[Mapping[str, int], ...]:
    if signature.op != GROUPED:
        return ({},)
    experts, per_token, tokens = routing_sizes(signature)
    return tuple({"active_experts": count} for count in active_counts(experts, per_token, tokens * per_token))


def _routing(conditions: Mapping[str, int]) -> Routing:
    return (lambda *_: conditions["active_experts"]) if conditions else uniform_routing


def active_counts(experts: int, per_token: int, rows: int) -> tuple[int, ...]:
    """Return the numbers of active experts to time a grouped product at: its bounds and around the expected number.

    Where every expert is expected to have rows, all of them and half of them.

    Examples
    --------
    Two tokens of six experts each touch 11.4 of 64 experts on average: 6 at least, 12 at most.

    >>> active_counts(64, 6, 12), active_counts(64, 6, 6 * 16), active_counts(64, 6, 6 * 900)
    ((6, 9, 11, 12), (6, 25, 38, 51, 64), (32, 64))
    """
    fewest, most = min(per_token, experts), min(experts, rows)
    expected = uniform_routing(experts, per_token, rows // per_token)
    if round(expected) == experts:
        return tuple(sorted({max(fewest, experts // 2), experts}))
    around = (round(expected * share) for share in (0.5, 0.75, 1.0))
    return tuple(sorted({fewest, most, *(count for count in around if fewest <= count <= most)}))


# --- points


def check_point(model: AnalyticModel, point: Point) -> None:
    """Refuse a point that does not fit a model.

    Raises
    ------
    PlanError
        When the model has no such stage, or the sizes are not those of the stage's dims.
    """
    dims = {stage.name: stage.dims for stage in model.stages}
    if point.stage not in dims:
        raise PlanError(f"{model.name} has no stage {point.stage!r}; its stages are {', '.join(dims)}")
    expected, given = set(dims[point.stage]), set(point.bindings)
    if expected != given:
        wanted = ", ".join(f"{name}=SIZE" for name in sorted(expected)) or "no sizes"
        raise PlanError(f"{point.text!r} does not fit stage {point.stage!r} of {model.name}, which takes {wanted}")
    _require_sizes(point)
    model.require_room(f"point {point.text!r}", point.bindings)


def parse_point(text: str) -> Point:
    """Read a point as the command line has it.

    Raises
    ------
    PlanError
        When the text is not a stage, a colon and sizes from 1 up.

    Examples
    --------
    >>> parse_point("decode:B=1,T=913").bindings, parse_point("vision_global").bindings
    ({'B': 1, 'T': 913}, {})
    """
    stage, _, sizes = text.partition(":")
    pairs = [part.partition("=") for part in sizes.split(",")] if sizes else []
    names = [name.strip() for name, _, _ in pairs]
    if not stage.strip() or not all(size.strip().isdecimal() for _, _, size in pairs) or len(set(names)) < len(names):
        raise PlanError(f"point {text!r} cannot be read; write a stage and its sizes, such as decode:B=1,T=913")
    point = Point(
        stage=stage.strip(), bindings={name: int(size) for name, (_, _, size) in zip(names, pairs, strict=True)}
    )
    _require_sizes(point)
    return point


def _require_sizes(point: Point) -> None:
    if any(size < 1 for size in point.bindings.values()):
        raise PlanError(f"{point.text!r} has a size below 1; sizes are whole numbers from 1 up")
