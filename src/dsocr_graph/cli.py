"""The command line `dsocr-graph`: its subcommands, and what every one of them does with errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dsocr_graph import cli_calibrate, cli_figures, cli_formulas, cli_measure, cli_parallel, cli_plan, cli_sweep
from dsocr_graph.errors import DsocrGraphError
from modelmeter.errors import ModelMeterError

# Options with which an analysis is not the standard one, whose artefacts have a folder of their own.
_CUSTOM = (
    "workload",
    "image",
    "pdf",
    "mode",
    "batch",
    "new_tokens",
    "dtype",
    "attention",
    "device",
    "calibration",
    "runtime",
)


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
    models = commands.add_parser("models", help="list the models that can be analyzed by name")
    models.set_defaults(run=_models)
    devices = commands.add_parser("devices", help="list the devices that a roofline can be drawn for")
    devices.set_defaults(run=_devices)
    return parser


def _add_analyze(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="deepseek-ocr", help="model by name (default: %(default)s)")
    pages = parser.add_argument_group("pages (default: the profile dsocr-standard-v1)")
    pages.add_argument("--workload", metavar="PROFILE", help="a shipped profile by name, or a TOML file")
    pages.add_argument("--image", action="append", default=[], metavar="FILE", help="PNG, JPEG or TIFF; repeatable")
    pages.add_argument("--pdf", action="append", default=[], metavar="FILE", help="PDF; repeatable")
    pages.add_argument("--mode", help="Tiny, Small, Base, Large or Gundam")
    pages.add_argument("--batch", type=_integer, metavar="N", help="equal pages processed together")
    pages.add_argument("--new-tokens", type=_integer, metavar="N", help="tokens generated per page")
    variant = parser.add_argument_group("variant")
    variant.add_argument("--dtype", help="bf16 or fp32")
    variant.add_argument("--attention", help="sdpa, eager or flash_attention_2 (default: sdpa)")
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
        "--moe", default="grouped", help="how a calibrated prediction runs experts: grouped (default) or loop"
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
    parser.add_argument("--no-cache", dest="cache", action="store_false", help="capture anew and keep nothing")
    parser.set_defaults(run=_analyze)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _analyze(options: argparse.Namespace) -> int:
    from dsocr_graph.emit.console import to_console
    from dsocr_graph.emit.progress import progress_lines
    from dsocr_graph.pipeline import analyze_model

    custom = any(getattr(options, name) not in (None, []) for name in _CUSTOM)
    out: Path = options.out or Path("graphs") / (options.model + ("-custom" if custom else ""))
    analysis = analyze_model(
        options.model,
        workload=options.workload,
        image=options.image,
        pdf=options.pdf,
        mode=options.mode,
        batch=options.batch,
        new_tokens=options.new_tokens,
        dtype=options.dtype,
        attention="sdpa" if options.attention is None else options.attention,
        device=options.device,
        calibration=options.calibration,
        measurement=options.measurement,
        runtime=options.runtime,
        moe=options.moe,
        physical=options.physical,
        out=out,
        allow_unclassified=options.allow_unclassified,
        cache=options.cache,
        progress=progress_lines(),
    )
    print(to_console(analysis.report))
    print("\n".join(str(path) for path in analysis.files))
    return 0


def _models(_: argparse.Namespace) -> int:
    from dsocr_graph.models.registry import MODELS

    for model in MODELS.values():
        print(f"{model.name}  {model.description}\n  source: {model.source}")
    return 0


def _devices(_: argparse.Namespace) -> int:
    import modelmeter

    for name in modelmeter.available_devices():
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
