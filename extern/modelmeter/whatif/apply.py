"""apply: a model under what-ifs is another model; each option is one pass, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import evolve, frozen

from modelmeter.dtypes import DType
from modelmeter.layers import BaseLayer
from modelmeter.layers.weight_format import WeightFormat
from modelmeter.model import AnalyticModel, Leaf, Stage
from modelmeter.routing import UNIFORM, Histogram, NamedRouting
from modelmeter.whatif.cache import StageCache, find_cache, growing, in_place, reading, without_double_buffer
from modelmeter.whatif.change import Change, change_between, with_layer
from modelmeter.whatif.errors import UnsupportedWhatIfError
from modelmeter.whatif.logits import find_heads, with_last_logits, with_last_peaks
from modelmeter.whatif.memory import (
    rescaled,
    with_all_parameters,
    with_operand_peaks,
    with_quantised_parameters,
    with_wider_peaks,
)
from modelmeter.whatif.options import DTYPES, GROUPED, LAST, PREALLOCATED, WIDE, Options
from modelmeter.whatif.retype import with_activations, with_matrices, with_narrow_inputs, with_parameters


@frozen(kw_only=True)
class WhatIf:
    """A model under what-ifs, to be evaluated with `routing`, and what was changed for it."""

    model: AnalyticModel
    changes: tuple[Change, ...]  # in the order in which they were made
    routing: NamedRouting

    @property
    def peaks_are_lower_bounds(self) -> bool:
        """Whether what runs now may need more memory than the model says.

        Examples
        --------
        >>> import modelmeter
        >>> model = modelmeter.load("deepseek-ocr")
        >>> [apply(model, Options(logits=which)).peaks_are_lower_bounds for which in ("all", "last")]
        [False, True]
        """
        return any(change.lower_bound_of_peaks for change in self.changes)


def apply(model: AnalyticModel, options: Options) -> WhatIf:
    """Return a model as it would be under some options, and what each of them changed.

    Nothing is captured anew: layers are stated in other types or sizes and their costs follow. Where an option leaves
    a leaf as it was, so is its record. Tensors between modules (`AnalyticModel.edges`) keep their captured bytes.

    Parameters
    ----------
    model : AnalyticModel
        A captured model; its variant says which element type it was captured in.
    options : Options
        The what-ifs.

    Raises
    ------
    UnsupportedWhatIfError
        When an option asks for a part that cannot be told in the model, such as the KV cache of one without.
    RoutingError
        When a histogram counts other layers than the model's.

    Examples
    --------
    >>> import modelmeter
    >>> eight_bits = apply(modelmeter.load("deepseek-ocr"), Options(kv_dtype="int8"))
    >>> str(eight_bits.model.stage("prefill").kv_cache_bytes)
    '30720*B*S'
    """
    if isinstance(options.routing, Histogram):
        options.routing.require_layers_of(model)
    passes = (_activations, _weights, _kv_dtype, _kv_growth, _logits)
    changed, changes = model, list[Change]()
    for change in passes:
        changed, made = change(model, changed, options)
        changes += made
    if options.routing != UNIFORM:
        changes.append(Change(option="routing", what=options.routing.statement, assumes=()))
    if changed is not model:
        facts = {each.option: str(getattr(options, each.option)) for each in changes if each.option != "routing"}
        changed = evolve(changed, variant={**model.variant, **facts})
    return WhatIf(model=changed, changes=tuple(changes), routing=options.routing)


Passed = tuple[AnalyticModel, tuple[Change, ...]]


def _captured(model: AnalyticModel) -> DType:
    name = model.variant.get("dtype")
    dtype = DTYPES.get(name or "")
    if dtype not in WIDE:
        raise UnsupportedWhatIfError(
            f"model {model.name} does not say that it was captured in bf16 or fp32 (its variant has dtype {name!r}), "
            "so the tensors to change cannot be told from others"
        )
    return dtype


# --- types


def _activations(captured: AnalyticModel, model: AnalyticModel, options: Options) -> Passed:
    if options.activation_dtype is None:
        return model, ()
    before, wanted = _captured(captured), DTYPES[options.activation_dtype]
    if wanted is before:
        return model, ()
    if wanted not in WIDE:
        return _narrow_inputs(model, before, options.activation_dtype)
    if before is not DType.BF16:
        raise UnsupportedWhatIfError(
            f"model {model.name} was captured in {model.variant['dtype']}, where what is fp32 by design cannot be told "
            f"from what follows the model's type; compile it with dtype {options.activation_dtype} instead"
        )
    after = _each_layer(model, lambda layer: with_activations(layer, before, wanted))
    stages = tuple(with_wider_peaks(model, stage, before, wanted) for stage in model.stages)
    cache = _cache_of(captured)
    after = _with_cache_in(cache, evolve(after, stages=stages), before)
    after = _with_known_peaks(after, cache, [stage.name for stage in model.stages])
    what = f"every tensor of the captured type has {options.activation_dtype}; parameters and KV cache apart"
    assumes = (
        "casts between equal types vanish; fused chains stay as captured, which leaves out what a kernel after such a "
        "cast reads: a lower bound of fused bytes",
        "tensors that a captured peak does not name count as the wider of both types",
        _PEAKS,
    )
    change = change_between(
        model, after, option="activation_dtype", what=what, assumes=assumes, lower_bound_of_peaks=True
    )
    return after, (change,)


def _narrow_inputs(model: AnalyticModel, before: DType, name: str) -> Passed:
    after = _each_layer(model, lambda layer: with_narrow_inputs(layer, before, DTYPES[name]))
    what = f"linear layers and experts read their inputs and multiply in {name}"
    assumes = (
        "kernels that make those inputs round them and count as writing the captured type still",
        "products of a router, convolutions and attention keep their types; one scale per tensor, not counted",
        "peaks of memory keep the captured sizes: upper bounds",
    )
    return after, (change_between(model, after, option="activation_dtype", what=what, assumes=assumes),)


def _weights(captured: AnalyticModel, model: AnalyticModel, options: Options) -> Passed:
    if options.weight_dtype is None:
        return model, ()
    before, wanted = _captured(captured), DTYPES[options.weight_dtype]
    if wanted is before:
        return model, ()
    if wanted in WIDE:
        after = _each_layer(model, lambda layer: with_parameters(layer, before, wanted))
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
    after = _each_layer(model, lambda layer: with_matrices(layer, before, stored))
    after = with_quantised_parameters(model, after)
    scales = f", with one bf16 scale for each {group} elements of a row" if group else ""
    what = f"the matrices of linear layers and experts are stored in {name}{scales}"
    assumes = (
        "embeddings, convolutions, norms, biases and the router keep the captured type",
        "products run in the activations' type; the work of dequantising is not counted",
        *(() if group else ("one scale per tensor, not counted",)),
        "the checkpoint is quantised already, so loading needs no more than the parameters",
    )
    return after, (change_between(model, after, option="weight_dtype", what=what, assumes=assumes),)


def _each_layer(model: AnalyticModel, change: Callable[[BaseLayer], BaseLayer]) -> AnalyticModel:
    return evolve(model, leaves=tuple(with_layer(leaf, change(leaf.layer)) for leaf in model.leaves))


# --- the KV cache


def _kv_dtype(captured: AnalyticModel, model: AnalyticModel, options: Options) -> Passed:
    if options.kv_dtype is None:
        return model, ()
    before, wanted = _captured(captured), DTYPES[options.kv_dtype]
    if wanted is before:
        return model, ()
    after = _with_cache_in(find_cache(captured), model, wanted)
    stages = tuple(_with_kept(stage, before, wanted) for stage in after.stages)
    after = evolve(after, stages=stages)
    what = f"the KV cache is kept and read in {options.kv_dtype}"
    assumes = (
        "kernels that make keys and values count as writing the activations' type; the one that reads them converts "
        "on chip and computes in that type, at no further cost",
        "no scales are counted",
    )
    return after, (change_between(model, after, option="kv_dtype", what=what, assumes=assumes),)


def _with_cache_in(cache: Mapping[str, StageCache], model: AnalyticModel, wanted: DType) -> AnalyticModel:
    """Return a model whose attention reads, and whose concatenations grow, a cache of a type."""

    def changed(stage: str, at: int, leaf: Leaf) -> Leaf:
        if at in cache[stage].readers:
            return with_layer(leaf, reading(leaf.layer, wanted))
        return with_layer(leaf, growing(leaf.layer, wanted)) if at in cache[stage].growing else leaf

    return _in_stages(model, dict.fromkeys(cache, changed))


def _cache_of(model: AnalyticModel) -> Mapping[str, StageCache]:
    """Return the leaves that touch the cache, none for a model without one."""
    return find_cache(model) if any(stage.kv_cache_bytes != 0 for stage in model.stages) else {}


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


def _kv_growth(captured: AnalyticModel, model: AnalyticModel, options: Options) -> Passed:
    if options.kv_growth != PREALLOCATED:
        return model, ()
    cache = find_cache(captured)

    def changed(stage: str, at: int, leaf: Leaf) -> Leaf:
        return with_layer(leaf, in_place(leaf.layer)) if at in cache[stage].growing else leaf

    after = _in_stages(model, dict.fromkeys(cache, changed))
    stages = tuple(without_double_buffer(stage) if stage.name in cache else stage for stage in after.stages)
    after = _with_known_peaks(evolve(after, stages=stages), cache, [name for name in cache if cache[name].growing])
    what = "a step writes its new keys and values into the cache; it neither copies the old ones nor holds both"
    assumes = (
        "the cache counts with the tokens in it; room kept for later ones is not counted",
        _PEAKS,
    )
    change = change_between(model, after, option="kv_growth", what=what, assumes=assumes, lower_bound_of_peaks=True)
    return after, (change,)


# --- logits


def _logits(captured: AnalyticModel, model: AnalyticModel, options: Options) -> Passed:
    if options.logits != LAST:
        return model, ()
    heads = find_heads(captured)

    def leaves_of(stage: Stage) -> tuple[Leaf, ...]:
        leaves = model.leaves_by_stage[stage.name]
        return with_last_logits(leaves, heads[stage.name]) if stage.name in heads else leaves

    leaves = tuple(leaf for stage in model.stages for leaf in leaves_of(stage))
    stages = tuple(
        with_last_peaks(stage, heads[stage.name]) if stage.name in heads else stage for stage in model.stages
    )
    after = _with_known_peaks(evolve(model, leaves=leaves, stages=stages), _cache_of(captured), heads)
    what = f"logits are made for the last position of each document, in {', '.join(heads)}"
    assumes = ("the norm before the head runs for all positions as captured", _PEAKS)
    change = change_between(model, after, option="logits", what=what, assumes=assumes, lower_bound_of_peaks=True)
    return after, (change,)


_PEAKS = (
    "another moment than the captured peak may be the peak: those not in the compiled model count with the operands "
    "of their call and the cache, a lower bound"
)


# --- stages


def _with_known_peaks(model: AnalyticModel, cache: Mapping[str, StageCache], stages: Iterable[str]) -> AnalyticModel:
    return evolve(
        model,
        stages=tuple(
            with_operand_peaks(stage, model.leaves_by_stage[stage.name], cache.get(stage.name))
            if stage.name in stages
            else stage
            for stage in model.stages
        ),
    )


def _in_stages(model: AnalyticModel, changes: Mapping[str, Callable[[str, int, Leaf], Leaf]]) -> AnalyticModel:
    leaves: list[Leaf] = []
    for stage in model.stages:
        held = model.leaves_by_stage[stage.name]
        change = changes.get(stage.name)
        leaves += held if change is None else (change(stage.name, at, leaf) for at, leaf in enumerate(held))
    return evolve(model, leaves=tuple(leaves))
