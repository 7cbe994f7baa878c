"""`dsocr-graph calibrate`: its options, and what it runs; torch is imported only once it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dsocr_graph.cli_options import add_machine, add_model, add_points, add_variant

if TYPE_CHECKING:
    from modelmeter.model import AnalyticModel

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

DEFAULT_MINUTES = {"cpu": 15.0, "cuda": 10.0}


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand to those of a command line.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_parser(parser.add_subparsers())
    >>> parser.parse_args(["calibrate", "--points", "decode:B=1,T=913"]).points
    ['decode:B=1,T=913']
    """
    parser = commands.add_parser(
        "calibrate",
        help="time a model's operator calls on this machine",
        description="Time every operator call that a model makes, one by one, on this machine, and write one file that "
        "`dsocr-graph analyze --calibration FILE` predicts times from.",
    )
    add_model(parser.add_argument)
    variant = parser.add_argument_group("variant")
    variant.add_argument(
        "--mode",
        action="append",
        default=[],
        help="Tiny, Small, Base, Large or Gundam, for the size of the global view; repeatable (default: Gundam)",
    )
    add_variant(variant.add_argument, dtype="bf16")
    add_machine(parser.add_argument)
    parser.add_argument(
        "--passes", type=int, default=3, metavar="N", help="how often each call is timed (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="time for all passes together (default: 15 on a CPU, 10 on a GPU)"
    )
    add_points(parser.add_argument, "the standard sizes")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="what to write (default: calibrations/DEVICE-DTYPE.json); FILE.partial keeps what an interrupted run has",
    )
    parser.set_defaults(run=run_calibrate)


def run_calibrate(options: argparse.Namespace) -> int:
    """Compile the variants, time their calls and write the file; return the exit status."""
    from dsocr_graph.emit.progress import progress_lines
    from dsocr_graph.timing.calibrate import calibrate, require_possible
    from dsocr_graph.timing.machine import this_machine
    from dsocr_graph.timing.plan import parse_point
    from dsocr_graph.timing.standard_sizes import STANDARD_LATTICES, standard_points

    # What is wrong is said now, not after a minute of compiling.
    machine = this_machine(options.device, threads=options.threads)
    points = [parse_point(text) for text in options.points]
    out: Path = options.out or Path("calibrations") / f"{machine.slug}-{options.dtype}.json"
    minutes: float = DEFAULT_MINUTES[machine.kind] if options.minutes is None else options.minutes
    require_possible(passes=options.passes, minutes=minutes, out=out)
    progress = progress_lines()
    models = _compiled(options, progress)
    calibrate(
        [(model, points or standard_points(model, STANDARD_LATTICES[machine.kind])) for model in models],
        device=options.device,
        threads=options.threads,
        moe=options.moe,
        row_lattice=machine.kind == "cuda" and not points,
        passes=options.passes,
        minutes=minutes,
        out=out,
        progress=progress,
    )
    print(out)
    return 0


def _compiled(options: argparse.Namespace, progress: Callable[[str], None]) -> list[AnalyticModel]:
    """Return the model in each of its variants that the modes stand for."""
    from dsocr_graph.compiling import analytic_model
    from dsocr_graph.models.registry import model_named
    from dsocr_graph.workloads import choose_profile

    named = model_named(options.model)
    profiles = [choose_profile(mode=mode, dtype=options.dtype) for mode in options.mode or ["Gundam"]]
    variants = dict.fromkeys(named.variant(profile, options.attention or named.attention) for profile in profiles)
    return [analytic_model(named, variant, progress=progress) for variant in variants]
