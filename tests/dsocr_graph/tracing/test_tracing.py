"""Capture: dims by their own names, scopes, roles, shared storage, and errors that say where and what to change."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from dsocr_graph.errors import CaptureError
from dsocr_graph.ir import Role
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.tracing import capture
from modelmeter.dim_text import to_text

Captured = Callable[..., Any]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor without data."""
    return torch.empty(*shape, dtype=dtype, device="meta")


class Inner(nn.Module):
    """A module whose method does its work."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def scaled_rows(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Call the method."""
        return self.scaled_rows(x)


class Outer(nn.Module):
    """Calls a submodule, reaches into another by a method, and ties two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.reached = Inner(), Inner()
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Embed, scale three times, project back."""
        x = self.called(self.called(self.embed(ids)))
        return self.head(self.reached.scaled_rows(x))


def _outer() -> tuple[nn.Module, Tensor]:
    with torch.device("meta"):
        return Outer(), torch.empty(3, dtype=torch.int64)


def test_dims_have_the_names_they_were_declared_with(captured: Captured) -> None:
    """torch renames symbols; shapes, strides and sizes as arguments come back in the declared names."""
    shapes = ({0: Dim("B"), 1: Dim("S")},)
    (graph,) = captured(
        lambda x: x.reshape(x.shape[0] * x.shape[1], 4) + 1, meta(2, 3, 4), dynamic_shapes=shapes
    ).graphs
    assert graph.dims == ("B", "S")
    assert [to_text(size) for size in graph.tensors[0].shape] == ["B", "S", "4"]
    assert [to_text(size) for size in graph.tensors[0].strides] == ["4*S", "4", "1"]
    assert [to_text(size) for size in graph.calls[-1].result.shape] == ["B*S", "4"]
    assert to_text(graph.calls[-1].result.storage_bytes) == "16*B*S"


def test_an_alias_writes_one_dim_by_others(captured: Captured) -> None:
    """With W = V/H, a grid of H x W crops is V views."""
    shapes = ({0: Dim("H"), 1: Dim("W")},)
    (graph,) = captured(lambda x: x.flatten(0, 1), meta(2, 3, 4), dynamic_shapes=shapes, aliases={"W": "V/H"}).graphs
    assert [to_text(size) for size in graph.calls[-1].result.shape] == ["V", "4"]


def test_undeclared_axes_are_numbers(captured: Captured) -> None:
    """Without dynamic shapes every size is an int and the stage has no dims."""
    (graph,) = captured(lambda x: x + 1, meta(2, 3)).graphs
    assert graph.dims == ()
    assert graph.calls[0].result.shape == (2, 3)


def test_operators_stay_whole(captured: Captured) -> None:
    """linear, attention and layer_norm are not decomposed."""
    (graph,) = captured(lambda x: F.scaled_dot_product_attention(x, x, F.layer_norm(x, (4,))), meta(1, 2, 3, 4)).graphs
    assert [call.op for call in graph.calls] == ["aten::layer_norm", "aten::scaled_dot_product_attention"]


def test_calls_know_module_call_number_and_function() -> None:
    """A second call of a module has number 1; a method called from outside belongs to its own module."""
    model, ids = _outer()
    stage = StageSpec(name="forward", description="", module=model, inputs=(ids,))
    (graph,) = capture(model, [stage], name="toy", variant={}).graphs
    found = [(call.op, call.module, call.scope[-1].call, call.scope[-1].entered, call.function) for call in graph.calls]
    assert found == [
        ("aten::embedding", "embed", 0, True, "forward"),
        ("aten::mul", "called", 0, True, "scaled_rows"),
        ("aten::mul", "called", 1, True, "scaled_rows"),
        ("aten::mul", "reached", 0, False, "scaled_rows"),
        ("aten::linear", "head", 0, True, "forward"),
    ]
    assert [frame.class_name for frame in graph.calls[1].scope] == ["Outer", "Inner"]


def test_a_tied_weight_is_one_parameter_in_two_places() -> None:
    """Embedding and head share 10 x 4 weights: one parameter, one storage, 40 + 4 + 4 elements in all."""
    model, ids = _outer()
    stage = StageSpec(name="forward", description="", module=model, inputs=(ids,))
    captured = capture(model, [stage], name="toy", variant={})
    assert [parameter.name for parameter in captured.parameters] == ["called.weight", "reached.weight", "embed.weight"]
    assert sum(parameter.elements for parameter in captured.parameters) == 48
    (graph,) = captured.graphs
    table, projection = graph.calls[0].tensor("weight"), graph.calls[-1].tensor("weight")
    assert table.storage == projection.storage
    assert (table.role, projection.role) == (Role.PARAMETER, Role.PARAMETER)
    assert {graph.weights[table.id], graph.weights[projection.id]} == {("embed.weight",)}


def test_views_share_storage_and_copies_do_not(captured: Captured) -> None:
    """A transposed view lies in its base, which it sees whole; contiguous makes memory of its own."""
    (graph,) = captured(lambda x: x.t().contiguous(), meta(3, 4)).graphs
    view, copy = graph.calls
    assert (view.is_view, copy.is_view) == (True, False)
    assert view.result.storage == graph.tensors[0].storage != copy.result.storage
    assert (view.result.strides, copy.result.strides) == ((1, 4), (3, 1))


def test_results_and_arguments_are_named_by_the_schema(captured: Captured) -> None:
    """Defaults are left out, both results of topk are there, and scalars keep their values."""
    (graph,) = captured(lambda x: torch.topk(x, 2, dim=0)[1], meta(3, 4)).graphs
    (call,) = graph.calls
    assert call.tensor("self").name == graph.tensors[0].name
    assert (call.integer("k", 0), call.integer("dim", -1), call.has("sorted")) == (2, 0, False)
    assert [(tensor.shape, tensor.dtype.value) for tensor in call.writes] == [((2, 4), "fp32"), ((2, 4), "int64")]
    assert graph.outputs == (call.results[1],)


def test_kv_caches_have_their_role(captured: Captured) -> None:
    """Positions named as cache are marked among inputs and outputs; the rest are inputs and activations."""
    (graph,) = captured(
        lambda x, k: (x + 1, torch.cat((k, x))), meta(1, 4), meta(3, 4), kv_inputs=(1,), kv_outputs=(1,)
    ).graphs
    roles = {tensor.name: tensor.role for tensor in graph.tensors}
    assert [graph.tensors[item].role for item in graph.inputs] == [Role.INPUT, Role.KV_CACHE]
    assert [graph.tensors[item].role for item in graph.outputs] == [Role.ACTIVATION, Role.KV_CACHE]
    assert len(roles) == 4


class Gate(nn.Module):
    """Runs a function on its input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


def _deep(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(nn.Identity(), Gate(function))


def test_a_branch_on_values_names_the_module(captured: Captured) -> None:
    """The operator that asks for the value is named with the module and class whose code runs it."""
    with pytest.raises(CaptureError, match=r"in module 1 \(Gate\), function .*, operator __bool__\n"):
        captured(_deep(lambda x: x + 1 if x.sum() > 0 else x), meta(3, 4))


def test_a_branch_on_values_names_the_stage_and_the_way_out(captured: Captured) -> None:
    """A condition on data cannot be captured: the message says stage, torch's reason and what to change."""

    def branch(x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x

    with pytest.raises(CaptureError) as caught:
        captured(_deep(branch), meta(3, 4), stage="prefill")
    message = str(caught.value)
    assert message.startswith(
        "stage 'prefill' cannot be captured: a shape or a branch depends on the values of tensors"
    )
    assert "so that none does (no .item(), .tolist(), nonzero" in message
    assert caught.value.__cause__ is not None


def test_a_size_that_depends_on_values_names_the_operator(captured: Captured) -> None:
    """Boolean indexing gives as many rows as there are true values: no size in the model's dims."""
    with pytest.raises(
        CaptureError, match=r"stage 'forward': a size depends on data \(u0\) at aten.index.Tensor in 1; "
    ):
        captured(_deep(lambda x: x[x > 0]), meta(3, 4))


def test_a_context_manager_in_the_graph_is_refused(captured: Captured) -> None:
    """autocast wraps its body into a graph of its own, which is no operator: refused, not skipped."""

    def cast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x.t()

    with pytest.raises(
        CaptureError, match=r"no lowering for higher-order op wrap_with_autocast, in module .*; leave it out"
    ):
        captured(cast, meta(3, 4))


def test_a_dtype_without_counterpart_is_refused(captured: Captured) -> None:
    """Wide unsigned integers have no analytic type: the tensor is named and the known types listed."""
    with pytest.raises(CaptureError, match=r"'to' has dtype torch.uint16.*known are .*torch.bfloat16"):
        captured(lambda x: x.to(torch.uint16), meta(3, 2))


def test_capture_reports_progress_and_leaves_torch_as_it_was() -> None:
    """Each stage is announced; the switch that capture turns off is back afterwards, also after an error."""
    from torch.fx import config

    before = config.do_not_emit_stack_traces
    with torch.device("meta"):
        model = nn.Linear(4, 2)
        x = torch.empty(3, 4)
    said: list[str] = []
    stages = [StageSpec(name=name, description="", module=model, inputs=(x,)) for name in ("one", "two")]
    captured = capture(model, stages, name="toy", variant={"dtype": "fp32"}, progress=said.append)
    assert said == ["capturing one", "capturing two"]
    assert [graph.stage for graph in captured.graphs] == ["one", "two"]
    broken = StageSpec(name="three", description="", module=model, inputs=(torch.empty(3, 5, device="meta"),))
    with pytest.raises(CaptureError, match="stage 'three'"):
        capture(model, [broken], name="toy", variant={})
    assert config.do_not_emit_stack_traces is before


def _two_stages() -> tuple[nn.Module, list[StageSpec]]:
    """Return a model that shares weights and views between two stages of symbolic sizes."""
    model, ids = _outer()
    B = Dim("B", max=64)
    return model, [
        StageSpec(name=name, description="", module=model, inputs=(ids,), dynamic_shapes={"ids": {0: B}})
        for name in ("one", "two")
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux only")
def test_processes_capture_what_one_process_does() -> None:
    """Graphs come back from processes as they are made here: equal tensors, symbols, calls and order of stages."""
    model, stages = _two_stages()
    here, there = (capture(model, stages, name="toy", variant={}, processes=processes) for processes in (1, 2))
    assert there == here
    assert [graph.stage for graph in there.graphs] == ["one", "two"]
    assert all(call.tensors is graph.tensors for graph in there.graphs for call in graph.calls)  # shared, not copied


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stage_that_fails_is_left_out_only_when_asked(processes: int) -> None:
    """In processes as in one: the same error, and the other stage stands when a partial model is allowed."""
    model, stages = _two_stages()
    broken = StageSpec(name="broken", description="", module=model, inputs=(meta(3),))  # ids that are no integers
    with pytest.raises(
        CaptureError, match=r"stage 'broken' cannot be captured: its forward fails .*\n.*operator embedding"
    ):
        capture(model, [broken, stages[0]], name="toy", variant={}, processes=processes)
    partial = capture(model, [broken, stages[0]], name="toy", variant={}, processes=processes, allow_partial=True)
    assert [graph.stage for graph in partial.graphs] == ["one"]
    assert partial.variant == {"partial": "without broken"}
    with pytest.raises(CaptureError, match="stage 'broken'"):
        capture(model, [broken, broken], name="toy", variant={}, processes=processes, allow_partial=True)
