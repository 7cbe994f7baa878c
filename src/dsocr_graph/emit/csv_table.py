"""modules.csv: one row per module and stage, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from dsocr_graph.emit.predicted import has_interval
from modelmeter.costs import COST_NAMES, Amount
from modelmeter.json_text import whole
from modelmeter.reports import Report

_UNITS = {
    "calls": "calls",
    "matmul_flops": "FLOPs",
    "vector_flops": "FLOPs",
    "tensor_core_flops": "FLOPs",
    "cuda_core_flops": "FLOPs",
    "bytes": "bytes",
    "fused_bytes": "bytes",
    "weight_bytes_read": "bytes",
}


def to_csv(report: Report) -> str:
    """Write own and inclusive amounts of every module that ran, stage by stage.

    Parameters
    ----------
    report : Report
        The report; its times are there when it has a device, with an interval when they are predicted with one.

    Returns
    -------
    str
        CSV with a header that names the units; lines end with a newline. Amounts are sums over the workload.
    """
    whole_run = report.total.total
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    facts = ["stage", "module", "class", "parent", "instances"]
    writer.writerow([*facts, *_header("own", whole_run), *_header("inclusive", whole_run)])
    for stage, modules in report.module_stages.items():
        for name, module in modules.items():
            writer.writerow(
                [
                    stage,
                    name,
                    module.class_name,
                    "" if module.parent is None else module.parent,
                    module.instances,
                    *_cells(module.own, whole_run),
                    *_cells(module.inclusive, whole_run),
                ]
            )
    return text.getvalue()


def _header(prefix: str, total: Amount) -> Iterator[str]:
    yield f"{prefix} flops [FLOPs]"
    for name in COST_NAMES:
        yield f"{prefix} {name} [{_UNITS[name]}]"
    if total.time is not None:
        yield f"{prefix} time [s]"
        if has_interval(total):
            yield f"{prefix} time p10 [s]"
            yield f"{prefix} time p90 [s]"
        yield f"{prefix} bound by"


def _cells(amount: Amount, total: Amount) -> Iterator[object]:
    """Yield the cells of one amount; `total` says whether there are times and intervals."""
    yield whole(amount.cost.flops)
    for name in COST_NAMES:
        yield whole(getattr(amount.cost, name))
    if total.time is not None:
        time = amount.time
        yield "" if time is None else repr(time.seconds)
        if has_interval(total):
            yield "" if time is None or time.p10 is None else repr(time.p10)
            yield "" if time is None or time.p90 is None else repr(time.p90)
        yield "" if time is None or not time.seconds else time.bound_by
