"""A comparison as Markdown: what the sides are, totals, what changed and why, then by stage, role and module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dsocr_graph.emit.compare_cells import NOTHING, difference, figure, fit_lines, percent
from dsocr_graph.emit.compare_why import SHOWN_CHANGES, changes_text
from dsocr_graph.emit.markdown_table import code, table
from modelmeter.compare import Metric, Row, SideBySide
from modelmeter.compare.paths import ABSENT, OTHER_INDEX, OTHER_PATH
from modelmeter.compare.side import PEAK_STAGE, UNNAMED, VARIANT
from modelmeter.costs import Number

SHOWN_MODULES = 15
"""Modules that are shown, those that changed most; the JSON and the CSV have all."""

LONG_FACT = 40
"""Characters from which a fact that is the same on all sides is left out."""

_ALWAYS = ("model", "workload", "device", "times")
_SUMMED_UP = (
    Metric.TIME,
    Metric.TTFT,
    Metric.TPOT,
    Metric.FLOPS,
    Metric.BYTES,
    Metric.MEMORY,
    Metric.LOAD_MEMORY,
    Metric.PARAMETERS,
)
_ASKED = (Metric.DOCUMENTS, Metric.CONTEXT_TOKENS, Metric.OUTPUT_TOKENS)
"""What sides are asked: summed up where they are asked for different amounts."""

_BY_ROLE = (Metric.TIME, Metric.FLOPS, Metric.BYTES, Metric.PARAMETERS)

_HELD = (Metric.PARAMETERS, Metric.WEIGHT_BYTES)
"""Metrics of what is there whatever runs: they have no stages."""


def compare_to_markdown(compared: SideBySide, *, lines: int = SHOWN_CHANGES) -> str:
    """Write a comparison as Markdown.

    Parameters
    ----------
    compared : SideBySide
        Two sides or more; the first is what the others are compared with.
    lines : int
        Most lines of "what changed and why"; the rest is summed up in one.
    """
    labels = [side.label for side in compared.sides]
    title = " and ".join(labels[1:])
    sections = [
        f"# {title} compared with {labels[0]}",
        _summary(compared),
        *_uncounted(compared),
        _facts(compared, labels),
        "## Totals",
        _totals(compared, labels),
        *fit_lines([(side.label, side.missing_memory) for side in compared.sides]),
    ]
    for changes in compared.changes:
        sections += changes_text(changes, labels[0], lines, _legend(compared))
    leading = compared.ranked_by
    if leading not in _HELD:
        sections += [f"## By stage: {leading.value}", _rows("stage", compared, compared.stages, leading)]
    sections += _roles(compared)
    sections += [f"## By module: {leading.value}", *_modules(compared)]
    if all(compared.memory):
        sections += ["## Memory at the peak", *_memory(compared, labels)]
    return "\n\n".join(sections) + "\n"


# --- what is compared


def _legend(compared: SideBySide) -> dict[str, str]:
    """Return what the dims of the sides are, those of the first before."""
    models = [side.model for side in compared.sides if side.model is not None]
    return {dim: text for model in reversed(models) for dim, text in model.dims.items()}


def _summary(compared: SideBySide) -> str:
    """Return a line for each other side: how its main totals moved, and what it is asked if that is not the same."""
    first, *others = compared.totals
    return "\n".join(
        f"- {side.label}: "
        + ", ".join(
            f"{metric.value} {percent(first[metric], totals[metric])}"
            for metric in (*_SUMMED_UP, *(asked for asked in _ASKED if first.get(asked) != totals.get(asked)))
            if metric in first and metric in totals
        )
        for side, totals in zip(compared.sides[1:], others, strict=True)
    )


def _uncounted(compared: SideBySide) -> Iterator[str]:
    """Yield what some sides leave out; nothing where all are whole."""
    lines = [
        f"- {side.label} leaves out: {'; '.join(each.text for each in side.uncounted)}"
        for side in compared.sides
        if side.uncounted
    ]
    if lines:
        yield "**Not all is counted**, so that totals of these sides are too low and changes may be no changes:"
        yield "\n".join(lines)


def _facts(compared: SideBySide, labels: Sequence[str]) -> str:
    """Return the facts that say what a side is, and all that differ; what is the same in all sides in one line."""
    shown = [fact for fact in compared.facts if fact.differs or fact.name in _ALWAYS or fact.name.startswith(VARIANT)]
    rows = [
        [f"**{fact.name}**" if fact.differs else fact.name, *(value or NOTHING for value in fact.values)]
        for fact in shown
    ]
    same = [
        f"{fact.name} {fact.values[0]}"
        for fact in compared.facts
        if fact not in shown and len(fact.values[0] or "") < LONG_FACT
    ]
    parts = [table(["", *labels], rows, left=1 + len(labels))]
    if same:
        parts.append(f"The same on all sides: {', '.join(same)}.")
    return "\n\n".join(parts)


def _totals(compared: SideBySide, labels: Sequence[str]) -> str:
    metrics = [metric for metric in Metric if any(metric in totals for totals in compared.totals)]
    rows = [_total_cells(metric, [totals.get(metric) for totals in compared.totals]) for metric in metrics]
    return table(["", *_header(labels)], rows)


def _total_cells(metric: Metric, values: Sequence[Number | None]) -> list[str]:
    """Return the cells of a total; where a side does not know it, nothing is said of its change."""
    name, *cells = _cells(metric.value, metric, values)
    count = len(values)
    for index, value in enumerate(values[1:]):
        if values[0] is None or value is None:
            cells[count + 2 * index : count + 2 * index + 2] = [NOTHING, NOTHING]
    return [name, *cells]


def _memory(compared: SideBySide, labels: Sequence[str]) -> Iterator[str]:
    """Yield what the peaks consist of; those in different stages are of different moments, and say so."""
    stages = [side.facts[PEAK_STAGE] for side in compared.sides]
    if len(set(stages)) > 1:
        where = ", ".join(f"{label} in {stage}" for label, stage in zip(labels, stages, strict=True))
        yield f"The peaks are in different stages, of which each has its own contents: {where}."
    names = dict.fromkeys(name for memory in compared.memory for name in memory)
    rows = [_cells(name, Metric.MEMORY, [memory.get(name) for memory in compared.memory]) for name in names]
    rows.append(_cells("**all**", Metric.MEMORY, [sum(memory.values()) for memory in compared.memory]))
    yield table(["", *_header(labels)], rows)


# --- rows


def _roles(compared: SideBySide) -> Iterator[str]:
    further = (compared.ranked_by,) if compared.ranked_by not in _BY_ROLE else ()
    for metric in (metric for metric in (*_BY_ROLE, *further) if metric in compared.additive):
        yield f"## By role: {metric.value}"
        if all(len({figures.get(metric, 0) for figures in row.figures}) == 1 for row in compared.roles):
            yield "The same in every role."
            continue
        yield _rows("role", compared, compared.roles, metric)


def _rows(title: str, compared: SideBySide, rows: Sequence[Row], metric: Metric) -> str:
    """Return a table of rows that have the metric, and their sum."""
    shown = [row for row in rows if any(figures.get(metric) for figures in row.figures)]
    cells = [_cells(row.name, metric, [figures.get(metric) for figures in row.figures]) for row in shown]
    cells.append(_cells("**all**", metric, [totals.get(metric) for totals in compared.totals]))
    return table([title, *_header([side.label for side in compared.sides])], cells)


def _modules(compared: SideBySide) -> Iterator[str]:
    """Yield the modules that changed most, one row for all others, the sum, and how modules became rows."""
    metric = compared.ranked_by
    ranked = sorted(compared.modules, key=lambda row: (-_largest_change(row, metric), row.name))
    changed = [row for row in ranked if _largest_change(row, metric)][:SHOWN_MODULES]
    others = ranked[len(changed) :]
    cells = [_cells(_module(row.name), metric, [figures.get(metric) for figures in row.figures]) for row in changed]
    if others:
        sums = [sum(row.figures[side].get(metric, 0) for row in others) for side in range(len(compared.sides))]
        cells.append(_cells(f"{len(others)} more", metric, sums))
    cells.append(_cells("**all**", metric, [totals.get(metric) for totals in compared.totals]))
    yield table(["module (its own operators)", *_header([side.label for side in compared.sides])], cells)
    if any(row.name in compared.alignment.renamed for row in changed):
        yield (
            "Modules of several ids are one row where role, kind and end of the path are the same: `{a/b}` is the path "
            f"on either side, `{ABSENT}` none; of more than two, `{OTHER_PATH}` stands for other paths, "
            f"`{OTHER_INDEX}` for other numbers of layers. The JSON has the ids."
        )
    yield from _undecided(compared)


def _undecided(compared: SideBySide) -> Iterator[str]:
    partners = compared.alignment.undecided
    apart = [row.name for row in compared.modules if row.name in partners]
    if apart:
        example = max(apart, key=lambda name: len(partners[name]))
        yield (
            f"{len(apart)} rows are apart that may be the same, as several fit equally well: "
            f"{code(example)} could be {' or '.join(map(code, partners[example]))}. The JSON names all."
        )


def _largest_change(row: Row, metric: Metric) -> Number:
    first, *others = (figures.get(metric, 0) for figures in row.figures)
    return max(abs(other - first) for other in others)


def _module(name: str) -> str:
    return name if name == UNNAMED else code(name)


def _header(labels: Sequence[str]) -> list[str]:
    """Return the titles of the columns that `_cells` fills after the first."""
    whose = [f" of {label}" if len(labels) > 2 else "" for label in labels[1:]]
    return [*labels, *(title for label in whose for title in (f"change{label}", "%"))]


def _cells(name: str, metric: Metric, values: Sequence[Number | None]) -> list[str]:
    first = values[0]
    changes = [text for value in values[1:] for text in (difference(metric, first, value), percent(first, value))]
    return [name, *(figure(metric, value) for value in values), *changes]
