"""Roles: what part of a model a module is, from the tree, its stages, its operators and common names; of no model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

from attrs import frozen

from modelmeter.compare.parts import Node, Part, attribute_of, children_of, own_part, part_of


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


def roles_of(nodes: Iterable[Node], cached: frozenset[str]) -> dict[str, Role]:
    """Return the role of each module.

    A tower is what names say (outermost first), else what the stages say: modules of stages that leave no keys and
    values behind encode, the others decode; a model of one stage without a cache is an encoder where its names say so,
    and none of a decoder. A part is what the class, the attribute or the module's own operators say;
    what lies below an attention, a norm or an expert belongs to it. Two layers beside an attention that are named as a
    pair are its feed-forward.

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
    encodes = bool(every & cached) or _says_encoder(nodes, every)
    children = children_of(nodes)
    named: dict[str, Tower | None] = {}
    towers: dict[str, Tower] = {}
    parts: dict[str, Part] = {}
    for node in nodes:
        if node.parent is None:  # its class names the whole model: no part, and a tower only of a model that is one
            named[node.id], parts[node.id] = None if every & cached else _tower_in(node.class_name), Part.OTHER
        else:
            parts[node.id] = part_of(node, parts[node.parent], children)
            named[node.id] = _named_tower(node, named[node.parent], parts[node.id])
        towers[node.id] = named[node.id] or _tower_of_stages(node, towers, cached, encodes=encodes)
    return {node.id: _role(towers[node.id], own_part(node, parts[node.id])) for node in nodes}


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


def _says_encoder(nodes: Iterable[Node], stages: frozenset[str]) -> bool:
    """Whether the name of a stage says that it encodes, or the names of modules that are run in one stage alone."""
    words = " ".join(f"{_attribute(node)} {node.class_name}".lower() for node in nodes)
    return any("encode" in stage for stage in stages) or (
        len(stages) == 1 and "encoder" in words and "decoder" not in words
    )


def _tower_of_stages(node: Node, towers: Mapping[str, Tower], cached: frozenset[str], *, encodes: bool) -> Tower:
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
    return Tower.ENCODER if encodes else Tower.MODEL


def _attribute(node: Node) -> str:
    return attribute_of(node.id)
