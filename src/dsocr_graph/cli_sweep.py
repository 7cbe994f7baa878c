"""The subcommand `sweep`: a table of FLOPs, bytes, memory and roofline times over a grid of pages; needs no torch."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dsocr_graph.cli_options import add_capture, add_model, two_numbers
from dsocr_graph.errors import OptionError
from dsocr_graph.whatif_options import add_whatif_arguments, whatifs_from

if TYPE_CHECKING:
    from modelmeter.model import AnalyticModel

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

PAGE = "1700x2200"
"""Letter at 200 dpi, in pixels."""

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
        "stands for equally likely lengths: the mean of their rows is the mean over these.",
    )
    add_model(parser.add_argument)
    grid = parser.add_argument_group("grid")
    grid.add_argument("--mode", default="Gundam", metavar="NAME[,...]", help="resolution modes (default: %(default)s)")
    grid.add_argument("--page", metavar="WxH[,...]", help=f"page sizes in pixels (default: {PAGE})")
    grid.add_argument("--crops", metavar="WxH[,...]", help="instead: columns x rows that a page is cut into")
    grid.add_argument("--batch", default="1", metavar="NUMBERS", help="equal pages together (default: %(default)s)")
    grid.add_argument(
        "--prompt-tokens", default="10", metavar="LENGTHS", help="tokens of the prompt (default: %(default)s)"
    )
    grid.add_argument(
        "--new-tokens", default="1100", metavar="LENGTHS", help="tokens generated per page (default: %(default)s)"
    )
    grid.add_argument("--device", metavar="NAME[,...]", help="devices for roofline times (default: no times)")
    add_capture(parser.add_argument_group("variant").add_argument, dtype="bf16")
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
    from dsocr_graph.sweep_pages import PageAxes, page_grid
    from modelmeter.devices import load_device
    from modelmeter.sweeps.run import sweep_to_file
    from modelmeter.whatif import apply

    axes = PageAxes(
        modes=tuple(options.mode.split(",")),
        pages=_sizes(options.page or ("" if options.crops else PAGE), "page", "pixels, such as 1700x2200"),
        crops=_sizes(options.crops, "crops", "crops, such as 2x3"),
        batches=numbers(options.batch, "batch"),
        prompt_tokens=_lengths(options.prompt_tokens, "prompt-tokens"),
        new_tokens=_lengths(options.new_tokens, "new-tokens"),
    )
    what_ifs = whatifs_from(options)
    devices = [load_device(name) for name in options.device.split(",")] if options.device is not None else []
    models = _models(options, axes.modes)
    grid = page_grid(axes, models, what_ifs=what_ifs, devices=devices)
    out = sweep_to_file(
        grid,
        options.out,
        detail=options.detail,
        workers=options.workers,
        scheduler=options.scheduler,
        resume=options.resume,
        progress=progress_lines(),
    )
    # The decoder is the same in every mode, and so is what a what-if changes.
    applied = [apply(next(iter(models.values())), each) for each in what_ifs]
    lines = change_lines(change for what_if in applied for change in what_if.changes)
    print("\n".join((f"{out}: {grid.points:,} points", *lines)))
    return 0


def _models(options: argparse.Namespace, modes: tuple[str, ...]) -> dict[str, AnalyticModel]:
    from dsocr_graph.compiling import shipped_or_compiled
    from dsocr_graph.models.registry import Variant, model_named
    from dsocr_graph.workloads import bind_profile, mode_named

    named = model_named(options.model)
    if named.workload is not bind_profile:
        raise OptionError(
            f"the axes of a sweep are pages as DeepSeek-OCR reads them, and {named.name} reads them otherwise; sweep "
            "it by modelmeter.sweeps with rules of its own, or analyze it one point at a time"
        )
    found = {mode.name: mode for mode in map(mode_named, modes)}
    return {
        name: shipped_or_compiled(
            named,
            Variant(base_size=mode.base_size, dtype=options.dtype, attention=options.attention or named.attention),
        )
        for name, mode in found.items()
    }


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
