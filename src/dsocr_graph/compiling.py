"""Compile: a model to an analytic one by capture, grouping and lowering, kept in the cache where it has a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import evolve

from dsocr_graph.errors import OptionError
from dsocr_graph.model_cache import CompiledModel, ModelCache, cache_key
from dsocr_graph.models.named_model import ModelVariant, NamedModel
from modelmeter.model import AnalyticModel
from modelmeter.registry import available, registered
from modelmeter.serialize import model_from_bytes

if TYPE_CHECKING:
    from torch import nn

    from dsocr_graph.models.stage_spec import StageSpec
    from dsocr_graph.models.user_model import UserModel
    from modelmeter.dtypes import DType

_EXPERTS = "experts"
"""The fact of a variant that is dropped where a model turns out to have no experts."""

Progress = Callable[[str], None]


def compile_model(
    named: NamedModel,
    variant: ModelVariant,
    *,
    store: ModelCache,
    allow_unclassified: bool = False,
    allow_partial: bool = False,
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
    module, stages = named.build(variant)
    compiled = _compiled(
        module,
        stages,
        name=named.name,
        facts=variant.facts(),
        versions=named.versions,
        load_dtype=named.load_dtype,
        limits=named.limits,
        allow_unclassified=allow_unclassified,
        allow_partial=allow_partial,
        progress=progress,
    )
    if not (allow_unclassified or allow_partial):
        try:
            store.store(key, compiled)
        except OptionError as error:
            progress(f"not cached: {error}")
    return compiled


def compile_user_model(
    model: UserModel,
    *,
    allow_unclassified: bool = False,
    allow_partial: bool = False,
    progress: Progress = lambda message: None,
) -> CompiledModel:
    """Return a user's model compiled; it is captured each time, since what its code does is not known.

    Raises
    ------
    CaptureError, MissingLoweringError
        When the model cannot be compiled.

    Examples
    --------
    >>> import torch
    >>> from dsocr_graph.models.user_model import user_model
    >>> compiled = compile_user_model(user_model(torch.nn.Linear(4, 2), torch.empty(3, 4)))
    >>> model_from_bytes(compiled.model_json, source="the example").parameters
    10
    """
    return _compiled(
        model.module,
        model.stages,
        name=model.name,
        facts=model.facts,
        versions={},
        load_dtype=None,
        limits=model.limits,
        allow_unclassified=allow_unclassified,
        allow_partial=allow_partial,
        progress=progress,
    )


def analytic_model(
    named: NamedModel, variant: ModelVariant, *, progress: Progress = lambda message: None
) -> AnalyticModel:
    """Return a compiled model to evaluate, from the usual cache or by capturing it.

    Raises
    ------
    CaptureError, MissingLoweringError
        When the model cannot be compiled.
    """
    compiled = compile_model(named, variant, store=ModelCache.default(), progress=progress)
    return model_from_bytes(compiled.model_json, source=f"compiled {named.name} {variant.name}")


def analytic_user_model(model: UserModel, *, progress: Progress = lambda message: None) -> AnalyticModel:
    """Return a user's model to evaluate, captured.

    Raises
    ------
    CaptureError, MissingLoweringError
        When the model cannot be compiled.

    Examples
    --------
    >>> import torch
    >>> from dsocr_graph.models.user_model import user_model
    >>> analytic_user_model(user_model(torch.nn.Linear(4, 2), torch.empty(3, 4))).parameters
    10
    """
    compiled = compile_user_model(model, progress=progress)
    return model_from_bytes(compiled.model_json, source=f"compiled {model.name}")


def shipped_or_compiled(
    named: NamedModel, variant: ModelVariant, *, progress: Progress = lambda message: None
) -> AnalyticModel:
    """Return a model as a package ships it, without torch, where one does; else from the cache or by capturing it.

    Raises
    ------
    CaptureError, MissingLoweringError
        When the model cannot be compiled.

    Examples
    --------
    >>> from dsocr_graph.models.registry import Variant, model_named
    >>> large = Variant(base_size=1280, dtype="bf16", attention="sdpa")
    >>> shipped_or_compiled(model_named("deepseek-ocr"), large).variant["base_size"]
    '1280'
    """
    shipped = named.shipped(variant)
    if named.name in available() and shipped in registered(named.name).variants:
        return registered(named.name).load(shipped)
    return analytic_model(named, variant, progress=progress)


def _compiled(
    module: nn.Module,
    stages: Sequence[StageSpec],
    *,
    name: str,
    facts: Mapping[str, str],
    versions: Mapping[str, str],
    load_dtype: DType | None,
    limits: Mapping[str, int],
    allow_unclassified: bool,
    allow_partial: bool,
    progress: Progress,
) -> CompiledModel:
    from dsocr_graph.emit.onnx_graph import to_onnx
    from dsocr_graph.lowering import lower
    from dsocr_graph.lowering.higher_order import costliest
    from dsocr_graph.scopes import group_by_module
    from dsocr_graph.tracing import capture
    from modelmeter.routing.histogram import routed_layers
    from modelmeter.serialize import model_to_json

    captured = capture(
        module, stages, name=name, variant=facts, allow_partial=allow_partial, costliest=costliest, progress=progress
    )
    captured = evolve(captured, provenance={**captured.provenance, **versions})
    progress("grouping by module")
    graph = group_by_module(captured)
    progress(f"lowering {sum(len(stage.calls) for stage in captured.graphs):,} ATen calls")
    analytic = lower(
        graph,
        allow_unclassified=allow_unclassified,
        descriptions={stage.name: stage.description for stage in stages},
        load_dtype=load_dtype,
        limits=limits,
    )
    if _EXPERTS in facts and not routed_layers(analytic):
        dense = {name: value for name, value in captured.variant.items() if name != _EXPERTS}
        captured, analytic = evolve(captured, variant=dense), evolve(analytic, variant=dense)
    return CompiledModel(model_json=model_to_json(analytic).encode(), onnx=to_onnx(captured, graph, analytic))
