"""Grids of page workloads: modes, page sizes or crops, batches, tokens and what-ifs as axes of a modelmeter sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from dsocr_graph.errors import OptionError
from dsocr_graph.sweep_stages import sections
from dsocr_graph.workloads import MAX_CONTEXT, Mode, mode_named, tile, tile_crops
from dsocr_graph.workloads.errors import ContextTooLongError, InvalidProfileError
from dsocr_graph.workloads.limits import MAX_BATCH, whole_number
from modelmeter.devices import DeviceSpec
from modelmeter.model import AnalyticModel
from modelmeter.sweeps import Axis, Grid, Section, StageRule
from modelmeter.whatif import AS_CAPTURED, Options

# What `dsocr_graph.workloads.bind_profile` makes of a page, in columns of the axes.
RULES = (
    StageRule(
        stage="vision_local",
        count="batch*Min(views, 1)",
        bindings={"V": "views", "H": "crop_rows", "W": "crop_columns"},
    ),
    StageRule(stage="vision_global", count="batch"),
    StageRule(
        stage="prefill",
        count="1",
        bindings={"B": "batch", "S": "image_tokens + prompt_tokens", "N": "image_tokens"},
    ),
    StageRule(
        stage="decode",
        count="new_tokens - 1",
        bindings={"B": "batch", "T": "image_tokens + prompt_tokens"},
        sweep="T",
    ),
)


@frozen(kw_only=True)
class PageAxes:
    """What a grid of pages runs through, every combination once.

    Examples
    --------
    >>> PageAxes(modes=("Gundam",), pages=((1700, 2200),), batches=(1, 2), new_tokens=(100, 1100)).points
    4
    """

    modes: tuple[str, ...]
    pages: tuple[tuple[int, int], ...] = ()  # width and height in pixels
    crops: tuple[tuple[int, int], ...] = ()  # or columns and rows that a page is cut into, whatever its size
    batches: tuple[int, ...]  # equal pages processed together
    new_tokens: tuple[int, ...]  # per page
    prompt_tokens: tuple[int, ...] = field(default=(10,))  # of the context, without image tokens

    @property
    def points(self) -> int:
        """Points for one what-if and device."""
        axes = (self.modes, self.pages or self.crops, self.batches, self.prompt_tokens, self.new_tokens)
        return math.prod(map(len, axes))


def page_grid(
    axes: PageAxes,
    models: Mapping[str, AnalyticModel],
    *,
    what_ifs: Sequence[Options] = (AS_CAPTURED,),
    devices: Sequence[DeviceSpec] = (),
) -> Grid:
    """Return the grid of some axes: modes change slowest, then what-ifs, devices, pages, batches, prompts, new tokens.

    A what-if has a column of its own where any of them changes a call; routing always has one.

    Parameters
    ----------
    axes : PageAxes
        Every combination is a point.
    models : mapping of str to AnalyticModel
        The compiled model of each mode, by the mode's name.
    what_ifs : sequence of Options
        Element types, logits, growth of the KV cache and routing; as captured when left out.
    devices : sequence of DeviceSpec
        With devices, the table has roofline times.

    Raises
    ------
    OptionError
        When an axis has no values, or pages have both sizes and crops.
    WhatIfError, UnsupportedWhatIfError, RoutingError
        When a what-if cannot be applied to a model.
    CropGridError, InvalidProfileError, ContextTooLongError, PageSizeError, UnknownModeError
        When a value is out of its range, or tokens exceed the positions of the model.

    Examples
    --------
    >>> import modelmeter
    >>> axes = PageAxes(modes=("Base",), pages=((1700, 2200),), batches=(1, 2), new_tokens=(1, 100))
    >>> grid = page_grid(axes, {"Base": modelmeter.load("deepseek-ocr", "base")})
    >>> [run.stage for run in grid.sections[0].workload(1).items[0].runs]
    ['vision_global', 'prefill', 'decode']
    """
    _require_values(axes)
    found: list[Section] = []
    for name in axes.modes:
        mode = mode_named(name)
        found += sections(
            models[mode.name],
            _axes(axes, mode),
            RULES,
            labels={"mode": mode.name},
            documents="batch",
            what_ifs=what_ifs,
            devices=devices,
        )
    return Grid(sections=tuple(found))


def _require_values(axes: PageAxes) -> None:
    if axes.pages and axes.crops:
        raise OptionError("a page has a size, which says how it is cropped, or crops, not both; leave one out")
    if not axes.pages and not axes.crops:
        raise OptionError("axis pages has no values; give at least one size of a page, or crops")
    for name in ("modes", "batches", "new_tokens", "prompt_tokens"):
        if not getattr(axes, name):
            raise OptionError(f"axis {name} has no values; give at least one")
    for batch in axes.batches:
        whole_number(batch, what="batch", high=MAX_BATCH, error=InvalidProfileError)
    for name in ("new_tokens", "prompt_tokens"):
        for tokens in getattr(axes, name):
            whole_number(tokens, what=name, high=MAX_CONTEXT, error=InvalidProfileError)


def _axes(axes: PageAxes, mode: Mode) -> tuple[Axis, ...]:
    tilings = [tile(width, height, mode) for width, height in axes.pages]
    tilings += [tile_crops(columns, rows, mode) for columns, rows in axes.crops]
    image = max(tiling.image_tokens for tiling in tilings)
    prompt, new = max(axes.prompt_tokens), max(axes.new_tokens)
    if image + prompt + new > MAX_CONTEXT:
        raise ContextTooLongError(
            f"the largest point of mode {mode.name} needs {image + prompt + new:,} tokens ({image:,} of the image, "
            f"{prompt:,} of the prompt, {new:,} new), over the model's {MAX_CONTEXT:,} positions; make new_tokens "
            f"{MAX_CONTEXT - image - prompt:,} at most, or choose a smaller mode or prompt"
        )
    sizes = {
        "page_width": tuple(width for width, _ in axes.pages),
        "page_height": tuple(height for _, height in axes.pages),
    }
    page = Axis(
        name="page",
        columns={
            **(sizes if axes.pages else {}),
            "crop_columns": tuple(tiling.columns for tiling in tilings),
            "crop_rows": tuple(tiling.rows for tiling in tilings),
            "views": tuple(tiling.views for tiling in tilings),
            "image_tokens": tuple(tiling.image_tokens for tiling in tilings),
        },
        units={
            **dict.fromkeys(sizes if axes.pages else (), "pixels"),
            **dict.fromkeys(("crop_columns", "crop_rows", "views"), "crops"),
            "image_tokens": "tokens",
        },
    )
    return (
        page,
        Axis.of("batch", axes.batches, unit="pages"),
        Axis.of("prompt_tokens", axes.prompt_tokens, unit="tokens"),
        Axis.of("new_tokens", axes.new_tokens, unit="tokens"),
    )
