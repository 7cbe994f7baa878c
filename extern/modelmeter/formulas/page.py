"""The page of formulas: every module with its operators, their formulas, assumptions and sources, for review."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence

from modelmeter import layers
from modelmeter.dim_text import to_text
from modelmeter.dims import Dim
from modelmeter.formulas.formula import STEPS, Formula
from modelmeter.formulas.of_model import (
    CACHED_TOKENS,
    active_parameters,
    kv_cache_bytes_per_token,
    module_formulas,
    peak_formulas,
    stage_formulas,
)
from modelmeter.model import AnalyticModel, Leaf, ModuleNode, Stage

_COLUMNS = ("matmul_flops", "vector_flops", "bytes", "fused_bytes", "weight_bytes_read")
_HEADS = ("operator", "calls", "layer", "matmul FLOPs", "vector FLOPs", "bytes", "bytes, fused", "weights read")
_INTRODUCTION = """\
Costs are of one execution of a stage, all instances of a module together: an operator's formula is of all its calls.
One multiply-add is 2 FLOPs. Bytes are those that kernels move when each reads its operands and writes its results once;
fused, when chains of pointwise kernels keep what is between them on chip. A copy is counted where sizes above 1 need
it; where one is 1, such as the columns `V/H` of a crop grid, a kernel may leave it out. `distinct_experts(E, k, t)` is
the number of experts that t tokens touch when each chooses k of E: expected under uniform routing,
E*(1 - (1 - k/E)**t); at least k, at most the smaller of E and k*t."""


def formulas_page(model: AnalyticModel, *, command: str) -> str:
    """Return the page of a model as Markdown.

    Parameters
    ----------
    model : AnalyticModel
        The compiled model.
    command : str
        What makes the page, to be stated in it.
    """
    variant = ", ".join(f"{fact} {value}" for fact, value in sorted(model.variant.items()))
    parts = [
        f"# Formulas of {model.name}",
        f"Variant: {variant}. Made by `{command}`.",
        _INTRODUCTION,
        _table(("dim", "meaning"), ((f"`{name}`", meaning) for name, meaning in sorted(model.dims.items()))),
        f"A token of a decode step is multiplied with {active_parameters(model):,} parameters, and every token of a "
        f"document has {kv_cache_bytes_per_token(model):,} bytes of keys and values.",
    ]
    for stage in model.stages:
        parts += _stage(model, stage)
    parts += ["## Layers", "What the formulas are made from: the definition and the source of every kind of layer."]
    for name in sorted({_layer_type(leaf) for leaf in model.leaves}):
        parts += [f"### {name}", _definition(name)]
    return "\n\n".join(parts) + "\n"


def _stage(model: AnalyticModel, stage: Stage) -> Iterator[str]:
    yield f"## {stage.name}"
    yield f"{stage.description[:1].upper()}{stage.description[1:]}. Dims: {', '.join(stage.dims) or 'none'}."
    (whole,) = module_formulas(model, model.root.id, stages=[stage.name])
    costs = whole.formulas.values()
    yield _formulas("of the whole stage", (*costs, *stage_formulas(model, stage.name).values()))
    yield _table(
        ("the peak is where most is alive", "bytes alive"),
        (
            (f"`{peak.at}` in {_title(peak.module)}", f"`{peak.alive.text}`")
            for peak in peak_formulas(model, stage.name)
        ),
    )
    if CACHED_TOKENS in stage.dims:
        yield f"Summed over `{STEPS}` new tokens, the first with `{CACHED_TOKENS}` tokens in the cache:"
        yield _formulas(f"of {STEPS} steps", (formula.summed(CACHED_TOKENS) for formula in costs))
    by_module: dict[str, list[Leaf]] = {}
    for leaf in model.leaves_by_stage[stage.name]:
        by_module.setdefault(leaf.module, []).append(leaf)
    for node in model.modules:
        if node.id in by_module:
            yield f"### {stage.name}: {_title(node.id)}"
            yield _module(node, stage)
            yield _operators(by_module[node.id])
            yield from _assumptions(by_module[node.id])


def _module(node: ModuleNode, stage: Stage) -> str:
    calls = node.calls.get(stage.name, 0)
    held = f", with {node.parameter_bytes:,} bytes of parameters of its own" if node.parameter_bytes else ""
    return f"`{node.class_name}`, called {'once' if calls == 1 else f'{calls:,} times'}{held}."


def _title(module: str) -> str:
    return module or "the model itself"


def _formulas(head: str, formulas: Iterable[Formula]) -> str:
    rows = ((formula.quantity.replace("_", " "), f"`{formula.text}`") for formula in formulas)
    return _table((head, "formula"), rows)


def _operators(leaves: Sequence[Leaf]) -> str:
    """Return a row per kind of call; calls of one operator, layer and cost are one row."""
    calls: dict[tuple[str, ...], int] = {}
    kinds: dict[tuple[str, ...], Leaf] = {}
    for leaf in leaves:
        key = (leaf.op, _layer_type(leaf), *leaf.cost.texts)
        calls[key] = calls.get(key, 0) + leaf.calls
        kinds[key] = leaf
    return _table(
        _HEADS,
        (
            (
                f"`{leaf.op}`",
                f"{calls[key]:,}",
                _layer_type(leaf),
                *(_of_calls(leaf, name, calls[key]) for name in _COLUMNS),
            )
            for key, leaf in kinds.items()
        ),
    )


def _of_calls(leaf: Leaf, quantity: str, calls: int) -> str:
    one: Dim = getattr(leaf.cost, quantity).value
    text = to_text(Formula(quantity=quantity, unit="", expression=one * calls).factored)
    return "" if text == "0" else f"`{text}`"


def _assumptions(leaves: Iterable[Leaf]) -> Iterator[str]:
    notes: Mapping[str, None] = dict.fromkeys(f"`{leaf.op}`: {leaf.note}" for leaf in leaves if leaf.note)
    if notes:
        yield "Assumed:\n\n" + "\n".join(f"- {note}" for note in notes)


def _definition(layer: str) -> str:
    """Return what the class of a layer says of its formula, without the list of its fields and its examples."""
    text = inspect.getdoc(getattr(layers, layer)) or ""
    lines: list[str] = []
    for line in text.splitlines():
        if line in {"Attributes", "Parameters", "Raises", "Examples"}:
            break
        lines.append(line)
    return "\n".join(lines).replace("``", "`").strip()


def _layer_type(leaf: Leaf) -> str:
    return type(leaf.layer).__name__


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
