"""The subcommand `measure`: options in, a measurement file and a table out."""

from __future__ import annotations

import argparse
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from dsocr_graph.cli_options import (
    PAGE_OPTIONS,
    add_batch,
    add_machine,
    add_model,
    add_pages,
    add_points,
    add_variant,
    page_options,
    refuse_options,
)

if TYPE_CHECKING:
    from dsocr_graph.timing.plan import Point
    from dsocr_graph.workloads import Mode
    from modelmeter.machine import Machine
    from modelmeter.measurement import Measurement
    from modelmeter.model import AnalyticModel
    from modelmeter.workload import Workload

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

_DEFAULT_MODE = "Gundam"


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand to those of a command line."""
    parser = commands.add_parser("measure", help="run a real model and time its stages, modules and operators")
    add_model(parser.add_argument)
    what = parser.add_argument_group("what to run (default: the profile dsocr-standard-v1)")
    add_points(what.add_argument, "pages")
    add_pages(what.add_argument)
    add_batch(what.add_argument)
    variant = parser.add_argument_group("variant")
    add_variant(variant.add_argument, dtype=None)
    variant.add_argument("--checkpoint", metavar="DIR", help="weights to use (default: random ones)")
    variant.add_argument("--seed", type=int, default=0, help="of random weights and inputs (default: %(default)s)")
    runs = parser.add_argument_group("runs")
    add_machine(runs.add_argument)
    runs.add_argument("--repeats", type=int, default=7, metavar="N", help="runs that count (default: %(default)s)")
    runs.add_argument("--warmups", type=int, metavar="N", help="runs before them (default: 1 on a CPU, 3 on a GPU)")
    runs.add_argument("--no-instrument", dest="instrument", action="store_false", help="do not time single calls")
    runs.add_argument(
        "--budget-seconds", type=float, metavar="S", help="for the runs that count; slow stages then run 3 times"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write (default: measurements/MODEL-DEVICE-DTYPE.json)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    # torch's profiler announces each of its runs on standard error, at its highest level; read when torch is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from dsocr_graph.emit.files import require_writable, write_artefacts
    from dsocr_graph.emit.measurement_table import to_table
    from dsocr_graph.emit.progress import progress_lines
    from dsocr_graph.models.registry import Variant, model_named
    from dsocr_graph.timing.machine import this_machine
    from dsocr_graph.timing.measure import measure
    from modelmeter import units
    from modelmeter.measured_total import measured_total
    from modelmeter.measurement import measurement_to_json

    progress = progress_lines()
    chosen = _chosen(options)
    named = model_named(options.model)
    machine = this_machine(options.device, threads=options.threads)
    out: Path = options.out or Path("measurements") / file_name(named.name, machine, chosen.dtype)
    require_writable(out)  # now, not after the measuring
    attention = options.attention or named.attention
    variant = Variant(base_size=chosen.mode.base_size, dtype=chosen.dtype, attention=attention)

    @cache
    def analytic() -> AnalyticModel:
        from dsocr_graph.compiling import analytic_model

        return analytic_model(named, variant, progress=progress)

    measurement = measure(
        options.model,
        points=chosen.points,
        mode=chosen.mode.name,
        dtype=chosen.dtype,
        attention=attention,
        moe=options.moe,
        device=options.device,
        threads=options.threads,
        repeats=options.repeats,
        warmups=options.warmups,
        instrument=options.instrument,
        checkpoint=options.checkpoint,
        seed=options.seed,
        budget_seconds=options.budget_seconds,
        analytic=analytic,
        progress=progress,
    )
    files = write_artefacts(out.parent, {out.name: measurement_to_json(measurement)})
    print(to_table(measurement, _expected_peaks(measurement, analytic())))
    if chosen.workload is not None:
        seconds = measured_total(chosen.workload, measurement)
        print(
            f"\nworkload {chosen.workload.name}: {units.format_seconds(seconds)}, on lines between the sizes measured"
        )
    print(*files, sep="\n")
    return 0


@frozen(kw_only=True)
class _Chosen:
    """What to run, by the options."""

    points: tuple[Point, ...]
    mode: Mode
    dtype: str
    workload: Workload | None  # None where points are named one by one


def _chosen(options: argparse.Namespace) -> _Chosen:
    from dsocr_graph.timing.plan import Point, parse_point
    from dsocr_graph.workloads import bind_profile, choose_profile, mode_named
    from modelmeter.measured_total import workload_points

    if not options.points:
        profile = choose_profile(**page_options(options), batch=options.batch, dtype=options.dtype)
        workload = bind_profile(profile)
        points = tuple(Point(stage=run.stage, bindings=run.bindings) for run in workload_points(workload))
        return _Chosen(points=points, mode=profile.mode, dtype=profile.dtype, workload=workload)
    pages = [name for name in (*PAGE_OPTIONS, "batch") if name != "mode"]  # a variant is named by its mode
    refuse_options(options, pages, "--points gives the sizes themselves")
    return _Chosen(
        points=tuple(map(parse_point, options.points)),
        mode=mode_named(_DEFAULT_MODE if options.mode is None else options.mode),
        dtype="bf16" if options.dtype is None else options.dtype,
        workload=None,
    )


def _expected_peaks(measurement: Measurement, analytic: AnalyticModel) -> tuple[int, ...]:
    """Return the peak of each measured stage by the analytic model."""
    from modelmeter.measurement import expected_peak_bytes

    stages = {stage.name: stage for stage in analytic.stages}
    return tuple(
        expected_peak_bytes(stages[measured.stage], measured.bindings, measured.input_bytes)
        for measured in measurement.stages
    )


def file_name(model: str, machine: Machine, dtype: str) -> str:
    """Return the usual name of a measurement's file.

    Examples
    --------
    >>> from modelmeter.machine import Machine
    >>> h200 = Machine(kind="cuda", device="NVIDIA H200", driver="", memory_bytes=1, threads=1, torch="2.13.0")
    >>> file_name("toy", h200, "bf16")
    'toy-nvidia-h200-bf16.json'
    """
    return f"{model}-{machine.slug}-{dtype}.json"
