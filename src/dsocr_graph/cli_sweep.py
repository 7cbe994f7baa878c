"""The subcommand `sweep`: a table of FLOPs, bytes, memory and roofline times over a grid of pages; needs no torch."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dsocr_graph.errors import OptionError

if TYPE_CHECKING:
    from modelmeter.dims import Routing
    from modelmeter.model import AnalyticModel

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

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
        help="write a table over batches, modes, pages, tokens, devices and routings",
        description="Evaluate every combination of the values given. Numbers are lists and ranges: 1,2,4 or "
        "100:2000:100, which is 100, 200 ... 2000.",
    )
    parser.add_argument("--model", default="deepseek-ocr", help="a registered model (default: %(default)s)")
    grid = parser.add_argument_group("grid")
    grid.add_argument("--mode", default="Gundam", metavar="NAME[,...]", help="resolution modes (default: %(default)s)")
    grid.add_argument(
        "--page", default="1700x2200", metavar="WxH[,...]", help="page sizes in pixels (default: %(default)s)"
    )
    grid.add_argument("--batch", default="1", metavar="NUMBERS", help="equal pages together (default: %(default)s)")
    grid.add_argument(
        "--prompt-tokens", default="10", metavar="NUMBERS", help="tokens of the prompt (default: %(default)s)"
    )
    grid.add_argument(
        "--new-tokens", default="1100", metavar="NUMBERS", help="tokens generated per page (default: %(default)s)"
    )
    grid.add_argument("--device", metavar="NAME[,...]", help="devices for roofline times (default: no times)")
    grid.add_argument(
        "--routing",
        default="uniform",
        metavar="NAME[,...]",
        help="how tokens choose experts: uniform, top-k, most, zipf:EXPONENT or histogram:FILE (default: %(default)s)",
    )
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
    from dsocr_graph.sweep_pages import PageAxes, page_grid
    from modelmeter.devices import load_device
    from modelmeter.sweeps.run import sweep_to_file

    axes = PageAxes(
        modes=tuple(options.mode.split(",")),
        pages=tuple(_page(text) for text in options.page.split(",")),
        batches=numbers(options.batch, "batch"),
        prompt_tokens=numbers(options.prompt_tokens, "prompt-tokens"),
        new_tokens=numbers(options.new_tokens, "new-tokens"),
    )
    devices = [load_device(name) for name in options.device.split(",")] if options.device is not None else []
    models = _models(options.model, axes.modes)
    grid = page_grid(axes, models, routings=_routings(options.routing, models), devices=devices)
    out = sweep_to_file(
        grid,
        options.out,
        detail=options.detail,
        workers=options.workers,
        scheduler=options.scheduler,
        resume=options.resume,
        progress=progress_lines(),
    )
    print(f"{out}: {grid.points:,} points")
    return 0


def _models(name: str, modes: tuple[str, ...]) -> dict[str, AnalyticModel]:
    import modelmeter
    from dsocr_graph.workloads import mode_named

    named = dict.fromkeys(mode_named(mode).name for mode in modes)
    return {mode: modelmeter.load(name, mode.lower()) for mode in named}


def _routings(texts: str, models: dict[str, AnalyticModel]) -> dict[str, Routing]:
    from modelmeter.routing import parse_routing

    # The decoder is the same in every mode, so any model tells whether a histogram fits.
    model = next(iter(models.values()))
    return {text: parse_routing(text, model) for text in texts.split(",")}


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


def _page(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text.strip())
    if found is None:
        raise OptionError(f"--page: {text!r} is no page size; write width x height in pixels, such as 1700x2200")
    return int(found[1]), int(found[2])
