"""The formulas of a compiled model: per module and stage, of the module alone or with everything below it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import cast

import sympy
from attrs import frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim, product, total
from modelmeter.errors import DimError, ModelMeterError, UnknownNameError
from modelmeter.folded import unfolded
from modelmeter.formulas.formula import Formula
from modelmeter.model import AnalyticModel, Leaf, Stage

QUANTITIES: Mapping[str, str] = {
    "matmul_flops": "FLOPs",
    "vector_flops": "FLOPs",
    "tensor_core_flops": "FLOPs",
    "cuda_core_flops": "FLOPs",
    "bytes": "bytes",
    "fused_bytes": "bytes",
    "weight_bytes_read": "bytes",
}
"""What an execution costs, with its unit; `modelmeter.model.LeafCost` says what each is."""

CACHED_TOKENS = "T"
"""Name of the dim that grows by one with every decode step."""


class UnknownModuleError(UnknownNameError):
    """A module that the model does not have; the message names those that are near, of the many that there are.

    Examples
    --------
    >>> print(UnknownModuleError("lm_heat", ["", "lm_head", "model", "model.norm"]))
    unknown module 'lm_heat'; did you mean lm_head? The model has 4 modules, outermost lm_head, model
    """

    def __init__(self, module: str, known: Iterable[str]) -> None:
        super().__init__("module", module, known)
        near = get_close_matches(module, self.known, n=3)
        meant = f"; did you mean {' or '.join(near)}?" if near else "."
        outermost = ", ".join(each for each in self.known if each and "." not in each) or "none"
        self.args = (
            f"unknown module {module!r}{meant} The model has {len(self.known)} modules, outermost {outermost}",
        )


class IdleModuleError(ModelMeterError, ValueError):
    """A module of which nothing runs in a stage that was asked for."""


class NoDecoderError(ModelMeterError, ValueError):
    """A model without a stage that yields one token per document."""


@frozen(kw_only=True)
class PeakFormula:
    """What is alive at an allocation that can decide the peak of a stage."""

    at: str  # operator that allocates
    module: str  # id of the module that runs it
    alive: Formula  # activations, KV cache and inputs together


@frozen(kw_only=True)
class ModuleFormulas:
    """What one execution of a stage costs in a module and everything below it, all instances together."""

    module: str  # id; "" is the whole model
    class_name: str
    stage: str
    calls: int  # of the module in one execution of the stage, all instances together
    formulas: Mapping[str, Formula]  # by quantity
    own: Mapping[str, Formula]  # of the operators that the module runs itself
    parameter_bytes: int  # held by the module and everything below it, all instances together, in any stage
    own_parameter_bytes: int
    assumptions: tuple[str, ...]  # behind what is approximated, each once


def module_formulas(
    model: AnalyticModel, module: str, *, stages: Sequence[str] | None = None
) -> tuple[ModuleFormulas, ...]:
    """Return a module's formulas in every stage in which something runs in it.

    Parameters
    ----------
    model : AnalyticModel
        The compiled model.
    module : str
        Id of one of its modules, such as "model.layers.[1-11].mlp", or of one that is folded into such, as
        "model.layers.5.mlp": the formulas are then of all that are folded together. "" is the whole model.
    stages : sequence of str, optional
        Only these.

    Raises
    ------
    UnknownModuleError
        When the model has no such module; the message names those that are near.
    UnknownStageError
        When it has no such stage.
    IdleModuleError
        When nothing of the module runs in one of `stages`, or, without them, in any.

    Examples
    --------
    The output head multiplies B rows of 1,280 with 129,280 columns, one multiply-add each:

    >>> import modelmeter
    >>> (head,) = module_formulas(modelmeter.load("deepseek-ocr"), "lm_head", stages=["decode"])
    >>> head.formulas["tensor_core_flops"].text == f"{2 * 1280 * 129280}*B"
    True
    """
    nodes = {node.id: node for node in model.modules}
    module = _folded(module, nodes)
    below = {module} | {node.id for node in model.modules if _is_below(model, node.id, module)}
    running = {
        stage.name: leaves
        for stage in model.stages
        if (leaves := [leaf for leaf in model.leaves_by_stage[stage.name] if leaf.module in below])
    }
    _require_running(module, running, None if stages is None else [model.stage(name).name for name in stages])
    return tuple(
        ModuleFormulas(
            module=module,
            class_name=nodes[module].class_name,
            stage=stage,
            calls=nodes[module].calls.get(stage, 0),
            formulas=_sums(running[stage]),
            own=_sums([leaf for leaf in running[stage] if leaf.module == module]),
            parameter_bytes=sum(nodes[each].parameter_bytes for each in below),
            own_parameter_bytes=nodes[module].parameter_bytes,
            assumptions=tuple(dict.fromkeys(leaf.note for leaf in running[stage] if leaf.note)),
        )
        for stage in (running if stages is None else stages)
    )


def _require_running(module: str, running: Iterable[str], asked: Sequence[str] | None) -> None:
    known = list(running)
    idle = [stage for stage in asked or () if stage not in known]
    if idle or not known:
        raise IdleModuleError(
            f"nothing of module {module!r} runs in {', '.join(idle) or 'any stage'}; it runs in "
            f"{', '.join(known) or 'none'}"
        )


def _folded(module: str, known: Collection[str]) -> str:
    """Return a module's id, or that of the equal modules that it is folded into."""
    if module in known:
        return module
    folded = next((each for each in known if module in unfolded(each)), None)
    if folded is None:
        raise UnknownModuleError(module, known)
    return folded


def stage_formulas(model: AnalyticModel, stage: str) -> Mapping[str, Formula]:
    """Return what a stage holds in memory: weights, the KV cache that it leaves behind, and its peak.

    The peak is of activations, KV cache and inputs together, at the allocation of `peak_formulas` that needs most.

    Raises
    ------
    UnknownStageError
        When the model has no such stage.

    Examples
    --------
    Each token leaves 61,440 bytes of keys and values in bf16: 2 * 12 layers * 1,280 elements * 2 bytes.

    >>> import modelmeter
    >>> stage_formulas(modelmeter.load("deepseek-ocr"), "prefill")["kv_cache_bytes"].text
    '61440*B*S'
    """
    found = model.stage(stage)
    amounts: dict[str, Dim] = {
        "weight_bytes": found.weight_bytes,
        "kv_cache_bytes": found.kv_cache_bytes,
        "peak_bytes": _largest([peak.alive.expression for peak in peak_formulas(model, stage)]),
    }
    return {name: Formula(quantity=name, unit="bytes", expression=amount) for name, amount in amounts.items()}


def peak_formulas(model: AnalyticModel, stage: str) -> tuple[PeakFormula, ...]:
    """Return the allocations of a stage of which one, depending on the sizes, decides its peak memory.

    Raises
    ------
    UnknownStageError
        When the model has no such stage.

    Examples
    --------
    A prefill needs most where the first new token is chosen from the logits of all positions:

    >>> import modelmeter
    >>> (peak,) = peak_formulas(modelmeter.load("deepseek-ocr"), "prefill")
    >>> peak.at, peak.alive.text
    ('aten::argmax', 'B*(2560*N + 1095689*S + 8)')
    """
    return tuple(
        PeakFormula(
            at=peak.at,
            module=peak.module,
            alive=Formula(
                quantity="peak_bytes",
                unit="bytes",
                expression=total((peak.activation_bytes, peak.kv_cache_bytes, peak.input_bytes)),
            ),
        )
        for peak in model.stage(stage).peaks
    )


def active_parameters(model: AnalyticModel) -> int:
    """Return how many parameters one token of a decode step is multiplied with, the chosen experts' alone.

    A product with M parameters takes 2*M FLOPs for one row, so they are half of the FLOPs of the linear layers.

    Raises
    ------
    NoDecoderError
        When the model has no stage "decode" with a batch B and T cached tokens.

    Examples
    --------
    >>> import modelmeter
    >>> active_parameters(modelmeter.load("deepseek-ocr"))
    574095360
    """
    stage = _decode(model)
    one = dict.fromkeys(stage.dims, 1)
    linear = [leaf for leaf in model.leaves_by_stage[stage.name] if leaf.category is Category.LINEAR]
    return int(sum(leaf.calls * leaf.cost.matmul_flops.at(one) for leaf in linear)) // 2


def kv_cache_bytes_per_token(model: AnalyticModel) -> int:
    """Return the bytes of keys and values that each further token of one document adds.

    Raises
    ------
    NoDecoderError
        When the model has no stage "decode" with a batch B and T cached tokens.

    Examples
    --------
    >>> import modelmeter
    >>> kv_cache_bytes_per_token(modelmeter.load("deepseek-ocr"))
    61440
    """
    return kv_cache_bytes_per(model, CACHED_TOKENS)


def kv_cache_bytes_per(model: AnalyticModel, dim: str) -> int:
    """Return the bytes of keys and values that one more of a dim of "decode" adds, where every other one is 1.

    Raises
    ------
    NoDecoderError
        When the model has no stage "decode" with a batch B and T cached tokens.
    DimError
        When that stage has no such dim.

    Examples
    --------
    >>> import modelmeter
    >>> kv_cache_bytes_per(modelmeter.load("deepseek-ocr"), "T")
    61440
    """
    stage = _decode(model)
    if dim not in stage.dims:
        raise DimError(f"stage 'decode' of {model.name} has the dims {', '.join(stage.dims)}, and no {dim!r}")
    ones = dict.fromkeys(stage.dims, 1)
    return int(stage.kv_cache_bytes_at({**ones, dim: 2}) - stage.kv_cache_bytes_at(ones))


def kv_cache_growth_past_windows(model: AnalyticModel) -> Mapping[int, int]:
    """Return the bytes that a further token of one document adds past each window, by the tokens cached from there on.

    A layer whose attention reaches back over a window keeps no more than that; before the first window all layers grow,
    as `kv_cache_bytes_per_token` has it. Empty for a model without windows.

    Raises
    ------
    NoDecoderError
        When the model has no stage "decode" with a batch B and T cached tokens.

    Examples
    --------
    >>> import modelmeter
    >>> dict(kv_cache_growth_past_windows(modelmeter.load("deepseek-ocr")))
    {}
    """
    stage = _decode(model)
    ones = dict.fromkeys(stage.dims, 1)
    ends = {
        int(bound)
        for least in sympy.sympify(stage.kv_cache_bytes).atoms(sympy.Min)
        for bound in least.args
        if isinstance(bound, sympy.Integer)
    }
    return {
        end: int(
            stage.kv_cache_bytes_at({**ones, CACHED_TOKENS: end + 1})
            - stage.kv_cache_bytes_at({**ones, CACHED_TOKENS: end})
        )
        for end in sorted(ends)
    }


def _decode(model: AnalyticModel) -> Stage:
    stage = next(
        (stage for stage in model.stages if stage.name == "decode" and {"B", CACHED_TOKENS} <= {*stage.dims}), None
    )
    if stage is None:
        known = ", ".join(f"{stage.name} ({', '.join(stage.dims) or 'no dims'})" for stage in model.stages)
        raise NoDecoderError(
            f"{model.name} has no stage 'decode' with a batch B and T cached tokens; its stages are {known}. Ask a "
            "model that has a decoder"
        )
    return stage


def _is_below(model: AnalyticModel, module: str, ancestor: str) -> bool:
    parent = model.parents[module]
    while parent is not None and parent != ancestor:
        parent = model.parents[parent]
    return parent == ancestor


def _sums(leaves: Iterable[Leaf]) -> Mapping[str, Formula]:
    leaves = tuple(leaves)
    return {
        quantity: Formula(
            quantity=quantity,
            unit=unit,
            expression=total(product((leaf.calls, getattr(leaf.cost, quantity).value)) for leaf in leaves),
        )
        for quantity, unit in QUANTITIES.items()
    }


def _largest(sizes: Sequence[Dim]) -> Dim:
    distinct = list(dict.fromkeys(sizes))
    if len(distinct) < 2:
        return distinct[0] if distinct else 0
    # unevaluated: comparing expressions takes sympy seconds, binding them microseconds
    return cast("sympy.Expr", sympy.Max(*distinct, evaluate=False))
