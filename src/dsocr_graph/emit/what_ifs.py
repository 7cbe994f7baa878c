"""What-ifs in force and what they change, as lines for a terminal and as a section of report.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from dsocr_graph.emit.markdown_table import table
from modelmeter.costs import Number
from modelmeter.reports import Report, WhatIfEffect
from modelmeter.units import format_bytes, format_flops
from modelmeter.whatif import Change


def change_lines(changes: Iterable[Change]) -> list[str]:
    """Return what some what-ifs change and assume, each thing once.

    Examples
    --------
    >>> change_lines([Change(option="logits", what="the last position alone", assumes=("argmax reads it",))])
    ['logits: the last position alone', '  assumed: argmax reads it']
    """
    return "\n".join(dict.fromkeys(change.text for change in changes)).splitlines()


def effect_lines(effects: Iterable[WhatIfEffect]) -> Iterator[str]:
    """Yield a line for each what-if: what it changes, and by how much.

    Examples
    --------
    >>> effect = WhatIfEffect(
    ...     option="kv_dtype", what="int8", assumes=(), matmul_flops=0, bytes=-2e9, weight_bytes_read=0
    ... )
    >>> list(effect_lines([effect]))
    ['  what-if    kv_dtype: int8 (-2.00 GB moved)']
    """
    for effect in effects:
        moved = [f"{signed(effect.bytes, format_bytes)} moved"]
        if effect.matmul_flops:
            moved.append(f"{signed(effect.matmul_flops, format_flops)} in matrix products")
        yield f"  what-if    {effect.option}: {effect.what} ({', '.join(moved)})"


def what_if_sections(report: Report) -> Iterator[str]:
    """Yield the section on what-ifs as Markdown; nothing for a model as captured."""
    if not report.what_ifs:
        return
    yield "## What is changed"
    yield (
        "The figures of this report are of the model under these what-ifs. They are applied one after the other; each "
        "row is what one of them adds to the whole workload, beside the model with those before it."
    )
    yield table(
        ["what-if", "what is changed", "FLOPs in products", "bytes", "of which weights"],
        [
            [
                f"`{effect.option}`",
                effect.what,
                signed(effect.matmul_flops, format_flops),
                signed(effect.bytes, format_bytes),
                signed(effect.weight_bytes_read, format_bytes),
            ]
            for effect in report.what_ifs
        ],
        left=2,
    )
    assumed = dict.fromkeys(text for effect in report.what_ifs for text in effect.assumes)
    if assumed:
        yield "Assumed:"
        yield "\n".join(f"- {text}" for text in assumed)


def signed(value: Number, write: Callable[[Number], str]) -> str:
    """Return a difference with its sign.

    Examples
    --------
    >>> signed(-2e9, format_bytes), signed(0, format_bytes), signed(3e6, format_bytes)
    ('-2.00 GB', '0 B', '+3.00 MB')
    """
    if round(value) == 0:
        return write(0)  # sums of expectations differ in their last digits
    return ("-" if value < 0 else "+") + write(abs(value))
