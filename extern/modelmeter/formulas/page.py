"""The page of formulas: every module with its operators, their formulas, assumptions and sources, for review."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence

from modelmeter import layers
from modelmeter.dims import Dim, to_text
from modelmeter.formulas.formula import Formula
from modelmeter.formulas.of_model import active_parameters, module_formulas, stage_formulas
from modelmeter.model import AnalyticModel, Leaf, Stage

_COLUMNS = ("matmul_flops", "vector_flops", "bytes", "fused_bytes", "weight_bytes_read")
_HEADS = ("operator", "calls", "layer", "matmul FLOPs", "vector FLOPs", "bytes", "bytes, fused", "weights read")
_INTRODUCTION = """\
Costs are of one execution of a stage, all instances of a module together: an operator's formula is of all its calls.
One multiply-add is 2 FLOPs. Bytes are those that kernels move when each reads its operands and writes its results once;
fused, when chains of pointwise kernels keep what is between them on chip. `distinct_experts(E, k, t)` is the number of
experts that t tokens touch when each chooses k of E: expected under uniform routing, E*(1 - (1 - k/E)**t); at least k,
at most the smaller of E and k*t."""


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
        f"A token of a decode step is multiplied with {active_parameters(model):,} parameters.",
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
    yield _table(
        ("of the whole stage", "formula"),
        (
            (formula.quantity.replace("_", " "), f"`{formula.text}`")
            for formula in (*whole.formulas.values(), *stage_formulas(model, stage.name).values())
        ),
    )
    by_module: dict[str, list[Leaf]] = {}
    for leaf in model.leaves_by_stage[stage.name]:
        by_module.setdefault(leaf.module, []).append(leaf)
    for node in model.modules:
        if node.id in by_module:
            yield f"### {stage.name}: {node.id or 'the model itself'}"
            calls = node.calls.get(stage.name, 0)
            yield f"`{node.class_name}`, called {'once' if calls == 1 else f'{calls:,} times'}."
            yield _operators(by_module[node.id])
            yield from _assumptions(by_module[node.id])


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
