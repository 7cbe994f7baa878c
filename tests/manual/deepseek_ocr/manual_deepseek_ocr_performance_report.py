"""Compare the five modes and some batches on the standard pages: one analysis each, one table.

    python tests/manual/deepseek_ocr/manual_deepseek_ocr_performance_report.py
    python tests/manual/deepseek_ocr/manual_deepseek_ocr_performance_report.py --batches 1 8 64 --out reports

The first run captures each mode that no earlier one did, half a minute per mode; later runs take seconds. With --out
each analysis also writes its artefacts, into OUT/MODE-batch-N. Times are a datasheet roofline, no prediction.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dsocr_graph import analyze_model
from dsocr_graph.errors import DsocrGraphError
from dsocr_graph.workloads import MODES
from modelmeter.errors import ModelMeterError
from modelmeter.reports import Report
from modelmeter.units import format_bytes, format_flops, format_seconds

COLUMNS = ("mode", "batch", "documents", "FLOPs", "bytes", "peak memory", "time", "per document", "decode's share")


def main(arguments: Sequence[str] | None = None) -> int:
    """Analyze every mode at every batch and print one row for each; exit status 2 for a wrong option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", default=list(MODES), help="default: %(default)s")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="default: %(default)s")
    parser.add_argument("--device", default="h200", help="default: %(default)s")
    parser.add_argument("--attention", default="sdpa", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="write every analysis' artefacts below this directory")
    options = parser.parse_args(arguments)
    rows: list[tuple[str, ...]] = []
    try:
        for mode in options.modes:
            for batch in options.batches:
                analysis = analyze_model(
                    mode=mode,
                    batch=batch,
                    device=options.device,
                    attention=options.attention,
                    out=options.out and options.out / f"{mode.lower()}-batch-{batch}",
                    progress=lambda message, of=f"{mode}, batch {batch}": print(f"{of}: {message}", file=sys.stderr),
                )
                rows.append(row_of(mode, batch, analysis.report))
    except (DsocrGraphError, ModelMeterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(COLUMNS, rows))
    return 0


def row_of(mode: str, batch: int, report: Report) -> tuple[str, ...]:
    """Return one analysis as a row of text."""
    total, decode = report.total.total, report.total.stages["decode"]
    assert total.time is not None, "a report with a device has times"
    assert decode.time is not None
    return (
        mode,
        str(batch),
        str(report.documents),
        format_flops(total.cost.flops),
        format_bytes(total.cost.bytes),
        format_bytes(report.memory.running_bytes),
        format_seconds(total.time.seconds),
        format_seconds(total.time.seconds / report.documents),
        f"{decode.time.seconds / total.time.seconds:.0%}",
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text under their columns, numbers flush right."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [columns, *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
