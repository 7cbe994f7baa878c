"""A comparison as JSON, with every figure and reason, and as CSV, a row per part and metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelmeter.compare import Metric, SideBySide
from modelmeter.compare.changes import Changes
from modelmeter.compare.side import Figures
from modelmeter.costs import Number
from modelmeter.json_text import dump_json, whole

COMPARISON_SCHEMA_VERSION = 1


def compare_to_json(compared: SideBySide) -> str:
    """Write a comparison as JSON in base units; of each figure a list, one entry a side, null where it has none.

    `uncounted` has what each side leaves out; `module_ids` the ids of rows whose modules have several; `undecided` the
    rows that might be one with others.
    """
    document: dict[str, Any] = {
        "schema_version": COMPARISON_SCHEMA_VERSION,
        "sides": [side.label for side in compared.sides],
        "units": {metric.value: metric.unit for metric in Metric},
        "uncounted": [[each.text for each in side.uncounted] for side in compared.sides],
        "facts": {fact.name: list(fact.values) for fact in compared.facts},
        "totals": _by_metric(compared.totals),
        "memory": _memory(compared),
        "changes": [_changes_document(changes) for changes in compared.changes],
        **{
            name: {row.name: _by_metric(row.figures) for row in rows}
            for name, rows in (("stages", compared.stages), ("roles", compared.roles), ("modules", compared.modules))
        },
        "module_ids": {name: list(ids) for name, ids in compared.alignment.renamed.items()},
        "undecided": {name: list(others) for name, others in compared.alignment.undecided.items()},
    }
    return dump_json(document, depths={"changes": 5})


def compare_to_csv(compared: SideBySide) -> str:
    """Write a comparison as CSV: totals, the rows of each split, which add up to them, and the changes with why.

    A cell is empty where a side has no such figure.
    """
    labels = [side.label for side in compared.sides]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["split", "part", "metric", "unit", *labels, *(f"change of {label}" for label in labels[1:]), "why"]
    )
    writer.writerows(_figure_rows("total", "", compared.totals))
    splits = {"stage": compared.stages, "role": compared.roles, "module": compared.modules}
    for split, rows in splits.items():
        for row in rows:
            writer.writerows(_figure_rows(split, row.name, row.figures))
    for index, changes in enumerate(compared.changes, 1):
        writer.writerows(_change_rows(changes, index, len(labels)))
    return text.getvalue()


# --- JSON


def _by_metric(figures: Sequence[Figures]) -> dict[str, list[Number | None]]:
    return {metric.value: [side.get(metric) for side in figures] for metric in _metrics(figures)}


def _metrics(figures: Sequence[Figures]) -> list[Metric]:
    return [metric for metric in Metric if any(metric in side for side in figures)]


def _memory(compared: SideBySide) -> dict[str, list[Number | None]]:
    names = dict.fromkeys(name for memory in compared.memory for name in memory)
    return {name: [memory.get(name) for memory in compared.memory] for name in names}


def _changes_document(changes: Changes) -> Mapping[str, Any]:
    return {
        "side": changes.label,
        "metric": changes.metric.value,
        "before": changes.before,
        "after": changes.after,
        "entries": [
            {
                "phase": entry.phase,
                "role": entry.role.name,
                "before": entry.before,
                "after": entry.after,
                "share": entry.difference / changes.difference if changes.difference else None,
                "work": {metric.value: list(pair) for metric, pair in entry.work.items()},
                "why": list(entry.reasons),
            }
            for entry in changes.entries
        ],
    }


# --- CSV


def _figure_rows(split: str, part: str, figures: Sequence[Figures]) -> Iterator[list[object]]:
    for metric in _metrics(figures):
        values = [side.get(metric) for side in figures]
        changes = [(value or 0) - (values[0] or 0) for value in values[1:]]
        yield [split, part, metric.value, metric.unit, *map(_cell, values), *map(_cell, changes), ""]


def _change_rows(changes: Changes, index: int, count: int) -> Iterator[list[object]]:
    """Yield the reasons of one side against the first; the cells of other sides are empty."""
    metric = changes.metric
    for entry in changes.entries:
        values: list[object] = [""] * count
        values[0], values[index] = _cell(entry.before), _cell(entry.after)
        differences: list[object] = [""] * (count - 1)
        differences[index - 1] = _cell(entry.difference)
        part = f"{entry.phase}, {entry.role.name}"
        yield ["change", part, metric.value, metric.unit, *values, *differences, "; ".join(entry.reasons)]


def _cell(value: Number | None) -> object:
    return "" if value is None else whole(value)
