"""The subcommand `operators`: the state of every operator of the installed torch, as a page or as JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dsocr_graph.errors import OptionError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

FORMATS = ("page", "json")
PAGE_COMMAND = "dsocr-graph operators --out docs/operators.md"


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand to those of a command line.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_parser(parser.add_subparsers())
    >>> parser.parse_args(["operators"]).format
    'page'
    """
    parser = commands.add_parser("operators", help="list every ATen operator with a rule, free or missing")
    parser.add_argument("--format", default="page", help="page (Markdown) or json (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: standard output)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from dsocr_graph.emit.files import write_artefacts

    if options.format not in FORMATS:
        raise OptionError(f"format {options.format!r} is not known; choose one of {', '.join(FORMATS)}")
    text = operators_text(options.format)
    if options.out is None:
        print(text, end="")
    else:
        write_artefacts(options.out.parent, {options.out.name: text})
        print(options.out)
    return 0


def operators_text(form: str) -> str:
    """Return the operators of the installed torch, and the calls of all registered models, in one of `FORMATS`.

    Examples
    --------
    >>> operators_text("page").startswith("# Operators")
    True
    """
    import modelmeter
    from dsocr_graph.emit.operators_page import operators_json, operators_page
    from dsocr_graph.lowering.coverage import operator_states
    from dsocr_graph.verification.aten_names import aten_names, torch_release
    from modelmeter.registry import available

    states = operator_states(aten_names(), map(modelmeter.load, available()))
    if form == "json":
        return operators_json(states, torch=torch_release())
    return operators_page(states, torch=torch_release(), command=PAGE_COMMAND)
