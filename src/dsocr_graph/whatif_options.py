"""What-ifs on a command line: the options of `modelmeter.whatif`, each under its own name; imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from attrs import evolve

from dsocr_graph.errors import OptionError
from modelmeter.defaults import GROUP_SIZE

if TYPE_CHECKING:
    from modelmeter.whatif import Options

_DTYPES = "bf16, fp32, fp8, int8 or int4"


WHATIF_OPTIONS = ("weight_dtype", "activation_dtype", "kv_dtype", "logits", "kv_growth", "moe", "routing")
"""What-ifs that choose one of several ways."""


def add_whatif_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add the what-ifs to a command; with `several`, each may name some with commas, which `whatifs_from` combines.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_whatif_arguments(parser)
    >>> parser.parse_args(["--kv-dtype", "int8"]).kv_dtype
    'int8'
    """
    commas = ", several with commas" if several else ""
    group = parser.add_argument_group(f"what-ifs (default: as captured{commas})")
    group.add_argument("--weight-dtype", metavar="TYPE", help=f"of the weights: {_DTYPES}")
    group.add_argument("--activation-dtype", metavar="TYPE", help="of the activations: bf16, fp32, fp8 or int8")
    group.add_argument("--kv-dtype", metavar="TYPE", help=f"of the KV cache: {_DTYPES}")
    group.add_argument("--logits", default="all", help="all or last: positions of a prefill that get logits")
    group.add_argument(
        "--kv-growth", default="concatenate", help="concatenate or preallocated: how a step grows the KV cache"
    )
    group.add_argument("--moe", default="grouped", help="grouped, or loop: the published loop over experts")
    group.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help=f"elements of int8 and int4 weights that share a scale, one number (default: {GROUP_SIZE})",
    )
    group.add_argument(
        "--routing",
        default="uniform",
        help="how tokens choose experts: uniform, zipf:EXPONENT, top-k, most or histogram:FILE (default: %(default)s)",
    )


def whatif_from(options: argparse.Namespace) -> Options:
    """Return the what-ifs of parsed arguments; `modelmeter.whatif.apply` checks that a histogram is of its model.

    Raises
    ------
    UnknownChoiceError, WhatIfError
        For a choice that does not exist, or choices that do not go together.
    UnknownRoutingError, RoutingError
        For a routing model that does not exist or cannot be.
    OptionError
        For a group size where no weights have groups.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_whatif_arguments(parser)
    >>> whatif_from(parser.parse_args(["--weight-dtype", "int4"])).weight_dtype
    'int4'
    """
    values = {name: getattr(options, name) for name in WHATIF_OPTIONS}
    if getattr(options, "calibration", None) is not None:
        values["moe"] = "grouped"  # as captured: a calibration predicts the loop from the calls of that
    return _with_group_size([_whatif(values)], options.group_size)[0]


def whatifs_from(options: argparse.Namespace) -> tuple[Options, ...]:
    """Return every combination of what-ifs whose arguments may name several, the last option changing fastest.

    Raises
    ------
    UnknownChoiceError, WhatIfError, UnknownRoutingError, RoutingError, OptionError
        As `whatif_from`, for any of them.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_whatif_arguments(parser, several=True)
    >>> found = whatifs_from(parser.parse_args(["--kv-dtype", "bf16,fp8", "--routing", "uniform,most"]))
    >>> [(each.kv_dtype, each.routing.name) for each in found]
    [('bf16', 'uniform'), ('bf16', 'most'), ('fp8', 'uniform'), ('fp8', 'most')]
    """
    values = {name: getattr(options, name) for name in WHATIF_OPTIONS}
    each = [[None] if text is None else text.split(",") for text in values.values()]
    found = [_whatif(dict(zip(values, chosen, strict=True))) for chosen in product(*each)]
    return _with_group_size(found, options.group_size)


def _whatif(values: Mapping[str, Any]) -> Options:
    from modelmeter.routing import parse_routing
    from modelmeter.whatif import Options

    choices = dict(values)
    routing = parse_routing(choices.pop("routing"))
    return Options(**choices, routing=routing)


def _with_group_size(found: Sequence[Options], group_size: int | None) -> tuple[Options, ...]:
    """Return the what-ifs with a group size where the weights have groups."""
    if group_size is None:
        return tuple(found)
    if not any(each.groups_weights for each in found):
        raise OptionError(
            f"--group-size {group_size} is of int8 and int4 weights, and there are none; give --weight-dtype int8 or "
            "int4 as well, or leave it out"
        )
    return tuple(evolve(each, group_size=group_size) if each.groups_weights else each for each in found)
