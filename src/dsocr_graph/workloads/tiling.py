"""Page size to crop grid, views and tokens, by the rule of the published preprocessing."""

from __future__ import annotations

from attrs import frozen

from dsocr_graph.workloads.errors import CropGridError, PageSizeError
from dsocr_graph.workloads.limits import MAX_SIDE, whole_number
from dsocr_graph.workloads.modes import CELL, Mode

CROP_SIZE = 640  # pixels per side; the published code crops at 640 whatever image_size says
MIN_CROPS = 2
MAX_CROPS = 9

# Columns and rows, fewest crops first. Grids of equally many crops never tie in aspect ratio, so their order
# is free.
GRIDS: tuple[tuple[int, int], ...] = tuple(
    sorted(
        (
            (columns, rows)
            for columns in range(1, MAX_CROPS + 1)
            for rows in range(1, MAX_CROPS + 1)
            if MIN_CROPS <= columns * rows <= MAX_CROPS
        ),
        key=lambda grid: grid[0] * grid[1],
    )
)


@frozen(kw_only=True)
class Tiling:
    """A page as the model sees it.

    An uncropped page has a grid of 1 x 1 and no local views, as in the published code.
    """

    columns: int  # crops from left to right, W
    rows: int  # crops from top to bottom, H
    views: int  # local views, V; 0 when the page is not cropped
    image_tokens: int  # N


def closest_grid(width: int, height: int) -> tuple[int, int]:
    """Return the crop grid, columns and rows, whose aspect ratio is nearest to the page's.

    Among 2 to 9 crops the nearest ratio wins. Of grids with equally near ratios the larger one wins as long
    as the page's area exceeds half of the grid's, in pixels. Distances are compared as floats, as the
    published code does.

    Parameters
    ----------
    width, height
        Size of the page in pixels.

    Raises
    ------
    PageSizeError
        A side that is no whole number from 1 to 65,535.

    Examples
    --------
    An A4 page at 200 dpi has the ratio 0.707, nearest to 2/3; a slide of 16:9 ties at 2/1 and 4/2 and is
    large enough for the second.

    >>> closest_grid(1654, 2339), closest_grid(1920, 1080)
    ((2, 3), (4, 2))
    """
    _check_size(width, height)
    aspect = width / height
    best = (1, 1)
    best_distance = float("inf")
    for columns, rows in GRIDS:
        distance = abs(aspect - columns / rows)
        if distance < best_distance:
            best, best_distance = (columns, rows), distance
        elif distance == best_distance and width * height > 0.5 * CROP_SIZE * CROP_SIZE * columns * rows:
            best = (columns, rows)
    return best


def grid_tokens(columns: int, rows: int) -> int:
    """Return the tokens of the local views: 10 x 10 per crop, one newline after each full row of tokens.

    Examples
    --------
    >>> grid_tokens(2, 3)
    630
    """
    side = CROP_SIZE // CELL
    return (side * columns + 1) * side * rows


def tile(width: int, height: int, mode: Mode) -> Tiling:
    """Return the crop grid, views and image tokens of a page.

    Parameters
    ----------
    width, height
        Size of the page in pixels, orientation applied.
    mode
        One of `dsocr_graph.workloads.MODES`.

    Raises
    ------
    PageSizeError
        A side that is no whole number from 1 to 65,535.

    Examples
    --------
    >>> from dsocr_graph.workloads.modes import mode_named
    >>> tile(1275, 1650, mode_named("Gundam"))
    Tiling(columns=2, rows=3, views=6, image_tokens=903)
    >>> tile(640, 480, mode_named("Gundam"))
    Tiling(columns=1, rows=1, views=0, image_tokens=273)
    """
    _check_size(width, height)
    if not mode.crop or (width <= CROP_SIZE and height <= CROP_SIZE):
        return tile_crops(1, 1, mode)
    return tile_crops(*closest_grid(width, height), mode)


def tile_crops(columns: int, rows: int, mode: Mode) -> Tiling:
    """Return the views and image tokens of a page that is cut into a given grid, whatever its size.

    Parameters
    ----------
    columns, rows
        Crops from left to right and from top to bottom; 1 x 1 is an uncropped page.
    mode
        One of `dsocr_graph.workloads.MODES`.

    Raises
    ------
    CropGridError
        A grid that the published preprocessing never makes, or crops in a mode that has none.

    Examples
    --------
    >>> from dsocr_graph.workloads.modes import mode_named
    >>> tile_crops(2, 3, mode_named("Gundam")) == tile(1275, 1650, mode_named("Gundam"))
    True
    """
    if (columns, rows) == (1, 1):
        return Tiling(columns=1, rows=1, views=0, image_tokens=mode.global_tokens)
    if not mode.crop:
        raise CropGridError(
            f"crops {columns}x{rows} in mode {mode.name}, which crops no page; choose mode Gundam, or 1x1 for none"
        )
    if (columns, rows) not in GRIDS:
        raise CropGridError(
            f"crops {columns}x{rows} are no grid of {MIN_CROPS} to {MAX_CROPS} crops, all that the published "
            "preprocessing makes; give columns x rows, such as 2x3, or 1x1 for an uncropped page"
        )
    return Tiling(
        columns=columns,
        rows=rows,
        views=columns * rows,
        image_tokens=mode.global_tokens + grid_tokens(columns, rows),
    )


def _check_size(width: int, height: int) -> None:
    whole_number(width, what="page width", high=MAX_SIDE, error=PageSizeError)
    whole_number(height, what="page height", high=MAX_SIDE, error=PageSizeError)
