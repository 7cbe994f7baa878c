"""The subcommand `sweep`: a table of FLOPs, bytes, memory and roofline times over a grid; shipped models need no torch.

The grid is of pages as DeepSeek-OCR reads them, or of a stage of any model at its own dims.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from dsocr_graph.cli_options import add_capture, add_trust, refuse_options, two_numbers
from dsocr_graph.errors import OptionError
from dsocr_graph.whatif_options import add_whatif_arguments, whatifs_from

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelmeter.devices import DeviceSpec
    from modelmeter.model import AnalyticModel
    from modelmeter.sweeps import Grid
    from modelmeter.whatif import Options

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

PAGE = "1700x2200"
"""Letter at 200 dpi, in pixels."""

DEFAULTS = {"mode": "Gundam", "batch": "1", "prompt_tokens": "10", "new_tokens": "1100"}
"""Of a grid of pages, by option."""

_OF_PAGES = ("page", "crops", "batch", "prompt_tokens", "new_tokens")

MOST_VALUES = 1_000_000
"""Of one range; a longer one is a slip of the keyboard."""


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand to those of a command line.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_parser(parser.add_subparsers())
    >>> parser.parse_args(["sweep", "--batch", "1,2,4", "--out", "sweep.csv"]).batch
    '1,2,4'
    """
    parser = commands.add_parser(
        "sweep",
        help="write a table over batches, modes, pages, tokens, devices and what-ifs",
        description="Evaluate every combination of the values given. Numbers are lists and ranges: 1,2,4 or "
        "100:2000:100, which is 100, 200 ... 2000; tokens may also be a distribution, such as normal:900:200, which "
        "stands for equally likely lengths: the mean of their rows is the mean over these. Pages are those of "
        "DeepSeek-OCR; a stage of any model is swept over its own dims.",
    )
    parser.add_argument(
        "--model",
        default="deepseek-ocr",
        help="by name, of `dsocr-graph models` or another package, a model.json or a directory of `analyze`, path of a "
        "config.json, or factory as package.module:function (default: %(default)s)",
    )
    add_trust(parser.add_argument)
    stage = parser.add_argument_group("grid of a stage, instead of pages")
    stage.add_argument("--stage", metavar="NAME", help="such as decode; `dsocr-graph formulas` lists those of a model")
    stage.add_argument(
        "--axis",
        action="append",
        default=[],
        metavar="DIM=NUMBERS",
        help="sizes of a dim, such as B=1,8,64 or T=128:8192:128; repeatable, one for each dim of the stage",
    )
    grid = parser.add_argument_group("grid of pages")
    grid.add_argument("--mode", metavar="NAME[,...]", help=f"resolution modes (default: {DEFAULTS['mode']})")
    grid.add_argument("--page", metavar="WxH[,...]", help=f"page sizes in pixels (default: {PAGE})")
    grid.add_argument("--crops", metavar="WxH[,...]", help="instead: columns x rows that a page is cut into")
    grid.add_argument("--batch", metavar="NUMBERS", help=f"equal pages together (default: {DEFAULTS['batch']})")
    grid.add_argument(
        "--prompt-tokens", metavar="LENGTHS", help=f"tokens of the prompt (default: {DEFAULTS['prompt_tokens']})"
    )
    grid.add_argument(
        "--new-tokens", metavar="LENGTHS", help=f"tokens generated per page (default: {DEFAULTS['new_tokens']})"
    )
    parser.add_argument("--device", metavar="NAME[,...]", help="devices for roofline times (default: no times)")
    add_capture(parser.add_argument_group("variant").add_argument, dtype=None)
    add_whatif_arguments(parser, several=True)
    parser.add_argument("--detail", default="totals", help="totals, or modules: a row for each (default: %(default)s)")
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="run on Dask: tcp://HOST:PORT, or local (default: threads)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads, or local processes (default: all cores)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .csv or .parquet file")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted sweep of the same options")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from dsocr_graph.emit.progress import progress_lines
    from dsocr_graph.emit.what_ifs import change_lines
    from modelmeter.devices import load_device
    from modelmeter.sweeps.run import sweep_to_file
    from modelmeter.whatif import apply

    what_ifs = whatifs_from(options)
    devices = [load_device(name) for name in options.device.split(",")] if options.device is not None else []
    asked = _pages(options, what_ifs, devices) if options.stage is None else _stage(options, what_ifs, devices)
    out = sweep_to_file(
        asked.grid,
        options.out,
        detail=options.detail,
        workers=options.workers,
        scheduler=options.scheduler,
        resume=options.resume,
        progress=progress_lines(),
    )
    applied = [apply(asked.model, each) for each in what_ifs]
    lines = change_lines(change for what_if in applied for change in what_if.changes)
    print("\n".join((f"{out}: {asked.grid.points:,} points", *lines)))
    return 0


@frozen(kw_only=True)
class _Asked:
    """A grid, and a model of it that every what-if changes as it does the others."""

    grid: Grid
    model: AnalyticModel


# --- pages


def _pages(options: argparse.Namespace, what_ifs: Sequence[Options], devices: Sequence[DeviceSpec]) -> _Asked:
    from dsocr_graph.sweep_pages import PageAxes, page_grid

    if options.axis:
        raise OptionError(f"--axis {options.axis[0]} is of a stage, and none is named; add --stage, such as decode")
    asked = {
        name: default if getattr(options, name) is None else getattr(options, name)
        for name, default in DEFAULTS.items()
    }
    axes = PageAxes(
        modes=tuple(asked["mode"].split(",")),
        pages=_sizes(options.page or ("" if options.crops else PAGE), "page", "pixels, such as 1700x2200"),
        crops=_sizes(options.crops, "crops", "crops, such as 2x3"),
        batches=numbers(asked["batch"], "batch"),
        prompt_tokens=_lengths(asked["prompt_tokens"], "prompt-tokens"),
        new_tokens=_lengths(asked["new_tokens"], "new-tokens"),
    )
    models = _models(options, axes.modes)
    # The decoder is the same in every mode, and so is what a what-if changes.
    return _Asked(grid=page_grid(axes, models, what_ifs=what_ifs, devices=devices), model=next(iter(models.values())))


def _models(options: argparse.Namespace, modes: tuple[str, ...]) -> dict[str, AnalyticModel]:
    from dsocr_graph.compiling import shipped_or_compiled
    from dsocr_graph.emit.progress import progress_lines
    from dsocr_graph.models.registry import SHIPPED_DTYPE, Variant
    from dsocr_graph.subjects import compiled_only, named_or_configured, stages_text
    from dsocr_graph.workloads import bind_profile, mode_named

    registered = compiled_only(options.model)
    if registered is not None:
        raise OptionError(
            f"these axes are pages as DeepSeek-OCR reads them, and {registered.name} reads none; sweep one of its "
            f"stages, which are {stages_text(registered)}, as --stage NAME --axis DIM=NUMBERS"
        )
    named = named_or_configured(options.model, trust_remote_code=options.trust_remote_code, progress=progress_lines())
    if named.workload is not bind_profile:
        raise OptionError(
            f"these axes are pages as DeepSeek-OCR reads them, and {named.name} reads them otherwise; sweep one of its "
            "stages over its own dims, such as --stage decode --axis B=1,8,64 --axis T=128:8192:128"
        )
    found = {mode.name: mode for mode in map(mode_named, modes)}
    dtype, attention = options.dtype or SHIPPED_DTYPE, options.attention or named.attention
    return {
        name: shipped_or_compiled(named, Variant(base_size=mode.base_size, dtype=dtype, attention=attention))
        for name, mode in found.items()
    }


# --- a stage


def _stage(options: argparse.Namespace, what_ifs: Sequence[Options], devices: Sequence[DeviceSpec]) -> _Asked:
    from dsocr_graph.compiled_subject import compiled_subject
    from dsocr_graph.emit.progress import progress_lines
    from dsocr_graph.sweep_stages import stage_grid

    refuse_options(options, _OF_PAGES, "--stage is swept over its own dims")
    sizes: dict[str, tuple[int, ...]] = {}
    for text in options.axis:
        dim, equals, values = text.partition("=")
        if not equals or dim in sizes:
            raise OptionError(
                f"--axis {text!r} {'repeats a dim' if equals else 'names no dim'}; write each dim of the stage once, "
                "as DIM=NUMBERS, such as B=1,8,64"
            )
        sizes[dim] = numbers(values, f"axis {dim}")
    model = compiled_subject(
        options.model,
        mode=options.mode,
        dtype=options.dtype,
        attention=options.attention,
        trust_remote_code=options.trust_remote_code,
        progress=progress_lines(),
    )
    return _Asked(grid=stage_grid(model, options.stage, sizes, what_ifs=what_ifs, devices=devices), model=model)


# --- numbers


def _sizes(text: str | None, option: str, unit: str) -> tuple[tuple[int, int], ...]:
    return tuple(two_numbers(part, option, unit) for part in text.split(",")) if text else ()


def _lengths(text: str, option: str) -> tuple[int, ...]:
    """Return numbers, or the equally likely lengths of a distribution."""
    from modelmeter.lengths import parse_lengths

    return parse_lengths(text).equally_likely if text[:1].isalpha() else numbers(text, option)


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Return the numbers of a list of values and ranges; both ends of a range belong to it.

    Raises
    ------
    OptionError
        When a part is neither.

    Examples
    --------
    >>> numbers("1,2,10:30:10", "batch")
    (1, 2, 10, 20, 30)
    """
    return tuple(value for part in text.split(",") for value in _values(part, option))


def _values(part: str, option: str) -> range:
    found = re.fullmatch(r"(\d{1,9})(?::(\d{1,9})(?::(\d{1,9}))?)?", part.strip())
    if found is None:
        raise OptionError(
            f"--{option}: {part!r} is no number and no range; write 1,2,4 or 100:2000:100, first, last and step"
        )
    first = int(found[1])
    last = int(found[2] or first)
    step = int(found[3] or 1)
    if step < 1 or last < first or (last - first) // step >= MOST_VALUES:
        raise OptionError(
            f"--{option}: the range {part!r} has no values or over {MOST_VALUES:,}; write FIRST:LAST:STEP with a step "
            "from 1 up"
        )
    return range(first, last + 1, step)
