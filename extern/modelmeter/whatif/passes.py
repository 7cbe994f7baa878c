"""What passes of what-ifs share: changing layers, leaves of a stage, what touches the cache, and peaks known after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from attrs import evolve

from modelmeter.dtypes import DType
from modelmeter.layers import BaseLayer
from modelmeter.model import AnalyticModel, Leaf
from modelmeter.whatif.cache import StageCache, find_cache, growing, reading
from modelmeter.whatif.change import Change, with_layer
from modelmeter.whatif.errors import UnsupportedWhatIfError
from modelmeter.whatif.memory import with_operand_peaks

Passed = tuple[AnalyticModel, tuple[Change, ...]]
"""What a pass returns: the model after it, and what it changed."""

PEAKS_ASSUMED = (
    "another moment than the captured peak may be the peak: those not in the compiled model count with the operands "
    "of their call and the cache, a lower bound"
)


CAPTURED: Mapping[str, DType] = MappingProxyType(
    {"bf16": DType.BF16, "fp16": DType.FP16, "fp32": DType.FP32, "fp64": DType.FP64}
)
"""Types that a whole model may have been captured in, by the name that its variant gives."""


def captured_dtype(model: AnalyticModel) -> DType:
    """Return the type that a model was captured in.

    Raises
    ------
    UnsupportedWhatIfError
        When its variant names no such type, or several; the message says what to do.

    Examples
    --------
    >>> import modelmeter
    >>> captured_dtype(modelmeter.load("qwen3-8b"))
    <DType.BF16: 'bf16'>
    """
    name = model.variant.get("dtype", "")
    if name not in CAPTURED:
        known = ", ".join(CAPTURED)
        one = f"make it in one of {known} and compile it again, or leave weight_dtype and activation_dtype as captured"
        if " and " in name:
            reason = f"it has weights in {name}, and which of them follow the model's type cannot be told; {one}"
        elif name.startswith("fp8"):
            reason = (
                f"it was captured in {name}, quantised as published; compile it in bf16 and ask for weight_dtype, or "
                "leave weight_dtype and activation_dtype as captured"
            )
        else:
            reason = f"its variant has {f'dtype {name}' if name else 'no dtype'}; {one}"
        raise UnsupportedWhatIfError(f"what-ifs of weights and activations cannot be applied to {model.name}: {reason}")
    return CAPTURED[name]


def each_layer(model: AnalyticModel, change: Callable[[BaseLayer], BaseLayer]) -> AnalyticModel:
    """Return a model whose layers are changed one by one."""
    return evolve(model, leaves=tuple(with_layer(leaf, change(leaf.layer)) for leaf in model.leaves))


def in_stages(model: AnalyticModel, changes: Mapping[str, Callable[[str, int, Leaf], Leaf]]) -> AnalyticModel:
    """Return a model whose leaves are changed in some stages, by stage, position in it and leaf."""
    leaves: list[Leaf] = []
    for stage in model.stages:
        held = model.leaves_by_stage[stage.name]
        change = changes.get(stage.name)
        leaves += held if change is None else (change(stage.name, at, leaf) for at, leaf in enumerate(held))
    return evolve(model, leaves=tuple(leaves))


def with_known_peaks(model: AnalyticModel, cache: Mapping[str, StageCache], stages: Iterable[str]) -> AnalyticModel:
    """Return a model whose peak may now be during any call of some stages, as `PEAKS_ASSUMED` says."""
    return evolve(
        model,
        stages=tuple(
            with_operand_peaks(stage, model.leaves_by_stage[stage.name], cache.get(stage.name))
            if stage.name in stages
            else stage
            for stage in model.stages
        ),
    )


# --- the KV cache


def cache_of(model: AnalyticModel) -> Mapping[str, StageCache]:
    """Return the leaves that touch the cache, none for a model without one."""
    return find_cache(model) if any(stage.kv_cache_bytes != 0 for stage in model.stages) else {}


def with_cache_in(cache: Mapping[str, StageCache], model: AnalyticModel, wanted: DType) -> AnalyticModel:
    """Return a model whose attention reads, and whose concatenations grow, a cache of a type."""

    def changed(stage: str, at: int, leaf: Leaf) -> Leaf:
        if at in cache[stage].readers:
            return with_layer(leaf, reading(leaf.layer, wanted))
        return with_layer(leaf, growing(leaf.layer, wanted)) if at in cache[stage].growing else leaf

    return in_stages(model, dict.fromkeys(cache, changed))
