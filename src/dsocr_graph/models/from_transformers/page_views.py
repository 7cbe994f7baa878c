"""How a page becomes views, patches and image tokens, in each model's own preprocessor; imports no torch.

The arithmetic is that of the image processors of transformers: `image_processing_deepseek_ocr2.py`,
`image_processing_qwen2_vl.py` (for Qwen3-VL too) and `processing_got_ocr2.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from dsocr_graph.errors import ModelConfigError
from dsocr_graph.workloads.errors import WorkloadError
from dsocr_graph.workloads.pages import PageSize

MOST_ELONGATED = 200  # the longer side of a page over the shorter one, at most, for packed patches


class PageShapeError(WorkloadError, ValueError):
    """A page too elongated for a model's preprocessor."""


@frozen(kw_only=True)
class SeenPage:
    """A page as a model sees it: the sizes of its vision stages, and its tokens in the prompt."""

    stages: Mapping[str, Mapping[str, int]]  # vision stages that run, in order, with the sizes of their dims
    image_tokens: int  # image features in the prompt
    marks: int = 0  # tokens of text that the prompt puts around an image


@frozen(kw_only=True)
class TiledPages:
    """A square global view of each page, and square tiles of a page that is larger than one tile.

    Examples
    --------
    >>> letter = TiledPages().page(PageSize(name="letter", width=1275, height=1650))
    >>> letter.stages, letter.image_tokens  # 2 x 3 tiles: 6 * 144 + 256 + 1
    ({'vision_local': {'V': 6}, 'vision_global': {}}, 1121)
    """

    view: int = 1024  # pixels per side of the global view
    tile: int = 768  # pixels per side of a tile
    fewest: int = 2  # tiles
    most: int = 6  # tiles
    cell: int = 64  # pixels per side of one image token: patches of 16, downsampled by 4

    def page(self, page: PageSize) -> SeenPage:
        """Return the views of a page."""
        tokens = (self.view // self.cell) ** 2 + 1  # and the separator of the views
        if max(page.width, page.height) <= self.tile:
            return SeenPage(stages={"vision_global": {}}, image_tokens=tokens)
        columns, rows = self.grid(page)
        tiles = columns * rows
        return SeenPage(
            stages={"vision_local": {"V": tiles}, "vision_global": {}},
            image_tokens=tokens + tiles * (self.tile // self.cell) ** 2,
        )

    def grid(self, page: PageSize) -> tuple[int, int]:
        """Return columns and rows of the grid whose shape is nearest to the page's.

        Of grids equally near, a larger one is taken while the page has more than half its pixels.
        """
        best, distance = (1, 1), math.inf
        for columns, rows in self._grids():
            found = abs(page.width / page.height - columns / rows)
            fills = page.width * page.height > 0.5 * self.tile**2 * columns * rows
            if found < distance or (found == distance and fills):
                best, distance = (columns, rows), found
        return best

    def _grids(self) -> list[tuple[int, int]]:
        sides = range(1, self.most + 1)
        grids = [(columns, rows) for columns in sides for rows in sides]
        return sorted((grid for grid in grids if self.fewest <= grid[0] * grid[1] <= self.most), key=math.prod)


@frozen(kw_only=True)
class PackedPages:
    """Pages resized to a multiple of a cell near their own size, all patches of a page in one row.

    Examples
    --------
    >>> letter = PackedPages().page(PageSize(name="letter", width=1275, height=1650))
    >>> letter.stages, letter.image_tokens  # 40 x 52 cells of 32 pixels
    ({'vision': {'N': 2080}}, 2080)
    """

    cell: int = 32  # pixels per side of one image token: 2 x 2 patches of 16
    fewest_pixels: int = 65536
    most_pixels: int = 16777216

    def page(self, page: PageSize) -> SeenPage:
        """Return the cells of a page.

        Raises
        ------
        PageShapeError
            For a page whose longer side is more than 200 times its shorter one.
        """
        if max(page.width, page.height) > MOST_ELONGATED * min(page.width, page.height):
            raise PageShapeError(
                f"page {page.name!r} of {page.width} x {page.height} pixels is too elongated: the model's "
                f"preprocessor takes sides of 1 to {MOST_ELONGATED} at most. Cut the page, or leave it out"
            )
        columns, rows = self.grid(page)
        return SeenPage(stages={"vision": {"N": columns * rows}}, image_tokens=columns * rows, marks=2)

    def grid(self, page: PageSize) -> tuple[int, int]:
        """Return columns and rows of cells: the page's shape, with its pixels between the two bounds."""
        columns, rows = round(page.width / self.cell), round(page.height / self.cell)
        pixels = columns * rows * self.cell**2
        if pixels > self.most_pixels:
            shrink = math.sqrt(page.width * page.height / self.most_pixels)
            return (
                max(1, math.floor(page.width / shrink / self.cell)),
                max(1, math.floor(page.height / shrink / self.cell)),
            )
        if pixels < self.fewest_pixels:
            grow = math.sqrt(self.fewest_pixels / (page.width * page.height))
            return math.ceil(page.width * grow / self.cell), math.ceil(page.height * grow / self.cell)
        return columns, rows


@frozen(kw_only=True)
class WholePages:
    """Each page squeezed into one square view.

    Examples
    --------
    >>> letter = WholePages(image_tokens=256).page(PageSize(name="letter", width=1275, height=1650))
    >>> letter.stages, letter.image_tokens, letter.marks
    ({'vision': {'V': 1}}, 256, 2)
    """

    image_tokens: int  # of one view

    def page(self, page: PageSize) -> SeenPage:
        """Return the one view of a page, whatever its size."""
        return SeenPage(stages={"vision": {"V": 1}}, image_tokens=self.image_tokens, marks=2)


Preprocessor = TiledPages | PackedPages | WholePages

# What each model type's image processor does by default. A configuration does not hold these sizes: they are in the
# processor's own file, as published beside the weights.
PREPROCESSORS: Mapping[str, Preprocessor] = {
    "deepseek_ocr2": TiledPages(),  # DeepseekOcr2ImageProcessor's defaults
    "got_ocr2": WholePages(image_tokens=256),  # GotOcr2Processor: 256 <imgpad> between <img> and </img>
    "qwen3_vl": PackedPages(),  # Qwen/Qwen3-VL-8B-Instruct: preprocessor_config.json
}


def preprocessor_of(settings: Mapping[str, Any]) -> Preprocessor:
    """Return how a model takes pages, by the model type of its configuration.

    Raises
    ------
    ModelConfigError
        For a model type whose preprocessor is not known here.

    Examples
    --------
    >>> preprocessor_of({"model_type": "got_ocr2"})
    WholePages(image_tokens=256)
    """
    model_type = str(settings["model_type"])
    if model_type not in PREPROCESSORS:
        raise ModelConfigError(
            f"how a model of type {model_type!r} cuts pages into views is not known; known are "
            f"{', '.join(sorted(PREPROCESSORS))}. Ask for its stages at sizes of their own (--points "
            f"prefill:B=1,S=1024,N=576), or add its preprocessor to PREPROCESSORS of {__name__}"
        )
    return PREPROCESSORS[model_type]
