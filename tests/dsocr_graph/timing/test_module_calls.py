"""Calls of modules, counted by hooks, beside the graph's."""

from collections import Counter

import pytest
import torch
from torch import nn

from dsocr_graph.scopes import group_by_module
from dsocr_graph.timing.module_calls import compare_calls, count_module_calls
from modelmeter.measurement import CallCount

from .conftest import POINTS, Tiny


def counted_run(tiny: Tiny, stage: str) -> Counter[str]:
    """Run a stage once and return what the hooks counted."""
    inputs = tiny.runnable.inputs(stage, POINTS[stage], device="cpu", seed=0)
    with torch.no_grad(), count_module_calls(tiny.model) as counted:
        tiny.runnable.run(tiny.model, stage, inputs)
    return counted


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_every_module_is_called_as_often_as_the_graph_says(tiny: Tiny, stage: str) -> None:
    """In the decoder all counts agree: three layers with attention, an MLP and two mixtures of experts."""
    counts = compare_calls(group_by_module(tiny.captured(stage)), stage, counted_run(tiny, stage))
    assert [count for count in counts if count.counted != count.expected] == []
    by_module = {count.module: count.counted for count in counts}
    assert by_module["model.layers.[1-2].mlp.experts"] == 2
    assert by_module["lm_head"] == 1


@pytest.mark.parametrize("stage", ["vision_global", "vision_local"])
def test_only_the_root_is_reached_without_a_call(tiny: Tiny, stage: str) -> None:
    """The encoders are methods of the model, so no hook of the model itself fires; every other count agrees."""
    counts = compare_calls(group_by_module(tiny.captured(stage)), stage, counted_run(tiny, stage))
    wrong = [count for count in counts if count.counted != count.expected]
    assert wrong == [CallCount(stage=stage, module="", counted=0, expected=1)]


def test_stages_captured_alone_have_the_ids_of_the_whole_model(tiny: Tiny) -> None:
    """What a stage runs has one id, whether the other stages were captured with it or not."""
    whole = group_by_module(tiny.captured(*POINTS)).ids
    for stage in POINTS:
        alone = group_by_module(tiny.captured(stage))
        ran = [path for node in alone.nodes if node.calls.get(stage) for path in node.paths]
        assert {path: alone.ids[path] for path in ran} == {path: whole[path] for path in ran}


def test_a_loop_over_experts_shows_as_calls_that_the_graph_does_not_have(tiny: Tiny) -> None:
    """Two layers with two tokens of two experts each call between 4 and 8 expert MLPs; the grouped graph calls none."""
    assert tiny.named.runnable is not None
    looping = tiny.named.runnable(tiny.variant, "loop")
    model = looping.load(device="cpu", seed=0)
    with torch.no_grad(), count_module_calls(model) as counted:
        looping.run(model, "decode", looping.inputs("decode", POINTS["decode"], device="cpu", seed=0))
    counts = compare_calls(group_by_module(tiny.captured("decode")), "decode", counted)
    wrong = {count.module: count for count in counts if count.counted != count.expected}
    experts = wrong["model.layers.[1-2].mlp.experts.[0-7]"]
    assert 4 <= experts.counted <= 8
    assert experts.expected == 0
    assert all(module.startswith("model.layers.[1-2].mlp.experts.[0-7]") for module in wrong)


def test_no_hook_is_left_behind() -> None:
    """After the context a call is not counted, even when a call in it failed."""
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RuntimeError), count_module_calls(model) as counted:
        model(torch.ones(3))
    model(torch.ones(1, 2))
    assert counted == {"": 1, "0": 1}
