"""The short summary that the command line prints at the end of an analysis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dsocr_graph.emit.markdown_amounts import bound, counted, interval, seconds_of
from dsocr_graph.emit.markdown_memory import missing_memory
from dsocr_graph.emit.markdown_table import shares
from dsocr_graph.emit.omissions import omission_lines
from dsocr_graph.emit.predicted import is_bound
from dsocr_graph.emit.what_ifs import effect_lines
from modelmeter import units
from modelmeter.costs import Amount, Time
from modelmeter.predict.time_model import PredictionFacts
from modelmeter.reports import Report
from modelmeter.reports.serving import serving_of


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
    variant = ", ".join(f"{key} {value}" for key, value in report.model.variant.items()) or "as given"
    least = "at least " if report.peaks_are_lower_bounds else ""
    lines = [
        f"{report.model.name} ({variant}), {units.format_count(report.model.parameters)} parameters",
        f"workload {report.workload}: {counted(report.documents, 'document')}",
        *omission_lines(report),
        *_lengths(report),
        *effect_lines(report.what_ifs),
        "",
        f"  work       {units.format_flops(total.cost.matmul_flops)} in matrix products, "
        f"{units.format_flops(total.cost.vector_flops)} elsewhere",
        f"  traffic    {units.format_bytes(total.cost.bytes)} unfused, "
        f"{units.format_bytes(total.cost.fused_bytes)} fused",
        f"  memory     peak {least}{units.format_bytes(memory.peak_bytes)}, decided by {memory.decided_by}; "
        f"weights {units.format_bytes(memory.weight_bytes)}"
        + (f" and {units.format_bytes(memory.buffer_bytes)} of buffers" if memory.buffer_bytes else ""),
    ]
    if total.time is not None and report.prediction is not None:
        lines += _times(report, report.prediction, total.time)
    if (short := missing_memory(report)) is not None:
        lines.append(f"  DOES NOT FIT: {short}")
    categories = {key.value: value for key, value in report.total.categories.items()}
    splits = {"by stage": report.total.stages, "by component": report.total.components, "by category": categories}
    predicted = report.prediction is not None and not is_bound(report.prediction)
    for title, rows in splits.items():
        lines += ["", *_table(title, rows, predicted=predicted)]
    covered = report.coverage
    lines += [
        "",
        f"  coverage   calls: {covered.exact.calls:,} exact, {covered.approximated.calls:,} approximated, "
        f"{covered.free.calls:,} free, {covered.unclassified.calls:,} unclassified",
    ]
    return "\n".join(lines)


def _lengths(report: Report) -> Iterable[str]:
    """Yield what each distribution of tokens stands for, which multiplies the documents."""
    for name in ("prompt_tokens", "new_tokens"):
        lengths = report.workload_facts.get(name)
        if isinstance(lengths, str):
            yield f"  lengths    {name}: {lengths}"


def _times(report: Report, prediction: PredictionFacts, time: Time) -> Iterable[str]:
    seconds = units.format_seconds(time.seconds)
    if is_bound(prediction):
        yield f"  time       {seconds} by {prediction.method} on {prediction.device.name}: no prediction"
        return
    ends = "" if time.p10 is None else f" ({interval(time)} from p10 to p90)"
    yield f"  time       {seconds}{ends} predicted on {prediction.device.name}, runtime {prediction.runtime}"
    yield f"  bound by   {bound(time)}"
    for serving in serving_of(report)[-1:]:
        tpot = "" if serving.tpot is None else f"TPOT {units.format_seconds(serving.tpot.seconds)}, "
        yield (
            f"  serving    TTFT {units.format_seconds(serving.ttft.seconds)}, {tpot}"
            f"{units.format_seconds(serving.page.seconds)}/page, {serving.pages_per_second.value:.3g} pages/s, "
            f"{serving.tokens_per_second.value:.3g} tokens/s"
        )


def _table(title: str, rows: Mapping[str, Amount], *, predicted: bool) -> Iterable[str]:
    """Yield one line per row, the longest or else the largest traffic first."""
    heading = f"  {title:<24} {'FLOPs':>12} {'share':>7} {'bytes':>12} {'share':>7}"
    yield heading + (f" {'time':>9} {'share':>7}" if predicted else "")
    ordered = sorted(
        rows.items(), key=lambda row: (-seconds_of(row[1]) if predicted else 0, -row[1].cost.bytes, row[0])
    )
    flops = shares([amount.cost.flops for _, amount in ordered])
    moved = shares([amount.cost.bytes for _, amount in ordered])
    times = shares([seconds_of(amount) for _, amount in ordered])
    for (name, amount), of_flops, of_bytes, of_time in zip(ordered, flops, moved, times, strict=True):
        cost = amount.cost
        line = (
            f"  {name or '(root)':<24} {units.format_flops(cost.flops):>12} {of_flops:>7} "
            f"{units.format_bytes(cost.bytes):>12} {of_bytes:>7}"
        )
        yield line + (f" {units.format_seconds(seconds_of(amount)):>9} {of_time:>7}" if predicted else "")
