"""Folded modules: an id such as ``layers.[1-11].mlp`` stands for equal modules, numbered."""

from __future__ import annotations

import re


def unfolded(module: str) -> list[str]:
    """Return the ids that a folded id stands for; one without brackets stands for itself.

    Examples
    --------
    >>> unfolded("layers.[1-3,5].mlp")
    ['layers.1.mlp', 'layers.2.mlp', 'layers.3.mlp', 'layers.5.mlp']
    """
    pattern = re.search(r"\[([\d,-]+)\]", module)
    if pattern is None:
        return [module]
    numbers: list[int] = []
    for part in pattern.group(1).split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    before, after = module[: pattern.start()], module[pattern.end() :]
    return [each for number in numbers for each in unfolded(f"{before}{number}{after}")]
