"""The KV cache of a model: which leaves grow and read it, and both in another type or grown in another way."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve, frozen

from modelmeter.dim_binding import bind
from modelmeter.dim_text import free_dims
from modelmeter.dims import Dim, product, simplify, total
from modelmeter.dtypes import DType
from modelmeter.layers import BaseLayer, DataMovement, Matmul, Operand, ScaledDotProductAttention
from modelmeter.model import AnalyticModel, Leaf, Stage
from modelmeter.whatif.errors import UnsupportedWhatIfError

_REFERENCE = 997
"""A size of every dim, at which one size is divided by another; whether the quotient holds for all sizes is checked."""


@frozen(kw_only=True)
class StageCache:
    """Positions among a stage's leaves that touch its KV cache."""

    growing: tuple[int, ...]  # concatenations of the cache with the new tokens; none in a prefill
    readers: tuple[int, ...]  # attention, or copies of keys and values that attention reads in their place


def find_cache(model: AnalyticModel) -> Mapping[str, StageCache]:
    """Return the leaves that touch the cache, by stage, checked against the bytes that the stages leave behind.

    A concatenation grows the cache when its first operand depends on a dim that the second, the new tokens, does not;
    it fills an empty one when the first has no elements. In the modules of those, attention and batched products read
    the cache. Where its keys and values are first copied for each query head that shares them, as grouped-query
    attention is when it has a mask, the copy reads the cache, and attention reads the copy.

    Raises
    ------
    UnsupportedWhatIfError
        When the model keeps no cache, or these leaves do not account for it.

    Examples
    --------
    >>> import modelmeter
    >>> cache = find_cache(modelmeter.load("deepseek-ocr"))
    >>> [(stage, len(found.growing), len(found.readers)) for stage, found in cache.items()]
    [('prefill', 0, 2), ('decode', 4, 2)]
    """
    cached = [stage for stage in model.stages if stage.kv_cache_bytes != 0]
    modules = {
        leaf.module
        for stage in cached
        for leaf in model.leaves_by_stage[stage.name]
        if _grown(leaf.layer) or _fills(leaf.layer)
    }
    if not modules:
        kept = "keeps a KV cache" if not cached else "grows a KV cache by concatenation"
        raise UnsupportedWhatIfError(f"no stage of {model.name} {kept}; leave kv_dtype and kv_growth as captured")
    found = {stage.name: _of_stage(model.leaves_by_stage[stage.name], modules) for stage in cached}
    for stage in cached:
        _check(model, stage, found[stage.name])
    return found


def _joined(layer: BaseLayer) -> tuple[Operand, Operand, Operand] | None:
    """Return the two operands and the result of a concatenation of two tensors along one axis."""
    if not isinstance(layer, DataMovement) or layer.op != "cat" or len(layer.reads) != 2:
        return None
    (first, second), (result,) = layer.reads, layer.writes
    return (first, second, result) if total((first.elements, second.elements)) == result.elements else None


def _grown(layer: BaseLayer) -> Operand | None:
    """Return what a concatenation of old entries and new ones makes of them."""
    if (joined := _joined(layer)) is None:
        return None
    old, new, grown = joined
    return grown if new.elements != 0 and free_dims(old.elements) > free_dims(new.elements) else None


def _fills(layer: BaseLayer) -> bool:
    if (joined := _joined(layer)) is None:
        return False
    empty, new, _ = joined
    return empty.elements == 0 and new.elements != 0


def _of_stage(leaves: tuple[Leaf, ...], modules: set[str]) -> StageCache:
    growing, readers = list[int](), list[int]()
    for module in sorted(modules):
        own = {at: leaf.layer for at, leaf in enumerate(leaves) if leaf.module == module}
        copies = {at: copied for at, layer in own.items() if (copied := _copied_to_heads(layer))}
        copied = {each.elements for each in copies.values()}
        attends = [at for at, layer in own.items() if any(each.elements not in copied for each in _attended(layer))]
        reading = [*copies, *attends]
        entries = {each.elements for at in reading for each in cached_operands(own[at])}
        grown = {at: each.elements for at, layer in own.items() if (each := _grown(layer))}
        readers += reading
        growing += [at for at, elements in grown.items() if elements in entries]
    return StageCache(growing=tuple(sorted(growing)), readers=tuple(sorted(readers)))


def _copied_to_heads(layer: BaseLayer) -> Operand | None:
    """Return what a layer writes that writes what it reads several times over, once for each query head."""
    if not isinstance(layer, DataMovement) or len(layer.reads) != 1 or len(layer.writes) != 1:
        return None
    (read,), (written,) = layer.reads, layer.writes
    if read.weight or read.elements == 0 or read.dtype is not written.dtype:
        return None
    times = _at_reference(written.elements) // _at_reference(read.elements)
    return written if times > 1 and simplify(written.elements - times * read.elements) == 0 else None


def _at_reference(size: Dim) -> int:
    return int(bind(size, dict.fromkeys(free_dims(size), _REFERENCE)))


def _attended(layer: BaseLayer) -> tuple[Operand, ...]:
    """Return the keys and values that an attention reads."""
    if isinstance(layer, ScaledDotProductAttention):
        return layer.kv_operands()
    if isinstance(layer, Matmul) and not layer.right_weight:
        return (layer.right_operand(),)
    return ()


def cached_operands(layer: BaseLayer) -> tuple[Operand, ...]:
    """Return the operands of a reader that lie in the cache."""
    return layer.reads if isinstance(layer, DataMovement) else _attended(layer)


def _check(model: AnalyticModel, stage: Stage, cache: StageCache) -> None:
    leaves = model.leaves_by_stage[stage.name]
    growing = {leaves[at].module for at in cache.growing}
    read, read_grown = (
        total(_calls(leaves[at], cached_operands(leaves[at].layer)) for at in readers)
        for readers in (cache.readers, [at for at in cache.readers if leaves[at].module in growing])
    )
    grown = total(_calls(leaves[at], leaves[at].layer.traffic().written) for at in cache.growing)
    kept = stage.kv_cache_bytes
    if simplify(read - kept) != 0 or simplify(grown - read_grown) != 0:
        raise UnsupportedWhatIfError(
            f"which calls of {model.name} read its cache cannot be told, as where a latent is expanded first or where "
            "layers share keys, so that kv_dtype, kv_growth and activation_dtype cannot be applied to it; leave them "
            f"as captured. (Stage {stage.name!r} keeps {kept} bytes, its attention reads {read}, its concatenations "
            f"write {grown})"
        )


def dtype_of(cache: Mapping[str, StageCache], model: AnalyticModel) -> DType:
    """Return the type of the keys and values in a model's cache, which may be another than that of its weights.

    Raises
    ------
    UnsupportedWhatIfError
        When they have several.

    Examples
    --------
    >>> import modelmeter
    >>> model = modelmeter.load("deepseek-ocr")
    >>> dtype_of(find_cache(model), model)
    <DType.BF16: 'bf16'>
    """
    kept = {
        operand.dtype
        for stage, found in cache.items()
        for at in found.readers
        for operand in cached_operands(model.leaves_by_stage[stage][at].layer)
    }
    if len(kept) != 1:
        names = " and ".join(sorted(dtype.value for dtype in kept))
        raise UnsupportedWhatIfError(f"the cache of {model.name} is kept in {names}; leave kv_dtype as captured")
    return kept.pop()


def _calls(leaf: Leaf, moved: Dim | tuple[Operand, ...]) -> Dim:
    size = total(operand.bytes for operand in moved) if isinstance(moved, tuple) else moved
    return product((leaf.calls, size))


def reading(layer: BaseLayer, wanted: DType) -> BaseLayer:
    """Return an attention, or a copy of keys or values for it, that reads them in a type."""
    if isinstance(layer, DataMovement):
        return evolve(layer, reads=tuple(evolve(each, dtype=wanted) for each in layer.reads))
    if isinstance(layer, ScaledDotProductAttention):
        return evolve(layer, kv_dtype=None if wanted is layer.dtype else wanted)
    assert isinstance(layer, Matmul)
    return evolve(layer, right_dtype=None if wanted is layer.dtype else wanted)


def growing(layer: BaseLayer, wanted: DType) -> BaseLayer:
    """Return a concatenation whose cache is of a type; the new tokens arrive in the activations' type."""
    assert isinstance(layer, DataMovement)
    old, new = layer.reads
    (grown,) = layer.writes
    return evolve(layer, reads=(evolve(old, dtype=wanted), new), writes=(evolve(grown, dtype=wanted),))


def in_place(layer: BaseLayer) -> BaseLayer:
    """Return the write of the new tokens into a cache that is there already, in place of a concatenation.

    Examples
    --------
    >>> old, new = (Operand(elements=size, dtype=DType.BF16) for size in (100, 1))
    >>> cat = DataMovement(op="cat", reads=(old, new), writes=(Operand(elements=101, dtype=DType.BF16),))
    >>> cat.traffic().bytes, in_place(cat).traffic().bytes
    (404, 4)
    """
    assert isinstance(layer, DataMovement)
    _, new = layer.reads
    (grown,) = layer.writes
    return DataMovement(op="copy", reads=(new,), writes=(Operand(elements=new.elements, dtype=grown.dtype),))


def without_double_buffer(stage: Stage) -> Stage:
    """Return a stage that never holds more keys and values than it leaves behind."""
    kept = stage.kv_cache_bytes
    peaks = tuple(
        evolve(
            peak,
            kv_cache_bytes=kept,
            live=tuple(evolve(live, bytes=kept) if live.role == "kv_cache" else live for live in peak.live),
        )
        if simplify(peak.kv_cache_bytes - kept) != 0
        else peak
        for peak in stage.peaks
    )
    return evolve(stage, peaks=peaks)
