"""A captured graph run call by call does what the model does."""

import gc
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dsocr_graph.errors import ReplayError
from dsocr_graph.lowering import lower
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import group_by_module
from dsocr_graph.timing.call_clocks import HostClock
from dsocr_graph.timing.replay import replay
from dsocr_graph.tracing import capture

from .conftest import POINTS, Tiny


def replayed(tiny: Tiny, stage: str, bindings: dict[str, int], seed: int = 0) -> tuple[Tensor, ...]:
    """Return the outputs of a replay of the toy-size model."""
    (graph,) = tiny.captured(stage).graphs
    module = tiny.runnable.stage_module(tiny.model, stage)
    inputs = tiny.runnable.inputs(stage, bindings, device="cpu", seed=seed)
    return replay(graph, module, inputs, bindings, HostClock(threads=1)).outputs


def run(tiny: Tiny, stage: str, bindings: dict[str, int], seed: int = 0) -> tuple[Tensor, ...]:
    """Return the outputs of the real code."""
    with torch.no_grad():
        return tiny.runnable.run(tiny.model, stage, tiny.runnable.inputs(stage, bindings, device="cpu", seed=seed))


@pytest.mark.parametrize("stage", POINTS)
def test_every_stage_replays_to_the_bit(tiny: Tiny, stage: str) -> None:
    """The outputs of the graph, call by call, are those of the module: the graph is the model."""
    for mine, real in zip(replayed(tiny, stage, POINTS[stage]), run(tiny, stage, POINTS[stage]), strict=True):
        assert torch.equal(mine, real)


@settings(max_examples=8)
@given(B=st.integers(1, 4), T=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_decode_step_replays_at_any_size(tiny: Tiny, B: int, T: int, seed: int) -> None:
    """One graph, captured with symbolic dims, holds at every batch and every length, at 1 too."""
    mine, real = (f(tiny, "decode", {"B": B, "T": T}, seed) for f in (replayed, run))
    assert all(torch.equal(one, other) for one, other in zip(mine, real, strict=True))


@pytest.mark.parametrize("stage", POINTS)
def test_calls_are_those_of_the_schedule(tiny: Tiny, stage: str) -> None:
    """The seconds of a replay are in the order of Stage.schedule: one per call, leaves and free calls alike."""
    captured = tiny.captured(stage)
    analytic = lower(group_by_module(captured))
    (graph,), (described,) = captured.graphs, analytic.stages
    records = [*analytic.leaves_by_stage[stage], *analytic.free_by_stage[stage]]
    assert [records[position].op for position in described.schedule] == [call.op for call in graph.calls]


class Steps(nn.Module):
    """Doubles, then adds one, then takes the root: each result of 1,013 numbers is needed once."""

    def forward(self, x: Tensor) -> Tensor:
        """[1013] -> [1013]."""
        return x.mul(2).add(1).sqrt()


def captured_steps() -> Any:
    """Return the graph of Steps."""
    stage = StageSpec(name="steps", description="", module=Steps(), inputs=(torch.empty(1013, device="meta"),))
    return capture(stage.module, [stage], name="toy", variant={}).graphs[0]


class CountingClock(HostClock):
    """Also counts, whenever a call begins, how many tensors of 1,013 numbers are alive."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.alive: list[int] = []

    def begin(self) -> None:
        """Count."""
        tensors = (item for item in gc.get_objects() if type(item) is Tensor)
        self.alive.append(sum(tensor.shape == (1013,) and tensor.is_cpu for tensor in tensors))
        super().begin()


def test_tensors_go_when_nothing_needs_them() -> None:
    """Alive when the calls begin: x; x and 2 x; x and 2 x + 1. The caller holds x, nobody holds 2 x."""
    graph = captured_steps()
    clock = CountingClock()
    (output,) = replay(graph, Steps(), [torch.ones(1013)], {}, clock).outputs
    assert clock.alive == [1, 2, 2]
    assert torch.equal(output, torch.full((1013,), 3.0).sqrt())


def test_inputs_move_over() -> None:
    """The list is empty afterwards: the replay alone decided when an input was freed."""
    inputs = [torch.ones(1013)]
    replay(captured_steps(), Steps(), inputs, {}, HostClock(threads=1))
    assert inputs == []


def test_a_wrong_number_of_inputs_is_refused() -> None:
    """The message says how many there are and should be."""
    with pytest.raises(ReplayError, match="stage 'steps' takes 1 inputs, given are 2"):
        replay(captured_steps(), Steps(), [torch.ones(1013)] * 2, {}, HostClock(threads=1))


def test_a_module_without_the_weights_is_refused(tiny: Tiny) -> None:
    """The message names the first tensor that is missing."""
    (graph,) = tiny.captured("decode").graphs
    inputs = tiny.runnable.inputs("decode", POINTS["decode"], device="cpu", seed=0)
    with pytest.raises(
        ReplayError, match=r"stage 'decode' reads root\.model\.image_newline, which Steps does not have"
    ):
        replay(graph, Steps(), inputs, POINTS["decode"], HostClock(threads=1))
