"""A comparison as JSON, with every figure and reason, and as CSV, a row per part and metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsocr_graph.emit.compare_cells import why
from modelmeter.compare import Metric, Reason, SideBySide
from modelmeter.compare.changes import Changes
from modelmeter.compare.side import Figures
from modelmeter.costs import Number
from modelmeter.json_text import dump_json, whole

COMPARISON_SCHEMA_VERSION = 2


def compare_to_json(compared: SideBySide) -> str:
    """Write a comparison as JSON in base units; of each figure a list, one entry a side, null where it has none.

    `explained` names the metrics of `changes`. A reason has its `effect`, what it adds to the change in the metric's
    unit, or null where that is not known, and `raises`, whether it makes more. `uncounted` has what each side leaves
    out, `does_not_fit` what it lacks in memory on its device, or null; `module_ids` the ids of rows whose modules have
    several; `undecided` the rows that might be one with others.
    """
    document: dict[str, Any] = {
        "schema_version": COMPARISON_SCHEMA_VERSION,
        "sides": [side.label for side in compared.sides],
        "units": {metric.value: metric.unit for metric in Metric},
        "uncounted": [[each.text for each in side.uncounted] for side in compared.sides],
        "facts": {fact.name: list(fact.values) for fact in compared.facts},
        "totals": _by_metric(compared.totals),
        "memory": _memory(compared),
        "device_memory": [side.device_memory for side in compared.sides],
        "does_not_fit": [side.missing_memory for side in compared.sides],
        "explained": [metric.value for metric in compared.explained],
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

    A cell is empty where a side has no such figure, and so is the change where either side does not know it: a part
    that a side does not have counts as nothing, an unknown figure does not.
    """
    labels = [side.label for side in compared.sides]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["split", "part", "metric", "unit", *labels, *(f"change of {label}" for label in labels[1:]), "why"]
    )
    totals = {metric: [metric in side for side in compared.totals] for metric in Metric}
    writer.writerows(_figure_rows("total", "", compared.totals, totals))
    writer.writerows(_fit_rows(compared))
    known = {metric: [compared.knows(metric, side) for side in range(len(labels))] for metric in Metric}
    splits = {"stage": compared.stages, "role": compared.roles, "module": compared.modules}
    for split, rows in splits.items():
        for row in rows:
            writer.writerows(_figure_rows(split, row.name, row.figures, known))
    for changes in compared.changes:
        writer.writerows(_change_rows(changes, labels.index(changes.label), len(labels)))
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
        "causes": [_reason(reason) for reason in changes.causes],
        "entries": [
            {
                "phase": entry.phase,
                "role": None if entry.role is None else entry.role.name,
                "before": entry.before,
                "after": entry.after,
                "share": entry.difference / changes.difference if changes.difference else None,
                "work": {metric.value: list(pair) for metric, pair in entry.work.items()},
                "why": [_reason(reason) for reason in entry.reasons],
            }
            for entry in changes.entries
        ],
    }


def _reason(reason: Reason) -> Mapping[str, Any]:
    document: dict[str, Any] = {
        "reason": reason.text,
        "effect": reason.effect,
        "raises": None if reason.way == 0 else reason.way > 0,
    }
    return {**document, "parts": [_reason(part) for part in reason.parts]} if reason.parts else document


# --- CSV


def _figure_rows(
    split: str, part: str, figures: Sequence[Figures], known: Mapping[Metric, Sequence[bool]]
) -> Iterator[list[object]]:
    for metric in _metrics(figures):
        values = [side.get(metric) for side in figures]
        changes = [
            (value or 0) - (values[0] or 0) if known[metric][0] and is_known else None
            for value, is_known in zip(values[1:], known[metric][1:], strict=True)
        ]
        yield [split, part, metric.value, metric.unit, *map(_cell, values), *map(_cell, changes), ""]


def _fit_rows(compared: SideBySide) -> Iterator[list[object]]:
    """Yield the memory of the devices, and why sides do not fit theirs."""
    held = [side.device_memory for side in compared.sides]
    if any(held):
        words = [f"{side.label} does not fit: {side.missing_memory}" for side in compared.sides if side.missing_memory]
        yield ["fit", "device memory", "", "bytes", *map(_cell, held), *([""] * (len(held) - 1)), "; ".join(words)]


def _change_rows(changes: Changes, index: int, count: int) -> Iterator[list[object]]:
    """Yield the causes and reasons of one side against the first; the cells of other sides are empty."""
    metric = changes.metric
    for cause in changes.causes:
        effects: list[object] = [""] * (count - 1)
        effects[index - 1] = _cell(cause.effect)
        yield ["cause", cause.text, metric.value, metric.unit, *([""] * count), *effects, _words(cause.parts, metric)]
    for entry in changes.entries:
        values: list[object] = [""] * count
        values[0], values[index] = _cell(entry.before), _cell(entry.after)
        differences: list[object] = [""] * (count - 1)
        differences[index - 1] = _cell(entry.difference)
        yield ["change", entry.name, metric.value, metric.unit, *values, *differences, _words(entry.reasons, metric)]


def _words(reasons: Sequence[Reason], metric: Metric) -> str:
    return "; ".join(why(reason, metric) for reason in reasons)


def _cell(value: Number | None) -> object:
    return "" if value is None else whole(value)
