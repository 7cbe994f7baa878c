"""The command line `dsocr-graph`: its subcommands, and what every one of them does with errors."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dsocr_graph import (
    cli_calibrate,
    cli_compare,
    cli_figures,
    cli_formulas,
    cli_measure,
    cli_models,
    cli_operators,
    cli_parallel,
    cli_plan,
    cli_sweep,
    cli_verify,
)
from dsocr_graph.cli_options import (
    PAGE_OPTIONS,
    add_batch,
    add_capture,
    add_pages,
    add_points,
    add_subject,
    add_trust,
    page_options,
)
from dsocr_graph.errors import DsocrGraphError
from dsocr_graph.whatif_options import add_whatif_arguments, whatif_from
from modelmeter.errors import ModelMeterError

# Options with which, as with what-ifs, an analysis is not the standard one, whose artefacts have a folder of their own.
_CUSTOM = (*PAGE_OPTIONS, "points", "batch", "dtype", "device", "calibration", "runtime")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status: 0, 2 for a user's mistake, 130 for an interruption.

    Examples
    --------
    >>> main(["models"])  # doctest: +ELLIPSIS
    deepseek-ocr ...
    0
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()  # a reader that went away shows here, not while the interpreter ends
        return status
    except (DsocrGraphError, ModelMeterError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # Generators of torch that the interruption cut short complain as they are thrown away.
        sys.unraisablehook = lambda _: None
        print(f"{parser.prog}: interrupted; no artefact was changed", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; the interpreter must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dsocr-graph", description="Compile a PyTorch model to an analytic model of its cost."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_analyze(commands.add_parser("analyze", help="write a model's call graph and cost report"))
    cli_calibrate.add_parser(commands)
    cli_measure.add_parser(commands)
    cli_formulas.add_parser(commands)
    cli_sweep.add_parser(commands)
    cli_plan.add_parser(commands)
    cli_parallel.add_parser(commands)
    cli_figures.add_parser(commands)
    cli_compare.add_parser(commands)
    cli_verify.add_parser(commands)
    cli_models.add_parser(commands)
    cli_operators.add_parser(commands)
    devices = commands.add_parser("devices", help="list the devices that a roofline can be drawn for")
    devices.set_defaults(run=_devices)
    return parser


def _add_analyze(parser: argparse.ArgumentParser) -> None:
    add_subject(parser.add_argument)
    add_trust(parser.add_argument)
    pages = parser.add_argument_group("pages (default: the profile dsocr-standard-v1)")
    add_pages(pages.add_argument)
    add_batch(pages.add_argument)
    add_points(pages.add_argument, "pages")
    add_capture(parser.add_argument_group("variant").add_argument, dtype=None)
    add_whatif_arguments(parser)
    times = parser.add_argument_group("times (default: the datasheet roofline of an H200)")
    times.add_argument("--device", help="a device that `dsocr-graph devices` lists, for its roofline; none: no times")
    times.add_argument(
        "--calibration", metavar="FILE", help="predict for the machine of this file, which `calibrate` makes"
    )
    times.add_argument(
        "--measurement", metavar="FILE", help="set this file, which `measure` makes, beside the prediction"
    )
    times.add_argument(
        "--runtime",
        help="eager (default with a calibration), cudagraph, or engine: predict for a device from measured tables",
    )
    times.add_argument(
        "--physical", action="store_true", help="allow peak rates for calls that nothing was measured for"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write (default: graphs/MODEL, with other pages or options graphs/MODEL-custom)",
    )
    parser.add_argument(
        "--allow-unclassified", action="store_true", help="report operators without a lowering rule instead of failing"
    )
    parser.add_argument(
        "--allow-partial", action="store_true", help="report the other stages where one cannot be captured, and say so"
    )
    parser.add_argument("--no-cache", dest="cache", action="store_false", help="capture anew and keep nothing")
    parser.set_defaults(run=_analyze)


def _analyze(options: argparse.Namespace) -> int:
    from dsocr_graph.emit.console import to_console
    from dsocr_graph.emit.progress import progress_lines
    from dsocr_graph.pipeline import analyze_model
    from modelmeter.whatif import AS_CAPTURED

    what_if = whatif_from(options)
    changed = what_if != AS_CAPTURED or options.attention is not None
    custom = changed or any(getattr(options, name) not in (None, []) for name in _CUSTOM)
    out: Path = options.out or Path("graphs") / (_folder(options.model) + ("-custom" if custom else ""))
    analysis = analyze_model(
        options.model,
        points=options.points,
        **page_options(options),
        batch=options.batch,
        dtype=options.dtype,
        attention=options.attention,
        what_if=what_if,
        device=options.device,
        calibration=options.calibration,
        measurement=options.measurement,
        runtime=options.runtime,
        moe=options.moe,
        physical=options.physical,
        out=out,
        allow_unclassified=options.allow_unclassified,
        allow_partial=options.allow_partial,
        trust_remote_code=options.trust_remote_code,
        cache=options.cache,
        progress=progress_lines(),
    )
    print(to_console(analysis.report))
    print("\n".join(str(path) for path in analysis.files))
    return 0


def _folder(model: str) -> str:
    """Return a model's name as that of a folder, whatever it is named by."""
    path = Path(model)
    name = path.resolve().parent.name if path.name == "config.json" else path.name.removesuffix(".json")
    return re.sub(r"[^\w.-]+", "-", name)


def _devices(_: argparse.Namespace) -> int:
    import modelmeter

    for name in modelmeter.available_devices():
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
