"""Roles: what part of a model a module is, from the tree, its stages, its operators and common names; of no model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

from attrs import frozen

from modelmeter.categories import Category


class Tower(StrEnum):
    """A part of a model with a place of its own in the data flow, in the order of tables."""

    VISION = "vision encoder"
    AUDIO = "audio encoder"
    TEXT = "text encoder"
    ENCODER = "encoder"
    PROJECTOR = "projector"
    DECODER = "decoder"
    HEAD = "head"
    MODEL = "model"  # of a model without a KV cache and without telling names
    WHOLE = "whole model"  # runs around the towers
    UNKNOWN = "not attributed"


class Part(StrEnum):
    """What a module does within a tower, in the order of tables."""

    EMBEDDING = "embedding"
    POSITIONS = "positions"
    CONVOLUTION = "convolution"
    ATTENTION = "attention"
    CROSS_ATTENTION = "cross-attention"
    FEED_FORWARD = "feed-forward"
    ROUTER = "router"
    EXPERTS = "experts"
    SHARED_EXPERTS = "shared experts"
    NORM = "norm"
    LINEAR = "linear"  # in no part that a name tells
    OTHER = "other"  # residual additions, merging, reshaping


_UNDIVIDED = (Tower.PROJECTOR, Tower.HEAD, Tower.WHOLE, Tower.UNKNOWN)
_TOWERS, _PARTS = list(Tower), list(Part)


@frozen(kw_only=True)
class Role:
    """A tower and what is done in it.

    Examples
    --------
    >>> Role(tower=Tower.DECODER, part=Part.NORM).name, Role(tower=Tower.HEAD).name
    ('decoder: norm', 'head')
    """

    tower: Tower
    part: Part = Part.OTHER

    @property
    def name(self) -> str:
        """The role in words."""
        return self.tower.value if self.tower in _UNDIVIDED else f"{self.tower.value}: {self.part.value}"

    @property
    def order(self) -> tuple[int, int]:
        """Where the role stands in tables."""
        return _TOWERS.index(self.tower), _PARTS.index(self.part)


UNATTRIBUTED = Role(tower=Tower.UNKNOWN)


@frozen(kw_only=True)
class Node:
    """A module as roles see it."""

    id: str
    class_name: str
    parent: str | None
    instances: int
    stages: frozenset[str]  # that run it or something below it
    categories: frozenset[Category]  # of the operators that it runs itself


def roles_of(nodes: Iterable[Node], cached: frozenset[str]) -> dict[str, Role]:
    """Return the role of each module.

    A tower is what names say (outermost first), else what the stages say: modules of stages that leave no keys and
    values behind encode, the others decode. A part is what the class, the attribute or the module's own operators say;
    what lies below an attention, a norm or an expert belongs to it.

    Parameters
    ----------
    nodes : iterable of Node
        Parents before children.
    cached : frozenset of str
        Stages that leave keys and values behind.

    Examples
    --------
    >>> def node(name, kind, parent):
    ...     stages = frozenset({"prefill"})
    ...     return Node(id=name, class_name=kind, parent=parent, instances=1, stages=stages, categories=frozenset())
    >>> tree = [node("", "Any", None), node("layers.0", "Layer", ""), node("layers.0.self_attn", "GQA", "layers.0")]
    >>> [role.name for role in roles_of(tree, frozenset({"prefill"})).values()]
    ['decoder: other', 'decoder: other', 'decoder: attention']
    """
    nodes = tuple(nodes)
    every = frozenset(stage for node in nodes for stage in node.stages)
    named: dict[str, Tower | None] = {}
    towers: dict[str, Tower] = {}
    parts: dict[str, Part] = {}
    for node in nodes:
        if node.parent is None:  # its class names the whole model: no part, and a tower only of a model that is one
            named[node.id], parts[node.id] = None if every & cached else _tower_in(node.class_name), Part.OTHER
        else:
            parts[node.id] = _part(node, parts[node.parent])
            named[node.id] = _named_tower(node, named[node.parent], parts[node.id])
        towers[node.id] = named[node.id] or _tower_of_stages(node, towers, every, cached)
    return {node.id: _role(towers[node.id], _own_part(node, parts[node.id])) for node in nodes}


def _role(tower: Tower, part: Part) -> Role:
    return Role(tower=tower) if tower in _UNDIVIDED else Role(tower=tower, part=part)


# --- towers

_PROJECTOR = re.compile(r"projector|connector|merger|aligner|resampler|perceiver|multi_?modal_proj", re.IGNORECASE)
_TOWER_NAMES = (
    (Tower.VISION, re.compile(r"vision|visual|image_?(encoder|tower|model)|pixel", re.IGNORECASE)),
    (Tower.AUDIO, re.compile(r"audio|speech|acoustic", re.IGNORECASE)),
)
_TEXT = re.compile(r"text_?(model|encoder|tower)|TextTransformer|TextEncoder", re.IGNORECASE)
_HEAD = re.compile(r"lm_head|heads?|classifier|score|proj_out|embed_out|output_projection")


def _named_tower(node: Node, inherited: Tower | None, inside: Part) -> Tower | None:
    """Return the tower that names say; a projector may lie inside another tower, a head in no part of a layer."""
    words = f"{_attribute(node)} {node.class_name}"
    if inherited is not Tower.PROJECTOR and inside is Part.OTHER and _PROJECTOR.search(words):
        return Tower.PROJECTOR
    if inherited is not None:
        return inherited
    if inside is Part.OTHER and _HEAD.fullmatch(_attribute(node)):
        return Tower.HEAD
    return _tower_in(words)


def _tower_in(words: str) -> Tower | None:
    return next((tower for tower, pattern in _TOWER_NAMES if pattern.search(words)), None)


def _tower_of_stages(node: Node, towers: Mapping[str, Tower], every: frozenset[str], cached: frozenset[str]) -> Tower:
    if not node.stages:  # nothing runs it: parameters that its parent reads
        return Tower.MODEL if node.parent is None else towers[node.parent]
    if node.stages <= cached:
        return Tower.DECODER
    if node.stages & cached:
        return Tower.WHOLE
    if node.parent is not None and towers[node.parent] in {Tower.TEXT, Tower.VISION, Tower.AUDIO}:
        return towers[node.parent]
    if node.parent is not None and _TEXT.search(f"{_attribute(node)} {node.class_name}"):
        return Tower.TEXT
    for tower, pattern in _TOWER_NAMES:
        if all(pattern.search(stage) for stage in node.stages):
            return tower
    encodes = bool(every & cached) or any("encode" in stage for stage in node.stages)
    return Tower.ENCODER if encodes else Tower.MODEL


# --- parts


def _pattern(part: Part, attribute: str, class_name: str) -> tuple[Part, re.Pattern[str], re.Pattern[str]]:
    return part, re.compile(attribute), re.compile(class_name)


# In order: a norm before an attention is called `post_attention_layernorm`, a router's class ends in `MoEGate`.
_PARTS_BY_NAME = (
    _pattern(Part.NORM, r"\w*norm\w*|ln_?\w{0,2}", r"Norm"),
    _pattern(Part.SHARED_EXPERTS, r"shared_?experts?(_gate)?", r"SharedExpert"),
    _pattern(Part.EXPERTS, r"experts?", r"Experts?$"),
    _pattern(Part.ROUTER, r"gate|router|gating", r"(Router|Gate)$"),
    _pattern(Part.CROSS_ATTENTION, r"cross_?att\w*|encoder_attn", r"CrossAttention"),
    _pattern(Part.ATTENTION, r"\w*att(n|ention)", r"Attention"),
    _pattern(Part.POSITIONS, r"rotary\w*|rope\w*|pos(ition)?_?emb\w*|embed_positions", r"Rotary|Positional"),
    _pattern(Part.EMBEDDING, r"\w*embed\w*|wte|wpe", r"Embed"),
    _pattern(
        Part.FEED_FORWARD,
        r"mlp|ffn?|feed_?forward|fc\d+|act(ivation)?_fn|\w*moe",
        r"MLP|FeedForward|Mo[eE](Block|Layer)?$",
    ),
    _pattern(Part.CONVOLUTION, r"conv\d*", r"^Conv\dd"),
)
_PARTS_BY_CATEGORY = (
    (Category.ATTENTION, Part.ATTENTION),
    (Category.EMBEDDING, Part.EMBEDDING),
    (Category.CONVOLUTION, Part.CONVOLUTION),
)
_WITHIN_FEED_FORWARD = (Part.EXPERTS, Part.SHARED_EXPERTS, Part.ROUTER)


def _part(node: Node, inherited: Part) -> Part:
    """Return the part of a module and, unless something below it says more, of what lies below it."""
    if inherited not in {Part.OTHER, Part.FEED_FORWARD}:
        return inherited
    attribute = _attribute(node)
    found = next(
        (
            part
            for part, by_name, by_class in _PARTS_BY_NAME
            if by_name.fullmatch(attribute) or by_class.search(node.class_name)
        ),
        None,
    )
    if found is not None and (inherited is Part.OTHER or found in _WITHIN_FEED_FORWARD):
        return found
    if inherited is Part.FEED_FORWARD:
        return inherited
    return next((part for category, part in _PARTS_BY_CATEGORY if category in node.categories), Part.OTHER)


_OWN_PARTS = ((Category.LINEAR, Part.LINEAR), (Category.NORMALIZATION, Part.NORM))


def _own_part(node: Node, part: Part) -> Part:
    """Return the part of a module's own operators: a block with experts may choose them itself."""
    if part is Part.FEED_FORWARD and Category.ROUTING in node.categories:
        return Part.ROUTER
    own = (own for category, own in _OWN_PARTS if category in node.categories)
    return next(own, part) if part is Part.OTHER else part


def _attribute(node: Node) -> str:
    """Return the name of the attribute that holds a module; that of a list's items is an index."""
    return node.id.rpartition(".")[2]
