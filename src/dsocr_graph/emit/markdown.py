"""report.md: where FLOPs, bytes, memory and (with a device) time go, for an engineer with a decision to make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from dsocr_graph.emit.markdown_amounts import (
    amount_header,
    amount_row,
    amount_table,
    counted,
    interval,
    seconds_of,
    shares_of,
    weight_of,
)
from dsocr_graph.emit.markdown_memory import memory_sections, missing_memory
from dsocr_graph.emit.markdown_notes import note_sections
from dsocr_graph.emit.markdown_table import code, table
from dsocr_graph.emit.omissions import omission_sections
from dsocr_graph.emit.predicted import is_bound
from dsocr_graph.emit.what_ifs import what_if_sections
from modelmeter import AnalyticModel
from modelmeter.costs import Amount, Number, Time
from modelmeter.predict.time_model import PredictionFacts
from modelmeter.reports import ItemReport, ModuleAmount, Report
from modelmeter.units import format_bytes, format_count, format_flop_rate, format_flops, format_seconds

TOP = 12
"""Rows of the tables that show the largest modules only."""

SHOWN_PAGES = 20
"""Pages shown one by one; of a longer workload the largest, the others in one row."""


def to_markdown(
    model: AnalyticModel, report: Report, command: str | None = None, *, sections: Iterable[str] = ()
) -> str:
    """Write a report as Markdown.

    Parameters
    ----------
    model : AnalyticModel
        The model that was evaluated.
    report : Report
        Its evaluation.
    command : str or None
        The command that makes the file again.
    sections : iterable of str
        What is told of the times beside them, to follow the workload: `markdown_times`.

    Returns
    -------
    str
        Text with a newline at its end; equal inputs give equal text.
    """
    blocks = [
        *_head(report),
        *omission_sections(report),
        *what_if_sections(report),
        *_workload(report),
        *sections,
        *_where(model, report),
        *_pages(report),
        *memory_sections(report),
        *note_sections(report),
    ]
    if command is not None:
        blocks += ["## Command", f"```sh\n{command}\n```"]
    return "\n\n".join(blocks) + "\n"


# --- headline


def _head(report: Report) -> Iterable[str]:
    variant = ", ".join(f"{name} {value}" for name, value in sorted(report.model.variant.items()))
    yield f"# {report.model.name} ({variant or 'as given'})"
    total, memory = report.total.total, report.memory
    flops_stage = _largest(report.total.stages, lambda amount: amount.cost.flops)
    bytes_stage = _largest(report.total.stages, lambda amount: amount.cost.bytes)
    text = (
        f"Workload **{report.workload}**: {counted(report.documents, 'document')} "
        f"{'takes' if report.documents == 1 else 'take'} **{format_flops(total.cost.flops)}** "
        f"({format_flops(total.cost.matmul_flops)} of it in matrix products) and "
        f"{'moves' if report.documents == 1 else 'move'} **{format_bytes(total.cost.bytes)}** to and from "
        f"device memory ({format_bytes(total.cost.fused_bytes)} if pointwise chains are fused). "
        f"Most FLOPs are in {_named(flops_stage, report.total.stages, total, lambda amount: amount.cost.flops)}, "
        f"most bytes in {_named(bytes_stage, report.total.stages, total, lambda amount: amount.cost.bytes)}. "
        f"Device memory peaks at {'at least ' if report.peaks_are_lower_bounds else ''}"
        f"**{format_bytes(memory.peak_bytes)}** "
        f"({'while loading' if memory.decided_by == 'load' else 'in ' + memory.decided_by}; "
        f"{format_bytes(memory.running_bytes)} while running, {format_bytes(memory.weight_bytes)} of it weights)."
    )
    busiest = report.total.stages[bytes_stage].cost
    executions = report.total.executions[bytes_stage]
    text += (
        f" One execution of {bytes_stage} moves {format_bytes(busiest.bytes / executions)} on average, "
        f"{format_bytes(busiest.weight_bytes_read / executions)} of it weights."
    )
    if total.time is not None and report.prediction is not None:
        time_stage = _largest(report.total.stages, seconds_of)
        text += (
            f" {_timed(report.prediction, total.time)}, "
            f"{format_seconds(total.time.seconds / report.documents)} per document, "
            f"most of it in {_named(time_stage, report.total.stages, total, seconds_of)}."
        )
    if (short := missing_memory(report)) is not None:
        text += f" **The run does not fit: {short}.**"
    yield text
    yield (
        f"The model has {format_count(report.model.parameters)} parameters ({report.model.parameters:,}), "
        f"{format_bytes(report.model.parameter_bytes)}."
    )


def _timed(prediction: PredictionFacts, time: Time) -> str:
    name, total = prediction.device.name, f"**{format_seconds(time.seconds)}**"
    if is_bound(prediction):
        return f"On {name} that is {total} by a {prediction.method}"
    ends = "" if time.p10 is None else f" ({interval(time)} from p10 to p90)"
    return f"On {name} it is predicted to take {total}{ends}"


def _largest(amounts: Mapping[str, Amount], of: Callable[[Amount], Number]) -> str:
    return max(amounts, key=lambda name: of(amounts[name]))


def _named(name: str, amounts: Mapping[str, Amount], total: Amount, of: Callable[[Amount], Number]) -> str:
    whole = of(total)
    return f"{name} ({of(amounts[name]) / whole:.0%})" if whole else name


# --- workload

_FACTS = (
    ("image tokens", "image_tokens"),
    ("context", "context_tokens"),
    ("new tokens", "new_tokens"),
)


def _workload(report: Report) -> Iterable[str]:
    yield "## Workload"
    if report.workload_facts:
        yield ", ".join(f"{name.replace('_', ' ')} {value!r}" for name, value in sorted(report.workload_facts.items()))
    facts = [(title, key) for title, key in _FACTS if any(key in item.facts for item in report.items)]
    shown, others = _shown(report)
    timed = report.total.total.time is not None
    header = ["page", "size", "grid", "documents", *(title for title, _ in facts), "FLOPs", "bytes"]
    rows = [
        [
            item.name,
            _pair(item, "width", "height"),
            _pair(item, "crop_columns", "crop_rows"),
            f"{item.documents:,}",
            *(_fact(item, key) for _, key in facts),
            *_amounts(item.breakdown.total),
        ]
        for item in shown
    ]
    blank = [""] * len(facts)
    if others:
        documents = sum(item.documents for item in others)
        rest = sum((item.breakdown.total for item in others), Amount())
        rows.append([f"{len(others):,} smaller pages", "", "", f"{documents:,}", *blank, *_amounts(rest)])
    rows.append(["**all**", "", "", f"{report.documents:,}", *blank, *_amounts(report.total.total)])
    if timed:
        header += ["time", "time per document"]
        per_row = [*(item.documents for item in shown)]
        seconds = [seconds_of(item.breakdown.total) for item in shown]
        if others:
            per_row.append(sum(item.documents for item in others))
            seconds.append(sum(seconds_of(item.breakdown.total) for item in others))
        per_row.append(report.documents)
        seconds.append(seconds_of(report.total.total))
        for row, count, time in zip(rows, per_row, seconds, strict=True):
            row += [format_seconds(time), format_seconds(time / count)]
    yield table(header, rows)


def _shown(report: Report) -> tuple[Sequence[ItemReport], Sequence[ItemReport]]:
    """Return the pages to show one by one, in their order, and the others."""
    if len(report.items) <= SHOWN_PAGES:
        return report.items, ()
    by_size = sorted(
        range(len(report.items)), key=lambda index: (-report.items[index].breakdown.total.cost.flops, index)
    )
    chosen = set(by_size[:SHOWN_PAGES])
    return (
        [item for index, item in enumerate(report.items) if index in chosen],
        [item for index, item in enumerate(report.items) if index not in chosen],
    )


def _pair(item: ItemReport, first: str, second: str) -> str:
    if first not in item.facts or second not in item.facts:
        return "-"
    return f"{item.facts[first]}x{item.facts[second]}"


def _fact(item: ItemReport, key: str) -> str:
    value = item.facts.get(key, "-")
    return f"{value:,}" if isinstance(value, int | float) else value


def _amounts(amount: Amount) -> list[str]:
    return [format_flops(amount.cost.flops), format_bytes(amount.cost.bytes)]


# --- where it goes


def _where(model: AnalyticModel, report: Report) -> Iterable[str]:
    total = report.total
    yield "## Where the work goes"
    if report.prediction is not None:
        yield _times_are(report.prediction)
    yield "### By stage"
    descriptions = {stage.name: stage.description for stage in model.stages}
    if any(descriptions[name] for name in total.stages):
        yield "\n".join(f"- **{name}**: {descriptions[name]}" for name in total.stages if descriptions[name])
    yield amount_table("stage", total.stages)
    yield "Mean of one execution:"
    yield _per_execution(report)
    yield "### By component"
    yield amount_table("component", total.components)
    yield "### By category"
    yield amount_table("category", {category.value: amount for category, amount in total.categories.items()})
    by = "time" if total.total.time is not None else "bytes"
    yield f"### Largest modules, everything below included (top {TOP} by {by})"
    yield "Modules contain each other, so their shares overlap."
    yield _module_table(report, lambda module: module.inclusive, weight_of)
    yield f"### Largest modules, own operators only (top {TOP} by {by})"
    yield _module_table(report, lambda module: module.own, weight_of)
    yield f"### Largest modules, own operators only (top {TOP} by FLOPs)"
    yield _module_table(report, lambda module: module.own, lambda amount: amount.cost.flops)
    yield f"### Largest kinds of work in a module (top {TOP} by {by})"
    yield _cell_table(report)


def _times_are(prediction: PredictionFacts) -> str:
    """Say what the times in the tables are: a bound by a device's peaks, or a prediction."""
    device = prediction.device
    matrix = ", ".join(
        f"{name} {format_flop_rate(rate)}" for name, rate in sorted(device.matrix_flops_per_second.items())
    )
    rates = (
        f"{matrix}; vector units {format_flop_rate(device.vector_flops_per_second)}; memory "
        f"{format_bytes(device.bytes_per_second)}/s."
    )
    if is_bound(prediction):
        return (
            f"Times are a {prediction.method}, with {prediction.traffic} traffic on {device.name}: dense matrix peaks "
            f"{rates} They leave out the host and what kernels lose against peak: no predictions."
        )
    return (
        f"Times are predictions for {device.name}, runtime {prediction.runtime}: see Predicted time. A kernel is bound "
        f"by the longest of its FLOPs and bytes over these rates: matrix products {rates} What waits for the host is "
        "bound by the host."
    )


def _per_execution(report: Report) -> str:
    timed = report.total.total.time is not None
    rows: list[list[str]] = []
    for name, amount in report.total.stages.items():
        count = report.total.executions[name]
        row = [
            name,
            f"{count:,}",
            format_flops(amount.cost.flops / count),
            format_bytes(amount.cost.bytes / count),
            format_bytes(amount.cost.weight_bytes_read / count),
            format_count(amount.cost.calls / count),
        ]
        rows.append([*row, format_seconds(seconds_of(amount) / count)] if timed else row)
    header = ["stage", "executions", "FLOPs", "bytes", "of which weights", "operator calls"]
    return table([*header, "time"] if timed else header, rows)


def _module_table(report: Report, of: Callable[[ModuleAmount], Amount], rank: Callable[[Amount], Number]) -> str:
    total = report.total.total
    modules = {
        name: module for name, module in report.total.modules.items() if of(module).cost.calls or seconds_of(of(module))
    }
    largest = sorted(modules, key=lambda name: (-rank(of(modules[name])), name))[:TOP]
    rows = [amount_row(code(name), of(modules[name]), shares_of(of(modules[name]), total), total) for name in largest]
    rows = [[row[0], modules[name].class_name, *row[1:]] for row, name in zip(rows, largest, strict=True)]
    return table(["module", "class", *amount_header(total)], rows, left=2)


def _cell_table(report: Report) -> str:
    total = report.total.total
    cells = [
        (module, category.value, amount)
        for module, categories in report.total.module_categories.items()
        for category, amount in categories.items()
    ]
    largest = sorted(cells, key=lambda cell: (-weight_of(cell[2]), cell[0], cell[1]))[:TOP]
    rows = [amount_row(code(module), amount, shares_of(amount, total), total) for module, _, amount in largest]
    rows = [[row[0], cell[1], *row[1:]] for row, cell in zip(rows, largest, strict=True)]
    return table(["module", "category", *amount_header(total)], rows, left=2)


# --- by page


def _pages(report: Report) -> Iterable[str]:
    yield "## By page"
    yield "### FLOPs by page and stage"
    yield _page_table(report, lambda amount: amount.cost.flops, format_flops, "stage")
    yield "### Bytes by page and stage"
    yield _page_table(report, lambda amount: amount.cost.bytes, format_bytes, "stage")
    if report.total.total.time is not None:
        yield "### Time by page and stage"
        yield _page_table(report, seconds_of, format_seconds, "stage")
    yield "### FLOPs by page and component"
    yield _page_table(report, lambda amount: amount.cost.flops, format_flops, "component")
    yield "### Bytes by page and component"
    yield _page_table(report, lambda amount: amount.cost.bytes, format_bytes, "component")


def _page_table(report: Report, of: Callable[[Amount], Number], write: Callable[[Number], str], split: str) -> str:
    """Return a table with a row per part and a column per page; long workloads have one column for the rest."""
    shown, others = _shown(report)

    def parts(item: ItemReport) -> Mapping[str, Amount]:
        return item.breakdown.stages if split == "stage" else item.breakdown.components

    whole = report.total.stages if split == "stage" else report.total.components
    names = [name for name, amount in whole.items() if of(amount)]

    def row(name: str) -> list[str]:
        values = [of(parts(item).get(name, Amount())) for item in shown]
        if others:
            values.append(sum(of(parts(item).get(name, Amount())) for item in others))
        return [write(value) if value else "-" for value in values]

    header = [split, *(item.name for item in shown), *([f"{len(others):,} others"] if others else []), "all"]
    return table(header, [[name, *row(name), write(of(whole[name]))] for name in names])
