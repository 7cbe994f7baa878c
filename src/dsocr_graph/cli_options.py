"""Options that several subcommands share, each with one spelling, one default and one explanation; imports no torch."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dsocr_graph.errors import OptionError
from dsocr_graph.unused_options import flags

AddArgument = Callable[..., argparse.Action]
"""`add_argument` of a parser, or of a group of its options."""


def add_subject(add: AddArgument) -> None:
    """Add which model to analyze, however it is named.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_subject(parser.add_argument)
    >>> parser.parse_args(["--model", "my_model:make"]).model
    'my_model:make'
    """
    add(
        "--model",
        default="deepseek-ocr",
        help="by name, path of a config.json, or factory as package.module:function (default: %(default)s)",
    )


def add_trust(add: AddArgument) -> None:
    """Add whether code beside a configuration is run.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_trust(parser.add_argument)
    >>> parser.parse_args([]).trust_remote_code
    False
    """
    add(
        "--trust-remote-code",
        action="store_true",
        help="import the code that a config.json names in its auto_map, from files beside it; says which before",
    )


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


def add_compiled(add: AddArgument) -> None:
    """Add which compiled model to read, or to compile; `compiled_options` reads them.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_compiled(parser.add_argument)
    >>> options = parser.parse_args(["--variant", "base"])
    >>> options.model, options.variant
    ('deepseek-ocr', 'base')
    """
    add(
        "--model",
        default="deepseek-ocr",
        help="a registered model, a model.json or a directory of `analyze`, path of a config.json, or factory as "
        "package.module:function (default: %(default)s)",
    )
    add("--variant", help="one that a package ships, of a registered model (default: the model's)")
    add_capture(add, dtype=None)
    add_trust(add)


def compiled_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the parsed options of `add_compiled` as `dsocr_graph.compiled_subject.compiled_subject` takes them.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_compiled(parser.add_argument)
    >>> compiled_options(parser.parse_args(["--dtype", "fp32"]))["dtype"]
    'fp32'
    """
    return {
        "text": options.model,
        "shipped": options.variant,
        "dtype": options.dtype,
        "attention": options.attention,
        "trust_remote_code": options.trust_remote_code,
    }


def add_capture(add: AddArgument, *, dtype: str | None) -> None:
    """Add what tells captures of a model apart; without a default type, a profile of pages says it.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_capture(parser.add_argument, dtype="bf16")
    >>> options = parser.parse_args([])
    >>> options.dtype, options.attention
    ('bf16', None)
    """
    default = "the profile's, else bf16" if dtype is None else dtype
    add(
        "--dtype",
        default=dtype,
        help=f"bf16, fp16, fp32, or fp8 where a checkpoint is published in it (default: {default})",
    )
    add("--attention", help="sdpa, eager or flash_attention_2 (default: the model's own, as a rule sdpa)")


def add_variant(add: AddArgument, *, dtype: str | None) -> None:
    """Add which variant of a model to run: what `add_capture` adds, and how its experts run.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_variant(parser.add_argument, dtype="bf16")
    >>> options = parser.parse_args(["--moe", "loop"])
    >>> options.dtype, options.attention, options.moe
    ('bf16', None, 'loop')
    """
    add_capture(add, dtype=dtype)
    add("--moe", default="grouped", help="grouped, or loop: the published loop over experts (default: %(default)s)")


def add_pages(add: AddArgument) -> None:
    """Add which pages to run, in which mode, with how many tokens; `page_options` reads them.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_pages(parser.add_argument)
    >>> parser.parse_args(["--page", "1700x2200", "--page", "640x480"]).page
    ['1700x2200', '640x480']
    """
    lengths = "a number, some with commas, uniform:LOW:HIGH, normal:MEAN:SD, lognormal:MEAN:SD or histogram:FILE"
    add("--workload", metavar="PROFILE", help="a shipped profile by name, or a TOML file")
    add("--image", action="append", default=[], metavar="FILE", help="PNG, JPEG or TIFF; repeatable")
    add("--pdf", action="append", default=[], metavar="FILE", help="PDF; repeatable")
    add("--page", action="append", default=[], metavar="WxH", help="a page by its size in pixels; repeatable")
    add("--crops", metavar="WxH", help="columns x rows that every page is cut into, whatever its size")
    add("--mode", help="Tiny, Small, Base, Large or Gundam")
    add("--prompt-tokens", metavar="LENGTHS", help="tokens of the prompt, image tokens not counted: as --new-tokens")
    add("--new-tokens", metavar="LENGTHS", help=f"tokens generated per page: {lengths}")


PAGE_OPTIONS = ("workload", "image", "pdf", "page", "crops", "mode", "prompt_tokens", "new_tokens")
"""What `add_pages` adds, as parameters of `dsocr_graph.workloads.choose_profile`."""


def page_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the parsed options of `add_pages` as `dsocr_graph.workloads.choose_profile` takes them.

    Raises
    ------
    OptionError
        When a size is none.
    """
    given: dict[str, Any] = {name: getattr(options, name) for name in PAGE_OPTIONS}
    given["page"] = [two_numbers(text, "page", "pixels, such as 1700x2200") for text in options.page]
    if options.crops is not None:
        given["crops"] = two_numbers(options.crops, "crops", "crops, such as 2x3")
    return given


def given(options: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Return which of some options are given; those that have a default of their own always are.

    Examples
    --------
    >>> given(argparse.Namespace(batch=8, mode=None, image=[]), ["batch", "mode", "image"])
    ['batch']
    """
    return [name for name in names if getattr(options, name) not in (None, [])]


def refuse_options(options: argparse.Namespace, names: Sequence[str], reason: str) -> None:
    """Refuse options that are given and would say nothing.

    Raises
    ------
    OptionError
        When one of them is given.

    Examples
    --------
    >>> refuse_options(argparse.Namespace(batch=8, mode=None), ["batch", "mode"], "--points gives the sizes themselves")
    Traceback (most recent call last):
    dsocr_graph.errors.OptionError: --points gives the sizes themselves, so that --batch would say nothing; leave ...
    """
    unused = given(options, names)
    if unused:
        raise OptionError(f"{reason}, so that {flags(unused)} would say nothing; leave out one or the other")


def two_numbers(text: str, option: str, unit: str) -> tuple[int, int]:
    """Return the width and height of a text such as 1700x2200.

    Raises
    ------
    OptionError
        When it is none.

    Examples
    --------
    >>> two_numbers("2x3", "crops", "crops, such as 2x3")
    (2, 3)
    """
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text.strip())
    if found is None:
        raise OptionError(f"--{option}: {text!r} is no size; write width x height in {unit}")
    return int(found[1]), int(found[2])


def add_batch(add: AddArgument) -> None:
    """Add how many equal pages run together.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_batch(parser.add_argument)
    >>> parser.parse_args(["--batch", "8"]).batch
    8
    """
    add("--batch", type=_integer, metavar="N", help="equal pages processed together")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


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
