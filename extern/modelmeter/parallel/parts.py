"""Parts: the analytic model that one device runs, for the encoder and for each pipeline stage of the decoder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import chain
from math import gcd

from attrs import evolve, frozen

from modelmeter.model import AnalyticModel, Leaf, ModuleNode, PeakPoint, Stage
from modelmeter.parallel.division import Axis, Cut, cuts, divided, over
from modelmeter.parallel.errors import LayoutError
from modelmeter.parallel.layout import DECODER_DEGREES, Layout, divisors
from modelmeter.parallel.plan import EXPERT_ROLES, Role, ShardingPlan, operator_of
from modelmeter.whatif.change import with_layer


@frozen(kw_only=True)
class Part:
    """What each of some devices holds and runs alike."""

    name: str
    stages: tuple[str, ...]  # that it runs
    rank: int  # its place in the pipeline, from 0
    devices: int
    model: AnalyticModel  # of one device: leaves and memory divided
    captured: tuple[Leaf, ...]  # the same leaves undivided: their results are what is exchanged
    weight_bytes: int
    replicated_weight_bytes: int  # part of them that every tensor rank holds
    buffer_bytes: int  # of registered buffers, which every tensor rank holds
    roles: Mapping[str, Role]  # by leaf id

    @cached_property
    def repeated(self) -> AnalyticModel:
        """The operators alone that every tensor rank runs alike."""
        leaves = tuple(leaf for leaf in self.model.leaves if self.roles[leaf.id] is Role.REPLICATED)
        return evolve(self.model, leaves=leaves)


@frozen(kw_only=True)
class Sharding:
    """A model under a plan and a layout: where each leaf and module goes."""

    model: AnalyticModel
    plan: ShardingPlan
    layout: Layout

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The decoder's stages."""
        return tuple(stage for stage in self.model.stages if stage.name not in self.plan.encoding)

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The decoder's leaves."""
        return tuple(chain.from_iterable(self.model.leaves_by_stage[stage.name] for stage in self.stages))

    @cached_property
    def layers(self) -> int:
        """Decoder layers, of all instances."""
        found = (self.layers_of(node.id) for node in self.model.modules)
        return 1 + max(chain.from_iterable(found), default=-1)

    def layers_of(self, module: str) -> tuple[int, ...]:
        """Return the layers that a module lies in, or none.

        Examples
        --------
        >>> import modelmeter
        >>> from modelmeter.parallel.derive import derived_plan
        >>> model = modelmeter.load("deepseek-ocr")
        >>> sharding = Sharding(model=model, plan=derived_plan(model), layout=Layout())
        >>> sharding.layers_of("model.layers.[1-3].mlp"), sharding.layers_of("lm_head"), sharding.layers
        ((1, 2, 3), (), 12)
        """
        found = re.match(re.escape(self.plan.layers) + r"\.(?:(\d+)|\[([\d,-]+)\])(?:\.|$)", module)
        return () if found is None else tuple(_numbers(found[1] or found[2]))

    def role(self, leaf: Leaf) -> Role:
        """Return a leaf's role."""
        return self.plan.role(leaf.stage, leaf.id)

    @cached_property
    def encoder_modules(self) -> frozenset[str]:
        """The modules that a stage of the encoder calls, or whose nearest called ancestor one calls."""
        return frozenset(node.id for node in self.model.modules if self._callers(node) & set(self.plan.encoding))

    def _callers(self, node: ModuleNode) -> set[str]:
        while not node.calls and node.parent is not None:
            node = self._nodes[node.parent]
        return set(node.calls)

    @cached_property
    def _nodes(self) -> Mapping[str, ModuleNode]:
        return {node.id: node for node in self.model.modules}

    @cached_property
    def first_layer_at(self) -> Mapping[str, int]:
        """The position of the first leaf in a layer, by stage; what runs before it goes with the first layers."""
        return {
            stage.name: next(
                (at for at, leaf in enumerate(self.model.leaves_by_stage[stage.name]) if self.layers_of(leaf.module)), 0
            )
            for stage in self.stages
        }

    @cached_property
    def leading(self) -> frozenset[str]:
        """Ids of the modules outside of layers that run before them."""
        return frozenset(
            leaf.module
            for stage in self.stages
            for leaf in self.model.leaves_by_stage[stage.name][: self.first_layer_at[stage.name]]
        )

    def share(self, module: str, calls: int, rank: int, *, leading: bool) -> int:
        """Return how many of a module's calls, or bytes, fall to a pipeline stage."""
        layers = self.layers_of(module)
        if not layers:
            return calls if rank == (0 if leading else self.layout.pipeline - 1) else 0
        height = self.layers // self.layout.pipeline
        return calls * sum(layer // height == rank for layer in layers) // len(layers)


def parts_of(sharding: Sharding) -> tuple[Part, ...]:
    """Return the encoder and the pipeline stages of the decoder, as far as the model has them.

    Raises
    ------
    LayoutError
        When a degree does not divide what it is to divide, or there is nothing of the kind.
    UndividedLayerError
        When a layer is in a role that no rule divides.
    """
    _check(sharding)
    encoder = (_encoder(sharding),) if sharding.plan.encoding else ()
    ranks = range(sharding.layout.pipeline) if sharding.stages else ()
    return encoder + tuple(_decoder(sharding, rank) for rank in ranks)


def _numbers(text: str) -> Iterator[int]:
    """Yield the numbers of "0-1,3"."""
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        yield from range(int(first), int(last or first) + 1)


# --- what a degree must divide


def _check(sharding: Sharding) -> None:
    _require_parts(sharding)
    for axis in Axis:
        found = [(cut, leaf) for leaf in sharding.leaves for cut in _cuts(sharding, leaf) if cut.axis is axis]
        degree = axis.degree(sharding.layout)
        offender = next((each for each in found if each[0].size % degree), None)
        if offender is not None:
            cut, leaf = offender
            allowed = divisors(gcd(*(each.size for each, _ in found)))
            raise LayoutError(
                f"{axis.value}={degree} does not divide the {cut.size} {cut.what} of {leaf.id}; degrees that divide "
                f"all of {sharding.model.name} are {', '.join(map(str, allowed))}"
            )
    if sharding.layers % sharding.layout.pipeline:
        raise LayoutError(
            f"pipeline={sharding.layout.pipeline} does not divide the {sharding.layers} layers of "
            f"{sharding.plan.layers}; degrees that do are {', '.join(map(str, divisors(sharding.layers)))}"
        )


def _require_parts(sharding: Sharding) -> None:
    """Refuse a degree of a part that the model does not have."""
    layout, model = sharding.layout, sharding.model.name
    experts = any(role in EXPERT_ROLES for role in map(sharding.role, sharding.leaves))
    if layout.expert > 1 and sharding.stages and not experts:
        raise LayoutError(f"expert={layout.expert} shares experts, and {model} has none; leave expert at 1")
    if layout.vision_data > 1 and not sharding.plan.encoding:
        raise LayoutError(
            f"vision_data={layout.vision_data} shares what is encoded, and every stage of {model} decodes; leave "
            "vision_data at 1, data shares the batch"
        )
    of_decoders = {name: getattr(layout, name) for name in DECODER_DEGREES if getattr(layout, name) > 1}
    if of_decoders and not sharding.stages:
        given = ", ".join(f"{name}={degree}" for name, degree in of_decoders.items())
        raise LayoutError(
            f"{given} shares a decoder, and no stage of {model} leaves keys and values behind, as one would; "
            "vision_data shares the documents that its stages encode"
        )


def _cuts(sharding: Sharding, leaf: Leaf) -> Iterator[Cut]:
    share = sharding.plan.shares.get(operator_of(leaf))
    if share is None or share.role is Role.REPLICATED:
        return
    yield from cuts(leaf.layer, share.role)
    if share.heads is not None:
        yield Cut(axis=Axis.TENSOR, what="heads" if share.heads > 1 else "head", size=share.heads)


# --- parts


def _encoder(sharding: Sharding) -> Part:
    model = sharding.model
    leaves = tuple(chain.from_iterable(model.leaves_by_stage[name] for name in sharding.plan.encoding))
    held = [node for node in model.modules if node.id in sharding.encoder_modules]
    weights = sum(node.parameter_bytes for node in held)
    return Part(
        name=sharding.plan.encoder,
        stages=sharding.plan.encoding,
        rank=0,
        devices=sharding.layout.vision_data,
        model=evolve(model, leaves=leaves),
        captured=leaves,
        weight_bytes=weights,
        replicated_weight_bytes=weights,
        buffer_bytes=sum(node.buffer_bytes for node in held),
        roles={leaf.id: Role.REPLICATED for leaf in leaves},
    )


def _decoder(sharding: Sharding, rank: int) -> Part:
    layout, model = sharding.layout, sharding.model
    captured = tuple(_placed(sharding, rank))
    roles = {leaf.id: sharding.role(leaf) for leaf in captured}
    leaves = tuple(with_layer(leaf, divided(leaf.layer, roles[leaf.id], layout)) for leaf in captured)
    held = [
        (sharding.plan.module_role(node.id), _in_stage(sharding, node, node.parameter_bytes, rank))
        for node in model.modules
    ]
    height = sharding.layers // layout.pipeline
    layers = f", layers {rank * height} to {(rank + 1) * height - 1}" if layout.pipeline > 1 else ""
    return Part(
        name=f"decoder{layers}",
        stages=tuple(stage.name for stage in sharding.stages),
        rank=rank,
        devices=layout.stage_devices,
        model=evolve(model, leaves=leaves, stages=_with_divided_cache(sharding)),
        captured=captured,
        weight_bytes=sum(size // _holders(role, layout) for role, size in held),
        replicated_weight_bytes=sum(size for role, size in held if _holders(role, layout) == 1),
        buffer_bytes=sum(_in_stage(sharding, node, node.buffer_bytes, rank) for node in model.modules),
        roles=roles,
    )


def _placed(sharding: Sharding, rank: int) -> Iterator[Leaf]:
    """Yield the decoder's leaves that a pipeline stage runs, with its share of their calls."""
    for stage in sharding.stages:
        for at, leaf in enumerate(sharding.model.leaves_by_stage[stage.name]):
            leading = at < sharding.first_layer_at[stage.name]
            calls = sharding.share(leaf.module, leaf.calls, rank, leading=leading)
            if calls:
                yield leaf if calls == leaf.calls else evolve(leaf, calls=calls)


def _in_stage(sharding: Sharding, node: ModuleNode, size: int, rank: int) -> int:
    """Return how many bytes of what a module holds a pipeline stage has, before tensor and expert ranks share them."""
    if node.id in sharding.encoder_modules:
        return 0
    return sharding.share(node.id, size, rank, leading=node.id in sharding.leading)


def _holders(role: Role, layout: Layout) -> int:
    """Return the ranks among which a module's parameters are divided."""
    if role in EXPERT_ROLES:
        return layout.expert * layout.expert_width
    return layout.tensor if role in (Role.COLUMN, Role.ROW, Role.VOCABULARY) else 1


def _with_divided_cache(sharding: Sharding) -> tuple[Stage, ...]:
    """Return the stages with one device's keys and values; those beyond what a stage leaves belong to one layer."""
    layout = sharding.layout
    sharers = 1 if sharding.plan.cache is Role.REPLICATED else layout.tensor
    everywhere = sharers * layout.pipeline

    def peak_of(stage: Stage, peak: PeakPoint) -> PeakPoint:
        extra = over(peak.kv_cache_bytes - stage.kv_cache_bytes, sharers)
        return evolve(peak, kv_cache_bytes=over(stage.kv_cache_bytes, everywhere) + extra)

    if everywhere == 1:
        return sharding.model.stages
    return tuple(
        evolve(
            stage,
            kv_cache_bytes=over(stage.kv_cache_bytes, everywhere),
            peaks=tuple(peak_of(stage, peak) for peak in stage.peaks),
        )
        for stage in sharding.model.stages
    )
