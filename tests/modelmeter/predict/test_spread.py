"""Spread and Spreads: intervals by what was seen, else by what is stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.predict.kernel_time import Method
from modelmeter.predict.residuals import Spreads
from modelmeter.predict.spread import Spread

many = st.lists(st.floats(-1.0, 1.0), min_size=8, max_size=40)


def width(spread: Spread) -> float:
    """Return how far the ends of an interval lie apart, in the logarithm."""
    low, high = np.quantile(np.log(spread.factors("one group")), (0.1, 0.9))
    return float(high - low)


@given(residuals=many, factor=st.floats(1.01, 3.0))
def test_wider_residuals_give_wider_intervals(residuals: list[float], factor: float) -> None:
    """Law: residuals times a factor give an interval times this factor."""
    narrow = Spread(stated=0.0, residuals=tuple(residuals))
    wide = Spread(stated=0.0, residuals=tuple(factor * each for each in residuals))
    assert width(wide) == pytest.approx(factor * width(narrow), abs=1e-9)


@given(residuals=many)
def test_draws_stay_within_what_was_seen_and_around_the_centre(residuals: list[float]) -> None:
    """Law: errors are no further apart than residuals, and as many runs lie above 1 as below."""
    logs = np.log(Spread(stated=0.0, residuals=tuple(residuals)).factors("any group"))
    assert np.ptp(logs) <= max(residuals) - min(residuals) + 1e-9
    assert np.median(logs) == pytest.approx(0, abs=1e-9)


def test_a_tail_on_one_side_stays_on_it() -> None:
    """Twelve residuals of 0 and four of 0.5: p90 is a half above in the logarithm, p10 is the centre."""
    logs = np.log(Spread(stated=0.01, residuals=(0.0,) * 12 + (0.5,) * 4).factors("any group"))
    assert np.quantile(logs, (0.1, 0.9)) == pytest.approx([0.0, 0.5])


@pytest.mark.parametrize("residuals", [(), (-0.5, 0.5) * 3, (-0.01, 0.01) * 8])
def test_too_few_or_too_narrow_residuals_give_the_stated_spread(residuals: tuple[float, ...]) -> None:
    """None, six of them, and sixteen of 1 % against a stated 4 %: standard normal draws times 0.04."""
    logs = np.log(Spread(stated=0.04, residuals=residuals).factors("any group"))
    assert (logs.mean(), logs.std()) == (pytest.approx(0, abs=1e-12), pytest.approx(0.04))


def test_a_group_errs_in_the_same_runs_by_every_method() -> None:
    """The run in which a stated spread errs most is the one in which resampled residuals do."""
    stated, seen = Spread(stated=0.1), Spread(stated=0.1, residuals=tuple(math.log(each) for each in range(1, 20)))
    assert np.argsort(stated.factors("gemm")).tolist() == np.argsort(seen.factors("gemm")).tolist()
    assert np.argsort(seen.factors("gemm")).tolist() != np.argsort(seen.factors("attention")).tolist()


def test_a_family_with_enough_residuals_has_its_own() -> None:
    """Eight products and one copy: products keep theirs, the copy and what was never seen have all nine."""
    seen = [("gemm", Method.BRACKET, 0.1)] * 8 + [("memory", Method.BRACKET, -0.1), ("gemm", Method.HOLD, 9.0)]
    spreads = Spreads.from_residuals(seen, stated=dict.fromkeys(Method, 0.05))
    assert spreads.of("gemm", Method.BRACKET) == Spread(stated=0.05, residuals=(0.1,) * 8)
    for family in ("memory", "convolution"):
        assert spreads.of(family, Method.BRACKET).residuals == (*(0.1,) * 8, -0.1)
    assert spreads.of("gemm", Method.PHYSICAL) == Spread(stated=0.05)
