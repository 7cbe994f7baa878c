"""The section of report.md that sets predicted times beside measured ones: by stage, category and module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dsocr_graph.emit.markdown_amounts import interval
from dsocr_graph.emit.markdown_table import code, table
from dsocr_graph.emit.measurement_table import OVER_ATTRIBUTED
from modelmeter.measurement import Measurement
from modelmeter.reports.comparison import REST, Compared, StageComparison
from modelmeter.units import format_seconds

SHOWN_MODULES = 15
"""Modules of a stage that are shown, the largest; comparison.csv has all."""

_SHORTEST_SHOWN = 1e-9
"""Seconds; what is shorter is shown as no time."""


def comparison_sections(measurement: Measurement, comparisons: Sequence[StageComparison]) -> Iterable[str]:
    """Yield the section that sets predictions beside a measurement, as Markdown.

    Parameters
    ----------
    measurement : Measurement
        What was measured, where and when.
    comparisons : sequence of StageComparison
        One or more; see `modelmeter.reports.comparison.compare`.
    """
    yield "## Predicted beside measured"
    machine = measurement.machine
    yield (
        f"Measured on {machine.device} with torch {machine.torch} on {measurement.date}, {measurement.weights} weights."
        " The ratio is predicted over measured time; inside says whether the measured time lies from p10 to p90. The "
        "measured time is the median of the runs; half the range between their quartiles over it is their spread. "
        f"Attributed are the calls of named modules, views included, timed one by one, over a run: {OVER_ATTRIBUTED}."
    )
    yield verdict(comparisons)
    yield table(
        [
            *("stage", "sizes", "predicted", "p10 to p90", "measured", "ratio", "inside"),
            *("runs", "spread of runs", "attributed"),
        ],
        [_stage_row(comparison) for comparison in comparisons],
        left=2,
    )
    yield from _miscounted(measurement)
    for comparison in _largest_of_each_stage(comparisons):
        if comparison.cells:
            yield from _parts(comparison)


def verdict(comparisons: Sequence[StageComparison]) -> str:
    """Return how far off the predictions of some stages are, in one line."""
    totals = [comparison.total for comparison in comparisons]
    signed = np.array([total.predicted.seconds / total.measured - 1 for total in totals])
    errors = np.abs(signed)
    inside = [total.covered for total in totals if total.covered is not None]
    coverage = f"; {sum(inside)} of {len(inside)} lie from p10 to p90" if inside else ""
    return (
        f"Error of {len(totals)} stage times: median {np.median(errors):.1%}, p90 {np.quantile(errors, 0.9):.1%}, "
        f"largest {errors.max():.1%}, signed median {np.median(signed):+.1%}{coverage}."
    )


def _stage_row(comparison: StageComparison) -> list[str]:
    total = comparison.total
    return [
        comparison.stage,
        _sizes(comparison),
        *_cells(total),
        {None: "-", True: "yes", False: "no"}[total.covered],
        f"{comparison.runs:,}",
        _percent(comparison.spread),
        "-" if comparison.attributed is None else _percent(comparison.attributed),
    ]


def _miscounted(measurement: Measurement) -> Iterator[str]:
    if not measurement.calls:
        return
    wrong = measurement.miscounted
    right = len(measurement.calls) - len(wrong)
    yield f"{right:,} of {len(measurement.calls):,} counts of a module's calls are as the graph says."
    if wrong:
        yield table(
            ["stage", "module", "calls counted", "expected"],
            [[item.stage, code(item.module), f"{item.counted:,}", f"{item.expected:,}"] for item in wrong],
            left=2,
        )


def _largest_of_each_stage(comparisons: Sequence[StageComparison]) -> list[StageComparison]:
    """Return the longest measured execution of each stage, in order of first appearance."""
    largest: dict[str, StageComparison] = {}
    for comparison in comparisons:
        held = largest.get(comparison.stage)
        if held is None or comparison.total.measured > held.total.measured:
            largest[comparison.stage] = comparison
    return list(largest.values())


def _parts(comparison: StageComparison) -> Iterator[str]:
    sizes = f" at {_sizes(comparison)}" if comparison.bindings else ""
    yield f"### {comparison.stage}{sizes}"
    yield (
        f"Work of operators, of views as the category host, and {REST}. Calls are those of one run. Like calls are the "
        "same operator of the same module at the same sizes; where a row has several kinds, the spread is the mean of "
        f"theirs, weighed by time. Modules contain each other; the largest {SHOWN_MODULES} by measured time are shown, "
        "comparison.csv has all."
    )
    header = ["predicted", "p10 to p90", "measured", "ratio", "calls", "spread of like calls"]
    categories = sorted(comparison.categories.items(), key=lambda item: (-item[1].measured, item[0].value))
    rows = [[category.value, *_row(row)] for category, row in categories]
    rows += [[REST, *_row(comparison.rest)], ["**all**", *_row(comparison.total)]]
    yield table(["category", *header], rows)
    modules = sorted(comparison.modules.items(), key=lambda item: (-item[1].measured, item[0]))[:SHOWN_MODULES]
    yield table(["module", *header], [[code(module), *_row(row)] for module, row in modules])


def _row(row: Compared) -> list[str]:
    return [*_cells(row), f"{row.calls:,}" if row.calls else "-", _percent(row.spread)]


def _cells(row: Compared) -> list[str]:
    predicted, measured = _seconds(row.predicted.seconds), _seconds(row.measured)
    ratio = "-" if row.ratio is None or "-" in (predicted, measured) else f"{row.ratio:.3f}"
    none_at_all = row.predicted.p90 is not None and row.predicted.p90 < _SHORTEST_SHOWN
    return [predicted, "-" if none_at_all else interval(row.predicted), measured, ratio]


def _seconds(seconds: float) -> str:
    return "-" if seconds < _SHORTEST_SHOWN else format_seconds(seconds)


def _sizes(comparison: StageComparison) -> str:
    return " ".join(f"{dim}={size}" for dim, size in sorted(comparison.bindings.items())) or "fixed"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
