"""Crop grids, views and image tokens."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsocr_graph.workloads import MODES, Tiling, closest_grid, mode_named, tile
from dsocr_graph.workloads.errors import PageSizeError, UnknownModeError
from dsocr_graph.workloads.tiling import GRIDS, grid_tokens

GUNDAM = MODES["Gundam"]
SIDES = st.integers(min_value=1, max_value=65_535)

# Published counts of image tokens in the sequence, by columns and rows.
PUBLISHED_TOKENS = {
    (1, 2): 493, (1, 3): 603, (1, 4): 713, (1, 5): 823, (1, 6): 933, (1, 7): 1043, (1, 8): 1153, (1, 9): 1263,
    (2, 1): 483, (2, 2): 693, (2, 3): 903, (2, 4): 1113, (3, 1): 583, (3, 2): 893, (3, 3): 1203, (4, 1): 683,
    (4, 2): 1093, (5, 1): 783, (6, 1): 883, (7, 1): 983, (8, 1): 1083, (9, 1): 1183,
}  # fmt: skip


def test_the_grids_are_those_of_two_to_nine_crops() -> None:
    """The grids are the published ones, fewest crops first."""
    assert set(GRIDS) == set(PUBLISHED_TOKENS)
    assert len(GRIDS) == 22
    crops = [columns * rows for columns, rows in GRIDS]
    assert crops == sorted(crops)


@pytest.mark.parametrize(("grid", "tokens"), PUBLISHED_TOKENS.items())
def test_every_grid_has_its_published_count_of_tokens(grid: tuple[int, int], tokens: int) -> None:
    """A page of exactly the grid's size is cropped to it and yields the published count of image tokens."""
    columns, rows = grid
    assert 273 + grid_tokens(columns, rows) == tokens
    tiling = tile(640 * columns, 640 * rows, GUNDAM)
    # Such a page fills its grid, so it wins ties with smaller ones; 2 x 2 stays below half of 3 x 3
    # (1,638,400 < 1,843,200), 1 x 2 and 2 x 1 below half of 2 x 4 and 4 x 2 (819,200 < 1,638,400).
    assert tiling == Tiling(columns=columns, rows=rows, views=columns * rows, image_tokens=tokens)


@pytest.mark.parametrize(
    ("mode", "tokens"),
    # side / 64 tokens per row, one newline per row, one separator: 8*9+1, 10*11+1, 16*17+1, 20*21+1
    [("Tiny", 73), ("Small", 111), ("Base", 273), ("Large", 421)],
)
def test_modes_without_crops_have_a_fixed_count(mode: str, tokens: int) -> None:
    """Without crops the count depends on the mode alone."""
    for size in ((640, 480), (5000, 100)):
        expected = Tiling(columns=1, rows=1, views=0, image_tokens=tokens)
        assert tile(*size, mode_named(mode)) == expected


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (1275, 1650, (2, 3)),  # 0.773: 2/3 is 0.106 away, 1 is 0.227
        (1654, 2339, (2, 3)),  # 0.707: 2/3 is 0.040 away
        (
            1920,
            1080,
            (4, 2),
        ),  # 1.778: 2 is 0.222 away, 3/2 is 0.278; 2,073,600 > 0.5 * 409,600 * 8 = 1,638,400
        (600, 1800, (1, 3)),  # exactly 1/3
    ],
)
def test_standard_pages_get_their_grids(width: int, height: int, grid: tuple[int, int]) -> None:
    """The large pages of the standard workload are cropped as worked by hand."""
    assert closest_grid(width, height) == grid


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        # 1/1: 2 x 2 or 3 x 3; the area has to exceed 0.5 * 409,600 * 9 = 1,843,200
        (1357, 1357, (2, 2)),  # 1,841,449
        (1358, 1358, (3, 3)),  # 1,844,164
        # 2/1: 2 x 1 or 4 x 2; 0.5 * 409,600 * 8 = 1,638,400
        (1810, 905, (2, 1)),  # 1,638,050
        (1812, 906, (4, 2)),  # 1,641,672
        # 1/2, the same area
        (905, 1810, (1, 2)),
        (906, 1812, (2, 4)),
        # 2.5: equally far from 2 (2 x 1, 4 x 2) and 3 (3 x 1; 0.5 * 409,600 * 3 = 614,400)
        (800, 320, (2, 1)),  # 256,000: neither larger grid
        (1600, 640, (3, 1)),  # 1,024,000: 3 x 1, not 4 x 2
        (2500, 1000, (4, 2)),  # 2,500,000: 3 x 1, then 4 x 2
        # 3.5: equally far from 3 (3 x 1) and 4 (4 x 1; 0.5 * 409,600 * 4 = 819,200)
        (1400, 400, (3, 1)),  # 560,000
        (1750, 500, (4, 1)),  # 875,000
    ],
)
def test_ties_go_to_the_larger_grid_of_which_half_is_filled(width: int, height: int, grid: tuple[int, int]) -> None:
    """Of equally near ratios the larger grid wins if the page has more than half of its pixels."""
    assert closest_grid(width, height) == grid


def test_a_page_is_cropped_from_641_pixels_on() -> None:
    """Both sides up to 640 mean no crops; one more pixel on either side means crops."""
    assert tile(640, 640, GUNDAM).views == 0
    assert tile(640, 480, GUNDAM) == Tiling(columns=1, rows=1, views=0, image_tokens=273)
    assert tile(641, 640, GUNDAM).views == 4  # 1.002: 2 x 2
    assert tile(1, 641, GUNDAM).views == 9  # the thinnest grid, 1 x 9


def test_extreme_pages_get_the_thinnest_grids() -> None:
    """The widest and the tallest page allowed are cropped 9 x 1 and 1 x 9."""
    assert closest_grid(65_535, 1) == (9, 1)
    assert closest_grid(1, 65_535) == (1, 9)


@pytest.mark.parametrize("name", ["show1", "show2", "show3", "show4"])
def test_real_pages_are_tiled_as_worked_by_hand(name: str) -> None:
    """Page images of the published repository, by their sizes."""
    width, height, columns, rows, tokens = {
        "show1": (1031, 1171, 2, 2, 693),  # 0.880: 1 is 0.120 away, 2/3 is 0.214; 1,207,301 < 1,843,200
        "show2": (942, 1188, 2, 3, 903),  # 0.793: 1 is 0.207 away, 2/3 is 0.126
        "show3": (934, 1183, 2, 3, 903),  # 0.790
        "show4": (1156, 1183, 2, 2, 693),  # 0.977; 1,367,548 < 1,843,200
    }[name]
    expected = Tiling(columns=columns, rows=rows, views=columns * rows, image_tokens=tokens)
    assert tile(width, height, GUNDAM) == expected


@given(width=SIDES, height=SIDES)
def test_the_grid_is_nearest_in_exact_arithmetic(width: int, height: int) -> None:
    """No other grid is nearer to the page's ratio, in fractions; views and tokens follow from the grid."""
    grid = closest_grid(width, height)
    aspect = Fraction(width, height)
    assert abs(aspect - Fraction(*grid)) == min(abs(aspect - Fraction(*other)) for other in GRIDS)
    tiling = tile(width, height, GUNDAM)
    if width > 640 or height > 640:
        assert 2 <= tiling.views <= 9
        assert tiling.image_tokens == PUBLISHED_TOKENS[tiling.columns, tiling.rows]
    else:
        assert tiling.image_tokens == 273


@given(width=SIDES, wider=SIDES, height=SIDES)
def test_a_wider_page_never_gets_a_taller_grid(width: int, wider: int, height: int) -> None:
    """At a given height the grid's ratio of columns to rows grows with the width."""
    narrow, wide = sorted((width, wider))
    assert Fraction(*closest_grid(narrow, height)) <= Fraction(*closest_grid(wide, height))


@given(width=st.integers(1, 6_000), height=st.integers(1, 6_000), factor=st.integers(1, 10))
def test_an_enlarged_page_never_gets_fewer_crops(width: int, height: int, factor: int) -> None:
    """Scaling a page up keeps its ratio, so only ties change, and they go to larger grids."""
    small = closest_grid(width, height)
    large = closest_grid(width * factor, height * factor)
    assert small[0] * small[1] <= large[0] * large[1]


@pytest.mark.parametrize("bad", [0, -1, 65_536, 10**12, 640.0, float("nan"), True, "640", None])
def test_a_side_out_of_range_is_refused(bad: object) -> None:
    """Sides are whole numbers from 1 to 65,535, and the error states the limit."""
    for size in ((bad, 100), (100, bad)):
        with pytest.raises(PageSizeError, match=r"expected a whole number from 1 to 65,535"):
            tile(*size, GUNDAM)
        with pytest.raises(PageSizeError, match=r"page (width|height) is"):
            closest_grid(*size)


def test_modes_are_found_in_any_case_and_listed_when_unknown() -> None:
    """An unknown mode names the known ones and the nearest."""
    assert mode_named("LARGE").base_size == 1280
    with pytest.raises(UnknownModeError, match=r"^no mode 'gundum'; did you mean 'Gundam'\? Known: Tiny, .*") as caught:
        mode_named("gundum")
    assert isinstance(caught.value, KeyError)
    with pytest.raises(UnknownModeError, match="no mode 5"):
        mode_named(5)
