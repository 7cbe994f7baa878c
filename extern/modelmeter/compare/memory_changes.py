"""What changed in memory and why: weights by role, and what is alive beside them at the peak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modelmeter.compare.metrics import Metric
from modelmeter.compare.part_changes import Change, part_changes
from modelmeter.compare.reason import Reason
from modelmeter.compare.side import ACTIVATIONS, BUFFERS, INPUTS, KV_CACHE, WEIGHTS, Side
from modelmeter.compare.words import number
from modelmeter.costs import Number
from modelmeter.reports.report import StageMemory
from modelmeter.units import format_binary_bytes

SHOWN_TENSORS = 3
_ROLE_OF_TENSORS = {ACTIVATIONS: "activation", KV_CACHE: "kv_cache", INPUTS: "input"}


def memory_entries(old: Side, new: Side, metric: Metric) -> list[Change]:
    """Return the parts of memory that changed; they add up to the change of the total.

    Parameters
    ----------
    old, new : Side
    metric : Metric
        `Metric.MEMORY`, at the peak of a run, or `Metric.LOAD_MEMORY`.
    """
    weights = _weights(old, new)
    if metric is Metric.LOAD_MEMORY:
        return [*weights, *_loading(old, new)]
    return [*weights, *_buffers(old, new), *_at_the_peak(old, new)]


def _weights(old: Side, new: Side) -> list[Change]:
    """Return the weights by role, or as one where a side does not know them by module."""
    if all(any(Metric.WEIGHT_BYTES in figures for figures in side.work.values()) for side in (old, new)):
        return part_changes(old, new, Metric.WEIGHT_BYTES)
    a, b = (side.totals[Metric.WEIGHT_BYTES] for side in (old, new))
    return [*_change(WEIGHTS, a, b, [Reason(text="weights, whose modules a report alone does not name", effect=b - a)])]


def _buffers(old: Side, new: Side) -> Iterator[Change]:
    a, b = (side.memory.get(BUFFERS, 0) for side in (old, new))
    yield from _change(BUFFERS, a, b, [Reason(text="registered buffers, which are held as weights are", effect=b - a)])


def _loading(old: Side, new: Side) -> Iterator[Change]:
    """Yield what loading takes beyond the weights as they are kept."""
    kept = [side.totals[Metric.WEIGHT_BYTES] for side in (old, new)]
    beyond = [side.totals[Metric.LOAD_MEMORY] - held for side, held in zip((old, new), kept, strict=True)]
    texts = [
        f"{side.label} loads {number(side.totals[Metric.LOAD_MEMORY] / side.totals[Metric.PARAMETERS])} bytes an "
        f"element and keeps {number(held / side.totals[Metric.PARAMETERS])}"
        for side, held in zip((old, new), kept, strict=True)
    ]
    before, after = beyond
    yield from _change("loading", before, after, [Reason(text=", ".join(texts), effect=after - before)])


def _at_the_peak(old: Side, new: Side) -> Iterator[Change]:
    for name in _ROLE_OF_TENSORS:
        a, b = (side.memory.get(name, 0) for side in (old, new))
        if a != b:
            yield from _change(name, a, b, [*_reasons(old, new, name, b - a)])


def _change(name: str, before: Number, after: Number, reasons: list[Reason]) -> Iterator[Change]:
    if before != after:
        yield Change(phase=name, role=None, before=before, after=after, work={}, reasons=tuple(reasons))


def _reasons(old: Side, new: Side, name: str, difference: Number) -> Iterator[Reason]:
    """Yield when the peaks are, what is alive at them, and how much of it the same stage has on the other side."""
    a, b = (max(side.peaks.values(), key=lambda peak: peak.peak_bytes, default=None) for side in (old, new))
    if a is None or b is None:
        return
    moment = f"peak in {a.stage}{_sizes(a)}" if a.stage == b.stage else f"peak in {a.stage} → {b.stage}{_sizes(b)}"
    if a.stage == b.stage and dict(a.bindings) != dict(b.bindings):
        moment += f" →{_sizes(b) or ' no sizes'}"
    tensors = [text for text in (_largest(old, a, name), _largest(new, b, name)) if text and name == ACTIVATIONS]
    stages = [] if a.stage == b.stage else [*_of_stages(old, new, name, (a.stage, b.stage))]
    yield Reason(text="; ".join((moment, *stages, *tensors)), effect=difference)


def _of_stages(old: Side, new: Side, name: str, stages: tuple[str, ...]) -> Iterator[str]:
    for stage in stages:
        found = [_amounts(side.peaks[stage]).get(name) if stage in side.peaks else None for side in (old, new)]
        texts = ["none" if held is None else format_binary_bytes(held) for held in found]
        yield f"in {stage} {' → '.join(texts)}"


def _amounts(peak: StageMemory) -> Mapping[str, Number]:
    return {
        ACTIVATIONS: peak.peak_activation_bytes,
        KV_CACHE: peak.peak_kv_cache_bytes,
        INPUTS: peak.peak_input_bytes,
    }


def _largest(side: Side, peak: StageMemory, name: str) -> str:
    """Return the largest tensors of a kind that are alive at a peak, one of each operator and module."""
    found = [tensor for tensor in peak.live if tensor.role == _ROLE_OF_TENSORS[name]]
    distinct = {(tensor.op, tensor.module, tensor.bytes): tensor for tensor in found}
    texts = [
        f"{format_binary_bytes(tensor.bytes)} of {tensor.op.partition('::')[2] or tensor.op} in "
        f"{f'`{tensor.module}`' if tensor.module else 'the model itself'}"
        for tensor in [*distinct.values()][:SHOWN_TENSORS]
    ]
    return f"largest in {side.label}: {', '.join(texts)}" if texts else ""


def _sizes(peak: StageMemory) -> str:
    sizes = ", ".join(f"{dim}={size}" for dim, size in peak.bindings.items())
    return f" at {sizes}" if sizes else ""
