"""Several devices as text: parts, exchanges and times as Markdown, and all of a report as data for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from dsocr_graph.emit.markdown_table import table
from modelmeter.parallel import ParallelReport
from modelmeter.units import format_binary_bytes, format_bytes, format_flops, format_seconds


def parallel_markdown(report: ParallelReport, *, what_ifs: Sequence[str] = ()) -> str:
    """Return a report as Markdown, ending with what it assumes; `what_ifs` say in what the model is not as captured.

    Examples
    --------
    >>> import modelmeter
    >>> from dsocr_graph.workloads import bind_profile, load_profile
    >>> from modelmeter.parallel import Layout, distribute
    >>> workload = bind_profile(load_profile("dsocr-standard-v1"))
    >>> report = distribute(
    ...     modelmeter.load("deepseek-ocr"), workload, Layout(tensor=2), device=modelmeter.load_device("h200")
    ... )
    >>> print(parallel_markdown(report).splitlines()[0])
    # deepseek-ocr, dsocr-standard-v1, on 2 x NVIDIA H200 SXM 141GB
    """
    layout = report.layout
    degrees = ", ".join(f"{name} {degree}" for name, degree in attrs.asdict(layout).items() if isinstance(degree, int))
    link = (
        ""
        if report.link is None
        else f"; link {report.link.name}, {format_bytes(report.link.bandwidth / 2)}/s each way"
    )
    bound = "least" if report.peaks_are_lower_bounds else "most"
    room = "fits" if report.fits else "does not fit"
    sections = (
        f"# {report.model}, {report.workload}, on {layout.devices} x {report.device}",
        f"Layout: {degrees}{link}.",
        f"The whole workload takes {format_seconds(report.seconds)}. A device holds at {bound} "
        f"{format_binary_bytes(report.device_bytes)}, which {room} its {format_binary_bytes(report.memory_bytes)}.",
        "## One device of each part",
        _parts(report),
        "## Exchanges of one device",
        _collectives(report) if report.collectives else "None.",
        "## Time",
        _times(report),
        *(("## What-ifs", "\n".join(f"- {line.strip()}" for line in what_ifs)) if what_ifs else ()),
        "## Assumptions",
        "\n".join(f"- {sentence}" for sentence in report.assumptions),
    )
    return "\n\n".join(sections) + "\n"


def parallel_document(report: ParallelReport, *, what_ifs: Sequence[str] = ()) -> dict[str, Any]:
    """Return a report in JSON's types: FLOPs, bytes and seconds, with the totals that follow from them."""
    return {
        **attrs.asdict(report),
        "devices": report.layout.devices,
        "seconds": report.seconds,
        "device_bytes": report.device_bytes,
        "fits": report.fits,
        "bubble": report.layout.bubble,
        "all_devices": attrs.asdict(report.cost),
        "what_ifs": list(what_ifs),
    }


def _parts(report: ParallelReport) -> str:
    header = (
        "part",
        "devices",
        "tensor core",
        "CUDA core",
        "moved",
        "weights",
        "of them on every tensor rank",
        "buffers",
        "KV cache",
        "activations",
        "compute",
        "exchanges",
    )
    rows = [
        (
            part.name,
            str(part.devices),
            format_flops(part.cost.tensor_core_flops),
            format_flops(part.cost.cuda_core_flops),
            format_bytes(part.cost.bytes),
            format_binary_bytes(part.weight_bytes),
            format_binary_bytes(part.replicated_weight_bytes),
            format_binary_bytes(part.buffer_bytes),
            format_binary_bytes(part.kv_cache_bytes),
            format_binary_bytes(part.activation_bytes),
            format_seconds(part.compute_seconds),
            format_seconds(part.communication_seconds),
        )
        for part in report.parts
    ]
    return table(header, rows)


def _collectives(report: ParallelReport) -> str:
    header = ("part", "stage", "what", "operation", "ranks", "calls", "messages", "sent", "time")
    rows = [
        (
            each.part,
            each.stage,
            each.what,
            each.operation,
            str(each.ranks),
            f"{each.calls:,}",
            format_bytes(each.bytes),
            format_bytes(each.sent_bytes),
            format_seconds(each.seconds),
        )
        for each in report.collectives
    ]
    return table(header, rows, left=4)


def _times(report: ParallelReport) -> str:
    rows = [
        (
            stage.stage,
            format_seconds(stage.compute_seconds),
            format_seconds(stage.communication_seconds),
            format_seconds(stage.seconds),
            f"{stage.idle_fraction:.1%}",
        )
        for stage in report.stages
    ]
    return table(("stage", "compute", "exchanges", "time", "busiest device waits"), rows)
