"""Lattice: measured points, between them, beyond them, and grids with gaps."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.predict.lattice import Lattice

# A grid with a gap: (2, 100) was not measured.
GRID = Lattice(axes=("n", "m"), points={(2, 10): 1.0, (8, 10): 2.0, (8, 100): 3.0})


def test_a_measured_point_stands_alone() -> None:
    """Its weight is 1; no axis is between or beyond."""
    around = GRID.around((8, 100))
    assert [(item.sizes, item.seconds, item.weight) for item in around.neighbours] == [((8, 100), 3.0, 1.0)]
    assert not around.between | around.beyond


def test_weights_are_linear_in_the_logarithm() -> None:
    """4 lies halfway between 2 and 8: log(4/2) / log(8/2) = 1/2."""
    around = GRID.around((4, 10))
    assert [(item.sizes, item.weight) for item in around.neighbours] == [((2, 10), 0.5), ((8, 10), 0.5)]
    assert (around.between, around.beyond) == (frozenset({0}), frozenset())


def test_beyond_the_edge_the_edge_stands() -> None:
    """The nearest measured size, and the axis is told."""
    around = GRID.around((8, 1000))
    assert [item.sizes for item in around.neighbours] == [(8, 100)]
    assert around.beyond == {1}


def test_a_gap_is_filled_by_the_nearest_of_its_row() -> None:
    """At n = 2 only m = 10 was measured; at n = 8 the size itself was."""
    around = GRID.around((4, 100))
    assert [(item.sizes, item.weight) for item in around.neighbours] == [((2, 10), 0.5), ((8, 100), 0.5)]
    assert (around.between, around.beyond) == (frozenset({0}), frozenset({1}))


def test_of_equal_rows_the_fastest_counts() -> None:
    """A table may list several kernels for one call; an engine picks the fastest."""
    lattice = Lattice.from_columns({"m": [1, 1, 2]}, [3.0, 2.0, 4.0])
    assert lattice.points == {(1,): 2.0, (2,): 4.0}
    assert lattice.fastest == 2.0


@given(
    points=st.dictionaries(
        st.tuples(st.integers(1, 50), st.integers(1, 50)), st.floats(1e-6, 1.0), min_size=1, max_size=30
    ),
    at=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_weights_add_up_and_reproduce_sizes_inside(points: dict[tuple[float, ...], float], at: tuple[int, int]) -> None:
    """Law: weights add up to 1, and along an axis that is not beyond the mean logarithm is that of the sizes."""
    lattice = Lattice(axes=("n", "m"), points=points)
    around = lattice.around(at)
    assert sum(item.weight for item in around.neighbours) == pytest.approx(1)
    for axis in {0, 1} - around.beyond:
        mean = sum(item.weight * math.log(item.sizes[axis]) for item in around.neighbours)
        assert mean == pytest.approx(math.log(at[axis]), abs=1e-9)


lengths = st.integers(min_value=1, max_value=4096)


@given(a=lengths, b=lengths, at=lengths, power=st.floats(min_value=0.1, max_value=3))
def test_a_power_law_is_interpolated_exactly(a: int, b: int, at: int, power: float) -> None:
    """Law: t = m**p is a line in the logarithms; between its points it is met, outside there is nothing between."""
    found = Lattice(axes=("m",), points={(a,): a**power, (b,): b**power}).between((at,))
    if min(a, b) <= at <= max(a, b):
        assert found is not None
        assert found.seconds == pytest.approx(at**power, rel=1e-6)
    else:
        assert found is None


@given(rows=st.integers(2, 63), keys=st.integers(2, 999))
def test_a_grid_is_interpolated_along_both_axes(rows: int, keys: int) -> None:
    """Law: t = m * c on the corners of a grid is t = m * c inside it, whether the outside is held or not."""
    corners = Lattice(axes=("m", "c"), points={(m, c): float(m * c) for m in (1, 64) for c in (1, 1000)})
    found = corners.between((rows, keys))
    assert found is not None
    assert found == corners.around((rows, keys))
    assert found.seconds == pytest.approx(rows * keys, rel=1e-6)


def test_between_does_not_fill_a_gap_by_holding() -> None:
    """At n = 2 only m = 10 was measured, so nothing lies around (4, 100) without holding."""
    assert GRID.between((4, 100)) is None


def test_a_size_of_0_is_next_to_1() -> None:
    """Keys beyond the queries are 0 for a prompt: log(2/1) / log(4/1) = 1/2 of the way from 0 to 4."""
    around = Lattice(axes=("c",), points={(0,): 1.0, (4,): 9.0}).around((2,))
    assert [item.weight for item in around.neighbours] == [0.5, 0.5]
    assert around.seconds == pytest.approx(3.0)
