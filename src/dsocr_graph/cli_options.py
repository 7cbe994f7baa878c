"""Options that several subcommands share, each with one spelling, one default and one explanation; imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable

AddArgument = Callable[..., argparse.Action]
"""`add_argument` of a parser, or of a group of its options."""


def add_model(add: AddArgument) -> None:
    """Add which model to run.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_model(parser.add_argument)
    >>> parser.parse_args([]).model
    'deepseek-ocr'
    """
    add("--model", default="deepseek-ocr", help="model by name (default: %(default)s)")


def add_variant(add: AddArgument, *, dtype: str | None) -> None:
    """Add which variant of a model to run; without a default type, a profile of pages says it.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_variant(parser.add_argument, dtype="bf16")
    >>> options = parser.parse_args(["--moe", "loop"])
    >>> options.dtype, options.attention, options.moe
    ('bf16', 'sdpa', 'loop')
    """
    default = "the profile's, else bf16" if dtype is None else dtype
    add("--dtype", default=dtype, help=f"bf16 or fp32 (default: {default})")
    add("--attention", default="sdpa", help="sdpa, eager or flash_attention_2 (default: %(default)s)")
    add("--moe", default="grouped", help="grouped, or loop: the published loop over experts (default: %(default)s)")


def add_points(add: AddArgument, instead_of: str) -> None:
    """Add stages at sizes, given one by one instead of by another way.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_points(parser.add_argument, "a profile's")
    >>> parser.parse_args(["--points", "decode:B=1,T=913"]).points
    ['decode:B=1,T=913']
    """
    add(
        "--points",
        action="append",
        default=[],
        metavar="STAGE:DIM=SIZE,...",
        help=f"a stage at these sizes, such as decode:B=1,T=913, instead of {instead_of}; repeatable",
    )


def add_machine(add: AddArgument) -> None:
    """Add where to run.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_machine(parser.add_argument)
    >>> options = parser.parse_args(["--device", "cuda"])
    >>> options.device, options.threads
    ('cuda', 1)
    """
    add("--device", default="cpu", help="cpu, cuda or cuda:INDEX (default: %(default)s)")
    add("--threads", type=int, default=1, metavar="N", help="threads within an operator (default: %(default)s)")
