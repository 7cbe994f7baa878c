"""Registered buffers are held as weights are: in memory of a run, in sweeps, beside each device's share, in files."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
from attrs import evolve

import modelmeter
from modelmeter.capacity import fit
from modelmeter.devices import load_device
from modelmeter.evaluate import evaluate
from modelmeter.model import AnalyticModel
from modelmeter.parallel import Layout, distribute
from modelmeter.serialize import model_from_json, model_to_json
from modelmeter.sweeps import Program
from modelmeter.whatif import Options, apply
from modelmeter.workload import StageRun, Workload, WorkloadItem

BUFFERS = 1_000


def with_buffers(model: AnalyticModel, module: str, size: int) -> AnalyticModel:
    """Return a model one of whose modules holds buffers of so many bytes; loading it takes as many more."""
    nodes = tuple(evolve(node, buffer_bytes=size if node.id == module else 0) for node in model.modules)
    more = size - model.buffer_bytes
    return evolve(model, modules=nodes, load_bytes=model.load_bytes + more)


@pytest.fixture
def held(toy: ModuleType) -> AnalyticModel:
    """Return the toy with 1,000 bytes of buffers in a module that no stage runs."""
    return with_buffers(toy.toy_model(), "model.spare", BUFFERS)


def test_a_run_holds_its_buffers_beside_weights_and_peak(held: AnalyticModel, toy: ModuleType) -> None:
    """The toy runs in 6,402 bytes and loads in 8,604; both grow by the 1,000, the weights do not."""
    plain, memory = (evaluate(each, toy.toy_workload()).memory for each in (toy.toy_model(), held))
    assert (plain.running_bytes, plain.load_bytes, plain.buffer_bytes) == (6_402, 8_604, 0)
    assert (memory.running_bytes, memory.load_bytes, memory.peak_bytes) == (7_402, 9_604, 9_604)
    assert (memory.weight_bytes, memory.buffer_bytes) == (plain.weight_bytes, BUFFERS)
    assert memory.held_bytes == memory.weight_bytes + BUFFERS
    assert memory.stages == plain.stages


def test_a_fit_counts_buffers_and_says_so(held: AnalyticModel, toy: ModuleType) -> None:
    """With nothing to load in another type, running decides: 4,302 bytes of weights and 1,000 of buffers beside it."""
    memory = evaluate(evolve(held, load_bytes=0), toy.toy_workload()).memory
    assert "beside 5.3020 kB of weights and buffers" in fit(memory, device=load_device("l4")).reason


def test_a_sweep_holds_what_an_evaluation_does(held: AnalyticModel) -> None:
    """Rows of a sweep add parameters and buffers to each peak."""
    assert Program.of(held).held_bytes == held.parameter_bytes + BUFFERS


def test_buffers_are_written_where_there_are_some(held: AnalyticModel, toy: ModuleType) -> None:
    """A model's file names those of its modules, and none where it has none; a report says how many there are."""
    document = json.loads(model_to_json(held))
    assert {node["id"]: node["buffer_bytes"] for node in document["modules"] if "buffer_bytes" in node} == {
        "model.spare": BUFFERS
    }
    assert model_from_json(model_to_json(held)).buffer_bytes == BUFFERS
    assert "buffer_bytes" not in model_to_json(toy.toy_model())
    assert json.loads(evaluate(held, toy.toy_workload()).to_json())["memory"]["buffer_bytes"] == BUFFERS


def test_weights_in_another_type_leave_buffers_alone() -> None:
    """A quantised checkpoint loads as it is kept, with its buffers."""
    model = with_buffers(modelmeter.load("whisper-large-v3"), "model.decoder", BUFFERS)
    changed = apply(model, Options(weight_dtype="int8")).model
    assert changed.buffer_bytes == BUFFERS
    assert changed.load_bytes == changed.parameter_bytes + BUFFERS


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_each_device_holds_the_buffers_of_the_modules_it_runs(tensor: int, pipeline: int) -> None:
    """Eleven layers of 100 bytes: tensor ranks all hold them, pipeline stages hold 5 layers of them and 6."""
    experts = "model.layers.[1-11].mlp"
    plain = with_buffers(modelmeter.load("deepseek-ocr"), experts, 0)
    model = with_buffers(plain, experts, 1_100)
    run = StageRun(stage="decode", count=1, bindings={"B": 8, "T": 100})
    step = Workload(name="step", items=(WorkloadItem(name="pages", documents=8, runs=(run,)),))
    before, after = (
        distribute(each, step, Layout(tensor=tensor, pipeline=pipeline), device=load_device("h200"))
        for each in (plain, model)
    )
    more = [
        new.buffer_bytes - old.buffer_bytes
        for old, new in zip(before.parts, after.parts, strict=True)
        if not new.encodes
    ]
    assert more == ([1_100] if pipeline == 1 else [500, 600])
    assert [part.weight_bytes for part in before.parts] == [part.weight_bytes for part in after.parts]
    assert all(
        new.peak_bytes - old.peak_bytes == new.buffer_bytes - old.buffer_bytes
        for old, new in zip(before.parts, after.parts, strict=True)
    )
