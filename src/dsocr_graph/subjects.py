"""Subjects: what an analysis is about, by name, configuration, factory or as a module, and at which sizes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve

from dsocr_graph.errors import OptionError, UnknownModelError
from dsocr_graph.models.from_transformers import CATALOG, model_from_config
from dsocr_graph.models.from_transformers.trusted_code import FLAG
from dsocr_graph.models.named_model import NamedModel
from dsocr_graph.models.registry import MODELS, model_named, transformers_model
from dsocr_graph.timing.plan import Point, check_point, parse_point
from modelmeter.registry import available, registered
from modelmeter.serialize import MODEL_FILE, looks_like_model, read_model
from modelmeter.workload import StageRun, Workload, WorkloadItem

if TYPE_CHECKING:
    from torch import nn

    from dsocr_graph.models.user_model import UserModel
    from modelmeter.model import AnalyticModel

Progress = Callable[[str], None]


def subject_of(
    model: str | Path | nn.Module,
    inputs: object = None,
    *,
    dims: object = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda message: None,
) -> NamedModel | UserModel:
    """Return what an analysis is about.

    Parameters
    ----------
    model : str, Path or nn.Module
        A model by name, the path of a transformers configuration, a factory as ``package.module:function``, or a
        module with its inputs.
    inputs, dims
        Of a module, as `dsocr_graph.models.user_model.user_model` takes them.
    trust_remote_code, progress
        Of a configuration, as `named_or_configured` takes them.

    Raises
    ------
    UnknownModelError, ConfigNotFoundError, ModelConfigError, FactoryError
        When the text names no model.
    TrustedCodeError
        When code that is trusted is not there, or cannot be imported.
    ModelInputError
        When the model is no eager module, or inputs or dims do not fit it.
    OptionError
        When a module comes without inputs, inputs without a module, or trust without a configuration.

    Examples
    --------
    >>> subject_of("deepseek-ocr").name
    'deepseek-ocr'
    """
    if not isinstance(model, str | Path):
        _require_no_trust(type(model).__name__, trust_remote_code)
        from dsocr_graph.models.eager import eager
        from dsocr_graph.models.user_model import user_model

        module = eager(model)
        if inputs is None:
            raise OptionError(f"a {type(model).__name__} is analyzed with example inputs; give inputs")
        return user_model(module, inputs, dims=dims)
    if inputs is not None or dims is not None:
        raise OptionError(f"inputs and dims belong to a module; model {str(model)!r} brings its own, leave them out")
    if _names_factory(model):
        _require_no_trust(str(model), trust_remote_code)
        from dsocr_graph.models.user_model import load_factory

        return load_factory(str(model))
    return named_or_configured(model, trust_remote_code=trust_remote_code, progress=progress)


def named_or_configured(
    model: str | Path,
    *,
    layers: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda message: None,
) -> NamedModel:
    """Return the model of a name or of a transformers configuration's path.

    Parameters
    ----------
    model : str or Path
        Either.
    layers : int, optional
        Most layers of each stack; only models built from a transformers configuration can be shortened.
    trust_remote_code : bool
        Import code beside a configuration, as `dsocr_graph.models.from_transformers.model_from_config` does.
    progress : callable
        Told what will be imported, before it is.

    Raises
    ------
    UnknownModelError, ConfigNotFoundError, ModelConfigError
        When there is none.
    TrustedCodeError
        When code that is trusted is not there, or cannot be imported.
    OptionError
        When a model of other code is to be shortened, or one by name is to be trusted.

    Examples
    --------
    >>> named_or_configured("no/such/config.json")
    Traceback (most recent call last):
    dsocr_graph.models.from_transformers.configuration.ConfigNotFoundError: no transformers configuration at ...
    """
    path = Path(model)
    is_path = str(model) not in MODELS and (path.exists() or path.suffix == ".json" or len(path.parts) > 1)
    if is_path:
        configured = model_from_config(path, trust_remote_code=trust_remote_code, progress=progress)
    else:
        _require_no_trust(str(model), trust_remote_code)
        configured = CATALOG.get(str(model))
    if configured is not None:
        return transformers_model(configured if layers is None else configured.shortened(layers))
    if layers is not None:
        raise OptionError(f"only models of a transformers configuration can be shortened, not {str(model)!r}")
    _require_named(str(model))
    return model_named(str(model))


def compiled_only(model: str | Path, variant: str | None = None) -> AnalyticModel | None:
    """Return the model of a text that means a compiled one alone, without a module and a reading of pages; else None.

    That is a ``model.json``, a directory of `dsocr-graph analyze`, or a name, none of `MODELS`, that a package
    registers.

    Parameters
    ----------
    model : str or Path
        Any text that may name a model.
    variant : str, optional
        Of a registered model, by name.

    Raises
    ------
    BrokenModelError, ModelFileError
        When the file or the package that registers it is broken.
    UnknownVariantError
        When a registered model has no such variant.
    OptionError
        When a file is to have a variant.

    Examples
    --------
    >>> compiled_only("deepseek-ocr") is None
    True
    """
    file = _model_file(Path(model))
    if file is not None:
        if variant is not None:
            raise OptionError(f"{file} is one compiled model, without variants to choose from; leave --variant out")
        return read_model(file)
    name = str(model)
    if name in MODELS or name not in available():
        return None
    return evolve(registered(name).load(variant), name=name)  # a module captured by its class has the name of that


def _model_file(path: Path) -> Path | None:
    """Return the file of a compiled model that a path means, if it means one: a configuration is none."""
    if path.is_dir():
        return path / MODEL_FILE if (path / MODEL_FILE).is_file() else None
    return path if path.is_file() and looks_like_model(path.read_bytes()) else None


def stages_text(model: AnalyticModel) -> str:
    """Return the stages of a model with their dims, for messages.

    Examples
    --------
    >>> import modelmeter
    >>> stages_text(modelmeter.load("qwen3-8b"))
    'prefill (B, S), decode (B, T)'
    """
    return ", ".join(f"{stage.name} ({', '.join(stage.dims) or 'no dims'})" for stage in model.stages)


def points_of(texts: Sequence[str], model: NamedModel | UserModel) -> tuple[Point, ...]:
    """Return the sizes to analyze a model at: those of the texts, or else of a user's example inputs.

    Raises
    ------
    PlanError
        When a text is no point.
    """
    if texts or isinstance(model, NamedModel):
        return tuple(map(parse_point, texts))
    return tuple(Point(stage=stage, bindings=sizes) for stage, sizes in model.sizes.items())


def points_workload(points: Sequence[Point]) -> Workload:
    """Return a workload that runs each point once.

    Examples
    --------
    >>> points_workload([Point(stage="decode", bindings={"B": 1, "T": 913})]).name
    'decode B=1, T=913'
    """
    runs = tuple(StageRun(stage=point.stage, count=1, bindings=point.bindings) for point in points)
    name = "; ".join(point.text for point in points)
    return Workload(name=name, items=(WorkloadItem(name="points", documents=1, runs=runs),))


def workload_at(model: AnalyticModel, points: Sequence[Point]) -> Workload:
    """Return a workload of a model that runs each point once.

    Raises
    ------
    PlanError, SizeLimitError
        When a point does not fit the model.

    Examples
    --------
    >>> import modelmeter
    >>> workload_at(modelmeter.load("qwen3-8b"), [Point(stage="decode", bindings={"B": 8, "T": 512})]).name
    'decode B=8, T=512'
    """
    for point in points:
        check_point(model, point)
    return points_workload(points)


def restricted(workload: Workload, stages: Collection[str]) -> Workload:
    """Return a workload without the runs of other stages, and without items that then run nothing.

    Raises
    ------
    InvalidWorkloadError
        When nothing is left.

    Examples
    --------
    >>> both = points_workload([Point(stage=stage, bindings={"B": 1}) for stage in ("encode", "decode")])
    >>> [run.stage for run in restricted(both, {"decode"}).items[0].runs]
    ['decode']
    """
    kept = [(item, tuple(run for run in item.runs if run.stage in stages)) for item in workload.items]
    return evolve(workload, items=tuple(evolve(item, runs=runs) for item, runs in kept if runs))


def _require_named(name: str) -> None:
    if name in MODELS:
        return
    if name in available():
        raise UnknownModelError(
            f"{name!r} is registered as a compiled model alone, without a module to run and a reading of pages; ask "
            "about it by `formulas` and `figures`, at sizes of its stages by `sweep --stage` and `parallel --points`"
        )
    if ":" in name:
        raise UnknownModelError(
            f"{name!r} is a factory, whose module has no reading of pages; name a model that has one "
            f"({', '.join(sorted(MODELS))}) or the path of a config.json, or analyze the factory at sizes of its "
            "stages, by `python -m dsocr_graph.analyze`, `parallel` or `sweep --stage`"
        )


def _require_no_trust(name: str, trust_remote_code: bool) -> None:
    if trust_remote_code:
        raise OptionError(
            f"{FLAG} is for code beside the configuration file of a model; {name} has none such, leave it out"
        )


def _names_factory(model: str | Path) -> bool:
    """Whether a text is a factory: a colon, and no file of that name."""
    return ":" in str(model) and not Path(model).exists()
