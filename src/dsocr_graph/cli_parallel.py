"""The subcommand `parallel`: a workload on several devices, their share, exchanges and time; needs no torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from dsocr_graph.errors import OptionError

if TYPE_CHECKING:
    from dsocr_graph.workloads import Profile
    from modelmeter.model import AnalyticModel
    from modelmeter.parallel import Latency, Layout

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand to those of a command line.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_parser(parser.add_subparsers())
    >>> parser.parse_args(["parallel", "--tensor", "2"]).tensor
    2
    """
    parser = commands.add_parser(
        "parallel",
        help="spread a workload over several devices",
        description="Divide the decoder by tensor, expert, pipeline and data parallelism, and the vision encoder by "
        "documents; say what each device does, holds and exchanges, and how long it takes.",
    )
    parser.add_argument("--model", default="deepseek-ocr", help="a registered model (default: %(default)s)")
    degrees = parser.add_argument_group("degrees (default: 1)")
    for name, text in (
        ("tensor", "devices that share each layer of the decoder"),
        ("expert", "devices that share the experts of each layer"),
        ("pipeline", "groups of layers, each on devices of its own"),
        ("data", "replicas of the decoder, which share each batch"),
        ("vision-data", "devices that encode pages, which share the documents"),
        ("micro-batches", "parts into which a pipeline cuts a prefill"),
    ):
        degrees.add_argument(f"--{name}", type=int, default=1, metavar="N", help=text)
    pages = parser.add_argument_group("pages (default: the profile dsocr-standard-v1)")
    pages.add_argument("--workload", metavar="PROFILE", help="a shipped profile by name, or a TOML file")
    pages.add_argument("--mode", help="Tiny, Small, Base, Large or Gundam")
    pages.add_argument("--batch", type=int, metavar="N", help="equal pages processed together, by all replicas")
    pages.add_argument("--new-tokens", type=int, metavar="N", help="tokens generated per page")
    times = parser.add_argument_group("times")
    times.add_argument(
        "--device", default="h200", help="a device that `dsocr-graph devices` lists (default: %(default)s)"
    )
    times.add_argument("--link", metavar="NAME", help="one of the device's links (default: its fastest)")
    times.add_argument("--call-latency", type=float, metavar="SECONDS", help="of each collective (default: NCCL's)")
    times.add_argument("--step-latency", type=float, metavar="SECONDS", help="of each step of a ring (default: NCCL's)")
    times.add_argument("--fused", action="store_true", help="count the traffic of fused chains")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file too")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    import modelmeter
    from dsocr_graph.emit.files import write_artefacts
    from dsocr_graph.emit.parallel_text import parallel_document, parallel_markdown
    from dsocr_graph.workloads import bind_profile
    from modelmeter.parallel import distribute

    profile = _profile(options)
    report = distribute(
        _model(options, profile),
        bind_profile(profile),
        _layout(options),
        device=modelmeter.load_device(options.device),
        fused=options.fused,
        latency=_latency(options),
    )
    print(parallel_markdown(report), end="")
    if options.json is not None:
        text = json.dumps(parallel_document(report), indent=1) + "\n"
        write_artefacts(options.json.parent, {options.json.name: text})
        print(options.json)
    return 0


def _profile(options: argparse.Namespace) -> Profile:
    from dsocr_graph.workloads import STANDARD, load_profile, override

    profile = load_profile(STANDARD if options.workload is None else options.workload)
    return override(profile, mode=options.mode, batch=options.batch, new_tokens=options.new_tokens)


def _model(options: argparse.Namespace, profile: Profile) -> AnalyticModel:
    import modelmeter

    model = modelmeter.load(options.model, profile.mode.name.lower())
    if profile.dtype != model.variant["dtype"]:
        raise OptionError(
            f"profile {profile.name!r} is in {profile.dtype}, the shipped model in {model.variant['dtype']}; choose a "
            f"profile in {model.variant['dtype']}"
        )
    return model


def _layout(options: argparse.Namespace) -> Layout:
    from modelmeter.parallel import Layout

    return Layout(
        tensor=options.tensor,
        expert=options.expert,
        pipeline=options.pipeline,
        data=options.data,
        vision_data=options.vision_data,
        micro_batches=options.micro_batches,
        link=options.link,
    )


def _latency(options: argparse.Namespace) -> Latency:
    from modelmeter.parallel import NCCL_RING, Latency

    if options.call_latency is None and options.step_latency is None:
        return NCCL_RING
    return Latency(
        call=NCCL_RING.call if options.call_latency is None else options.call_latency,
        step=NCCL_RING.step if options.step_latency is None else options.step_latency,
        source="as given, else NCCL's",
    )
