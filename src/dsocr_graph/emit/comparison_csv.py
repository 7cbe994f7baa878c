"""comparison.csv: predicted beside measured seconds, a row per stage, module, category and cell of both."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from modelmeter.categories import Category
from modelmeter.reports.comparison import REST, Compared, StageComparison

HEADER = (
    "stage",
    "sizes",
    "part",  # "stage", "module" (inclusive), "category", "cell" (of a module's own operators) or "rest"
    "module",
    "category",
    "predicted [s]",
    "predicted p10 [s]",
    "predicted p90 [s]",
    "measured [s]",
    "predicted/measured",
    "runs",  # of a stage, as is their spread
    "spread of runs",
    "calls",  # in one run
    "spread of like calls",  # the mean of several kinds, weighed by time
    "attributed",  # of a stage: its timed calls over the run beside them
)


def to_comparison_csv(comparisons: Sequence[StageComparison]) -> str:
    """Write comparisons as CSV.

    Parameters
    ----------
    comparisons : sequence of StageComparison
        See `modelmeter.reports.comparison.compare`.

    Returns
    -------
    str
        CSV with a header that names the units; lines end with a newline. Cells and the rest add up to the stage;
        modules contain each other, the root has the id "".

    Examples
    --------
    >>> to_comparison_csv(()).count(",")
    14
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for comparison in comparisons:
        sizes = " ".join(f"{dim}={size}" for dim, size in sorted(comparison.bindings.items()))
        for row in _rows(comparison):
            writer.writerow([comparison.stage, sizes, *row])
    return text.getvalue()


def _rows(comparison: StageComparison) -> Iterator[list[object]]:
    runs = (str(comparison.runs), _text(comparison.spread))
    yield ["stage", "", "", *_figures(comparison.total, runs=runs), _text(comparison.attributed)]
    for module, row in comparison.modules.items():
        yield ["module", module, "", *_figures(row), ""]
    for category, row in comparison.categories.items():
        yield ["category", "", category.value, *_figures(row), ""]
    for (module, category), row in comparison.cells.items():
        yield ["cell", module, category.value, *_figures(row), ""]
    if comparison.cells:
        yield ["rest", REST, Category.HOST.value, *_figures(comparison.rest), ""]


def _figures(row: Compared, *, runs: tuple[str, str] = ("", "")) -> list[str]:
    figures = (row.predicted.seconds, row.predicted.p10, row.predicted.p90, row.measured, row.ratio)
    return [*map(_text, figures), *runs, str(row.calls), _text(row.spread)]


def _text(figure: float | None) -> str:
    return "" if figure is None else repr(figure)
