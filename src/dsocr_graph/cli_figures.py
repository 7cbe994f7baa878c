"""The subcommand `figures`: what is often quoted of a model, with what it assumes; needs no torch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from attrs import evolve

from dsocr_graph.cli_options import add_shipped
from dsocr_graph.whatif_options import add_whatif_arguments, whatif_from

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand to those of a command line."""
    parser = commands.add_parser("figures", help="print the figures that are quoted of a model, with their assumptions")
    add_shipped(parser.add_argument)
    add_whatif_arguments(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    import modelmeter
    from dsocr_graph.emit.markdown_quoted import quoted_to_markdown
    from dsocr_graph.emit.what_ifs import change_lines
    from modelmeter.reports.quoted import ROUTINGS, quoted_figures
    from modelmeter.whatif import apply

    model = evolve(modelmeter.load(options.model, options.variant), name=options.model)  # not its class's
    what_if = apply(model, whatif_from(options))
    routings = list({routing.name: routing for routing in (*ROUTINGS, what_if.routing)}.values())
    print(quoted_to_markdown(quoted_figures(what_if.model, routings=routings)))
    if what_if.changes:
        print("\nWhat is changed:\n")
        print("\n".join(change_lines(what_if.changes)))
    return 0
