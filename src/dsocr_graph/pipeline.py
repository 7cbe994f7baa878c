"""analyze_model: pages and a model in, reports out; every step is one function of its own module."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from dsocr_graph.command_text import by, command_line, what_if_words, without_folder
from dsocr_graph.compiling import Progress, compile_model, compile_user_model
from dsocr_graph.emit.files import write_artefacts
from dsocr_graph.errors import CaptureError, OptionError
from dsocr_graph.model_cache import CompiledModel, ModelCache
from dsocr_graph.models.named_model import NamedModel
from dsocr_graph.subjects import points_of, points_workload, restricted, subject_of
from dsocr_graph.time_models import choose_time_model, require_calibrated
from dsocr_graph.timing.plan import Point, check_point
from dsocr_graph.unused_options import refuse_beside_points, refuse_of_built, refuse_views
from dsocr_graph.workloads import choose_profile
from modelmeter import AnalyticModel
from modelmeter.measurement import Measurement, read_measurement
from modelmeter.predict import Calibrated, Roofline, TimeModel
from modelmeter.predict.engine import Engine
from modelmeter.reports import Report
from modelmeter.reports.left_out import left_out_stages
from modelmeter.serialize import model_from_bytes, model_to_json
from modelmeter.whatif import AS_CAPTURED, Options, apply, evaluate_what_if
from modelmeter.workload import Workload

if TYPE_CHECKING:
    from torch import nn

DEFAULT_DEVICE = "h200"


@frozen(kw_only=True)
class Analysis:
    """A model evaluated at a workload, and the files that were written."""

    model: AnalyticModel
    report: Report
    files: tuple[Path, ...]


def analyze_model(
    model: str | Path | nn.Module = "deepseek-ocr",
    inputs: object = None,
    *,
    dims: object = None,
    points: Sequence[str] = (),
    workload: str | Path | None = None,
    image: Sequence[str | Path] = (),
    pdf: Sequence[str | Path] = (),
    page: Sequence[tuple[int, int]] = (),
    crops: tuple[int, int] | None = None,
    mode: str | None = None,
    batch: int | None = None,
    prompt_tokens: int | str | None = None,
    new_tokens: int | str | None = None,
    dtype: str | None = None,
    attention: str | None = None,
    what_if: Options = AS_CAPTURED,
    device: str | None = None,
    calibration: str | Path | None = None,
    measurement: str | Path | None = None,
    runtime: str | None = None,
    moe: str = "grouped",
    physical: bool = False,
    out: str | Path | None = None,
    allow_unclassified: bool = False,
    allow_partial: bool = False,
    trust_remote_code: bool = False,
    cache: bool = True,
    progress: Progress = lambda message: None,
) -> Analysis:
    """Analyze a model, on pages or at given sizes: capture, group, lower, evaluate, emit.

    Parameters
    ----------
    model : str, Path or nn.Module
        A model by name (`dsocr-graph models` lists them), the path of a transformers config.json, a factory as
        ``package.module:function``, or any module together with its inputs.
    inputs, dims
        Example inputs of a module and which of their sizes stay symbolic, as
        `dsocr_graph.models.user_model.user_model` takes them.
    points : sequence of str
        Stages at sizes, such as "decode:B=1,T=913", to analyze instead of pages. Default for a module or a factory:
        the sizes of its example inputs.
    workload : str or Path, optional
        A profile shipped with the package, or a TOML file. Default: dsocr-standard-v1.
    image, pdf : sequence of paths
        Pages to analyze instead of a profile's.
    page : sequence of (int, int)
        More such pages, by width and height in pixels.
    crops : (int, int), optional
        Columns and rows that every page is cut into, whatever its size.
    mode : str, optional
        Tiny, Small, Base, Large or Gundam.
    batch : int, optional
        Equal pages processed together.
    prompt_tokens, new_tokens : int or str, optional
        Tokens of the prompt, image tokens not counted, and tokens generated per page: a number, or a distribution that
        `modelmeter.lengths.parse_lengths` takes, such as "normal:900:200".
    dtype : str, optional
        "bf16" or "fp32".
    attention : str, optional
        "sdpa", "eager" or "flash_attention_2", in the decoder. Default: the model's own, as a rule sdpa.
    what_if : modelmeter.whatif.Options
        Element types, logits, growth of the KV cache and routing other than as captured; the report says what each
        changes.
    device : str or None
        A device of modelmeter's table, for a datasheet roofline or the runtime "engine". None: h200, or with a
        calibration the machine that it is of. "none" leaves times out.
    calibration : str or Path, optional
        A calibration file, to predict times instead.
    measurement : str or Path, optional
        The same model measured, to be set beside a calibrated prediction.
    runtime : str, optional
        "eager" (the default with a calibration), "cudagraph", or "engine", from tables of measured engines.
    moe : str
        "grouped" or "loop": how the experts run. Without a calibration it is a what-if.
    physical : bool
        Allow peak rates, labelled, for calls that nothing was measured for.
    out : str or Path, optional
        Directory for the artefacts; nothing is written without one.
    allow_unclassified : bool
        Report operators without a lowering rule instead of raising.
    allow_partial : bool
        Report the other stages where one cannot be captured; the variant then says without which it is.
    trust_remote_code : bool
        Import the code that a configuration's auto_map names, from files beside it; `progress` is told which, before.
    cache : bool
        Keep and reuse compiled models; a cached run imports no torch.
    progress : callable
        Told what is being done.

    Returns
    -------
    Analysis
        The analytic model, its report, and the paths of the files written.

    Raises
    ------
    DsocrGraphError, ModelMeterError
        For a user's mistake; the message says what, where and what to do.

    Examples
    --------
    >>> from dsocr_graph import analyze_model
    >>> analyze_model("no-such-model")
    Traceback (most recent call last):
    dsocr_graph.errors.UnknownModelError: unknown model 'no-such-model'; known models: ...
    """
    subject = subject_of(model, inputs, dims=dims, trust_remote_code=trust_remote_code, progress=progress)
    if calibration is None and moe != "grouped":
        what_if, moe = evolve(what_if, moe=moe), "grouped"
    time_model = choose_time_model(
        device=_device(device, calibration), calibration=calibration, runtime=runtime, moe=moe, physical=physical
    )
    require_calibrated(time_model, subject.name, physical=physical)
    measured = _measured(measurement, time_model)
    pages: dict[str, Any] = {
        "workload": workload,
        "image": image,
        "pdf": pdf,
        "page": page,
        "crops": crops,
        "mode": mode,
        "batch": batch,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
    }
    asked = points_of(points, subject)
    if not isinstance(subject, NamedModel):
        refuse_of_built(subject.name, _given({**pages, "dtype": dtype, "attention": attention}))
    elif asked:
        refuse_beside_points(_given(pages))
    profile = choose_profile(**pages, dtype=dtype)
    partly = {"allow_unclassified": allow_unclassified, "allow_partial": allow_partial}
    if isinstance(subject, NamedModel):
        variant = subject.variant(profile, attention or subject.attention)
        refuse_views(subject.name, variant.facts(), _given(pages))
        require_measured_calls(time_model, what_if, profile.dtype)
        store = ModelCache.default() if cache else ModelCache(directory=None)
        with _partial_offered(allow_partial=allow_partial):
            compiled = compile_model(subject, variant, store=store, progress=progress, **partly)
        asked_for = points_workload(asked) if asked else subject.workload(profile)
    else:
        require_measured_calls(time_model, what_if, subject.facts.get("dtype", ""))
        with _partial_offered(allow_partial=allow_partial):
            compiled = compile_user_model(subject, progress=progress, **partly)
        asked_for = points_workload(asked)
    captured = model_from_bytes(compiled.model_json, source=f"compiled {subject.name}")
    without = left_out_stages(captured.provenance)
    if without:
        asked = tuple(point for point in asked if point.stage not in without)
        asked_for = _what_is_left(asked_for, asked, captured)
    for point in asked if points else ():
        check_point(captured, point)
    progress(f"evaluating {asked_for.name}")
    applied = apply(captured, what_if)
    report = evaluate_what_if(applied, asked_for, time_model=time_model)
    files: tuple[Path, ...] = ()
    if out is not None:
        progress(f"writing {out}")
        options = {
            "model": _word(model),
            "points": list(points),
            "workload": Path(workload).name if workload is not None else None,
            "image": [Path(path).name for path in image],
            "pdf": [Path(path).name for path in pdf],
            "page": [by(size) for size in page],
            "crops": None if crops is None else by(crops),
            "mode": mode,
            "batch": batch,
            "prompt_tokens": without_folder(prompt_tokens),
            "new_tokens": without_folder(new_tokens),
            "dtype": dtype,
            "attention": attention,
            **what_if_words(what_if),
            **({"moe": moe} if moe != "grouped" else {}),
            "device": None if device == DEFAULT_DEVICE else device,
            "calibration": Path(calibration).name if calibration is not None else None,
            "measurement": Path(measurement).name if measurement is not None else None,
            "runtime": runtime,
            "physical": physical or None,
            "allow_unclassified": allow_unclassified or None,
            "allow_partial": allow_partial or None,
            "trust_remote_code": trust_remote_code or None,
        }
        if applied.model is not captured:
            compiled = evolve(compiled, model_json=model_to_json(applied.model).encode())
        command = command_line(options) if isinstance(model, str | Path) else None
        artefacts = _artefacts(compiled, applied.model, report, command)
        if time_model is not None and not isinstance(time_model, Roofline):
            from dsocr_graph.emit.prediction_files import prediction_artefacts

            artefacts |= prediction_artefacts(applied.model, report, time_model, measured, command=command)
        files = write_artefacts(Path(out), artefacts)
    return Analysis(model=applied.model, report=report, files=files)


@contextmanager
def _partial_offered(*, allow_partial: bool) -> Generator[None]:
    """Let an error of one stage say that the others can be reported, unless there are none or it has been asked for."""
    try:
        yield
    except CaptureError as error:
        if error.other_stages and not allow_partial:
            error.args = (f"{error}; --allow-partial reports the other stages",)
        raise


def _what_is_left(workload: Workload, points: Sequence[Point], model: AnalyticModel) -> Workload:
    """Return what is asked of the stages that a partial model has; named anew where points remain."""
    asked = dict.fromkeys(run.stage for item in workload.items for run in item.runs)
    left_out = left_out_stages(model.provenance)
    if all(stage in left_out for stage in asked):
        raise OptionError(
            f"nothing is left of what is asked of {model.name}: {', '.join(asked)} cannot be captured and is left out; "
            f"ask for {', '.join(stage.name for stage in model.stages)} by --points, or mend what stands against it: "
            f"{'; '.join(left_out[stage] for stage in asked)}"
        )
    return points_workload(points) if points else restricted(workload, [stage.name for stage in model.stages])


def _given(options: Mapping[str, object]) -> set[str]:
    return {name for name, value in options.items() if value not in (None, (), [])}


def _word(model: str | Path | nn.Module) -> str | None:
    """Return the model as the command has it; a file by its name alone, since artefacts hold no places."""
    if model == "deepseek-ocr" or not isinstance(model, str | Path):
        return None
    return Path(model).name if Path(model).exists() else str(model)


def require_measured_calls(time_model: TimeModel | None, what_if: Options, dtype: str) -> None:
    """Do nothing unless a calibration or an engine's tables are to predict calls that a what-if changes.

    An engine takes logits and the growth of the cache as they are, but its times are those of the captured types and
    of grouped experts.

    Raises
    ------
    OptionError
        When it is; the message says what to do.
    """
    changing = what_if.changing(dtype)
    if isinstance(time_model, Engine):
        changing = {name: value for name, value in changing.items() if name.endswith("_dtype") or name == "moe"}
    measured: tuple[tuple[type, str], ...] = ((Calibrated, "--calibration"), (Engine, "--runtime engine"))
    source = next((option for kind, option in measured if isinstance(time_model, kind)), None)
    if changing and source is not None:
        given = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in changing.items())
        raise OptionError(
            f"{source} has times of calls as they were captured, and {given} changes some, which nobody measured; "
            f"leave out {source} for times by a roofline (--device), or leave out the what-if"
        )


def _device(device: str | None, calibration: str | Path | None) -> str | None:
    if device is None:
        return DEFAULT_DEVICE if calibration is None else None
    return None if device == "none" else device


def _measured(measurement: str | Path | None, time_model: TimeModel | None) -> Measurement | None:
    """Return what was measured, if it is of the machine that times are predicted for."""
    if measurement is None:
        return None
    if not isinstance(time_model, Calibrated):
        raise OptionError("a measurement is set beside a calibrated prediction; give --calibration as well")
    if time_model.runtime != "eager":
        raise OptionError(
            f"a measurement is of eager runs, not of runtime {time_model.runtime!r}; leave one of them out"
        )
    measured = read_measurement(measurement)
    time_model.calibration.require(measured.machine)
    return measured


def _artefacts(
    compiled: CompiledModel, model: AnalyticModel, report: Report, command: str | None
) -> dict[str, bytes | str]:
    from dsocr_graph.emit.csv_table import to_csv
    from dsocr_graph.emit.graphml import to_graphml
    from dsocr_graph.emit.markdown import to_markdown

    return {
        "model.json": compiled.model_json,
        "report.json": report.to_json(),
        "report.md": to_markdown(model, report, command),
        "modules.csv": to_csv(report),
        "callgraph.graphml": to_graphml(model, report),
        "graph.onnx": compiled.onnx,
    }
