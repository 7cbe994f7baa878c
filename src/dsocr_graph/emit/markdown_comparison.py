"""The section of report.md that sets predicted times beside measured ones: by stage, category and module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dsocr_graph.emit.markdown_amounts import interval
from dsocr_graph.emit.markdown_table import code, table
from modelmeter.measurement import Measurement
from modelmeter.reports.comparison import REST, Compared, StageComparison
from modelmeter.units import format_seconds

SHOWN_MODULES = 15
"""Modules of a stage that are shown, the largest; comparison.csv has all."""


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
        "measured time is the median of N runs, half the range between their quartiles its spread. Attributed is the "
        "share of it that calls of named modules account for, views included."
    )
    yield verdict(comparisons)
    yield table(
        ["stage", "sizes", "predicted", "p10 to p90", "measured", "ratio", "inside", "N", "spread", "attributed"],
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
        _percent(total.spread),
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
        f"Work of operators, of views as the category host, and {REST}. N is calls in one run; the spread is between "
        f"calls that are alike. Modules contain each other; the largest {SHOWN_MODULES} by measured time are shown, "
        "comparison.csv has all."
    )
    header = ["predicted", "p10 to p90", "measured", "ratio", "N", "spread"]
    categories = sorted(comparison.categories.items(), key=lambda item: (-item[1].measured, item[0].value))
    rows = [[category.value, *_row(row)] for category, row in categories]
    rows += [[REST, *_row(comparison.rest)], ["**all**", *_row(comparison.total)]]
    yield table(["category", *header], rows)
    modules = sorted(comparison.modules.items(), key=lambda item: (-item[1].measured, item[0]))[:SHOWN_MODULES]
    yield table(["module", *header], [[code(module), *_row(row)] for module, row in modules])


def _row(row: Compared) -> list[str]:
    return [*_cells(row), f"{row.calls:,}" if row.calls else "-", _percent(row.spread)]


def _cells(row: Compared) -> list[str]:
    ratio = "-" if row.ratio is None else f"{row.ratio:.3f}"
    return [format_seconds(row.predicted.seconds), interval(row.predicted), format_seconds(row.measured), ratio]


def _sizes(comparison: StageComparison) -> str:
    return " ".join(f"{dim}={size}" for dim, size in sorted(comparison.bindings.items())) or "fixed"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
