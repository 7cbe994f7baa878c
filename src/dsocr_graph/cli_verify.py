"""The subcommand `verify`: options in, a run beside the captured graph out; torch is imported only once it runs."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dsocr_graph.cli_options import add_points, add_trust, add_variant
from dsocr_graph.errors import CaptureError, OptionError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dsocr_graph.models.named_model import ModelVariant, NamedModel
    from dsocr_graph.models.user_model import UserModel
    from dsocr_graph.verification.records import Verification

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

_DEFAULTS = {"model": "deepseek-ocr-tiny", "mode": "Tiny", "dtype": "fp32", "moe": "grouped", "torchlens": "auto"}


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand to those of a command line.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_parser(parser.add_subparsers())
    >>> parser.parse_args(["verify", "--points", "decode:B=1,T=7"]).model
    'deepseek-ocr-tiny'
    """
    parser = commands.add_parser(
        "verify",
        help="run a model and compare with its captured graph",
        description="Run a model on the CPU with random weights and compare with its captured graph: module calls, "
        "parent-child edges, shapes, operators, results, FLOPs and parameters. Every difference is listed with its "
        "reason; the exit status is 1 when one has none.",
    )
    parser.add_argument(
        "--model",
        default=_DEFAULTS["model"],
        help="by name, path of a config.json, or factory as package.module:function (default: %(default)s)",
    )
    add_trust(parser.add_argument)
    parser.add_argument(
        "--layers", type=int, metavar="N", help="of each stack of a transformers model at most: the whole may not fit"
    )
    add_points(parser.add_argument, "every stage at the sizes of its example inputs")
    variant = parser.add_argument_group("variant")
    variant.add_argument("--mode", help=f"Tiny, Small, Base or Large (default: {_DEFAULTS['mode']})")
    add_variant(variant.add_argument, dtype=_DEFAULTS["dtype"])
    parser.set_defaults(dtype=None)  # only what was given can be refused where it says nothing
    parser.add_argument("--seed", type=int, default=0, help="of random weights and inputs (default: %(default)s)")
    parser.add_argument(
        "--torchlens",
        choices=("auto", "on", "off"),
        default=_DEFAULTS["torchlens"],
        help="whether TorchLens counts module calls as well; auto: where it is installed (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-unclassified",
        action="store_true",
        help="compare a model with operators that have no rule, and list these",
    )
    parser.add_argument(
        "--allow-partial", action="store_true", help="leave out stages that cannot be captured, and list these"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write verification.md and verification.json")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from dsocr_graph.emit.files import write_artefacts
    from dsocr_graph.emit.verification_json import verification_json
    from dsocr_graph.emit.verification_markdown import verification_console, verification_markdown

    try:
        verification = _verify(options)
    except CaptureError as error:
        if error.other_stages and not options.allow_partial:
            error.args = (f"{error}; --allow-partial compares the other stages",)
        raise
    print(verification_console(verification))
    if options.out is not None:
        files = write_artefacts(
            options.out,
            {
                "verification.md": verification_markdown(verification, _command(options)),
                "verification.json": verification_json(verification),
            },
        )
        print(*files, sep="\n")
    return 1 if verification.unexplained else 0


def _verify(options: argparse.Namespace) -> Verification:
    from dsocr_graph.emit.progress import progress_lines
    from dsocr_graph.models.named_model import NamedModel
    from dsocr_graph.subjects import named_or_configured, subject_of

    trust, progress = options.trust_remote_code, progress_lines()
    if options.layers is not None:
        named = named_or_configured(options.model, layers=options.layers, trust_remote_code=trust, progress=progress)
        return _verify_named(named, options)
    subject = subject_of(options.model, trust_remote_code=trust, progress=progress)
    return _verify_named(subject, options) if isinstance(subject, NamedModel) else _verify_user_model(subject, options)


def _verify_named(named: NamedModel, options: argparse.Namespace) -> Verification:
    from dsocr_graph.emit.progress import progress_lines
    from dsocr_graph.timing.plan import parse_point
    from dsocr_graph.unused_options import refuse_views
    from dsocr_graph.verification.verify import verify_model
    from dsocr_graph.workloads import choose_profile

    points = [parse_point(text) for text in options.points]
    profile = choose_profile(mode=options.mode or _DEFAULTS["mode"], dtype=options.dtype or _DEFAULTS["dtype"])
    variant = named.variant(profile, options.attention or named.attention)
    refuse_views(named.name, variant.facts(), _given(options))
    if options.moe == "loop" and named.runnable is None:
        raise OptionError(
            f"--moe loop would say nothing of {named.name}: only DeepSeek-OCR's own code has a loop over experts to "
            "verify; leave it out"
        )
    model, stages = named.build(variant)

    def inputs(stage: str, bindings: Mapping[str, int]) -> list[Tensor]:
        from dsocr_graph.timing.runner import runnable_of

        return runnable_of(named, variant, "grouped").inputs(stage, bindings, device="cpu", seed=options.seed)

    return verify_model(
        model,
        stages,
        name=named.name,
        variant=variant.facts(),
        points=points,
        inputs=None if named.runnable is None else inputs,
        fit=named.fit,
        instead=_looping(named, variant, options.seed) if options.moe == "loop" else None,
        limits=named.limits,
        seed=options.seed,
        torchlens=options.torchlens,
        allow_unclassified=options.allow_unclassified,
        allow_partial=options.allow_partial,
        progress=progress_lines(),
    )


def _verify_user_model(model: UserModel, options: argparse.Namespace) -> Verification:
    from dsocr_graph.emit.progress import progress_lines
    from dsocr_graph.subjects import points_of
    from dsocr_graph.unused_options import refuse_of_built
    from dsocr_graph.verification.verify import verify_model

    refuse_of_built(model.name, _given(options))
    return verify_model(
        model.module,
        model.stages,
        name=model.name,
        variant=model.facts,
        points=points_of(options.points, model),
        limits=model.limits,
        seed=options.seed,
        torchlens=options.torchlens,
        allow_unclassified=options.allow_unclassified,
        allow_partial=options.allow_partial,
        progress=progress_lines(),
    )


def _given(options: argparse.Namespace) -> set[str]:
    """Return which options on the variant were given, other than as by default."""
    given = {name for name in ("mode", "dtype", "attention") if getattr(options, name) is not None}
    return given if options.moe == _DEFAULTS["moe"] else given | {"moe"}


def _looping(named: NamedModel, variant: ModelVariant, seed: int) -> dict[str, nn.Module]:
    """Return the modules of all stages with the published loop over experts in them."""
    from dsocr_graph.models.deepseek_ocr import STAGES
    from dsocr_graph.timing.runner import runnable_of

    runnable = runnable_of(named, variant, "loop")
    model = runnable.load(device="cpu", seed=seed)
    return {stage: runnable.stage_module(model, stage) for stage in STAGES}


def _command(options: argparse.Namespace) -> str:
    """Return the command line of a verification; what is by default is left out."""
    words = ["dsocr-graph", "verify"]
    for name, default in _DEFAULTS.items():
        if getattr(options, name) not in (None, default):
            words += [f"--{name}", getattr(options, name)]
    if options.attention is not None:
        words += ["--attention", options.attention]
    if options.layers is not None:
        words += ["--layers", str(options.layers)]
    switches = ("trust_remote_code", "allow_unclassified", "allow_partial")
    words += [f"--{name.replace('_', '-')}" for name in switches if getattr(options, name)]
    for point in options.points:
        words += ["--points", point]
    return shlex.join(words + (["--seed", str(options.seed)] if options.seed else []))
