"""Logits of the last position alone: the head and what follows it, for one position of each document."""

from __future__ import annotations

from typing import Any

import sympy
from attrs import evolve, frozen

from modelmeter.dims import Dim, simplify
from modelmeter.layers import BaseLayer, Linear, Operand, Reduction
from modelmeter.model import AnalyticModel, Leaf, LiveTensor, PeakPoint, Stage
from modelmeter.whatif.change import with_layer
from modelmeter.whatif.errors import UnsupportedWhatIfError


@frozen(kw_only=True)
class Head:
    """The linear layer that makes logits, what follows until a token is chosen, and the positions it makes them for."""

    first: int  # position of the linear layer among the stage's leaves
    last: int  # position of the choice
    rows: Dim  # all positions of all documents
    positions: Dim  # of one document
    logits: Dim  # elements


def find_heads(model: AnalyticModel) -> dict[str, Head]:
    """Return the head of each stage that makes logits for more positions than it chooses tokens, by stage.

    Raises
    ------
    UnsupportedWhatIfError
        When no stage does.

    Examples
    --------
    >>> import modelmeter
    >>> {stage: str(head.positions) for stage, head in find_heads(modelmeter.load("deepseek-ocr")).items()}
    {'prefill': 'S'}
    """
    found = {stage.name: _head(model.leaves_by_stage[stage.name]) for stage in model.stages}
    heads = {stage: head for stage, head in found.items() if head is not None and head.positions != 1}
    if not heads:
        raise UnsupportedWhatIfError(
            f"no stage of {model.name} makes logits for more positions than it chooses tokens; leave logits at 'all'"
        )
    return heads


def _head(leaves: tuple[Leaf, ...]) -> Head | None:
    chosen = [at for at, leaf in enumerate(leaves) if isinstance(leaf.layer, Reduction) and leaf.layer.op == "argmax"]
    if not chosen:
        return None
    choice = leaves[chosen[-1]].layer
    assert isinstance(choice, Reduction)
    tokens = choice.writes[0].elements
    for at in range(chosen[-1] - 1, -1, -1):
        layer = leaves[at].layer
        if isinstance(layer, Linear) and simplify(layer.out_features * tokens - choice.elements) == 0:
            return Head(
                first=at,
                last=chosen[-1],
                rows=layer.rows,
                positions=simplify(sympy.sympify(layer.rows) / tokens),
                logits=simplify(layer.rows * layer.out_features),
            )
    return None


def with_last_logits(leaves: tuple[Leaf, ...], head: Head) -> tuple[Leaf, ...]:
    """Return a stage's leaves with the head's rows, and the tensors that hold all logits, cut to one position."""
    return tuple(
        with_layer(leaf, _last(leaf.layer, head)) if head.first <= at <= head.last else leaf
        for at, leaf in enumerate(leaves)
    )


def _last(layer: BaseLayer, head: Head) -> BaseLayer:
    if isinstance(layer, Linear) and layer.rows == head.rows:
        return evolve(layer, rows=simplify(layer.rows / head.positions))
    changes: dict[str, Any] = {}
    for name in ("reads", "writes"):
        operands: tuple[Operand, ...] = getattr(layer, name, ())
        if any(each.elements == head.logits for each in operands):
            changes[name] = tuple(evolve(each, elements=_cut(each.elements, head)) for each in operands)
    if getattr(layer, "elements", None) == head.logits:
        changes["elements"] = _cut(head.logits, head)
    return evolve(layer, **changes)


def _cut(elements: Dim, head: Head) -> Dim:
    return simplify(elements / sympy.sympify(head.positions)) if elements == head.logits else elements


def with_last_peaks(stage: Stage, head: Head) -> Stage:
    """Return a stage whose peaks hold the logits of one position; the tensors are told by their size."""
    sizes = {simplify(head.logits * width) for width in (2, 4)}  # bytes, in the types that logits have

    def tensor(live: LiveTensor) -> LiveTensor:
        return evolve(live, bytes=simplify(live.bytes / head.positions)) if live.bytes in sizes else live

    def peak(point: PeakPoint) -> PeakPoint:
        live = tuple(map(tensor, point.live))
        saved = sum((before.bytes - after.bytes for before, after in zip(point.live, live, strict=True)), sympy.S.Zero)
        return evolve(point, live=live, activation_bytes=simplify(point.activation_bytes - saved))

    return evolve(stage, peaks=tuple(map(peak, stage.peaks)))
