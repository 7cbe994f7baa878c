"""`dsocr-graph models`: the models that are known by name, with variants, parameters and source; imports no torch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the subcommand."""
    parser = commands.add_parser("models", help="list the models that are known by name")
    parser.set_defaults(run=_run)


def _run(_: argparse.Namespace) -> int:
    print("\n".join(_lines()))
    return 0


def _lines() -> Iterator[str]:
    from dsocr_graph.models.registry import MODELS
    from modelmeter.registry import available

    names = available()
    for model in MODELS.values():
        yield f"{model.name}  {model.description}"
        if model.name in names:
            yield from _compiled_lines(model.name)
        yield f"  source: {model.source}"
    for name in sorted(set(names) - MODELS.keys()):
        yield f"{name}  compiled by another package, to be loaded and compared"
        yield from _compiled_lines(name, named=True)


def _compiled_lines(name: str, *, named: bool = False) -> Iterator[str]:
    """Yield what is shipped under a name, with its package if asked; of a broken package the reason instead."""
    from modelmeter.errors import ModelMeterError
    from modelmeter.registry import registered

    try:
        entry = registered(name)
        variants = entry.variants
        model = entry.load() if variants or named else None
    except (ModelMeterError, ImportError) as error:
        yield f"  cannot be loaded: {error}"
        return
    if model is not None:
        facts = ", ".join(f"{key} {value}" for key, value in model.variant.items())
        yield f"  parameters: {model.parameters:,}; as shipped: {facts or 'one variant'}"
        yield f"  variants: {', '.join(variants)}"
    if named:
        yield f"  source: {entry.package}"
