"""What differs between the operator calls of two sides, in words: sizes of layers first, then how many calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from modelmeter.compare.operator_work import name_of
from modelmeter.compare.words import arrow, listed
from modelmeter.model import Leaf

SHOWN_OPERATORS = 4
"""Operators that are named, those whose calls differ most."""

# Attributes of layers that say how large a layer is, in the order of what they say. Most that follow a dim are
# explained by the dim; lengths are formulas that tell which part of a cache a product is of, such as a window.
_ATTRIBUTES = (
    "query_length",
    "key_length",
    "heads",
    "kv_heads",
    "head_dim",
    "value_head_dim",
    "in_features",
    "out_features",
    "experts",
    "k",
    "in_channels",
    "out_channels",
    "vocabulary",
    "rows",
)
_LENGTHS = ("query_length", "key_length")
_ROWS, _DTYPE = " rows", "dtype"
_ORDER = {name: place for place, name in enumerate((_DTYPE, *_ATTRIBUTES))}


def sizes_differing(a: Iterable[Leaf], b: Iterable[Leaf]) -> list[str]:
    """Return what differs in layers of one type: types and sizes that occur, those of products of activations first."""
    one, other = _values(a), _values(b)
    found: dict[tuple[str, str], list[str]] = {}  # attributes by the type of layer and the change
    for key, values in one.items():
        if key not in other or values == other[key]:
            continue
        # Rows are formulas: one of each side says what a product is of, such as logits; lists of them say little.
        if not key.endswith(_ROWS) or len(values) == len(other[key]) == 1:
            kind, _, attribute = key.rpartition(" ")
            found.setdefault((kind, _change(values, other[key])), []).append(attribute)
    texts = {
        min(_ORDER[name] for name in names): f"{kind} {' and '.join(sorted(names, key=_ORDER.__getitem__))} {change}"
        for (kind, change), names in found.items()
    }
    return [texts[place] for place in sorted(texts)]


def _change(before: Sequence[int | str], after: Sequence[int | str]) -> str:
    """Write the values that one side alone has, where each has some; else all of both.

    Examples
    --------
    >>> _change((768, 1024), (768, 896)), _change((64,), (64, 128))
    ('1024 → 896', '64 → 64, 128')
    """
    gone = [value for value in before if value not in after]
    come = [value for value in after if value not in before]
    return f"{listed(gone)} → {listed(come)}" if gone and come else f"{listed(before)} → {listed(after)}"


def _values(leaves: Iterable[Leaf]) -> Mapping[str, tuple[int | str, ...]]:
    found: dict[str, set[int | str]] = {}
    for leaf in leaves:
        document = leaf.layer_document
        kind = type(leaf.layer).__name__ if document is None else str(document["type"])
        if leaf.dtype is not None:
            found.setdefault(f"{kind} {_DTYPE}", set()).add(leaf.dtype.value)
        for name in _ATTRIBUTES:
            value = getattr(leaf.layer, name, None) if document is None else document.get(name)
            if isinstance(value, int):
                found.setdefault(f"{kind} {name}", set()).add(value)
            elif value is not None and name in _LENGTHS:
                found.setdefault(f"{kind} {name}", set()).add(str(value))
        if document is not None and "in_features" in document:  # of a product: which positions it is of, as in logits
            found.setdefault(f"{kind}{_ROWS}", set()).add(str(document["rows"]))
    return {
        key: tuple(sorted(values, key=lambda value: (isinstance(value, str), value))) for key, values in found.items()
    }


def calls_differing(a: Iterable[Leaf], b: Iterable[Leaf], modules: tuple[int, int]) -> list[str]:
    """Return how the operator calls of one execution differ, those that came or went first.

    Operators that are as many more as there are more modules are explained by those.
    """
    before, after = _calls(a), _calls(b)
    modules = modules if all(modules) else (1, 1)
    differing = sorted(
        (
            name
            for name in before | after
            if before[name] != after[name] and before[name] * modules[1] != after[name] * modules[0]
        ),
        key=lambda name: (bool(before[name] and after[name]), -abs(before[name] - after[name]), name),
    )
    more = len(differing) - SHOWN_OPERATORS
    return [
        *(f"{name} calls {arrow(before[name], after[name])}" for name in differing[:SHOWN_OPERATORS]),
        *([f"{more} more operators"] if more > 0 else []),
    ]


def _calls(leaves: Iterable[Leaf]) -> Counter[str]:
    """Return the calls of one execution, by the name of the operator without its namespace."""
    calls = Counter[str]()
    for leaf in leaves:
        calls[name_of(leaf)] += leaf.calls
    return calls
