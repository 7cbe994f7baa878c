"""The memory sections of report.md: peaks by stage, what decides them, and the peak of the run."""

from __future__ import annotations

from collections.abc import Iterable

from dsocr_graph.emit.markdown_table import code, table
from modelmeter.reports import LiveBytes, Report, RunMemory, StageMemory
from modelmeter.units import format_bytes

LIVE = 5
"""Live tensors listed for each peak."""


def memory_sections(report: Report) -> Iterable[str]:
    """Yield the sections on memory, as Markdown."""
    memory = report.memory
    yield "## Memory"
    yield "### By stage, at the sizes where it needs most"
    yield table(
        ["stage", "page", "sizes", "peak", "activations", "KV cache", "inputs", "weights it reads", "KV cache left"],
        [
            [
                stage.stage,
                stage.item,
                _sizes(stage),
                format_bytes(stage.peak_bytes),
                format_bytes(stage.peak_activation_bytes),
                format_bytes(stage.peak_kv_cache_bytes),
                format_bytes(stage.peak_input_bytes),
                format_bytes(stage.weight_bytes),
                format_bytes(stage.kv_cache_bytes),
            ]
            for stage in memory.stages
        ],
        left=3,
    )
    yield (
        "The peak is the largest sum of activations, KV cache and inputs alive at once; "
        f"{held_text(memory)} come on top."
    )
    if report.peaks_are_lower_bounds:
        yield "Under these what-ifs peaks are lower bounds: another moment may need more, as assumed below."
    yield "### What decides each peak"
    yield "\n".join(_decides(stage) for stage in memory.stages)
    yield "### Peak of the run"
    yield table(
        ["", "bytes"],
        [
            ["weights, resident", format_bytes(memory.weight_bytes)],
            *([["buffers, resident", format_bytes(memory.buffer_bytes)]] if memory.buffer_bytes else []),
            ["largest peak of a stage", format_bytes(memory.stage_peak_bytes)],
            ["**running**", format_bytes(memory.running_bytes)],
            ["**loading**", format_bytes(memory.load_bytes)],
            ["**peak of the run**", format_bytes(memory.peak_bytes)],
        ],
    )
    if (short := missing_memory(report)) is not None:
        yield f"**The run does not fit**: {short}."
    if memory.decided_by == "load":
        yield "Loading decides: the published script loads in fp32 and casts afterwards."
    else:
        yield f"The stage {memory.decided_by} decides."


def held_text(memory: RunMemory) -> str:
    """Return what the model holds before it runs, such as "weights of 6.67 GB and 3.1 kB of buffers".

    Examples
    --------
    >>> held_text(RunMemory(
    ...     weight_bytes=6_672_547_840, buffer_bytes=3_072, stage_peak_bytes=10**9, running_bytes=7_672_550_912,
    ...     load_bytes=13_344_424_960, peak_bytes=13_344_424_960, decided_by="load", stages=(),
    ... ))
    'weights of 6.67 GB and 3.07 kB of buffers'
    """
    buffers = f" and {format_bytes(memory.buffer_bytes)} of buffers" if memory.buffer_bytes else ""
    return f"weights of {format_bytes(memory.weight_bytes)}{buffers}"


def missing_memory(report: Report) -> str | None:
    """Return what a run lacks in memory on the report's device, or None where it fits or no device is given."""
    if report.prediction is None or report.memory.peak_bytes <= report.prediction.device.memory_bytes:
        return None
    device = report.prediction.device
    return f"it needs {format_bytes(report.memory.peak_bytes)}, {device.name} has {format_bytes(device.memory_bytes)}"


def _sizes(stage: StageMemory) -> str:
    return " ".join(f"{name}={size}" for name, size in sorted(stage.bindings.items())) or "fixed"


def _decides(stage: StageMemory) -> str:
    if not stage.at:
        return f"- **{stage.stage}**: no allocation is known."
    lines = [f"- **{stage.stage}**: `{stage.at}` in {code(stage.module)}, with these tensors alive:"]
    lines += [f"  - {format_bytes(tensor.bytes)} {_origin(tensor)}" for tensor in stage.live[:LIVE]]
    rest = stage.peak_bytes - sum(tensor.bytes for tensor in stage.live[:LIVE])
    if rest > 0:
        lines.append(f"  - {format_bytes(rest)} in smaller ones")
    return "\n".join(lines)


def _origin(tensor: LiveBytes) -> str:
    """Return what a live tensor is: an operator's result, an input of the stage, or the cache as a whole."""
    if not tensor.op:
        return tensor.name
    if tensor.op == "input":
        return f"`{tensor.name}`, an input"
    return f"`{tensor.name}` ({tensor.role.replace('_', ' ')}) of `{tensor.op}` in {code(tensor.module)}"
