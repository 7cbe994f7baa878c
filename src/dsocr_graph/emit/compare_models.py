"""The table of models at one workload, as Markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from dsocr_graph.emit.compare_cells import figure, fit_lines
from dsocr_graph.emit.markdown_table import table
from modelmeter.compare import Metric, ModelRow
from modelmeter.json_text import dump_json, whole

MODELS_SCHEMA_VERSION = 2
_COLUMNS = (
    Metric.CONTEXT_TOKENS,
    Metric.OUTPUT_TOKENS,
    Metric.PARAMETERS,
    Metric.WEIGHT_BYTES,
    Metric.FLOPS,
    Metric.BYTES,
    Metric.KV_PER_TOKEN,
    Metric.MEMORY,
    Metric.TIME,
    Metric.TTFT,
    Metric.TPOT,
)
_BY_ROLE = (Metric.TIME, Metric.FLOPS, Metric.BYTES, Metric.PARAMETERS, Metric.WEIGHT_BYTES)
_SAID_OF_WORKLOADS = ("mode", "read")
"""Facts that tell how a model takes the pages, which may differ from model to model."""


@frozen(kw_only=True)
class LeftOut:
    """A registered model that the workload says nothing to."""

    label: str
    reason: str


def models_to_markdown(rows: Sequence[ModelRow], left_out: Sequence[LeftOut] = ()) -> str:
    """Write the table of models: totals, then by role time, FLOPs, bytes, parameters and weights, then peak memory.

    Examples
    --------
    >>> print(models_to_markdown([], [LeftOut(label="toy", reason="it has no stage `prefill`")]))
    # Models at one workload
    <BLANKLINE>
    Left out:
    <BLANKLINE>
    - toy: it has no stage `prefill`
    <BLANKLINE>
    """
    sections = ["# Models at one workload"]
    if rows:
        sections += [_device(rows[0]), _totals(rows), *fit_lines((row.label, row.missing_memory) for row in rows)]
        for metric in _BY_ROLE:
            if any(metric in row.totals for row in rows):
                sections += [f"## By role: {metric.value}", _roles(rows, metric)]
        sections += ["## Memory at the peak", _memory(rows)]
    if left_out:
        sections += ["Left out:", "\n".join(f"- {each.label}: {each.reason}" for each in left_out)]
    return "\n\n".join(sections) + "\n"


def models_to_json(rows: Sequence[ModelRow], left_out: Sequence[LeftOut] = ()) -> str:
    """Write the table of models as JSON: every figure in FLOPs, bytes and seconds."""
    document: dict[str, Any] = {
        "schema_version": MODELS_SCHEMA_VERSION,
        "units": {metric.value: metric.unit for metric in Metric},
        "models": [_document(row) for row in rows],
        "left_out": {each.label: each.reason for each in left_out},
    }
    return dump_json(document, depths={"models": 4})


def models_to_csv(rows: Sequence[ModelRow]) -> str:
    """Write the table of models as CSV: a row of a model's totals, then one of each role."""
    metrics = [metric for metric in Metric if any(metric in row.totals for row in rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    titles = [f"{metric.value} [{metric.unit}]" for metric in metrics]
    writer.writerow(["label", "model", "variant", "workload", "device", "times", "does not fit", "role", *titles])
    for row in rows:
        device = [row.device or "", row.times or "", row.missing_memory or ""]
        facts = [row.label, row.model, _variant(row.variant), _workload(row), *device]
        parts = {"": row.totals, **{role.name: figures for role, figures in row.roles.items()}}
        for role, figures in parts.items():
            writer.writerow(
                [*facts, role, *(whole(figures[metric]) if metric in figures else "" for metric in metrics)]
            )
    return text.getvalue()


def _device(row: ModelRow) -> str:
    """Return what times are of and how they were found, the same in all rows."""
    return "Without a device: no times." if row.device is None else f"Times on {row.device}: {row.times}."


def _totals(rows: Sequence[ModelRow]) -> str:
    metrics = [metric for metric in _COLUMNS if any(metric in row.totals for row in rows)]
    cells = [
        [
            row.label,
            f"{row.model}: {_variant(row.variant)}",
            _workload(row),
            *(figure(metric, row.totals.get(metric)) for metric in metrics),
        ]
        for row in rows
    ]
    return table(["", "model and variant", "workload", *(metric.value for metric in metrics)], cells, left=3)


def _roles(rows: Sequence[ModelRow], metric: Metric) -> str:
    roles = sorted({role for row in rows for role in row.roles}, key=lambda role: role.order)
    shown = [role for role in roles if any(row.roles.get(role, {}).get(metric) for row in rows)]
    cells = [[role.name, *(figure(metric, row.roles.get(role, {}).get(metric)) for row in rows)] for role in shown]
    cells.append(["**all**", *(figure(metric, row.totals.get(metric)) for row in rows)])
    return table(["role", *(row.label for row in rows)], cells)


def _memory(rows: Sequence[ModelRow]) -> str:
    """Return what the peak of each model consists of; weights are those of the table by role."""
    names = list(dict.fromkeys(name for row in rows for name in row.memory))
    cells = [[name, *(figure(Metric.MEMORY, row.memory.get(name)) for row in rows)] for name in names]
    cells.append(["**all**", *(figure(Metric.MEMORY, sum(row.memory.values())) for row in rows)])
    cells.append(["stage of the peak", *(row.peak_stage for row in rows)])
    return table(["", *(row.label for row in rows)], cells)


def _workload(row: ModelRow) -> str:
    """Return the workload's name and how the model takes it."""
    said = [f"{name} {row.facts[name]}" for name in _SAID_OF_WORKLOADS if name in row.facts]
    return ", ".join((row.workload, *said))


def _document(row: ModelRow) -> Mapping[str, Any]:
    return {
        "label": row.label,
        "model": row.model,
        "variant": dict(sorted(row.variant.items())),
        "workload": row.workload,
        "workload_facts": dict(row.facts),
        "device": row.device,
        "times": row.times,
        "does_not_fit": row.missing_memory,
        "peak_stage": row.peak_stage,
        "memory": dict(row.memory),
        "totals": {metric.value: number for metric, number in row.totals.items()},
        "roles": {
            role.name: {metric.value: number for metric, number in figures.items()}
            for role, figures in row.roles.items()
        },
    }


def _variant(variant: Mapping[str, str]) -> str:
    return ", ".join(f"{fact} {value}" for fact, value in sorted(variant.items())) or "as given"
