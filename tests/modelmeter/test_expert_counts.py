"""Distinct experts: the published table, other routings, bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.dim_binding import bind
from modelmeter.dim_text import parse
from modelmeter.dims import symbol
from modelmeter.expert_counts import distinct_experts, fewest_routing, most_routing, uniform_routing


@pytest.mark.parametrize(
    ("tokens", "experts"), [(1, 6.0), (2, 11.4), (4, 20.8), (8, 34.9), (16, 50.8), (32, 61.3), (64, 63.9)]
)
def test_distinct_experts_of_64_choose_6(tokens: int, experts: float) -> None:
    """64*(1 - (58/64)^T): T = 2 is 64*(1 - 0.8213) = 11.4; the published table for doubling T."""
    dim = distinct_experts(64, 6, symbol("T"))
    assert round(bind(dim, {"T": tokens}), 1) == experts


def test_distinct_experts_under_other_routings() -> None:
    """8 tokens of 6: at least 6 experts, at most 48 of 64; 20 tokens at most all 64."""
    dim = parse("2*distinct_experts(64, 6, T)")
    assert bind(dim, {"T": 8}, routing=fewest_routing) == 12
    assert bind(dim, {"T": 8}, routing=most_routing) == 96
    assert bind(dim, {"T": 20}, routing=most_routing) == 128


@given(st.integers(1, 200), st.data(), st.integers(0, 10_000))
def test_routing_expectation_lies_in_its_bounds(experts: int, data: st.DataObject, tokens: int) -> None:
    """Min(k, E) <= expectation <= Min(E, k*T), and it grows with the tokens."""
    top_k = data.draw(st.integers(1, experts))
    expected = uniform_routing(experts, top_k, tokens)
    slack = 1e-9 * experts
    assert fewest_routing(experts, top_k, tokens) - slack <= expected
    assert expected <= most_routing(experts, top_k, tokens) + slack
    assert expected <= uniform_routing(experts, top_k, tokens + 1) + slack
