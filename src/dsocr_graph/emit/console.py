"""The short summary that the command line prints at the end of an analysis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dsocr_graph.emit.markdown_memory import missing_memory
from dsocr_graph.emit.markdown_table import shares
from modelmeter import units
from modelmeter.costs import Amount
from modelmeter.reports import Report


def to_console(report: Report) -> str:
    """Return a summary of a report in about thirty lines of text.

    Examples
    --------
    >>> from dsocr_graph.emit.console import to_console
    >>> to_console.__name__
    'to_console'
    """
    total = report.total.total
    memory = report.memory
    variant = ", ".join(f"{key} {value}" for key, value in report.model.variant.items())
    lines = [
        f"{report.model.name} ({variant}), {units.format_count(report.model.parameters)} parameters",
        f"workload {report.workload}: {report.documents} documents",
        "",
        f"  work       {units.format_flops(total.cost.matmul_flops)} in matrix products, "
        f"{units.format_flops(total.cost.vector_flops)} elsewhere",
        f"  traffic    {units.format_bytes(total.cost.bytes)} unfused, "
        f"{units.format_bytes(total.cost.fused_bytes)} fused",
        f"  memory     peak {units.format_bytes(memory.peak_bytes)}, decided by {memory.decided_by}; "
        f"weights {units.format_bytes(memory.weight_bytes)}",
    ]
    if total.time is not None and report.prediction is not None:
        lines.append(
            f"  time       {units.format_seconds(total.time.seconds)} by {report.prediction.method} "
            f"on {report.prediction.device.name}: no prediction"
        )
    if (short := missing_memory(report)) is not None:
        lines.append(f"  DOES NOT FIT: {short}")
    lines += ["", *_table("by stage", report.total.stages)]
    lines += ["", *_table("by component", report.total.components)]
    lines += ["", *_table("by category", {key.value: value for key, value in report.total.categories.items()})]
    covered = report.coverage
    lines += [
        "",
        f"  coverage   calls: {covered.exact.calls:,} exact, {covered.approximated.calls:,} approximated, "
        f"{covered.free.calls:,} free, {covered.unclassified.calls:,} unclassified",
    ]
    return "\n".join(lines)


def _table(title: str, rows: Mapping[str, Amount]) -> Iterable[str]:
    """Yield one line per row, largest traffic first."""
    yield f"  {title:<24} {'FLOPs':>12} {'share':>7} {'bytes':>12} {'share':>7}"
    ordered = sorted(rows.items(), key=lambda row: (-row[1].cost.bytes, row[0]))
    flops = shares([amount.cost.flops for _, amount in ordered])
    moved = shares([amount.cost.bytes for _, amount in ordered])
    for (name, amount), of_flops, of_bytes in zip(ordered, flops, moved, strict=True):
        cost = amount.cost
        yield (
            f"  {name or '(root)':<24} {units.format_flops(cost.flops):>12} {of_flops:>7} "
            f"{units.format_bytes(cost.bytes):>12} {of_bytes:>7}"
        )
