"""Markdown tables with aligned columns, and shares that add up."""

from __future__ import annotations

import math
from collections.abc import Sequence

Row = Sequence[str]


def table(header: Row, rows: Sequence[Row], *, left: int = 1) -> str:
    r"""Return a Markdown table that is aligned as plain text too.

    Parameters
    ----------
    header : sequence of str
        Titles of the columns.
    rows : sequence of sequences of str
        Cells, as many in each row as there are titles.
    left : int
        How many columns, from the left, hold text; the others hold numbers and are aligned to the right.

    Examples
    --------
    >>> print(table(("stage", "FLOPs"), [("prefill", "4.60 TFLOP"), ("a|b", "-")]))
    | stage   |      FLOPs |
    | :------ | ---------: |
    | prefill | 4.60 TFLOP |
    | a\|b    |          - |
    """
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    aligned = [
        [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    ]
    rule = [
        ":" + "-" * (width - 1) if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (aligned[0], rule, *aligned[1:]))


def code(module: str) -> str:
    """Write a module id as code; the root has none.

    Examples
    --------
    >>> code("model.norm"), code("")
    ('`model.norm`', '(root)')
    """
    return f"`{module}`" if module else "(root)"


def share(part: float, whole: float) -> str:
    """Return a percentage with one decimal, by itself.

    Examples
    --------
    >>> share(1, 3), share(1, 100_000), share(0, 3)
    ('33.3 %', '<0.1 %', '-')
    """
    return _percent(round(part / whole * 1000), part) if whole else "-"


def shares(parts: Sequence[float]) -> list[str]:
    """Return the percentages of all parts of a whole, with one decimal; they add up to exactly 100.0 %.

    Each is rounded down and what is missing goes to the largest remainders. A part that is there but rounds to
    nothing says so instead of 0.0 %.

    Parameters
    ----------
    parts : sequence of float
        Amounts, none negative.

    Examples
    --------
    >>> shares([1, 1, 1])
    ['33.4 %', '33.3 %', '33.3 %']
    >>> shares([0, 1, 99_999])
    ['-', '<0.1 %', '100.0 %']
    """
    total = sum(parts)
    if not total:
        return ["-"] * len(parts)
    exact = [part / total * 1000 for part in parts]
    tenths = [math.floor(value) for value in exact]
    missing = 1000 - sum(tenths)
    largest_first = sorted(range(len(parts)), key=lambda index: (tenths[index] - exact[index], index))
    for index in largest_first[:missing]:
        tenths[index] += 1
    return [_percent(tenth, part) for tenth, part in zip(tenths, parts, strict=True)]


def _percent(tenths: int, part: float) -> str:
    if not part:
        return "-"
    return f"{tenths / 10:.1f} %" if tenths else "<0.1 %"
