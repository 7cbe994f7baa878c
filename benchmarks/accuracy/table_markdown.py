"""The error table of a target as Markdown: errors by split and stage, baselines, criteria, and every case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dsocr_graph.emit.markdown_table import table
from dsocr_graph.emit.measurement_table import OVER_ATTRIBUTED
from modelmeter.predict import Calibration

if TYPE_CHECKING:
    from table import Row


def to_markdown(document: Mapping[str, Any], calibration: Calibration, rows: Sequence[Row]) -> str:
    """Return the table of a target from its document, as `table.report` makes it; ends with a newline."""
    machine, name = calibration.machine, document["target"]
    unit = "CPU time" if machine.kind == "cpu" else "wall time"
    parts = [
        f"# Accuracy: {name}",
        "",
        f"{machine.device}, {machine.threads} thread(s), torch {machine.torch}, {calibration.date}; "
        f"{len(calibration.samples):,} calibrated calls, sentinels typically {calibration.drift:.1%} off their median. "
        f"Seconds are {unit}; the error is predicted over measured, less 1. Made by "
        f"`python benchmarks/accuracy/table.py {name}` from benchmarks/accuracy/data/{name}.",
        "",
        _summary_table(document["summary"]),
        "",
        _baseline_table(document["summary"]),
        "",
        table(["criterion", "goal", "found"], [_criterion(item) for item in document["criteria"]]),
        "",
        _attributed_note(machine.kind, rows),
        "",
    ]
    total = document["workload"]
    if total is not None:
        parts += [
            f"The whole workload {total['workload']}: predicted {total['predicted']:.1f} s "
            f"({total['p10']:.1f} to {total['p90']:.1f}), measured {total['measured']:.1f} s as stages times their "
            f"counts, decode between its measured steps: **{total['error']:+.1%}**.",
            "",
        ]
    if document["not_measured"]:
        parts += [f"Declared and not measured: {', '.join(document['not_measured'])}.", ""]
    if document["goal_not_declared"]:
        parts += [
            f"Part of the goal and not run in this type, as it takes too long there ([why](../accuracy/README.md)): "
            f"{', '.join(document['goal_not_declared'])}.",
            "",
        ]
    return "\n".join([*parts, _case_table(rows), ""])


def _criterion(item: Mapping[str, Any]) -> list[str]:
    found = item["found"]
    return [
        item["criterion"],
        f"{item['goal']:.0%}",
        "not timed" if found is None else " to ".join(f"{share:.1%}" for share in found),
    ]


def _attributed_note(kind: str, rows: Sequence[Row]) -> str:
    if all(row.attributed is None for row in rows):
        return "No call was timed; those of experts in a loop cannot be, as they follow the data and are in no graph."
    begin = " A call lasts from its beginning to that of the next, so that the Python between two counts to the first;"
    return (
        f"Attributed are the calls, timed one by one, over a whole run beside them.{begin if kind == 'cpu' else ''} "
        f"{OVER_ATTRIBUTED}."
    )


def _summary_table(summary: Mapping[str, Any]) -> str:
    header = ["split or stage", "cases", "median", "p90", "max", "signed median"]
    header += ["within 5 %", "10 %", "15 %", "in p10-p90"]
    rows = [
        [name, str(item["cases"]), *(f"{figure:.1%}" for figure in item["prediction"].values())]
        for name, item in summary.items()
    ]
    return table(header, rows)


def _baseline_table(summary: Mapping[str, Any]) -> str:
    everything = summary["all"]
    rows = [
        [name, *(f"{figures[column]:.1%}" for column in ("median", "p90", "max", "signed median"))]
        for name, figures in (("prediction", everything["prediction"]), *everything["baselines"].items())
    ]
    return table(["all cases by", "median", "p90", "max", "signed median"], rows)


def _case_table(rows: Sequence[Row]) -> str:
    header = ["case", "split", "runs", "spread of runs", "attributed", "wall s", "measured s", "predicted s", "p10-p90"]
    header += ["error", "peak memory", "kernels"]
    lines = [
        [
            row.case,
            row.split,
            str(row.runs),
            f"{row.spread:.1%}",
            "-" if row.attributed is None else f"{row.attributed:.1%}",
            f"{row.wall:.4g}",
            f"{row.measured:.4g}",
            f"{row.predicted:.4g}",
            f"{row.p10:.4g}-{row.p90:.4g}",
            f"{row.error:+.1%}",
            "-" if row.peak is None else f"{row.peak:+.1%}",
            "-" if row.launches is None else f"{row.launches[0]}/{row.launches[1]}",
        ]
        for row in rows
    ]
    return table(header, lines, left=2)
