"""Reasons of a change of parameters: how many bytes an element takes, then which kinds of modules hold more or less."""

from __future__ import annotations

import math
from collections.abc import Iterator

from modelmeter.compare.group import HELD, Group, same_model
from modelmeter.compare.layer_words import sizes_differing
from modelmeter.compare.metrics import Metric
from modelmeter.compare.reason import Reason
from modelmeter.compare.side_words import variant_words
from modelmeter.compare.words import arrow
from modelmeter.costs import Number
from modelmeter.model import Leaf

SHOWN_SIZES = 3

_NOISE = 1e-12
_HOLDS_WEIGHTS = ("in_features", "out_features", "experts", "in_channels", "out_channels", "vocabulary", "dtype")


def of_held(old: Group, new: Group, metric: Metric) -> list[Reason]:
    """Return why the parameters of a part changed, each cause with what it adds.

    Parameters
    ----------
    old, new : Group
        Pieces of parameters.
    metric : Metric
        Parameters, or their bytes. Of bytes, the first cause is how wide an element is, at the elements of the first
        side.
    """
    found = [*_width(old, new)] if metric is Metric.WEIGHT_BYTES else []
    widened = sum(reason.effect or 0 for reason in found)
    if math.isclose(widened, new.total(metric) - old.total(metric), rel_tol=_NOISE):
        return found
    scale = _bytes_an_element(new) if metric is Metric.WEIGHT_BYTES else 1
    return [*found, *_by_class(old, new, scale)]


def _width(old: Group, new: Group) -> Iterator[Reason]:
    before, after = _bytes_an_element(old), _bytes_an_element(new)
    if before == after:
        return
    variant: list[str] = []
    if same_model(old.side, new.side):
        variant = [
            text
            for text in variant_words(old.side, new.side, (HELD, old.side.roles[old.pieces[0].module]))
            if "dtype" in text
        ]
    text = ", ".join((*variant, f"bytes an element {arrow(before, after)}"))
    yield Reason(text=text, effect=(after - before) * old.total(Metric.PARAMETERS))


def _bytes_an_element(group: Group) -> float:
    elements = group.total(Metric.PARAMETERS)
    return group.total(Metric.WEIGHT_BYTES) / elements if elements else 0.0


def _by_class(old: Group, new: Group, scale: float) -> Iterator[Reason]:
    """Yield what modules of one class hold more or less; of bytes, at the width of the second side."""
    classes = dict.fromkeys((*_classes(old), *_classes(new)))
    for name in classes:
        a, b = _classes(old).get(name, []), _classes(new).get(name, [])
        before, after = _elements(old, a), _elements(new, b)
        if before == after:
            continue
        words = _sizes(_leaves(old, a), _leaves(new, b))
        modules = _instances(old, a), _instances(new, b)
        if modules[0] != modules[1]:
            words.insert(0, f"modules {arrow(*modules)}")
        text = ", ".join(words) or f"elements {arrow(before, after)}"
        yield Reason(text=f"{name}: {text}", effect=(after - before) * scale)


def _classes(group: Group) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for piece in group.pieces:
        node = group.side.nodes.get(piece.module)
        found.setdefault("parameters of no module" if node is None else node.class_name, []).append(piece.module)
    return found


def _elements(group: Group, modules: list[str]) -> Number:
    pieces = [piece for piece in group.pieces if piece.module in modules]
    return sum(group.side.work[piece].get(Metric.PARAMETERS, 0) for piece in pieces)


def _instances(group: Group, modules: list[str]) -> int:
    return sum(group.side.nodes[module].instances for module in modules if module in group.side.nodes)


def _leaves(group: Group, modules: list[str]) -> list[Leaf]:
    model = group.side.model
    return [] if model is None else [leaf for leaf in model.leaves if leaf.module in modules]


def _sizes(a: list[Leaf], b: list[Leaf]) -> list[str]:
    texts = sizes_differing(a, b)
    return [text for text in texts if any(f" {name} " in text for name in _HOLDS_WEIGHTS)][:SHOWN_SIZES]
