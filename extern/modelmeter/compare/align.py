"""Alignment: which modules of several models are the same row, by their stable ids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

_INDEX = re.compile(r"(?<![^.])(\d+|\[[\d,-]+\])(?=\.|$)")


def align(trees: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return the row that each module of each tree belongs to; no two modules of one tree share a row.

    Modules of equal ids are aligned. Of what is left, modules are aligned whose ids differ in the indices of layers
    alone and whose classes are the same, if there is one such module in each tree, as in decoders of 12 and of 24
    layers. Every other module is a row of its own.

    Parameters
    ----------
    trees : sequence of (mapping of module id to class name)

    Examples
    --------
    >>> align([{"layers.[0-11].mlp": "MLP", "head": "Linear"}, {"layers.[0-23].mlp": "MLP", "norm": "Norm"}])
    [{'layers.[0-11].mlp': 'layers.[*].mlp', 'head': 'head'}, {'layers.[0-23].mlp': 'layers.[*].mlp', 'norm': 'norm'}]
    """
    shared = Counter(module for tree in trees for module in tree)
    patterns: list[dict[tuple[str, str], str]] = []
    for tree in trees:
        left = {module: (_INDEX.sub("[*]", module), kind) for module, kind in tree.items() if shared[module] == 1}
        counts = Counter(left.values())
        patterns.append({key: module for module, key in left.items() if counts[key] == 1})
    common = Counter(key for found in patterns for key in found)
    # Two classes with one pattern would be two rows of one name: neither is aligned.
    names = Counter(name for name, _ in (key for key, count in common.items() if count > 1))
    rows = [{module: module for module in tree} for tree in trees]
    for row, found in zip(rows, patterns, strict=True):
        for key, module in found.items():
            if common[key] > 1 and names[key[0]] == 1:
                row[module] = key[0]
    return rows
