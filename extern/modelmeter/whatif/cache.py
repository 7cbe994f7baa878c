"""The KV cache of a model: which leaves grow and read it, and both in another type or grown in another way."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve, frozen

from modelmeter.dims import Dim, free_dims, product, simplify, total
from modelmeter.dtypes import DType
from modelmeter.layers import BaseLayer, DataMovement, Matmul, Operand, ScaledDotProductAttention
from modelmeter.model import AnalyticModel, Leaf, Stage
from modelmeter.whatif.errors import UnsupportedWhatIfError


@frozen(kw_only=True)
class StageCache:
    """Positions among a stage's leaves that touch its KV cache."""

    growing: tuple[int, ...]  # concatenations of the cache with the new tokens; none in a prefill
    readers: tuple[int, ...]  # attention


def find_cache(model: AnalyticModel) -> Mapping[str, StageCache]:
    """Return the leaves that touch the cache, by stage, checked against the bytes that the stages leave behind.

    A concatenation grows the cache when its first operand depends on a dim that the second, the new tokens, does not.
    Attention and batched products in the modules of those read it.

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
        leaf.module for stage in cached for leaf in model.leaves_by_stage[stage.name] if _grows_cache(leaf.layer)
    }
    if not modules:
        raise UnsupportedWhatIfError(
            f"no stage of {model.name} grows a KV cache by concatenation; leave kv_dtype and kv_growth as captured"
        )
    found = {stage.name: _of_stage(model.leaves_by_stage[stage.name], modules) for stage in cached}
    for stage in cached:
        _check(model, stage, found[stage.name])
    return found


def _grows_cache(layer: BaseLayer) -> bool:
    if not isinstance(layer, DataMovement) or layer.op != "cat" or len(layer.reads) != 2:
        return False
    old, new = layer.reads
    return free_dims(old.elements) > free_dims(new.elements)


def _of_stage(leaves: tuple[Leaf, ...], modules: set[str]) -> StageCache:
    return StageCache(
        growing=tuple(at for at, leaf in enumerate(leaves) if _grows_cache(leaf.layer)),
        readers=tuple(at for at, leaf in enumerate(leaves) if leaf.module in modules and _cached(leaf.layer)),
    )


def _cached(layer: BaseLayer) -> tuple[Operand, ...]:
    """Return the operands of an attention that lie in the cache."""
    if isinstance(layer, ScaledDotProductAttention):
        return layer.kv_operands()
    if isinstance(layer, Matmul) and not layer.right_weight:
        return (layer.right_operand(),)
    return ()


def _check(model: AnalyticModel, stage: Stage, cache: StageCache) -> None:
    leaves = model.leaves_by_stage[stage.name]
    read = total(_calls(leaves[at], _cached(leaves[at].layer)) for at in cache.readers)
    grown = total(_calls(leaves[at], leaves[at].layer.traffic().written) for at in cache.growing)
    kept = stage.kv_cache_bytes
    if read != kept or (cache.growing and grown != kept):
        raise UnsupportedWhatIfError(
            f"the cache of {model.name} is not what its attention reads, as with a latent that is expanded first or "
            "keys that another stage made, so that kv_dtype, kv_growth and activation_dtype cannot be applied to it; "
            f"leave them as captured. (Stage {stage.name!r} keeps {kept} bytes, its attention reads {read}, its "
            f"concatenations write {grown})"
        )


def _calls(leaf: Leaf, moved: Dim | tuple[Operand, ...]) -> Dim:
    size = total(operand.bytes for operand in moved) if isinstance(moved, tuple) else moved
    return product((leaf.calls, size))


def reading(layer: BaseLayer, wanted: DType) -> BaseLayer:
    """Return an attention that reads keys and values in a type."""
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
