"""analyze_model: pages and a model in, reports out; every step is one function of its own module."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import frozen

from dsocr_graph.emit.files import write_artefacts
from dsocr_graph.errors import OptionError
from dsocr_graph.model_cache import CompiledModel, ModelCache, cache_key
from dsocr_graph.models.registry import NamedModel, Variant, model_named
from dsocr_graph.time_models import choose_time_model
from dsocr_graph.workloads import (
    STANDARD,
    Profile,
    bind_profile,
    load_profile,
    override,
    profile_from_pages,
    read_image,
    read_pdf,
)
from modelmeter import AnalyticModel
from modelmeter.evaluate import evaluate
from modelmeter.measurement import Measurement, read_measurement
from modelmeter.predict import Calibrated, Roofline, TimeModel
from modelmeter.reports import Report
from modelmeter.serialize import model_from_bytes

Progress = Callable[[str], None]

DEFAULT_DEVICE = "h200"


@frozen(kw_only=True)
class Analysis:
    """A model evaluated at a workload, and the files that were written."""

    model: AnalyticModel
    report: Report
    files: tuple[Path, ...]


def analyze_model(
    model: str = "deepseek-ocr",
    *,
    workload: str | Path | None = None,
    image: Sequence[str | Path] = (),
    pdf: Sequence[str | Path] = (),
    mode: str | None = None,
    batch: int | None = None,
    new_tokens: int | None = None,
    dtype: str | None = None,
    attention: str = "sdpa",
    device: str | None = None,
    calibration: str | Path | None = None,
    measurement: str | Path | None = None,
    runtime: str | None = None,
    moe: str = "grouped",
    physical: bool = False,
    out: str | Path | None = None,
    allow_unclassified: bool = False,
    cache: bool = True,
    progress: Progress = lambda message: None,
) -> Analysis:
    """Analyze a model on pages: capture, group, lower, evaluate, emit.

    Parameters
    ----------
    model : str
        A model by name; `dsocr-graph models` lists them.
    workload : str or Path, optional
        A profile shipped with the package, or a TOML file. Default: dsocr-standard-v1.
    image, pdf : sequence of paths
        Pages to analyze instead of a profile's.
    mode : str, optional
        Tiny, Small, Base, Large or Gundam.
    batch, new_tokens : int, optional
        Equal pages processed together, and tokens generated per page.
    dtype : str, optional
        "bf16" or "fp32".
    attention : str
        "sdpa", "eager" or "flash_attention_2", in the decoder.
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
        "grouped" or "loop": how the experts run in a calibrated prediction.
    physical : bool
        Allow peak rates, labelled, for calls that nothing was measured for.
    out : str or Path, optional
        Directory for the artefacts; nothing is written without one.
    allow_unclassified : bool
        Report operators without a lowering rule instead of raising.
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
    dsocr_graph.errors.UnknownModelError: unknown model 'no-such-model'; known models: deepseek-ocr, deepseek-ocr-tiny
    """
    named = model_named(model)
    time_model = choose_time_model(
        device=_device(device, calibration), calibration=calibration, runtime=runtime, moe=moe, physical=physical
    )
    measured = _measured(measurement, time_model)
    profile = _profile(workload, image, pdf, mode=mode, batch=batch, new_tokens=new_tokens, dtype=dtype)
    variant = Variant(base_size=profile.mode.base_size, dtype=profile.dtype, attention=attention)
    store = ModelCache.default() if cache else ModelCache(directory=None)
    compiled = compile_model(named, variant, store=store, allow_unclassified=allow_unclassified, progress=progress)
    progress(f"evaluating {profile.name}")
    analytic = model_from_bytes(compiled.model_json, source=f"compiled {named.name} {variant.name}")
    report = evaluate(analytic, bind_profile(profile), time_model=time_model)
    files: tuple[Path, ...] = ()
    if out is not None:
        progress(f"writing {out}")
        options = {
            "model": model if model != "deepseek-ocr" else None,
            "workload": Path(workload).name if workload is not None else None,
            "image": [Path(path).name for path in image],
            "pdf": [Path(path).name for path in pdf],
            "mode": mode,
            "batch": batch,
            "new_tokens": new_tokens,
            "dtype": dtype,
            "attention": attention if attention != "sdpa" else None,
            "device": None if device == DEFAULT_DEVICE else device,
            "calibration": Path(calibration).name if calibration is not None else None,
            "measurement": Path(measurement).name if measurement is not None else None,
            "runtime": runtime,
            "moe": moe if moe != "grouped" else None,
            "physical": physical or None,
            "allow_unclassified": allow_unclassified or None,
        }
        artefacts = _artefacts(compiled, analytic, report, command_line(options))
        if time_model is not None and not isinstance(time_model, Roofline):
            from dsocr_graph.emit.prediction_files import prediction_artefacts

            artefacts |= prediction_artefacts(analytic, report, time_model, measured, command=command_line(options))
        files = write_artefacts(Path(out), artefacts)
    return Analysis(model=analytic, report=report, files=files)


def compile_model(
    named: NamedModel,
    variant: Variant,
    *,
    store: ModelCache,
    allow_unclassified: bool = False,
    progress: Progress = lambda message: None,
) -> CompiledModel:
    """Return a compiled model, from the cache or by capturing it.

    Raises
    ------
    CaptureError, MissingLoweringError
        When the model cannot be compiled.
    """
    key = cache_key(named, variant)
    compiled = store.load(key)
    if compiled is not None:
        progress(f"compiled {named.name} {variant.name} found in the cache")
        return compiled
    progress(f"building {named.name} {variant.name} without weights")
    compiled = _compile(named, variant, allow_unclassified=allow_unclassified, progress=progress)
    if not allow_unclassified:
        try:
            store.store(key, compiled)
        except OptionError as error:
            progress(f"not cached: {error}")
    return compiled


def analytic_model(named: NamedModel, variant: Variant, *, progress: Progress = lambda message: None) -> AnalyticModel:
    """Return a compiled model to evaluate, from the usual cache or by capturing it.

    Raises
    ------
    CaptureError, MissingLoweringError
        When the model cannot be compiled.
    """
    compiled = compile_model(named, variant, store=ModelCache.default(), progress=progress)
    return model_from_bytes(compiled.model_json, source=f"compiled {named.name} {variant.name}")


def _compile(named: NamedModel, variant: Variant, *, allow_unclassified: bool, progress: Progress) -> CompiledModel:
    from dsocr_graph.emit.onnx_graph import to_onnx
    from dsocr_graph.lowering import lower
    from dsocr_graph.scopes import group_by_module
    from dsocr_graph.tracing import capture
    from modelmeter.serialize import model_to_json

    module, stages = named.build(variant)
    captured = capture(module, stages, name=named.name, variant=variant.facts(), progress=progress)
    progress("grouping by module")
    graph = group_by_module(captured)
    progress(f"lowering {sum(len(stage.calls) for stage in captured.graphs):,} ATen calls")
    analytic = lower(
        graph,
        allow_unclassified=allow_unclassified,
        descriptions={stage.name: stage.description for stage in stages},
    )
    return CompiledModel(model_json=model_to_json(analytic).encode(), onnx=to_onnx(captured, graph, analytic))


def _profile(
    workload: str | Path | None,
    image: Sequence[str | Path],
    pdf: Sequence[str | Path],
    *,
    mode: str | None,
    batch: int | None,
    new_tokens: int | None,
    dtype: str | None,
) -> Profile:
    """Return the pages to analyze: a profile's, or those of files."""
    if not image and not pdf:
        profile = load_profile(workload if workload is not None else STANDARD)
        return override(profile, mode=mode, batch=batch, new_tokens=new_tokens, dtype=dtype)
    if workload is not None:
        raise OptionError("pages come from --workload or from --image and --pdf, not from both; leave one out")
    pages = [page for path in image for page in read_image(path)]
    pages += [page for path in pdf for page in read_pdf(path)]
    files = [*image, *pdf]
    name = Path(files[0]).stem if len(files) == 1 else "pages"
    return profile_from_pages(pages, name=name, mode=mode, batch=batch, new_tokens=new_tokens, dtype=dtype)


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


def command_line(options: Mapping[str, object]) -> str:
    """Return the command that an analysis with these options stands for; options that are None are left out.

    Examples
    --------
    >>> command_line({"mode": "Base", "image": ["a b.png"], "batch": None, "allow_unclassified": True})
    "python -m dsocr_graph.analyze --mode Base --image 'a b.png' --allow-unclassified"
    """
    words = ["python", "-m", "dsocr_graph.analyze"]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif isinstance(value, list | tuple):
            words += [word for item in value for word in (flag, str(item))]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        elif value is not None:
            words += [flag, str(value)]
    return shlex.join(words)


def _artefacts(compiled: CompiledModel, model: AnalyticModel, report: Report, command: str) -> dict[str, bytes | str]:
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
