"""Quoted figures as Markdown: a line each, and weight bytes of decode steps if there are any, by batch and routing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    return "\n".join((*_lines(figures), *_steps(figures.steps), "", *(f"- {text}" for text in figures.assumptions)))


def _lines(figures: QuotedFigures) -> Iterator[str]:
    if figures.kv_bytes_per_token is not None:
        yield f"- KV cache per token: {figures.kv_bytes_per_token:,} bytes"
    for tokens, count in figures.kv_bytes_per_token_past.items():
        yield f"- KV cache per token from {tokens:,} cached tokens on, past a window: {count:,} bytes"
    if figures.kept_bytes_per_document:
        yield (
            f"- KV cache per document, beside its tokens: {figures.kept_bytes_per_document:,} bytes, such as keys and "
            "values of what an encoder has read"
        )
    for dim, count in figures.kept_bytes_per_size.items():
        yield f"- KV cache per document, for each of {dim}: {count:,} bytes"
    if figures.active_parameters is not None:
        yield f"- parameters that multiply a token: {figures.active_parameters:,}"
    yield f"- parameters: {figures.parameters:,}"
    yield f"- bytes of all parameters: {figures.parameter_bytes:,}"


def _steps(steps: Sequence[WeightStep]) -> Sequence[str]:
    """Return the table of decode steps with its heading; nothing where there are none."""
    if not steps:
        return ()
    routings = list(dict.fromkeys(step.routing for step in steps))
    rows: dict[int, list[WeightStep]] = {}
    for step in steps:
        rows.setdefault(step.batch, []).append(step)
    routed = any(step.fewest_bytes != step.most_bytes for step in steps)
    header = ("batch", *routings, "bounds") if routed else ("batch", "bytes")
    cells = [(str(batch), *map(_cell, each), *([_bounds(each[0])] if routed else [])) for batch, each in rows.items()]
    return (
        "",
        f"Bytes of parameters read in one decode step{_EXPERTS if routed else ''}:",
        "",
        table(header, cells),
    )


def _bounds(step: WeightStep) -> str:
    return f"{format_bytes(step.fewest_bytes)} - {format_bytes(step.most_bytes)}"


def _cell(step: WeightStep) -> str:
    experts = "" if step.distinct_experts is None else f" ({step.distinct_experts:.1f})"
    return format_bytes(step.weight_bytes) + experts
