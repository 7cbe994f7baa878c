"""Passes of element types: activations, weights and the KV cache in other types than captured."""

from __future__ import annotations

from attrs import evolve

from modelmeter.dtypes import DType
from modelmeter.layers.weight_format import WeightFormat
from modelmeter.model import AnalyticModel, Stage
from modelmeter.whatif.cache import dtype_of, find_cache
from modelmeter.whatif.change import change_between
from modelmeter.whatif.errors import UnsupportedWhatIfError
from modelmeter.whatif.memory import (
    rescaled,
    tied_tables,
    with_all_parameters,
    with_quantised_parameters,
    with_wider_peaks,
)
from modelmeter.whatif.options import DTYPES, GROUPED, WIDE, Options
from modelmeter.whatif.passes import (
    PEAKS_ASSUMED,
    Passed,
    cache_of,
    captured_dtype,
    each_layer,
    with_cache_in,
    with_known_peaks,
)
from modelmeter.whatif.retype import with_activations, with_matrices, with_narrow_inputs, with_parameters


def activations_pass(captured: AnalyticModel, model: AnalyticModel, options: Options) -> Passed:
    """Give activations another type: all of them a wide one, or the inputs of products alone a narrow one.

    Raises
    ------
    UnsupportedWhatIfError
        When the captured type cannot be told in the model.
    """
    if options.activation_dtype is None or (types := _types(captured, options.activation_dtype)) is None:
        return model, ()
    before, wanted = types
    if wanted not in WIDE:
        return _narrow_inputs(model, before, options.activation_dtype)
    if before is DType.FP32:
        raise UnsupportedWhatIfError(
            f"model {model.name} was captured in {model.variant['dtype']}, where what is fp32 by design cannot be told "
            f"from what follows the model's type; compile it with dtype {options.activation_dtype} instead"
        )
    after = each_layer(model, lambda layer: with_activations(layer, before, wanted))
    stages = tuple(with_wider_peaks(model, stage, before, wanted) for stage in model.stages)
    cache = cache_of(captured)
    after = with_cache_in(cache, evolve(after, stages=stages), before)
    after = with_known_peaks(after, cache, [stage.name for stage in model.stages])
    what = f"every tensor of the captured type has {options.activation_dtype}; parameters and KV cache apart"
    assumes = (
        "casts between equal types vanish; fused chains stay as captured, which leaves out what a kernel after such a "
        "cast reads: a lower bound of fused bytes",
        "tensors that a captured peak does not name count as the wider of both types",
        PEAKS_ASSUMED,
    )
    change = change_between(
        model, after, option="activation_dtype", what=what, assumes=assumes, lower_bound_of_peaks=True
    )
    return after, (change,)


def _narrow_inputs(model: AnalyticModel, before: DType, name: str) -> Passed:
    after = each_layer(model, lambda layer: with_narrow_inputs(layer, before, DTYPES[name]))
    what = f"linear layers and experts read their inputs and multiply in {name}"
    assumes = (
        "kernels that make those inputs round them and count as writing the captured type still",
        "products of a router, convolutions and attention keep their types; one scale per tensor, not counted",
        "peaks of memory keep the captured sizes: upper bounds",
    )
    return after, (change_between(model, after, option="activation_dtype", what=what, assumes=assumes),)


def weights_pass(captured: AnalyticModel, model: AnalyticModel, options: Options) -> Passed:
    """Store weights in another type: every parameter in a wide one, or the matrices alone in a narrow one.

    Raises
    ------
    UnsupportedWhatIfError
        When the captured type cannot be told in the model.
    """
    if options.weight_dtype is None or (types := _types(captured, options.weight_dtype)) is None:
        return model, ()
    before, wanted = types
    if wanted in WIDE:
        after = each_layer(model, lambda layer: with_parameters(layer, before, wanted))
        after = with_all_parameters(after, before, wanted)
        what = f"every parameter is stored in {options.weight_dtype}"
        assumes = (
            "kernels convert parameters on chip where activations have another type, and compute in that",
            "the published script loads in fp32 before its cast, whatever the type after",
        )
        return after, (change_between(model, after, option="weight_dtype", what=what, assumes=assumes),)
    return _quantised(model, before, options.weight_dtype, options.group_size)


def _quantised(model: AnalyticModel, before: DType, name: str, group_size: int) -> Passed:
    wanted = DTYPES[name]
    group = group_size if wanted in GROUPED else None
    stored = WeightFormat(dtype=wanted, other_dtype=before, group_size=group)
    after = each_layer(model, lambda layer: with_matrices(layer, before, stored))
    after = with_quantised_parameters(model, after, stored)
    scales = f", with one bf16 scale for each {group} elements of a row" if group else ""
    what = f"the matrices of linear layers and experts are stored in {name}{scales}"
    tied = tied_tables(model, after)
    assumes = (
        *((f"an embedding tied to such a matrix reads its stored rows: {', '.join(tied)}",) if tied else ()),
        "embeddings, convolutions, norms, biases and the router keep the captured type",
        "products run in the activations' type; the work of dequantising is not counted",
        *(() if group else ("one scale per tensor, not counted",)),
        "the checkpoint is quantised already, so loading needs no more than parameters and buffers",
    )
    return after, (change_between(model, after, option="weight_dtype", what=what, assumes=assumes),)


def kv_dtype_pass(captured: AnalyticModel, model: AnalyticModel, options: Options) -> Passed:
    """Keep and read the KV cache in another type.

    Raises
    ------
    UnsupportedWhatIfError
        When the model keeps none, or what touches it cannot be told.
    """
    if options.kv_dtype is None:
        return model, ()
    cache, wanted = find_cache(captured), DTYPES[options.kv_dtype]
    before = dtype_of(cache, captured)
    if wanted is before:
        return model, ()
    after = with_cache_in(cache, model, wanted)
    stages = tuple(_with_kept(stage, before, wanted) for stage in after.stages)
    after = evolve(after, stages=stages)
    what = f"the KV cache is kept and read in {options.kv_dtype}"
    assumes = (
        "kernels that make keys and values count as writing the activations' type; the one that reads them converts "
        "on chip and computes in that type, at no further cost",
        "no scales are counted",
    )
    return after, (change_between(model, after, option="kv_dtype", what=what, assumes=assumes),)


def _with_kept(stage: Stage, before: DType, wanted: DType) -> Stage:
    peaks = tuple(
        evolve(
            peak,
            kv_cache_bytes=rescaled(peak.kv_cache_bytes, before, wanted),
            live=tuple(
                evolve(live, bytes=rescaled(live.bytes, before, wanted)) if live.role == "kv_cache" else live
                for live in peak.live
            ),
        )
        for peak in stage.peaks
    )
    return evolve(stage, kv_cache_bytes=rescaled(stage.kv_cache_bytes, before, wanted), peaks=peaks)


def _types(captured: AnalyticModel, asked: str) -> tuple[DType, DType] | None:
    """Return the captured type and the one that is asked for; None where they are the same."""
    before, wanted = captured_dtype(captured), DTYPES[asked]
    return None if wanted is before else (before, wanted)
