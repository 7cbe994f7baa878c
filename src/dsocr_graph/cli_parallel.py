"""The subcommand `parallel`: a workload on several devices, their share, exchanges and time.

A model that is shipped needs no torch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from dsocr_graph.cli_options import (
    PAGE_OPTIONS,
    add_batch,
    add_capture,
    add_pages,
    add_points,
    add_subject,
    add_trust,
    given,
    page_options,
    refuse_options,
)
from dsocr_graph.errors import OptionError
from dsocr_graph.whatif_options import add_whatif_arguments, whatif_from

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsocr_graph.timing.plan import Point
    from modelmeter.model import AnalyticModel
    from modelmeter.parallel import Latency, Layout
    from modelmeter.workload import Workload

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

_PAGES = (*(name for name in PAGE_OPTIONS if name != "mode"), "batch")  # a variant is named by its mode
_OF_CAPTURES = (*_PAGES, "mode", "dtype", "attention")


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
        description="Divide the decoder by tensor, expert, pipeline and data parallelism, and the encoder by "
        "documents; say what each device does, holds and exchanges, and how long it takes. How a model is divided "
        "follows from its structure.",
    )
    add_subject(parser.add_argument)
    add_trust(parser.add_argument)
    degrees = parser.add_argument_group("degrees (default: 1)")
    for name, text in (
        ("tensor", "devices that share each layer of the decoder"),
        ("expert", "devices that share the experts of each layer"),
        ("pipeline", "groups of layers, each on devices of its own"),
        ("data", "replicas of the decoder, which share each batch"),
        ("vision-data", "devices that encode pages or sound, which share the documents"),
        ("micro-batches", "parts into which a pipeline cuts a prefill"),
    ):
        degrees.add_argument(f"--{name}", type=int, default=1, metavar="N", help=text)
    pages = parser.add_argument_group("pages (default: the profile dsocr-standard-v1)")
    add_pages(pages.add_argument)
    add_batch(pages.add_argument)
    add_points(pages.add_argument, "pages")
    add_capture(parser.add_argument_group("variant").add_argument, dtype=None)
    times = parser.add_argument_group("times")
    times.add_argument(
        "--device", default="h200", help="a device that `dsocr-graph devices` lists (default: %(default)s)"
    )
    times.add_argument("--link", metavar="NAME", help="one of the device's links (default: its fastest)")
    times.add_argument("--call-latency", type=float, metavar="SECONDS", help="of each collective (default: NCCL's)")
    times.add_argument("--step-latency", type=float, metavar="SECONDS", help="of each step of a ring (default: NCCL's)")
    times.add_argument("--fused", action="store_true", help="count the traffic of fused chains")
    add_whatif_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file too")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    import modelmeter
    from dsocr_graph.emit.files import write_artefacts
    from dsocr_graph.emit.parallel_text import parallel_document, parallel_markdown
    from dsocr_graph.emit.what_ifs import change_lines
    from modelmeter.parallel import distribute, plan_for
    from modelmeter.whatif import apply

    layout = _layout(options)
    asked = _asked(options)
    what_if = apply(asked.model, whatif_from(options))
    report = distribute(
        what_if.model,
        asked.workload,
        layout,
        plan=plan_for(asked.model, layout),
        device=modelmeter.load_device(options.device),
        routing=what_if.routing,
        fused=options.fused,
        latency=_latency(options),
        peaks_are_lower_bounds=what_if.peaks_are_lower_bounds,
    )
    changed = [*asked.lengths, *change_lines(what_if.changes)]
    print(parallel_markdown(report, what_ifs=changed), end="")
    if options.json is not None:
        text = json.dumps(parallel_document(report, what_ifs=changed), indent=1) + "\n"
        write_artefacts(options.json.parent, {options.json.name: text})
        print(options.json)
    return 0


# --- what is asked


@frozen(kw_only=True)
class _Asked:
    """The model that is shared, as captured, and what it runs."""

    model: AnalyticModel
    workload: Workload
    lengths: tuple[str, ...] = ()  # what distributions of tokens stand for


def _asked(options: argparse.Namespace) -> _Asked:
    from dsocr_graph.compiling import analytic_user_model, shipped_or_compiled
    from dsocr_graph.emit.progress import progress_lines
    from dsocr_graph.models.named_model import NamedModel
    from dsocr_graph.subjects import compiled_only, points_of, stages_text, subject_of
    from dsocr_graph.timing.plan import parse_point
    from dsocr_graph.unused_options import VIEWS, refuse_views
    from dsocr_graph.workloads import choose_profile

    shipped = compiled_only(options.model)
    if shipped is not None:
        refuse_options(options, _OF_CAPTURES, f"{shipped.name} comes as it is")
        if not options.points:
            raise OptionError(
                f"{options.model} is a compiled model, which says nothing of pages; give sizes of its "
                f"stages, which are {stages_text(shipped)}, as --points STAGE:DIM=SIZE,..."
            )
        return _at_points(shipped, tuple(map(parse_point, options.points)))
    progress = progress_lines()
    subject = subject_of(options.model, trust_remote_code=options.trust_remote_code, progress=progress)
    points = points_of(options.points, subject)
    if not isinstance(subject, NamedModel):
        refuse_options(options, _OF_CAPTURES, f"{subject.name} comes as it is")
        return _at_points(analytic_user_model(subject, progress=progress), points)
    if points:
        refuse_options(options, _PAGES, "--points gives the sizes themselves")
    profile = choose_profile(**page_options(options), batch=options.batch, dtype=options.dtype)
    variant = subject.variant(profile, options.attention or subject.attention)
    refuse_views(subject.name, variant.facts(), given(options, VIEWS))
    model = shipped_or_compiled(subject, variant, progress=progress)
    if points:
        return _at_points(model, points)
    lengths = tuple(f"{name}: {text}" for name, text in profile.lengths.items())
    return _Asked(model=model, workload=subject.workload(profile), lengths=lengths)


def _at_points(model: AnalyticModel, points: Sequence[Point]) -> _Asked:
    from dsocr_graph.subjects import workload_at

    return _Asked(model=model, workload=workload_at(model, points))


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
