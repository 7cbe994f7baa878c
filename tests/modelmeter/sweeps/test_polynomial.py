"""Texts as sums of products, and the sums of these along a sweep."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.dim_binding import bind_text
from modelmeter.errors import DimError
from modelmeter.sweeps import SweepFormulaError
from modelmeter.sweeps.polynomial import polynomial
from modelmeter.sweeps.sizes import Sizes, power_sum, runs_of, summed_over_steps
from modelmeter.sweeps.times import sum_of_largest

TEXTS = (
    "3*B*(T + 2)**2 - B*T",
    "B/2 + T/4",
    "-(B - 7)*-T + 0.5",
    "Max(B*T/2, 40) + Min(B, T, 3)",
    "floor(T/16)*B + ceiling((T + B)/3)",
    "5*distinct_experts(64, 6, B*T) + B",
)


@pytest.mark.parametrize("text", TEXTS)
@given(B=st.integers(1, 500), T=st.integers(1, 9000))
def test_a_polynomial_has_the_value_of_its_text(text: str, B: int, T: int) -> None:
    """Expanded, a text is worth what it is worth as it stands."""
    sizes = Sizes(columns={"B": np.array([B, 1]), "T": np.array([T, 1])}, points=2)
    assert sizes.value(polynomial(text))[0] == pytest.approx(bind_text(text, {"B": B, "T": T}), rel=1e-13)


def test_like_terms_are_collected() -> None:
    """2*B*(T + 1) - 2*B is 2*B*T: what cancels is gone."""
    assert polynomial("2*B*(T + 1) - 2*B") == {("B", "T"): 2}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("B/S", SweepFormulaError, "divides by a dim"),
        ("B**S", SweepFormulaError, r"cannot evaluate 'B \*\* S'"),
        ("__import__('os')", SweepFormulaError, "it takes sums, products"),
        ("sqrt(B)", SweepFormulaError, "functions distinct_experts, floor"),
        ("B/0", DimError, "divides by zero"),
        ("floor(B, 2)", DimError, "calls floor with 2 arguments"),
        ("B +", DimError, "is no expression in dims"),
    ],
)
def test_other_texts_are_refused(text: str, error: type[Exception], message: str) -> None:
    """A text that no array arithmetic stands for is named, with what a sweep takes."""
    with pytest.raises(error, match=message):
        polynomial(text)


@given(start=st.integers(1, 9000), count=st.integers(1, 60), power=st.integers(0, 4))
def test_a_power_sum_is_the_sum(start: int, count: int, power: int) -> None:
    """The closed form of start**k + (start + 1)**k + ... is what a loop adds up, to the last digit."""
    found = power_sum(np.array([start]), np.array([count]), power)
    assert found.tolist() == [sum((start + step) ** power for step in range(count))]


def test_runs_of_neighbours() -> None:
    """A run ends where any column changes."""
    starts, lengths = runs_of(4, np.array([1, 1, 1, 2]), np.array([5, 5, 6, 6]))
    assert (starts.tolist(), lengths.tolist()) == ([0, 2, 3], [2, 1, 1])


def test_steps_are_spelled_out_where_no_form_is_closed() -> None:
    """ceiling(T/16) at T = 15, 16, 17 is 1 + 1 + 2; at T = 32, 33 it is 2 + 3."""
    sizes = Sizes(columns={"T": np.array([15, 32])}, points=2)
    found = summed_over_steps(sizes, "T", np.array([3, 2]), lambda each: each.factor("ceiling(T/16)"))
    assert found.tolist() == [4, 5]


lines = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 5)), min_size=3, max_size=3
)  # starts and growths, small so that lines cross and tie


@given(lines=lines, count=st.integers(1, 40))
def test_the_largest_of_lines_sums_up(lines: list[tuple[int, int]], count: int) -> None:
    """The sum of the largest of three lines in pieces is the sum term by term."""
    start, growth = np.array(lines, dtype=float).T.reshape(2, 3, 1)
    wanted = sum(max(a + b * step for a, b in lines) for step in range(count))
    assert sum_of_largest(start, growth, np.array([count]))[0] == pytest.approx(wanted, rel=1e-12)
