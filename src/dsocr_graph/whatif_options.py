"""What-ifs on a command line: the options of `modelmeter.whatif`, each under its own name; imports no torch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelmeter.model import AnalyticModel
    from modelmeter.whatif import Options

_DTYPES = "bf16, fp32, fp8, int8 or int4"


def add_whatif_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the what-ifs to a command.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_whatif_arguments(parser)
    >>> parser.parse_args(["--kv-dtype", "int8"]).kv_dtype
    'int8'
    """
    group = parser.add_argument_group("what-ifs (default: as captured)")
    group.add_argument("--weight-dtype", metavar="TYPE", help=f"of the weights: {_DTYPES}")
    group.add_argument("--activation-dtype", metavar="TYPE", help="of the activations: bf16, fp32, fp8 or int8")
    group.add_argument("--kv-dtype", metavar="TYPE", help=f"of the KV cache: {_DTYPES}")
    group.add_argument("--logits", default="all", help="all or last: positions of a prefill that get logits")
    group.add_argument(
        "--kv-growth", default="concatenate", help="concatenate or preallocated: how a step grows the KV cache"
    )
    group.add_argument(
        "--group-size",
        type=int,
        default=128,
        metavar="N",
        help="elements of int8 and int4 weights that share a scale (default: %(default)s)",
    )
    add_routing_argument(group)


def add_routing_argument(group: argparse._ActionsContainer) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add how tokens choose experts."""
    group.add_argument(
        "--routing",
        default="uniform",
        help="how tokens choose experts: uniform, zipf:EXPONENT, top-k, most or histogram:FILE (default: %(default)s)",
    )


def whatif_from(options: argparse.Namespace, model: AnalyticModel) -> Options:
    """Return the what-ifs of parsed arguments; `model` is the one whose layers a histogram must name.

    Raises
    ------
    UnknownChoiceError, WhatIfError
        For a choice that does not exist, or choices that do not go together.
    UnknownRoutingError, RoutingError
        For a routing model that does not exist or cannot be.

    Examples
    --------
    >>> import modelmeter
    >>> parser = argparse.ArgumentParser()
    >>> add_whatif_arguments(parser)
    >>> whatif_from(parser.parse_args(["--weight-dtype", "int4"]), modelmeter.load("deepseek-ocr")).weight_dtype
    'int4'
    """
    from modelmeter.routing import parse_routing
    from modelmeter.whatif import Options

    return Options(
        weight_dtype=options.weight_dtype,
        activation_dtype=options.activation_dtype,
        kv_dtype=options.kv_dtype,
        logits=options.logits,
        kv_growth=options.kv_growth,
        group_size=options.group_size,
        routing=parse_routing(options.routing, model),
    )
