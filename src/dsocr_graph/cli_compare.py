"""The subcommand `compare`: models, variants, workloads, devices and runs side by side; needs no torch."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dsocr_graph.cli_options import add_points, given, refuse_options
from dsocr_graph.errors import OptionError
from dsocr_graph.unused_options import flags

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dsocr_graph.compared_workloads import SamePages, SamePoints
    from dsocr_graph.emit.compare_models import LeftOut
    from modelmeter.compare import Metric, Movement, Operand, SideBySide
    from modelmeter.model import AnalyticModel
    from modelmeter.workload import Workload

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

DEFAULT_DEVICE = "h200"
FORMATS = ("markdown", "json", "csv")

RANK_WORDS = ("time", "flops", "bytes", "fused-bytes", "memory", "load-memory", "parameters", "weights")
"""What `--by` takes: the words of `modelmeter.compare.RANKS`, which loads what a command line's help need not."""

SHOWN_LEFT_OUT = 3
"""Models that the message on an empty table names, each with its reason."""

_OF_SIDES = ("calibration", "threshold", "fail_on", "lines", "by")
"""Options that say nothing to the table of models."""

_OF_PAGES = ("workload", "mode", "batch", "new_tokens")
_OF_TIMES = ("device", "calibration")


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand to those of a command line.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_parser(parser.add_subparsers())
    >>> options = parser.parse_args(["compare", "deepseek-ocr:gundam", "deepseek-ocr:base", "--threshold", "5"])
    >>> options.operands, options.threshold
    (['deepseek-ocr:gundam', 'deepseek-ocr:base'], 5.0)
    """
    parser = commands.add_parser(
        "compare",
        help="set models, variants, workloads, devices or runs side by side",
        description="Compare other sides with the first: totals, parts by stage, role and module, what changed and "
        "why. Exit status 1 says that a total moved by more than the threshold.",
    )
    parser.add_argument(
        "operands",
        nargs="*",
        metavar="SIDE",
        help="a report.json, a model.json, a directory of `analyze`, a measurement, or a registered model "
        "NAME[:VARIANT]",
    )
    parser.add_argument("--all", action="store_true", help="a table of every registered model instead")
    models = parser.add_argument_group("sides that are models")
    models.add_argument("--workload", metavar="PROFILE", help="a shipped profile by name, or a TOML file")
    models.add_argument("--mode", help="of models whose variant names none: Tiny, Small, Base, Large or Gundam")
    models.add_argument("--batch", type=int, metavar="N", help="equal pages processed together")
    models.add_argument("--new-tokens", type=int, metavar="N", help="tokens generated per page")
    add_points(models.add_argument, "pages")
    models.add_argument("--device", help="a device that `dsocr-graph devices` lists; none: no times (default: h200)")
    models.add_argument("--calibration", metavar="FILE", help="predict for the machine of this file instead")
    gate = parser.add_argument_group("a check, for CI")
    gate.add_argument("--threshold", type=float, metavar="PERCENT", help="largest change of a total that passes")
    gate.add_argument(
        "--fail-on",
        metavar="TOTAL[,TOTAL...]",
        help="of flops, bytes, time, memory and parameters (default: all that every side has)",
    )
    parser.add_argument(
        "--by",
        metavar="TOTAL",
        help=f"the total whose change is explained, of {', '.join(RANK_WORDS)} (default: time if every side has it, "
        "else flops, and every total that fails a check)",
    )
    parser.add_argument("--lines", type=int, metavar="N", help='most lines of "what changed and why" (default: 12)')
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write to this file instead of the standard output")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.all:
        if options.operands or given(options, _OF_SIDES):
            raise OptionError(
                f"--all is a table of every registered model on one device; leave out the sides and {flags(_OF_SIDES)}"
            )
        _write(_table_text(options), options.out)
        return 0
    if options.fail_on is not None and options.threshold is None:
        raise OptionError("--fail-on names totals that may not move; say by how much with --threshold PERCENT")
    if options.lines is not None and options.lines < 1:
        raise OptionError(f"lines is {options.lines}; expected 1 or more")
    compared = _compare(options)
    threshold: float | None = options.threshold
    movements = [] if threshold is None else _movements(compared, options)
    moved = [moved_text(each, threshold or 0) for each in movements]
    _write(_text(_explaining(compared, movements, options), options), options.out)
    for text in moved:
        print(text, file=sys.stderr)
    return 1 if moved else 0


# --- sides


def _compare(options: argparse.Namespace) -> SideBySide:
    from dsocr_graph.time_models import choose_time_model
    from modelmeter.compare import read_operand, set_side_by_side, sides_of

    operands = [read_operand(text) for text in options.operands]
    _require_evaluated(operands, options)
    asked = _asked(options)
    _require_mode_taken([(each.label, each.variant, each.model) for each in operands if each.is_evaluated], options)
    time_model = choose_time_model(device=_device(options), calibration=options.calibration)

    def workload_of(operand: Operand) -> Workload:
        assert operand.model is not None
        return asked.workload(operand.model, label=operand.label, variant=operand.variant)

    sides = sides_of(operands, workload_of=workload_of, time_model=time_model)
    return set_side_by_side(sides, ranked_by=_ranked_by(options))


def _ranked_by(options: argparse.Namespace) -> Metric | None:
    from modelmeter.compare import RANKS

    if options.by is not None and options.by not in RANKS:
        raise OptionError(f"--by {options.by} is no total whose change can be explained; choose of {', '.join(RANKS)}")
    return None if options.by is None else RANKS[options.by]


def _explaining(compared: SideBySide, moved: Sequence[Movement], options: argparse.Namespace) -> SideBySide:
    """Return a comparison that explains every total that failed a check too, unless one is asked for."""
    from modelmeter.compare import with_explained

    return compared if options.by is not None else with_explained(compared, [each.metric for each in moved])


def _require_evaluated(operands: Sequence[Operand], options: argparse.Namespace) -> None:
    """Refuse options that say what models are evaluated at where no side is one, or a measurement says it."""
    none_evaluated = not any(operand.is_evaluated for operand in operands)
    measured = any(operand.measurement is not None for operand in operands)
    refused = ((*_OF_PAGES, "points") if none_evaluated or measured else ()) + (_OF_TIMES if none_evaluated else ())
    unused = given(options, refused)
    if unused and operands:
        raise OptionError(
            f"{flags(unused)} would say nothing: reports and measurements are of what they ran, and models beside a "
            "measurement run the same; leave out what says nothing, or give model.json or NAME:VARIANT on every side"
        )


def _require_mode_taken(
    sides: Sequence[tuple[str, str | None, AnalyticModel | None]], options: argparse.Namespace
) -> None:
    """Refuse a mode that no side takes: pages of a variant named after a mode are in that one."""
    from dsocr_graph.compared_workloads import mode_of
    from dsocr_graph.unused_options import takes_views

    if options.mode is None or not sides:
        return
    if not any(model and takes_views(model.variant) and mode_of(variant) is None for _, variant, model in sides):
        raise OptionError(
            f"--mode {options.mode} is for models whose variant names none, and no side takes it: "
            f"{', '.join(dict.fromkeys(label for label, _, _ in sides))}; name another variant instead, such as "
            "deepseek-ocr:base"
        )


def _movements(compared: SideBySide, options: argparse.Namespace) -> Sequence[Movement]:
    from modelmeter.compare import GATES, movements

    if options.fail_on is not None:
        gates = options.fail_on.split(",")
    else:
        gates = [gate for gate, metric in GATES.items() if all(metric in totals for totals in compared.totals)]
    return movements(compared, gates, options.threshold)


def moved_text(movement: Movement, threshold: float) -> str:
    """Return a sentence about a total that moved by more than a threshold, in percent.

    Examples
    --------
    >>> from modelmeter.compare import Metric, Movement
    >>> moved_text(Movement(metric=Metric.FLOPS, label="new", before=2e9, after=1e9), 5)
    'FLOPs of new moved by -50.00 % (2.00 GFLOP → 1.00 GFLOP); up to 5 % passes, either way'
    """
    from dsocr_graph.emit.compare_cells import figure

    metric, percent = movement.metric, movement.percent
    change = "from nothing" if math.isinf(percent) else f"by {percent:+,.2f} %"
    before, after = figure(metric, movement.before), figure(metric, movement.after)
    return (
        f"{metric.value} of {movement.label} moved {change} ({before} → {after}); up to {threshold:g} % passes, "
        "either way"
    )


def _device(options: argparse.Namespace) -> str | None:
    if options.device is None:
        return DEFAULT_DEVICE if options.calibration is None else None
    return None if options.device == "none" else options.device


def _asked(options: argparse.Namespace) -> SamePages | SamePoints:
    """Return what models are evaluated at."""
    from dsocr_graph.compared_workloads import SamePages, SamePoints
    from dsocr_graph.timing.plan import parse_point
    from dsocr_graph.workloads import STANDARD, load_profile, override

    if options.points:
        refuse_options(options, _OF_PAGES, "--points gives the sizes themselves")
        return SamePoints(points=map(parse_point, options.points))
    profile = load_profile(STANDARD if options.workload is None else options.workload)
    return SamePages(
        profile=override(profile, mode=options.mode, batch=options.batch, new_tokens=options.new_tokens),
        mode=options.mode,
    )


# --- output


def _text(compared: SideBySide, options: argparse.Namespace) -> str:
    if options.format == "markdown":
        from dsocr_graph.emit.compare_markdown import SHOWN_CHANGES, compare_to_markdown

        return compare_to_markdown(compared, lines=options.lines or SHOWN_CHANGES)
    from dsocr_graph.emit.compare_files import compare_to_csv, compare_to_json

    return compare_to_json(compared) if options.format == "json" else compare_to_csv(compared)


def _table_text(options: argparse.Namespace) -> str:
    import modelmeter
    from dsocr_graph.emit.compare_models import models_to_csv, models_to_json, models_to_markdown
    from modelmeter.compare import table

    models, workloads, left_out = _registered(options)
    _require_rows(models, left_out)
    device = _device(options)
    rows = table(models, workloads, None if device is None else modelmeter.load_device(device))
    if options.format == "csv":
        return models_to_csv(rows)
    return (models_to_json if options.format == "json" else models_to_markdown)(rows, left_out)


def _registered(options: argparse.Namespace) -> tuple[dict[str, AnalyticModel], dict[str, Workload], list[LeftOut]]:
    """Return every registered model, in its default variant, with its workload; and why others have none."""
    from dsocr_graph.emit.compare_models import LeftOut
    from dsocr_graph.errors import PlanError
    from dsocr_graph.workloads import WorkloadError
    from modelmeter.errors import ModelMeterError
    from modelmeter.model import SizeLimitError
    from modelmeter.registry import available, registered

    asked = _asked(options)
    models: dict[str, AnalyticModel] = {}
    variants: dict[str, str] = {}
    left_out: list[LeftOut] = []
    for name in available():
        try:
            entry = registered(name)
            models[f"{name}:{entry.default}"] = entry.load()
            variants[f"{name}:{entry.default}"] = entry.default
        except (ModelMeterError, ImportError) as error:  # one broken package does not hide the others
            left_out.append(LeftOut(label=name, reason=str(error)))
    _require_mode_taken([(label, variants[label], model) for label, model in models.items()], options)
    workloads: dict[str, Workload] = {}
    for label, model in models.items():
        try:
            workloads[label] = asked.workload(model, label=label, variant=variants[label])
        except (OptionError, PlanError, SizeLimitError, WorkloadError) as error:
            left_out.append(LeftOut(label=label, reason=str(error)))
    models = {label: models[label] for label in workloads}
    return models, workloads, left_out


def _require_rows(models: Mapping[str, AnalyticModel], left_out: Sequence[LeftOut]) -> None:
    """Refuse a table that nothing is in."""
    if models:
        return
    if not left_out:
        raise OptionError("--all is a table of every registered model, and no installed package registers one")
    reasons = [f"{each.label}: {each.reason}" for each in left_out[:SHOWN_LEFT_OUT]]
    more = len(left_out) - len(reasons)
    raise OptionError(
        "what is asked runs on no registered model, so that the table is empty; give sizes of stages that one has.\n  "
        + "\n  ".join([*reasons, *([f"and {more} more"] if more else [])])
    )


def _write(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="")
        return
    from dsocr_graph.emit.files import write_artefacts

    write_artefacts(out.parent, {out.name: text})
    print(out)
