"""`dsocr-graph models`: the models that are known by name, with variants, parameters and source; imports no torch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelmeter.registry import RegisteredModel


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the subcommand."""
    parser = commands.add_parser("models", help="list the models that are known by name")
    parser.set_defaults(run=_run)


def _run(_: argparse.Namespace) -> int:
    print("\n".join(_lines()))
    return 0


def _lines() -> Iterator[str]:
    from dsocr_graph.models.registry import MODELS
    from modelmeter.registry import available, registered

    compiled = {name: registered(name) for name in available()}
    for model in MODELS.values():
        yield f"{model.name}  {model.description}"
        if model.name in compiled and compiled[model.name].variants:
            yield from _compiled_lines(compiled[model.name])
        yield f"  source: {model.source}"
    for name in sorted(compiled.keys() - MODELS.keys()):
        yield f"{name}  compiled by another package, to be loaded and compared"
        yield from _compiled_lines(compiled[name])
        yield f"  source: {compiled[name].package}"


def _compiled_lines(entry: RegisteredModel) -> Iterator[str]:
    model = entry.load()
    facts = ", ".join(f"{key} {value}" for key, value in model.variant.items())
    yield f"  parameters: {model.parameters:,}; as shipped: {facts or 'one variant'}"
    yield f"  variants: {', '.join(entry.variants)}"
