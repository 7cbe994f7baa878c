"""Parts: what a module does within a tower, from its class, its attribute, what is beside it and its own operators."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

from attrs import frozen

from modelmeter.categories import Category


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


@frozen(kw_only=True)
class Node:
    """A module as roles see it."""

    id: str
    class_name: str
    parent: str | None
    instances: int
    stages: frozenset[str]  # that run it or something below it
    categories: frozenset[Category]  # of the operators that it runs itself


Children = Mapping[str, frozenset[str]]
"""The attributes of what a module holds, by its id."""


def children_of(nodes: Iterable[Node]) -> Children:
    """Return what each module holds."""
    found: dict[str, set[str]] = {}
    for node in nodes:
        if node.parent is not None:
            found.setdefault(node.parent, set()).add(attribute_of(node.id))
    return {whole: frozenset(names) for whole, names in found.items()}


def attribute_of(module: str) -> str:
    """Return the name of the attribute that holds a module; that of a list's items is an index."""
    return module.rpartition(".")[2]


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
        r"mlp|ffn?(_output)?|feed_?forward|fc\d+|act(ivation)?_fn|\w*moe|DenseReluDense",
        r"MLP|FeedForward|Mo[eE](Block|Layer)?$|Dense\w*Act\w*Dense",
    ),
    _pattern(Part.CONVOLUTION, r"conv\d*", r"^Conv\dd"),
)
_PARTS_BY_CATEGORY = (
    (Category.ATTENTION, Part.ATTENTION),
    (Category.EMBEDDING, Part.EMBEDDING),
    (Category.CONVOLUTION, Part.CONVOLUTION),
)
_WITHIN_FEED_FORWARD = (Part.EXPERTS, Part.SHARED_EXPERTS, Part.ROUTER)


def part_of(node: Node, inherited: Part, children: Children) -> Part:
    """Return the part of a module and, unless something below it says more, of what lies below it."""
    if inherited not in {Part.OTHER, Part.FEED_FORWARD}:
        return inherited
    if inherited is Part.OTHER and _is_of_pair(node, children):
        return Part.FEED_FORWARD
    attribute = attribute_of(node.id)
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


_ATTENTION = re.compile(r"\w*att(n|ention)")


def _is_of_pair(node: Node, children: Children) -> bool:
    """Whether a module is one of the two layers of a feed-forward that has no module of its own.

    Those are `linear1` and `linear2`, as in `torch.nn.TransformerEncoderLayer`, and `intermediate` and what is dense of
    `output`, as in BERT's layers, each beside an attention.
    """
    attribute = attribute_of(node.id)
    whole = node.parent or ""
    if attribute in {"linear1", "linear2"}:
        return {"linear1", "linear2"} <= children.get(whole, frozenset()) and _attends(whole, children)
    if attribute == "intermediate":
        return "output" in children.get(whole, frozenset()) and _attends(whole, children)
    if attribute == "dense" and attribute_of(whole) == "output":
        layer = whole.rpartition(".")[0]
        return "intermediate" in children.get(layer, frozenset()) and _attends(layer, children)
    return False


def _attends(whole: str, children: Children) -> bool:
    return any(_ATTENTION.fullmatch(name) for name in children.get(whole, frozenset()))


_OWN_PARTS = ((Category.LINEAR, Part.LINEAR), (Category.NORMALIZATION, Part.NORM))


def own_part(node: Node, part: Part) -> Part:
    """Return the part of a module's own operators: a block with experts may choose them itself."""
    if part is Part.FEED_FORWARD and Category.ROUTING in node.categories:
        return Part.ROUTER
    own = (own for category, own in _OWN_PARTS if category in node.categories)
    return next(own, part) if part is Part.OTHER else part
