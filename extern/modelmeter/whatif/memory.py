"""Memory under a what-if: bytes of parameters, and peaks from what the compiled model says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import sympy
from attrs import evolve

from modelmeter.dims import Dim, never_negative, simplify, total
from modelmeter.dtypes import DType
from modelmeter.layers import Embedding, EmbeddingBag, Operand
from modelmeter.layers.weight_format import WeightFormat
from modelmeter.model import AnalyticModel, Leaf, LiveTensor, ModuleNode, PeakPoint, Stage
from modelmeter.whatif.cache import StageCache
from modelmeter.whatif.change import with_layer
from modelmeter.whatif.errors import UnsupportedWhatIfError
from modelmeter.whatif.retype import with_table
from modelmeter.whatif.storages import Reader, Storage, matrix_shape, read_copies, storages

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
    """Return a model with every parameter in another type; what loading needs stays, the script loads fp32 anyhow.

    Raises
    ------
    UnsupportedWhatIfError
        When not all of its parameters are of the one type.
    """
    if model.parameter_bytes != model.parameters * before.itemsize:
        raise UnsupportedWhatIfError(
            f"not every parameter of {model.name} is {before.value}, so that they cannot all become {after.value}; "
            "leave weight_dtype as captured, or give fp8, int8 or int4, which change matrices alone"
        )

    def bytes_of(held: int) -> int:
        return int(rescaled(held, before, after))

    return evolve(
        model,
        parameter_bytes=bytes_of(model.parameter_bytes),
        stages=tuple(evolve(stage, weight_bytes=bytes_of(stage.weight_bytes)) for stage in model.stages),
        modules=tuple(evolve(node, parameter_bytes=bytes_of(node.parameter_bytes)) for node in model.modules),
    )


def with_quantised_parameters(before: AnalyticModel, after: AnalyticModel, stored: WeightFormat) -> AnalyticModel:
    """Return `after` with its matrices of weights counted in the format they have now, wherever parameters are counted.

    A storage that several modules read, as of a tied head, is counted once, and whatever reads it reads the format:
    an embedding of that table too.

    Raises
    ------
    UnsupportedWhatIfError
        When a matrix has no whole number of bytes, or no module of the model owns it.
    """
    held = storages(before)
    changed = _changed(before, after, held)
    instances = {node.id: node.instances for node in before.modules}
    stages = tuple(
        evolve(
            stage,
            weight_bytes=stage.weight_bytes - _saved_in(before.leaves_by_stage[stage.name], held, changed, instances),
        )
        for stage in after.stages
    )
    parameter_bytes = after.parameter_bytes - sum(storage.copies * each for storage, each in changed.values())
    return evolve(
        after,
        leaves=tuple(_with_tied(leaf, held, changed, stored) for leaf in after.leaves),
        stages=stages,
        parameter_bytes=parameter_bytes,
        load_bytes=parameter_bytes + after.buffer_bytes,
        modules=_shared_out(after.modules, changed.values()),
    )


def tied_tables(before: AnalyticModel, after: AnalyticModel) -> tuple[str, ...]:
    """Return the modules whose embedding reads a table that is stored otherwise now."""
    pairs = zip(before.leaves, after.leaves, strict=True)
    tables = (new.module for old, new in pairs if new is not old and isinstance(new.layer, Embedding | EmbeddingBag))
    return tuple(dict.fromkeys(tables))


_Changed = Mapping[int, tuple[Storage, int]]
"""By identity: a storage whose matrices changed, and the bytes that each of them has less."""


def _changed(before: AnalyticModel, after: AnalyticModel, held: Mapping[Reader, Storage]) -> _Changed:
    changed: dict[int, tuple[Storage, int]] = {}
    for old, new in zip(before.leaves, after.leaves, strict=True):
        shape = matrix_shape(old.layer)
        if new is old or shape is None:
            continue
        each = simplify(old.layer.weight_bytes() - new.layer.weight_bytes())
        if not isinstance(each, int):
            raise UnsupportedWhatIfError(
                f"the weights of {old.id} have no whole number of bytes: {each}; choose another group size"
            )
        storage = held[old.module, shape]
        changed[id(storage)] = (storage, each)
    return changed


def _saved_in(
    leaves: tuple[Leaf, ...], held: Mapping[Reader, Storage], changed: _Changed, instances: Mapping[str, int]
) -> int:
    """Return the bytes that the matrices read by some leaves have less, each counted once."""
    copies: dict[int, int] = {}
    for reader, read in read_copies(leaves, instances).items():
        key = id(held[reader])
        copies[key] = copies.get(key, 0) + read
    return sum(min(copies.get(key, 0), storage.copies) * each for key, (storage, each) in changed.items())


def _with_tied(leaf: Leaf, held: Mapping[Reader, Storage], changed: _Changed, stored: WeightFormat) -> Leaf:
    shape = matrix_shape(leaf.layer)
    if shape is None or id(held[leaf.module, shape]) not in changed:
        return leaf
    return with_layer(leaf, with_table(leaf.layer, stored))


def _shared_out(modules: tuple[ModuleNode, ...], changed: Iterable[tuple[Storage, int]]) -> tuple[ModuleNode, ...]:
    """Return modules with fewer parameter bytes: what a storage saves is saved by the owners of its elements."""
    left = {node.id: node.parameter_bytes for node in modules}
    for storage, each in changed:
        saved, elements = storage.copies * each, sum(storage.held.values())
        for owner, share in storage.held.items():
            part = saved * share // elements
            left[owner] -= part
            saved, elements = saved - part, elements - share
    return tuple(evolve(node, parameter_bytes=left[node.id]) for node in modules)


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
