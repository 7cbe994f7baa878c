"""Quoted figures as Markdown: a line each, and weight bytes per decode step by batch and routing."""

from __future__ import annotations

from dsocr_graph.emit.markdown_table import table
from modelmeter.reports.quoted import QuotedFigures, WeightStep
from modelmeter.units import format_bytes

_EXPERTS = ", and distinct experts in each layer that routes"


def quoted_to_markdown(figures: QuotedFigures) -> str:
    """Return the figures, the table and the assumptions as Markdown.

    Examples
    --------
    >>> import modelmeter
    >>> from modelmeter.reports.quoted import quoted_figures
    >>> print(quoted_to_markdown(quoted_figures(modelmeter.load("deepseek-ocr"))).splitlines()[0])
    - KV cache per token: 61,440 bytes
    """
    routings = list(dict.fromkeys(step.routing for step in figures.steps))
    rows: dict[int, list[WeightStep]] = {}
    for step in figures.steps:
        rows.setdefault(step.batch, []).append(step)
    routed = any(step.fewest_bytes != step.most_bytes for step in figures.steps)
    header = ("batch", *routings, "bounds") if routed else ("batch", "bytes")
    cells = [
        (str(batch), *map(_cell, steps), *([_bounds(steps[0])] if routed else [])) for batch, steps in rows.items()
    ]
    return "\n".join(
        (
            f"- KV cache per token: {figures.kv_bytes_per_token:,} bytes",
            f"- parameters that multiply a token: {figures.active_parameters:,}",
            f"- bytes of all parameters: {figures.parameter_bytes:,}",
            "",
            f"Bytes of parameters read in one decode step{_EXPERTS if routed else ''}:",
            "",
            table(header, cells),
            "",
            *(f"- {assumption}" for assumption in figures.assumptions),
        )
    )


def _bounds(step: WeightStep) -> str:
    return f"{format_bytes(step.fewest_bytes)} - {format_bytes(step.most_bytes)}"


def _cell(step: WeightStep) -> str:
    experts = "" if step.distinct_experts is None else f" ({step.distinct_experts:.1f})"
    return format_bytes(step.weight_bytes) + experts
