"""The subcommand `formulas`: the closed forms of any model, by module; a compiled one needs no torch."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from dsocr_graph.cli_options import add_compiled, compiled_options, given
from dsocr_graph.errors import OptionError

if TYPE_CHECKING:
    from modelmeter.formulas import Formula, ModuleFormulas, PeakFormula
    from modelmeter.model import AnalyticModel

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

FORMATS = ("text", "latex", "python", "json", "page")
_VARIANT = ("variant", "dtype", "attention")
_PAGE_FILE = "docs/formulas.md"


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand to those of a command line."""
    parser = commands.add_parser("formulas", help="print a module's FLOPs, bytes and memory as closed forms")
    parser.add_argument("module", nargs="?", metavar="MODULE", help="id of a module (default: the whole model)")
    add_compiled(parser.add_argument)
    parser.add_argument("--stage", action="append", metavar="STAGE", help="only this stage; repeatable")
    parser.add_argument(
        "--quantity",
        metavar="NAME[,NAME...]",
        help="only these, such as tensor_core_flops,bytes (default: all that is stated)",
    )
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
    from dsocr_graph.compiled_subject import compiled_subject
    from dsocr_graph.emit.files import write_artefacts
    from dsocr_graph.emit.progress import progress_lines
    from modelmeter.formulas import module_formulas

    if options.format not in FORMATS:
        raise OptionError(f"format {options.format!r} is not known; choose one of {', '.join(FORMATS)}")
    model = compiled_subject(**compiled_options(options), progress=progress_lines())
    if options.format == "page":
        text = _page(model, options)
    else:
        module = model.root.id if options.module is None else options.module
        found = module_formulas(model, module, stages=options.stage)
        if found[0].module != module:
            equal = next(node.instances for node in model.modules if node.id == found[0].module)
            print(
                f"{module} is one of {found[0].module}: the formulas are of these {equal} equal modules together",
                file=sys.stderr,
            )
        stages = _by_stage(model, found, own=options.own, sum_over=options.sum_over)
        text = _WRITERS[options.format](stages if options.quantity is None else _only(stages, options.quantity))
    if options.out is None:
        print(text, end="")
    else:
        write_artefacts(options.out.parent, {options.out.name: text})
        print(options.out)
    return 0


def _page(model: AnalyticModel, options: argparse.Namespace) -> str:
    from modelmeter.formulas.page import formulas_page

    narrowed = [name for name in ("module", "stage", "quantity", "own", "sum_over") if getattr(options, name)]
    if narrowed:
        raise OptionError(
            f"a page is of all modules, stages and quantities; leave out {', '.join(narrowed).replace('_', '-')}"
        )
    other = [] if options.model == "deepseek-ocr" else ["--model", options.model]
    chosen = [word for name in given(options, _VARIANT) for word in (f"--{name}", getattr(options, name))]
    words = ["dsocr-graph", "formulas", *other, *chosen, "--format", "page", "--out", _PAGE_FILE]
    return formulas_page(model, command=shlex.join(words))


@frozen(kw_only=True)
class _Stated:
    """What is printed of a module in a stage."""

    found: ModuleFormulas
    formulas: tuple[Formula, ...]
    peaks: tuple[PeakFormula, ...] = ()  # of which one decides the stage's peak


def _by_stage(
    model: AnalyticModel, found: Sequence[ModuleFormulas], *, own: bool, sum_over: str | None
) -> tuple[_Stated, ...]:
    """Return what is stated in each stage; of the whole model also what the stage holds in memory."""
    return tuple(
        _memory_too(model, each, own=own) if sum_over is None else _summed(model, each, sum_over, own=own)
        for each in found
    )


def _summed(model: AnalyticModel, found: ModuleFormulas, sum_over: str, *, own: bool) -> _Stated:
    dim = _dim(model, found, sum_over)
    costs = found.own if own else found.formulas
    return _Stated(found=found, formulas=tuple(formula.summed(dim) for formula in costs.values()))


def _memory_too(model: AnalyticModel, found: ModuleFormulas, *, own: bool) -> _Stated:
    from modelmeter.formulas import Formula, peak_formulas, stage_formulas

    size = found.own_parameter_bytes if own else found.parameter_bytes
    held = Formula(quantity="parameter_bytes", unit="bytes", expression=size)
    costs = (found.own if own else found.formulas).values()
    if own or found.module != model.root.id:
        return _Stated(found=found, formulas=(*costs, held))
    of_stage = stage_formulas(model, found.stage).values()
    return _Stated(found=found, formulas=(*costs, held, *of_stage), peaks=peak_formulas(model, found.stage))


def _only(stages: Sequence[_Stated], wanted: str) -> tuple[_Stated, ...]:
    """Return what is stated of some quantities; an error for one that is stated nowhere."""
    names = wanted.split(",")
    known = dict.fromkeys(formula.quantity for stage in stages for formula in stage.formulas)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise OptionError(
            f"nothing is stated here of the quantity {', '.join(map(repr, unknown))}; choose from {', '.join(known)}. "
            "KV cache and peak are of a whole stage: leave out MODULE, --own and --sum-over"
        )
    return tuple(
        evolve(
            stage,
            formulas=tuple(formula for formula in stage.formulas if formula.quantity in names),
            peaks=stage.peaks if "peak_bytes" in names else (),
        )
        for stage in stages
    )


def _dim(model: AnalyticModel, found: ModuleFormulas, name: str) -> str:
    dims = model.stage(found.stage).dims
    if name not in dims:
        raise OptionError(
            f"stage {found.stage} has no dim {name!r} to sum over; it has {', '.join(dims) or 'none'}. Name a stage "
            "that has it, such as --stage decode --sum-over T"
        )
    return name


def _as_lines(stages: Sequence[_Stated], form: Callable[[Formula], str]) -> str:
    return "".join(f"{line}\n" for stage in stages for line in _lines(stage, form))


def _lines(stated: _Stated, form: Callable[[Formula], str]) -> Iterator[str]:
    found = stated.found
    called = f", called {found.calls:,} times" if found.calls else ""  # a list of modules is not called itself
    yield f"{found.stage}: {found.module or 'the whole model'} ({found.class_name}){called}"
    width = max(len(formula.quantity) for formula in stated.formulas)
    for formula in stated.formulas:
        yield f"  {formula.quantity:{width}} = {form(formula)}  [{formula.unit}]"
    for peak in stated.peaks:
        yield f"  peak, if at {peak.at} in {peak.module or 'the model itself'}: {form(peak.alive)}"
    for assumption in found.assumptions:
        yield f"  assumed: {assumption}"


def _to_text(stages: Sequence[_Stated]) -> str:
    return _as_lines(stages, lambda formula: formula.text)


def _to_latex(stages: Sequence[_Stated]) -> str:
    return _as_lines(stages, lambda formula: formula.latex)


def _to_python(stages: Sequence[_Stated]) -> str:
    functions = [
        formula.python(f"{stage.found.stage}_{formula.quantity}") for stage in stages for formula in stage.formulas
    ]
    return "\n\n\n".join(functions) + "\n"


def _to_json(stages: Sequence[_Stated]) -> str:
    document = [
        {
            "stage": stage.found.stage,
            "module": stage.found.module,
            "class": stage.found.class_name,
            "calls": stage.found.calls,
            "assumptions": list(stage.found.assumptions),
            "formulas": [formula.document() for formula in stage.formulas],
            "peaks": [{"at": peak.at, "module": peak.module, "alive": peak.alive.document()} for peak in stage.peaks],
        }
        for stage in stages
    ]
    return json.dumps(document, indent=1) + "\n"


_WRITERS: Mapping[str, Callable[[Sequence[_Stated]], str]] = {
    "text": _to_text,
    "latex": _to_latex,
    "python": _to_python,
    "json": _to_json,
}
