"""modules.csv: one row per module and stage, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

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
        The report; its times are there when it has a device.

    Returns
    -------
    str
        CSV with a header that names the units; lines end with a newline. Amounts are sums over the workload.
    """
    timed = report.total.total.time is not None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    facts = ["stage", "module", "class", "parent", "instances"]
    writer.writerow([*facts, *_header("own", timed=timed), *_header("inclusive", timed=timed)])
    for stage, modules in report.module_stages.items():
        for name, module in modules.items():
            writer.writerow(
                [
                    stage,
                    name,
                    module.class_name,
                    "" if module.parent is None else module.parent,
                    module.instances,
                    *_cells(module.own, timed=timed),
                    *_cells(module.inclusive, timed=timed),
                ]
            )
    return text.getvalue()


def _header(prefix: str, *, timed: bool) -> Iterator[str]:
    yield f"{prefix} flops [FLOPs]"
    for name in COST_NAMES:
        yield f"{prefix} {name} [{_UNITS[name]}]"
    if timed:
        yield f"{prefix} time [s]"
        yield f"{prefix} bound by"


def _cells(amount: Amount, *, timed: bool) -> Iterator[object]:
    yield whole(amount.cost.flops)
    for name in COST_NAMES:
        yield whole(getattr(amount.cost, name))
    if timed:
        yield "" if amount.time is None else repr(amount.time.seconds)
        yield "" if amount.time is None or not amount.time.seconds else amount.time.bound_by
