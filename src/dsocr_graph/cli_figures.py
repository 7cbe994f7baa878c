"""The subcommand `figures`: what is often quoted of a model, with what it assumes; a compiled model needs no torch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dsocr_graph.cli_options import add_compiled, compiled_options
from dsocr_graph.whatif_options import add_whatif_arguments, whatif_from

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand to those of a command line."""
    parser = commands.add_parser("figures", help="print the figures that are quoted of a model, with their assumptions")
    add_compiled(parser.add_argument)
    add_whatif_arguments(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from dsocr_graph.compiled_subject import compiled_subject
    from dsocr_graph.emit.markdown_quoted import quoted_to_markdown
    from dsocr_graph.emit.progress import progress_lines
    from dsocr_graph.emit.what_ifs import change_lines
    from modelmeter.reports.quoted import ROUTINGS, quoted_figures
    from modelmeter.whatif import apply

    model = compiled_subject(**compiled_options(options), progress=progress_lines())
    what_if = apply(model, whatif_from(options))
    routings = list({routing.name: routing for routing in (*ROUTINGS, what_if.routing)}.values())
    print(quoted_to_markdown(quoted_figures(what_if.model, routings=routings)))
    if what_if.changes:
        print("\nWhat is changed:\n")
        print("\n".join(change_lines(what_if.changes)))
    return 0
