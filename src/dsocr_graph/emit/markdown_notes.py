"""The closing sections of report.md: choice of experts, coverage, and how to read the figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dsocr_graph.emit.markdown_table import code, shares, table
from dsocr_graph.emit.predicted import is_bound
from modelmeter.reports import MoEReport, Report
from modelmeter.units import format_bytes, format_count, format_flops

SHOWN_ROUTES = 24
"""Rows of the table on the choice of experts."""


def note_sections(report: Report) -> Iterable[str]:
    """Yield the sections on routing, coverage and conventions, as Markdown."""
    if report.moe:
        yield from _routing(report)
    yield from _coverage(report)
    yield from _reading(report)


def _routing(report: Report) -> Iterable[str]:
    yield "## Choice of experts"
    yield (
        "How many experts a layer reads depends on what its router picks. The figures above are for "
        f"`{report.routing}`; the bounds are for tokens that all pick the same experts, and for tokens that share none "
        "while any is left. FLOPs do not depend on it. Of pages with equal rows the first is shown."
    )
    distinct: dict[object, MoEReport] = {}
    for entry in report.moe:
        # Pages whose runs are alike give equal rows; one of them is enough.
        distinct.setdefault((entry.stage, entry.tokens, entry.executions, entry.experts, entry.top_k), entry)
    shown = list(distinct.values())[:SHOWN_ROUTES]
    yield table(
        [
            "page",
            "stage",
            "tokens together",
            "experts read per layer (bounds)",
            "expert weights read",
            "fewest",
            "most",
            "stage bytes, fewest",
            "most",
        ],
        [_route_row(entry) for entry in shown],
        left=2,
    )
    if len(distinct) > len(shown):
        yield f"{len(distinct) - len(shown):,} more rows are in report.json under `moe`."


def _route_row(entry: MoEReport) -> list[str]:
    read, weights, moved = entry.distinct_experts, entry.expert_weight_bytes_read, entry.stage_bytes
    return [
        entry.item,
        entry.stage,
        f"{entry.tokens:,}",
        f"{read.selected:.3g} of {entry.experts} ({read.fewest:.3g} to {read.most:.3g})",
        format_bytes(weights.selected),
        format_bytes(weights.fewest),
        format_bytes(weights.most),
        format_bytes(moved.fewest),
        format_bytes(moved.most),
    ]


def _coverage(report: Report) -> Iterable[str]:
    coverage = report.coverage
    states = {
        "exact": coverage.exact,
        "approximated": coverage.approximated,
        "free (views)": coverage.free,
        "unclassified": coverage.unclassified,
    }
    parts = list(states.values())
    calls, flops, moved = (
        shares([share.calls for share in parts]),
        shares([share.flops for share in parts]),
        shares([share.bytes for share in parts]),
    )
    yield "## Coverage"
    yield table(
        ["", "calls", "%", "FLOPs", "%", "bytes", "%"],
        [
            [
                name,
                f"{share.calls:,}",
                calls[index],
                format_flops(share.flops),
                flops[index],
                format_bytes(share.bytes),
                moved[index],
            ]
            for index, (name, share) in enumerate(states.items())
        ],
    )
    if coverage.approximations:
        yield "Approximated:"
        yield table(
            ["operator", "assumption", "calls", "FLOPs", "bytes"],
            [
                [f"`{entry.op}`", entry.note, f"{entry.calls:,}", format_flops(entry.flops), format_bytes(entry.bytes)]
                for entry in coverage.approximations
            ],
            left=2,
        )
    if coverage.unclassified_ops:
        yield "**Unclassified**: bytes are counted, FLOPs are unknown, so totals are too low."
        yield table(
            ["operator", "stage", "first module", "calls", "bytes"],
            [
                [
                    f"`{entry.op}`",
                    entry.stage,
                    code(entry.module),
                    f"{entry.calls:,}",
                    format_bytes(entry.bytes),
                ]
                for entry in coverage.unclassified_ops
            ],
            left=3,
        )
    else:
        yield "No operator is unclassified."


def _reading(report: Report) -> Iterable[str]:
    yield "## How to read this"
    yield "\n".join(f"- {line}" for line in _conventions(report))
    if report.idle_modules:
        yield "Modules that hold parameters but run no operator themselves (a parent reads them, or nothing does):"
        yield "\n".join(
            f"- `{name}`: {format_count(parameters)} parameters" for name, parameters in report.idle_modules.items()
        )


def _conventions(report: Report) -> Sequence[str]:
    lines = [
        "FLOPs are those of matrix products and convolutions, which torch's FlopCounterMode counts as well, and those "
        "of all other arithmetic; report.json has both apart.",
        "One multiply-add is 2 FLOPs. Attention counts both products over all queries and keys, masked ones included.",
        "Bytes are unfused unless said otherwise: every kernel reads its operands and writes its results once, caches "
        "hold nothing. Fused bytes leave out what chains of pointwise operators could keep on chip.",
        "A document's decode runs one execution less than it has new tokens, as the prefill yields the first; the sum "
        "over its growing context is exact.",
        "Bytes of experts are expectations where a router decides; all other figures are counts.",
        "Units are SI: 1 GB is 1e9 bytes, 1 TFLOP is 1e12 FLOPs. Percentages add up to 100 where a table ends in a "
        "row for all.",
    ]
    if report.prediction is None:
        lines.append("No device was given, so there are no times.")
    elif is_bound(report.prediction):
        lines.append(
            "The roofline divides by datasheet peaks. It leaves out launches, host work, synchronisation and what "
            "kernels lose against peak, so real runs take longer, decode by the most."
        )
    else:
        lines += [
            "Times are predicted from measured kernels. A call's time is by how much it moves the end of its stage, so "
            "that the times of a stage's calls add up to it.",
            "p10 to p90: of ten runs one is expected below and one above, by the errors of the measurements and the "
            "choice of experts.",
        ]
    return lines
