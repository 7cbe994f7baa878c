"""The subcommand `formulas`: the closed forms of a shipped model, by module; needs no torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsocr_graph.errors import OptionError

if TYPE_CHECKING:
    from modelmeter.formulas import Formula, ModuleFormulas
    from modelmeter.model import AnalyticModel

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

FORMATS = ("text", "latex", "python", "json", "page")
_PAGE_FILE = "docs/formulas.md"


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand to those of a command line."""
    parser = commands.add_parser("formulas", help="print a module's FLOPs, bytes and memory as closed forms")
    parser.add_argument("module", nargs="?", metavar="MODULE", help="id of a module (default: the whole model)")
    parser.add_argument("--model", default="deepseek-ocr", help="a registered model (default: %(default)s)")
    parser.add_argument("--variant", help="one of its shipped variants (default: the model's)")
    parser.add_argument("--stage", action="append", metavar="STAGE", help="only this stage; repeatable")
    parser.add_argument("--own", action="store_true", help="of the operators that the module runs itself, alone")
    parser.add_argument(
        "--sum-over", metavar="DIM", help="sum over n executions, each with one more of this dim, such as T of decode"
    )
    parser.add_argument(
        "--format",
        default="text",
        help="text, latex, python, json, or page: all modules for review, as Markdown (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: standard output)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    import modelmeter
    from dsocr_graph.emit.files import write_artefacts
    from modelmeter.formulas import module_formulas

    if options.format not in FORMATS:
        raise OptionError(f"format {options.format!r} is not known; choose one of {', '.join(FORMATS)}")
    model = modelmeter.load(options.model, options.variant)
    if options.format == "page":
        text = _page(model, options)
    else:
        module = model.root.id if options.module is None else options.module
        found = module_formulas(model, module, stages=options.stage)
        text = _WRITERS[options.format](_by_stage(model, found, own=options.own, sum_over=options.sum_over))
    if options.out is None:
        print(text, end="")
    else:
        write_artefacts(options.out.parent, {options.out.name: text})
        print(options.out)
    return 0


def _page(model: AnalyticModel, options: argparse.Namespace) -> str:
    from modelmeter.formulas.page import formulas_page

    narrowed = [name for name in ("module", "stage", "own", "sum_over") if getattr(options, name)]
    if narrowed:
        raise OptionError(f"a page is of all modules and stages; leave out {', '.join(narrowed).replace('_', '-')}")
    variant = "" if options.variant is None else f" --variant {options.variant}"
    named = "" if options.model == "deepseek-ocr" else f" --model {options.model}"
    return formulas_page(model, command=f"dsocr-graph formulas{named}{variant} --format page --out {_PAGE_FILE}")


_Stages = Sequence[tuple["ModuleFormulas", Sequence["Formula"]]]


def _by_stage(model: AnalyticModel, found: Sequence[ModuleFormulas], *, own: bool, sum_over: str | None) -> _Stages:
    """Return the formulas of each stage; those of the whole model with what the stage holds in memory."""
    from modelmeter.formulas import stage_formulas

    stages: list[tuple[ModuleFormulas, Sequence[Formula]]] = []
    for each in found:
        costs = (each.own if own else each.formulas).values()
        formulas = [*costs] if sum_over is None else [formula.summed(_dim(model, each, sum_over)) for formula in costs]
        if each.module == model.root.id and not own and sum_over is None:
            formulas += stage_formulas(model, each.stage).values()
        stages.append((each, formulas))
    return stages


def _dim(model: AnalyticModel, found: ModuleFormulas, name: str) -> str:
    dims = model.stage(found.stage).dims
    if name not in dims:
        raise OptionError(
            f"stage {found.stage} has no dim {name!r} to sum over; it has {', '.join(dims) or 'none'}. Name a stage "
            "that has it, such as --stage decode --sum-over T"
        )
    return name


def _as_lines(stages: _Stages, form: Callable[[Formula], str]) -> Iterator[str]:
    for found, formulas in stages:
        called = f", called {found.calls:,} times" if found.calls else ""  # a list of modules is not called itself
        yield f"{found.stage}: {found.module or 'the whole model'} ({found.class_name}){called}"
        width = max(len(formula.quantity) for formula in formulas)
        for formula in formulas:
            yield f"  {formula.quantity:{width}} = {form(formula)}  [{formula.unit}]"
        for assumption in found.assumptions:
            yield f"  assumed: {assumption}"


def _to_text(stages: _Stages) -> str:
    return "".join(f"{line}\n" for line in _as_lines(stages, lambda formula: formula.text))


def _to_latex(stages: _Stages) -> str:
    return "".join(f"{line}\n" for line in _as_lines(stages, lambda formula: formula.latex))


def _to_python(stages: _Stages) -> str:
    functions = [formula.python(f"{found.stage}_{formula.quantity}") for found, items in stages for formula in items]
    return "\n\n\n".join(functions) + "\n"


def _to_json(stages: _Stages) -> str:
    document = [
        {
            "stage": found.stage,
            "module": found.module,
            "class": found.class_name,
            "calls": found.calls,
            "assumptions": list(found.assumptions),
            "formulas": [formula.document() for formula in formulas],
        }
        for found, formulas in stages
    ]
    return json.dumps(document, indent=1) + "\n"


_WRITERS: Mapping[str, Callable[[_Stages], str]] = {
    "text": _to_text,
    "latex": _to_latex,
    "python": _to_python,
    "json": _to_json,
}
