"""Buffers of a captured model: each counted once, read or not, persistent or not, and cast with the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dsocr_graph.emit.markdown_memory import memory_sections
from dsocr_graph.lowering import lower
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import group_by_module
from dsocr_graph.tracing import capture
from modelmeter.dtypes import DType
from modelmeter.evaluate import evaluate
from modelmeter.model import AnalyticModel
from modelmeter.workload import StageRun, Workload, WorkloadItem


class Buffered(nn.Module):
    """Adds a table of 1,000 rows of 4, of which it reads three; holds what it never reads, and memory held twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor
        self.layers = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(3))
        self.project = nn.Linear(4, 4)
        self.register_buffer("table", torch.zeros(1_000, 4), persistent=False)  # 16,000 bytes
        self.register_buffer("unread", torch.zeros(50, dtype=torch.int64))  # 400 bytes
        self.register_buffer("rows", self.table[:10])  # no memory of its own
        self.register_buffer("weight", self.project.weight.data)  # the parameter's memory

    def forward(self, x: Tensor) -> Tensor:
        """[3, 4] -> [3, 4]."""
        x = x + self.table[:3]
        for layer in self.layers:
            x = layer(x)
        return self.project(x)


BATCH_NORM = 4 * 4 + 4 * 4 + 8  # running mean and variance of 4 channels, and an int64: 40 bytes


def compiled(device: str, load_dtype: DType | None = None) -> tuple[nn.Module, AnalyticModel]:
    """Return the module, and its analytic model."""
    with torch.device(device):
        module, x = Buffered().eval(), torch.zeros(3, 4)
    stage = StageSpec(name="forward", description="", module=module, inputs=(x,))
    graph = group_by_module(capture(module, [stage], name="buffered", variant={}))
    return module, lower(graph, load_dtype=load_dtype)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_buffers_are_counted_once_by_their_memory(device: str) -> None:
    """16,000 + 400 bytes of the root and 40 of each of three layers; an independent sum over storages agrees."""
    module, model = compiled(device)
    held = {node.id: node.buffer_bytes for node in model.modules if node.buffer_bytes}
    assert held == {"": 16_400, "layers.[0-2]": 3 * BATCH_NORM}
    weights = {weight.untyped_storage()._cdata for weight in module.parameters()}
    storages = {buffer.untyped_storage()._cdata: buffer.untyped_storage().nbytes() for buffer in module.buffers()}
    assert model.buffer_bytes == sum(size for memory, size in storages.items() if memory not in weights)


def test_parameters_are_counted_as_published() -> None:
    """Three layers of a weight and a bias of 4, and 4 * 4 + 4 of the projection: 44 parameters of 4 bytes."""
    _, model = compiled("meta")
    assert (model.parameters, model.parameter_bytes) == (44, 176)
    assert model.stages[0].weight_bytes == 176


def test_buffers_are_in_memory_while_loading_too() -> None:
    """As it is, a model loads in what it holds; in fp64 its floats take twice as much, its integers do not."""
    _, model = compiled("meta")
    assert model.load_bytes == 176 + model.buffer_bytes
    _, cast = compiled("meta", DType.FP64)
    integers = 400 + 3 * 8
    assert cast.load_bytes == 44 * 8 + 2 * (model.buffer_bytes - integers) + integers


def test_a_report_says_what_buffers_add() -> None:
    """Running takes parameters, buffers and the peak of the stage; the section names the buffers."""
    _, model = compiled("meta")
    run = StageRun(stage="forward", count=1, bindings={})
    report = evaluate(model, Workload(name="once", items=(WorkloadItem(name="x", documents=1, runs=(run,)),)))
    memory = report.memory
    assert memory.running_bytes == 176 + 16_400 + 3 * BATCH_NORM + memory.stage_peak_bytes
    text = "\n".join(memory_sections(report))
    assert "weights of 176 B and 16.5 kB of buffers come on top" in text
    assert "| buffers, resident" in text
