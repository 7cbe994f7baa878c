"""Paths of modules in several models: how alike two are, and what some have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import takewhile

ABSENT, OTHER_PATH, OTHER_INDEX = "-", "…", "[*]"
"""In what paths have in common: where one of two has nothing; where more than two differ; where their numbers do."""

_INDEX = re.compile(r"\d+|\[[\d,*-]+\]")


def whole_of(path: str) -> str:
    """Return the path of the module that a module is in.

    Examples
    --------
    >>> whole_of("layers.[0-3].mlp")
    'layers.[0-3]'
    """
    return path.rpartition(".")[0]


def last_name(path: str) -> str:
    """Return the end of a path from its last name on, numbers of layers left open.

    Examples
    --------
    >>> last_name("model.layers.0.mlp"), last_name("vision.layers.[0-3]")
    ('mlp', 'layers.[*]')
    """
    parts = _open(path)
    names = [place for place, part in enumerate(parts) if part != OTHER_INDEX]
    return ".".join(parts[names[-1] if names else 0 :])


def likeness_of(one: str, other: str) -> tuple[int, int]:
    """Return how many parts at the end of two paths are equal, and how many are but for numbers of layers.

    Examples
    --------
    >>> likeness_of("model.layers.[0-3].mlp", "layers.[0-7].mlp"), likeness_of("a.0.mlp", "b.0.mlp")
    ((1, 3), (2, 2))
    """
    return _shared_end(one.split("."), other.split(".")), _shared_end(_open(one), _open(other))


def shared_path(paths: Sequence[str]) -> str:
    """Return what paths have in common, and of two paths what each has instead.

    Examples
    --------
    >>> shared_path(["model.layers.0.mlp", "model.text.layers.[0-1].mlp"])
    'model.{-/text}.layers.{0/[0-1]}.mlp'
    >>> shared_path(["a.x.0.mlp", "b.x.0.mlp", "x.[1-2].mlp"])
    '….x.[*].mlp'
    """
    path, *others = paths
    for other in others:
        path = _merged(path, other, named=len(paths) == 2)
    return path


def _merged(one: str, other: str, *, named: bool) -> str:
    a, b = one.split("."), other.split(".")
    matcher = SequenceMatcher(None, _open(one), _open(other), autojunk=False)
    parts: list[str] = []
    end_a = end_b = 0
    for at_a, at_b, size in matcher.get_matching_blocks():
        if (at_a, at_b) != (end_a, end_b):
            parts.append(_either(a[end_a:at_a], b[end_b:at_b]) if named else OTHER_PATH)
        end_a, end_b = at_a + size, at_b + size
        for of_a, of_b in zip(a[at_a:end_a], b[at_b:end_b], strict=True):
            parts.append(of_a if of_a == of_b else _either([of_a], [of_b]) if named else OTHER_INDEX)
    return ".".join(parts)


def _either(one: Sequence[str], other: Sequence[str]) -> str:
    return f"{{{'.'.join(one) or ABSENT}/{'.'.join(other) or ABSENT}}}"


def _open(path: str) -> list[str]:
    return [OTHER_INDEX if _INDEX.fullmatch(part) else part for part in path.split(".")]


def _shared_end(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
