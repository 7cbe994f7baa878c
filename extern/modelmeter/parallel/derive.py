"""derived_plan: how devices can share a model, read from its own modules and operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from modelmeter.compare.roles import Part, Tower
from modelmeter.model import AnalyticModel, Leaf
from modelmeter.parallel.blocks import Block, Shared, attention_shares, dispatching, expert_shares, feed_forward_shares
from modelmeter.parallel.errors import MissingPlanError
from modelmeter.parallel.layout import Layout
from modelmeter.parallel.links import Operation
from modelmeter.parallel.plan import Exchange, Group, Operator, Role, ShardingPlan, Share, operator_of
from modelmeter.parallel.structure import ATTENTIONS, Structure

_FEED_FORWARDS = (Part.FEED_FORWARD, Part.SHARED_EXPERTS)
_ROWS = (Role.ROW, Role.EXPERT_ROW)
_HOLDING = (Role.COLUMN, Role.ROW, Role.VOCABULARY)

# What a layer's parts sum over tensor ranks: the parts, and a name for reports.
_SUMS = (
    ((Part.ATTENTION,), "attention output"),
    ((Part.CROSS_ATTENTION,), "cross-attention output"),
    ((*_FEED_FORWARDS, Part.EXPERTS, Part.ROUTER), "MLP output"),
)


def derived_plan(model: AnalyticModel) -> ShardingPlan:
    """Return the plan that follows from a model's structure.

    Decoder layers are the list that the attention of the stages with a KV cache lies in. In each layer, projections to
    heads and into a feed-forward are columns, those back are rows, and what runs on heads or features between them is
    divided alike; projections to a latent, routers and norms run on every tensor rank. Experts are divided where they
    are grouped products. Keys and values are divided by their own heads, of which every rank needs one at least; those
    without heads, such as a latent, are kept whole by every rank. The embedding of the largest vocabulary is divided
    by its rows, the head by its features. Stages without a KV cache encode, each device whole documents.

    Source: Shoeybi et al. 2019, "Megatron-LM: training multi-billion parameter language models using model
    parallelism", section 3, for columns, rows and the one all-reduce after each pair.

    Raises
    ------
    MissingPlanError
        When no plan can be told; the message says why.

    Examples
    --------
    >>> import modelmeter
    >>> plan = derived_plan(modelmeter.load("qwen3-8b"))
    >>> plan.layers, plan.cache.value, plan.role("decode", "model.layers.[0-35].self_attn.k_proj/linear").value
    ('model.layers', 'inner', 'column')
    """
    structure = Structure(model=model)
    if not structure.decoding:
        return _undivided(structure)
    shares = {operator_of(leaf): share for leaf, share in _shares(structure)}
    _require_rows(structure, shares)
    cache = _cache(structure, shares)
    return ShardingPlan(
        shares=shares,
        modules=_modules(structure, shares),
        exchanges=(*_ends_exchanges(structure), *_sums(structure, shares), *_expert_exchanges(structure)),
        layers=structure.layers,
        stream=structure.stream,
        encoding=structure.encoding,
        encoder=structure.encoder,
        features=structure.features,
        states=structure.states,
        cache=cache,
        assumptions=tuple(_assumptions(structure, cache)),
    )


def plan_for(model: AnalyticModel, layout: Layout) -> ShardingPlan:
    """Return the derived plan or, where a layout cuts no layers and none can be told, one that divides nothing.

    Raises
    ------
    MissingPlanError
        As `derived_plan`, where layers are cut.

    Examples
    --------
    >>> import modelmeter
    >>> plan_for(modelmeter.load("qwen3-8b"), Layout(data=2)).layers
    'model.layers'
    """
    try:
        return derived_plan(model)
    except MissingPlanError:
        if layout.cuts_layers:
            raise
        return _undivided(Structure(model=model))


def _undivided(structure: Structure) -> ShardingPlan:
    return ShardingPlan(
        shares={},
        modules={},
        exchanges=(),
        layers="",
        stream=frozenset(),
        encoding=structure.encoding,
        encoder=structure.encoder,
        assumptions=(_left_out(structure),) if structure.encoding and structure.decoding else (),
    )


def _assumptions(structure: Structure, cache: Role) -> Iterator[str]:
    yield (
        f"How devices share the model is read from its structure: {structure.layers} are its decoder layers; "
        "projections to heads or into a feed-forward are divided by what they make, those back by what they read."
    )
    if cache is Role.REPLICATED:
        yield "Every tensor rank keeps the whole KV cache: what is kept has no heads to divide, as a latent."
    if structure.encoding and not structure.features and not structure.states:
        yield _left_out(structure)


def _left_out(structure: Structure) -> str:
    return f"What the {structure.encoder} hands to the decoder is left out: no operator was found that takes it."


# --- roles


def _shares(structure: Structure) -> Shared:
    for leaf in structure.vocabulary:
        yield leaf, Share(role=Role.VOCABULARY)
    for leaf in structure.heads:
        yield leaf, Share(role=Role.COLUMN)
    for block in structure.blocks:
        yield from _block_shares(block)


def _block_shares(block: Block) -> Shared:
    if block.part in ATTENTIONS:
        return attention_shares(block)
    if block.part in _FEED_FORWARDS:
        return feed_forward_shares(block)
    if block.part is Part.EXPERTS:
        return expert_shares(block)
    if block.products and block.part is not Part.ROUTER:
        raise block.refusal(
            f"{block.products[0].leaf.id} is a product in a layer, but of no attention, feed-forward, experts or router"
        )
    return iter(())


def _require_rows(structure: Structure, shares: Mapping[Operator, Share]) -> None:
    """Refuse a layer that every tensor rank would run whole."""
    rows = (leaf for leaf in structure.leaves if _has_role(shares, leaf, _ROWS))
    divided = {structure.layer_of(leaf.module) for leaf in rows}
    for node in structure.model.modules:
        if node.parent == structure.layers and node.id not in divided:
            raise MissingPlanError(
                structure.model.name, f"layer {node.id} has neither heads nor a pair of products to divide"
            )


def _has_role(shares: Mapping[Operator, Share], leaf: Leaf, roles: Iterable[Role]) -> bool:
    share = shares.get(operator_of(leaf))
    return share is not None and share.role in roles


def _modules(structure: Structure, shares: Mapping[Operator, Share]) -> Mapping[str, Role]:
    """Return how the parameters of each module itself are held.

    Raises
    ------
    MissingPlanError
        When operators of one module divide them in different ways.
    """
    found = {
        node.id: Role.EXPERT_COLUMN
        for node in structure.model.modules
        if node.parameters and _place(structure, node.id) == (Tower.DECODER, Part.EXPERTS)
    }
    for leaf in structure.leaves:
        share = shares.get(operator_of(leaf))
        if share is not None and share.role in _HOLDING and found.setdefault(leaf.module, share.role) != share.role:
            raise MissingPlanError(
                structure.model.name,
                f"the parameters of {leaf.module} are divided as {found[leaf.module].value} and as {share.role.value}",
            )
    return found


def _place(structure: Structure, module: str) -> tuple[Tower, Part]:
    place = structure.places[module]
    return place.tower, place.part


def _cache(structure: Structure, shares: Mapping[Operator, Share]) -> Role:
    """Return INNER if every tensor that grows with the tokens has heads, else REPLICATED: an upper bound."""
    growing = [leaf for block in structure.blocks if block.part in ATTENTIONS for leaf in block.leaves if _grows(leaf)]
    by_heads = [_has_role(shares, leaf, (Role.INNER,)) for leaf in growing]
    return Role.INNER if by_heads and all(by_heads) else Role.REPLICATED


def _grows(leaf: Leaf) -> bool:
    """Whether an operator was captured as a concatenation of a tensor with one of fewer or more tokens."""
    if leaf.signature is None or leaf.signature.op != "aten::cat":
        return False
    tensors = leaf.signature.tensors
    if len(tensors) != 2 or len(tensors[0].shape) != len(tensors[1].shape):
        return False
    old, new = (tensor.shape for tensor in tensors)
    return any(before != after and not isinstance(before, int) for before, after in zip(old, new, strict=True))


# --- exchanges


def _ends_exchanges(structure: Structure) -> Iterator[Exchange]:
    """Yield what is exchanged before and after the layers."""
    for leaves, operation, what in (
        (structure.vocabulary, Operation.ALL_REDUCE, "embeddings"),
        (structure.heads, Operation.ALL_GATHER, "logits"),
    ):
        for leaf in leaves:
            yield Exchange(after=operator_of(leaf), operation=operation, group=Group.TENSOR, what=what)


def _sums(structure: Structure, shares: Mapping[Operator, Share]) -> Iterator[Exchange]:
    """Yield the all-reduce of each attention and feed-forward with a row, after what it runs last in the layer."""
    for parts, what in _SUMS:
        last: dict[tuple[str, str], Leaf] = {}
        summing: set[tuple[str, str]] = set()
        for leaf in structure.leaves:
            layer = structure.layer_of(leaf.module)
            if layer is not None and structure.places[leaf.module].part in parts:
                last[leaf.stage, layer] = leaf
                summing |= {(leaf.stage, layer)} if _has_role(shares, leaf, _ROWS) else set()
        for place, leaf in last.items():
            if place in summing:
                yield Exchange(after=operator_of(leaf), operation=Operation.ALL_REDUCE, group=Group.TENSOR, what=what)


def _expert_exchanges(structure: Structure) -> Iterator[Exchange]:
    """Yield what expert ranks exchange: the rows that the first product reads, and those that the last makes."""
    for block in structure.blocks:
        if block.part is Part.EXPERTS:
            for leaf, what in (
                (dispatching(block), "expert dispatch"),
                (block.products[-1].leaf, "expert combine"),
            ):
                yield Exchange(after=operator_of(leaf), operation=Operation.ALL_TO_ALL, group=Group.EXPERT, what=what)
