"""Export: one stage of a model through torch.export, at the settings that make it fast."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from attrs import frozen
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._pytree import tree_leaves

from dsocr_graph.models.eager import eager
from dsocr_graph.models.stage_spec import StageSpec, declared_leaves
from dsocr_graph.tracing.call_sites import CallSites
from dsocr_graph.tracing.export_errors import FixedDim, explained, nothing_printed, require_inputs
from dsocr_graph.tracing.export_shapes import symbolic_shapes

# From so many sizes of one dim on, a symbol for each costs more time than the rest of the export.
MANY_SIZES = 64


@frozen(kw_only=True)
class Exported:
    """A stage as torch exports it; its nodes carry the call sites of `CallSites`."""

    program: ExportedProgram
    held: Mapping[int, int]  # as in `CallSites.held`


def exported(stage: StageSpec, model: nn.Module) -> Exported:
    """Return a stage of a model exported.

    Raises
    ------
    ModelInputError
        When the stage's module is no eager one.
    CaptureError
        When the inputs do not fit, or torch.export cannot; the error says why, and where in the model.

    Examples
    --------
    >>> module = nn.Linear(4, 2, device="meta")
    >>> stage = StageSpec(name="forward", description="", module=module, inputs=(torch.empty(3, 4, device="meta"),))
    >>> [node.name for node in exported(stage, module).program.graph.nodes if node.op == "call_function"]
    ['linear']
    """
    eager(stage.module)
    require_inputs(stage)
    recorder = CallSites(model, stage.module)
    fixed: dict[str, FixedDim] = {}
    try:
        with (
            torch.no_grad(),
            fx_traceback.preserve_node_meta(),
            _no_stack_traces(),
            nothing_printed(),
            _shared_symbols(stage),
            _flex_attention_on_meta(),
            symbolic_shapes(),
            _noting_fixed_dims(stage, recorder, fixed),
            recorder,
        ):
            program = torch.export.export(
                stage.module,
                stage.inputs,
                dynamic_shapes=stage.dynamic_shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:
        raise explained(error, stage, recorder, fixed) from error
    return Exported(program=program, held=recorder.held)


@contextmanager
def _no_stack_traces() -> Generator[None]:
    """Switch off fx's own stack traces: they keep frames called `forward` only and cost half the time."""
    config: Any = importlib.import_module("torch.fx.config")
    before = config.do_not_emit_stack_traces
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


@contextmanager
def _flex_attention_on_meta() -> Generator[None]:
    """Let flex_attention take tensors without data on `meta` too: it refuses any device that it has no kernel for."""
    flex: Any = importlib.import_module("torch.nn.attention.flex_attention")
    before = flex._validate_device
    flex._validate_device = lambda *tensors: None
    try:
        yield
    finally:
        flex._validate_device = before


@contextmanager
def _shared_symbols(stage: StageSpec) -> Generator[None]:
    """Let the sizes that are declared as one dim share a symbol where there are many, as with a cache per layer.

    The exporter makes a symbol for each declared size and finds them equal operator by operator, so that what it
    knows of one layer's shapes helps with no other layer's: half the time of a large model's decode. Sizes that are
    not declared it lets share a symbol by itself, by their value ("duck shaping"); this turns that on for the values
    that stand for one dim only. The graph is the same but for the numbers in the names that fx makes up.
    """
    shared = _sizes_to_share(stage)
    environment: Any = ShapeEnv
    original = environment.create_symbol

    def create_symbol(
        self: ShapeEnv,
        val: int,
        source: object,
        dynamic_dim: object,
        constraint_dim: object = None,
        *args: object,
        **options: object,
    ) -> object:
        if constraint_dim is None or val not in shared:
            return original(self, val, source, dynamic_dim, constraint_dim, *args, **options)
        if val in self.val_to_var:
            return original(self, val, source, DimDynamic.DUCK, None, *args, **options)
        self.val_to_var[val] = symbol = original(self, val, source, dynamic_dim, constraint_dim, *args, **options)
        return symbol

    environment.create_symbol = create_symbol
    try:
        yield
    finally:
        environment.create_symbol = original


@contextmanager
def _noting_fixed_dims(stage: StageSpec, sites: CallSites, fixed: dict[str, FixedDim]) -> Generator[None]:
    """Note each declared dim that the exporter comes to hold for a number, and where; it tells only that it does."""
    environment: Any = ShapeEnv
    original = environment._set_replacement
    declared = _declared_names(stage)

    def set_replacement(self: Any, symbol: Any, target: Any, reason: str) -> None:  # noqa: ANN401 - torch's own
        original(self, symbol, target, reason)
        if not target.is_number:
            return
        for source in self.var_to_sources.get(symbol, ()):
            name = self._debug_name(source)
            if name in declared and name not in fixed:
                fixed[name] = FixedDim(size=int(target), site=sites.outside(inspect.currentframe()))

    environment._set_replacement = set_replacement
    try:
        yield
    finally:
        environment._set_replacement = original


def _declared_names(stage: StageSpec) -> frozenset[str]:
    leaves = declared_leaves(stage.dynamic_shapes)
    return frozenset(dim.__name__ for declared in leaves for dim in (declared or {}).values() if isinstance(dim, Dim))


def _sizes_to_share(stage: StageSpec) -> frozenset[int]:
    """Return the example sizes that stand for one declared dim in many places; 0 and 1 are never symbolic."""
    if stage.dynamic_shapes is None:
        return frozenset()
    names: dict[int, list[str | None]] = {}
    for value, declared in zip(tree_leaves(stage.inputs), declared_leaves(stage.dynamic_shapes), strict=True):
        for axis, dim in (declared or {}).items():
            if dim is not None:
                # By name: a tensor may be declared with a `Dim` of its own. Hints and derived dims are left alone.
                names.setdefault(value.shape[axis], []).append(dim.__name__ if type(dim) is Dim else None)
    return frozenset(
        size
        for size, found in names.items()
        if size > 1 and len(found) >= MANY_SIZES and len(set(found)) == 1 and None not in found
    )
