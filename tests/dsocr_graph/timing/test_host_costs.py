"""What the host spends: a fit without negative times, and blocks of calls."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsocr_graph.timing.host_costs import block_seconds, measure_host_costs, non_negative_fit


@given(
    classes=st.lists(st.floats(0, 1e-4), min_size=3, max_size=3),
    launch=st.floats(0, 1e-5),
)
def test_blocks_split_into_classes_and_launches(classes: list[float], launch: float) -> None:
    """Two calls of each class, with one and with three launches: what they were made of is found again."""
    rows = np.array([[*np.eye(3)[kind], launches] for kind in range(3) for launches in (1, 3)])
    found = non_negative_fit(rows, rows @ np.array([*classes, launch]))
    assert found == pytest.approx([*classes, launch], abs=1e-9)


def test_a_time_below_zero_becomes_zero_and_the_others_make_up_for_it() -> None:
    """h + l = 1, h + 3 l = 0 would be l = -1/2; with l = 0, h = 1/2 is nearest to both."""
    found = non_negative_fit(np.array([[1.0, 1.0], [1.0, 3.0]]), np.array([1.0, 0.0]))
    assert found == pytest.approx([0.5, 0.0])


def test_views_and_modules_cost_microseconds_on_a_cpu() -> None:
    """Nothing is launched; other classes are part of their calls' times."""
    costs = measure_host_costs(torch.device("cpu"))
    assert (costs.launch, costs.latency, costs.sync) == (0, 0, 0)
    assert set(costs.classes) == {"view", "module", "turn"}
    assert all(1e-8 < seconds < 1e-3 for seconds in costs.classes.values())


def test_a_block_waits_only_between_its_calls() -> None:
    """Nine blocks of 200 calls, each after one wait."""
    log: list[str] = []
    assert block_seconds(lambda: log.append("call"), lambda: log.append("wait")) > 0
    assert log == ["wait", *["call"] * 200] * 9
