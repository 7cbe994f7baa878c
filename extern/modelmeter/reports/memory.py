"""Memory of a stage at the sizes of its runs, and of the whole run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modelmeter.binding import Binding
from modelmeter.costs import Number
from modelmeter.expert_counts import Routing
from modelmeter.model import AnalyticModel, PeakPoint, Stage
from modelmeter.reports.report import LiveBytes, RunMemory, StageMemory


def stage_memory(stage: Stage, item: str, binding: Binding) -> StageMemory:
    """Return the memory at the first or the last execution, whichever needs more."""
    first = _memory_at(stage, item, binding.first(), binding.routing)
    if binding.sweep is None or binding.count == 1:
        return first
    last = _memory_at(stage, item, binding.last(), binding.routing)
    return max(last, first, key=lambda memory: memory.peak_bytes)


def _memory_at(stage: Stage, item: str, bindings: Mapping[str, int], routing: Routing) -> StageMemory:
    def total(peak: PeakPoint) -> Number:
        return sum(peak.bytes_at(bindings, routing=routing))

    peak = max(stage.peaks, key=total, default=None)
    activation, kv_cache, inputs = (0, 0, 0) if peak is None else peak.bytes_at(bindings, routing=routing)
    live = () if peak is None else peak.live
    return StageMemory(
        stage=stage.name,
        item=item,
        bindings=bindings,
        weight_bytes=stage.weight_bytes,
        kv_cache_bytes=stage.kv_cache_bytes_at(bindings, routing=routing),
        peak_bytes=activation + kv_cache + inputs,
        peak_activation_bytes=activation,
        peak_kv_cache_bytes=kv_cache,
        peak_input_bytes=inputs,
        at="" if peak is None else peak.at,
        module="" if peak is None else peak.module,
        live=tuple(
            LiveBytes(
                name=tensor.name,
                module=tensor.module,
                op=tensor.op,
                role=tensor.role,
                bytes=tensor.bytes_at(bindings, routing=routing),
            )
            for tensor in live
        ),
    )


def largest_by_stage(model: AnalyticModel, memories: Iterable[StageMemory]) -> tuple[StageMemory, ...]:
    """Return the largest memory of each stage that ran, in the model's order of stages."""
    largest: dict[str, StageMemory] = {}
    for memory in memories:
        held = largest.get(memory.stage)
        if held is None or memory.peak_bytes > held.peak_bytes:
            largest[memory.stage] = memory
    return tuple(largest[stage.name] for stage in model.stages if stage.name in largest)


def run_memory(model: AnalyticModel, stages: tuple[StageMemory, ...]) -> RunMemory:
    """Return the memory of a whole run: parameters and buffers resident, and the larger of loading and running."""
    decisive = max(stages, key=lambda memory: memory.peak_bytes)
    running = model.held_bytes + decisive.peak_bytes
    return RunMemory(
        weight_bytes=model.parameter_bytes,
        buffer_bytes=model.buffer_bytes,
        stage_peak_bytes=decisive.peak_bytes,
        running_bytes=running,
        load_bytes=model.load_bytes,
        peak_bytes=max(running, model.load_bytes),
        decided_by="load" if model.load_bytes > running else decisive.stage,
        stages=stages,
    )
