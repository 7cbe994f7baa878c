"""Memory under a what-if: bytes of parameters, and peaks from what the compiled model says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import sympy
from attrs import evolve

from modelmeter.dims import Dim, never_negative, simplify, total
from modelmeter.dtypes import DType
from modelmeter.layers import Operand
from modelmeter.model import AnalyticModel, Leaf, LiveTensor, ModuleNode, PeakPoint, Stage
from modelmeter.whatif.cache import StageCache
from modelmeter.whatif.errors import UnsupportedWhatIfError

_Resize = Callable[[Dim, DType | None], Dim]


def rescaled(size: Dim, before: DType, after: DType) -> Dim:
    """Return the bytes of as many elements of another type, exactly.

    Examples
    --------
    >>> rescaled(61440, DType.BF16, DType.INT4), rescaled(3, DType.BF16, DType.FP32)
    (15360, 6)
    """
    return simplify(sympy.sympify(size) * sympy.Rational(after.bits, before.bits))


# --- parameters


def with_all_parameters(model: AnalyticModel, before: DType, after: DType) -> AnalyticModel:
    """Return a model with every parameter in another type; what loading needs stays, the script loads fp32 anyhow."""

    def bytes_of(held: int) -> int:
        return int(rescaled(held, before, after))

    return evolve(
        model,
        parameter_bytes=bytes_of(model.parameter_bytes),
        stages=tuple(evolve(stage, weight_bytes=bytes_of(stage.weight_bytes)) for stage in model.stages),
        modules=tuple(evolve(node, parameter_bytes=bytes_of(node.parameter_bytes)) for node in model.modules),
    )


def with_quantised_parameters(before: AnalyticModel, after: AnalyticModel) -> AnalyticModel:
    """Return `after` with the bytes of its matrices of weights counted, wherever parameters are counted.

    A module's leaf is called as often as the module has instances, or more often on the same weights; each instance
    holds its weights once, in whatever number of stages it runs.
    """
    saved = {stage.name: _saved_by_module(before, after, stage.name) for stage in before.stages}
    once: dict[str, int] = {}
    for by_module in saved.values():
        once |= by_module
    stages = tuple(
        evolve(stage, weight_bytes=stage.weight_bytes - sum(saved[stage.name].values())) for stage in after.stages
    )
    parameter_bytes = after.parameter_bytes - sum(once.values())
    return evolve(
        after,
        stages=stages,
        parameter_bytes=parameter_bytes,
        load_bytes=parameter_bytes,
        modules=_shared_out(after.modules, once),
    )


def _saved_by_module(before: AnalyticModel, after: AnalyticModel, stage: str) -> dict[str, int]:
    instances = {node.id: node.instances for node in before.modules}
    saved: dict[str, int] = {}
    for old, new in zip(before.leaves_by_stage[stage], after.leaves_by_stage[stage], strict=True):
        if new is not old:
            each = simplify(old.layer.weight_bytes() - new.layer.weight_bytes())
            if not isinstance(each, int):
                raise UnsupportedWhatIfError(
                    f"the weights of {old.id} have no whole number of bytes: {each}; choose another group size"
                )
            saved[old.module] = saved.get(old.module, 0) + each * instances[old.module]
    return saved


def _shared_out(modules: tuple[ModuleNode, ...], saved: Mapping[str, int]) -> tuple[ModuleNode, ...]:
    """Return modules with fewer parameter bytes; what a module runs on its children's weights is saved by those."""
    held = {node.id: node.parameter_bytes for node in modules}
    for module, amount in saved.items():
        owners = [node for node in modules if node.parameters and _holds(module, node.id)]
        whole = sum(node.parameters for node in owners)
        left = amount
        for node in owners[:-1]:
            share = amount * node.parameters // whole
            held[node.id] -= share
            left -= share
        held[owners[-1].id] -= left
    return tuple(evolve(node, parameter_bytes=held[node.id]) for node in modules)


def _holds(module: str, owner: str) -> bool:
    return owner == module or owner.startswith(f"{module}.")


# --- peaks


def with_wider_peaks(before: AnalyticModel, stage: Stage, captured: DType, wanted: DType) -> Stage:
    """Return a stage whose live results of the captured type have another; upper bounds.

    A live tensor has the type of the result of its size that its module's operator writes. What has none such, and
    what a peak sums up without naming it, counts as the wider of the two types.
    """
    results: dict[tuple[str, str], list[Operand]] = {}
    for leaf in before.leaves_by_stage[stage.name]:
        results.setdefault((leaf.module, leaf.op), []).extend(_results(leaf))

    def resized(size: Dim, dtype: DType | None) -> Dim:
        widens = wanted.bits > captured.bits
        return rescaled(size, captured, wanted) if dtype is captured or (dtype is None and widens) else size

    def tensor(live: LiveTensor) -> LiveTensor:
        if live.role == "kv_cache":
            return live
        fitting = [each.dtype for each in results.get((live.module, live.op), ()) if each.bytes == live.bytes]
        return evolve(live, bytes=resized(live.bytes, fitting[0] if fitting else None))

    def peak(point: PeakPoint) -> PeakPoint:
        live = tuple(map(tensor, point.live))
        return evolve(
            point,
            live=live,
            activation_bytes=_summed(point, live, "activation", point.activation_bytes, resized),
            input_bytes=_summed(point, live, "input", point.input_bytes, resized),
        )

    return evolve(stage, peaks=tuple(map(peak, stage.peaks)))


def _summed(point: PeakPoint, live: tuple[LiveTensor, ...], role: str, held: Dim, resized: _Resize) -> Dim:
    named = total(each.bytes for each in point.live if each.role == role)
    return total((total(each.bytes for each in live if each.role == role), resized(simplify(held - named), None)))


def _results(leaf: Leaf) -> Iterable[Operand]:
    layer = leaf.layer
    writes: tuple[Operand, ...] | None = getattr(layer, "writes", None)
    if writes is not None:
        return writes
    dtype = getattr(layer, "out_dtype", None) or leaf.dtype
    if dtype is None:
        return ()
    return (Operand(elements=simplify(layer.traffic().written / sympy.Integer(dtype.itemsize)), dtype=dtype),)


def with_operand_peaks(stage: Stage, leaves: tuple[Leaf, ...], cache: StageCache | None) -> Stage:
    """Return a stage with further moments that can be its peak now: the operands of each call, and the cache.

    Lower bounds: a compiled model names the tensors of its captured peaks alone, so what else is alive during another
    call is not known. The cache is whole from the attention of the last layer on.
    """
    known = list(stage.peaks)
    full = len(leaves) if cache is None else max(cache.readers)
    for position, leaf in enumerate(leaves):
        if cache is not None and position in {*cache.readers, *cache.growing}:
            continue
        traffic = leaf.layer.traffic()
        written = 0 if leaf.op.endswith("_") else traffic.written  # in place: into what it reads
        point = PeakPoint(
            at=leaf.op,
            module=leaf.module,
            activation_bytes=total((traffic.activations_read, written)),
            kv_cache_bytes=stage.kv_cache_bytes if position > full else 0,
            input_bytes=0,
            live=(),
        )
        if not any(_at_least(other, point) for other in known):
            known = [other for other in known if not _at_least(point, other)]
            known.append(point)
    return evolve(stage, peaks=tuple(known))


def _at_least(other: PeakPoint, point: PeakPoint) -> bool:
    return never_negative(simplify(_alive(other) - _alive(point)))


def _alive(point: PeakPoint) -> Dim:
    return total((point.activation_bytes, point.kv_cache_bytes, point.input_bytes))
