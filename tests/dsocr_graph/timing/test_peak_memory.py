"""Peak memory by the allocator, beside sums worked by hand and the analytic model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsocr_graph.lowering import lower
from dsocr_graph.scopes import group_by_module
from dsocr_graph.timing.call_clocks import HostClock
from dsocr_graph.timing.peak_memory import peak_memory
from dsocr_graph.timing.replay import replay
from dsocr_graph.timing.stage_inputs import total_bytes
from modelmeter.measurement import expected_peak_bytes

from .conftest import POINTS, Tiny


@settings(max_examples=5)
@given(size=st.integers(1, 5000))
def test_what_is_alive_together_counts(size: int) -> None:
    """-x, exp(-x) and their sum live together: three results of 4 bytes a number; the input is not counted."""

    def run(x: Tensor) -> Tensor:
        negative = x.neg()
        return negative + negative.exp()

    assert peak_memory(lambda: torch.ones(size), run, "cpu") == 3 * 4 * size


def test_what_the_run_frees_is_there_again() -> None:
    """A run that drops its input of 4,000 bytes before it makes its second result of as many needs only one more."""

    def run(given: list[Tensor]) -> Tensor:
        x = given.pop()
        negative = x.neg()
        del x
        return negative.exp()

    assert peak_memory(lambda: [torch.ones(1000)], run, "cpu") == 4000


def test_what_is_freed_at_once_counts_while_it_is_there() -> None:
    """Sorting 1,000 floats and keeping nothing still has values (4,000) and indices (8,000) for a while."""
    assert peak_memory(lambda: torch.rand(1000), lambda x: x.sort() and None, "cpu") >= 12_000


@pytest.mark.parametrize(
    ("stage", "bindings"),
    [
        ("vision_local", {"V": 2, "H": 1}),
        ("prefill", {"B": 2, "S": 91, "N": 81}),
        ("prefill", {"B": 1, "S": 413, "N": 403}),
        ("decode", {"B": 2, "T": 91}),
        ("decode", {"B": 1, "T": 913}),
    ],
)
def test_the_analytic_peak_is_that_of_the_allocator(tiny: Tiny, stage: str, bindings: dict[str, int]) -> None:
    """Within 3 %; the replay asks for the memory that liveness says, to the byte."""
    captured = tiny.captured(stage)
    (described,) = lower(group_by_module(captured)).stages
    expected = expected_peak_bytes(
        described, bindings, total_bytes(tiny.runnable.inputs(stage, bindings, device="meta", seed=0))
    )

    def inputs() -> list[Tensor]:
        return tiny.runnable.inputs(stage, bindings, device="cpu", seed=0)

    module = tiny.runnable.stage_module(tiny.model, stage)
    with torch.no_grad():
        real = peak_memory(inputs, lambda given: tiny.runnable.run(tiny.model, stage, given), "cpu")
        mine = peak_memory(
            inputs,
            lambda given: replay(captured.graphs[0], module, given, bindings, HostClock(threads=1)).outputs,
            "cpu",
        )
    assert real == pytest.approx(expected, rel=0.03)
    assert mine == expected


def test_scratch_memory_of_a_kernel_is_seen_too(tiny: Tiny) -> None:
    """At toy size the attention kernel's own blocks show: less than 1 MB over the analytic peak of the global view."""
    captured = tiny.captured("vision_global")
    (described,) = lower(group_by_module(captured)).stages
    inputs = tiny.runnable.inputs("vision_global", POINTS["vision_global"], device="meta", seed=0)
    with torch.no_grad():
        real = peak_memory(
            lambda: tiny.runnable.inputs("vision_global", {}, device="cpu", seed=0),
            lambda given: tiny.runnable.run(tiny.model, "vision_global", given),
            "cpu",
        )
    assert 0 <= real - expected_peak_bytes(described, {}, total_bytes(inputs)) < 1_000_000
