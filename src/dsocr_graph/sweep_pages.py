"""Grids of page workloads: modes, page sizes, batches and tokens as the axes of a modelmeter sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import field, frozen

from dsocr_graph.errors import OptionError
from dsocr_graph.workloads import MAX_CONTEXT, Mode, mode_named, tile
from dsocr_graph.workloads.errors import ContextTooLongError, InvalidProfileError
from dsocr_graph.workloads.limits import MAX_BATCH, whole_number
from modelmeter.devices import DeviceSpec
from modelmeter.dims import Routing, uniform_routing
from modelmeter.model import AnalyticModel
from modelmeter.sweeps import Axis, Grid, Program, Section, StageRule

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
    pages: tuple[tuple[int, int], ...]  # width and height in pixels
    batches: tuple[int, ...]  # equal pages processed together
    new_tokens: tuple[int, ...]  # per page
    prompt_tokens: tuple[int, ...] = field(default=(10,))  # of the context, without image tokens

    @property
    def points(self) -> int:
        """Points for one routing and device."""
        return len(self.modes) * len(self.pages) * len(self.batches) * len(self.new_tokens) * len(self.prompt_tokens)


def page_grid(
    axes: PageAxes,
    models: Mapping[str, AnalyticModel],
    *,
    routings: Mapping[str, Routing] | None = None,
    devices: Sequence[DeviceSpec] = (),
) -> Grid:
    """Return the grid of some axes: modes change slowest, then routings, devices, pages, batches, prompts, new tokens.

    Parameters
    ----------
    axes : PageAxes
        Every combination is a point.
    models : mapping of str to AnalyticModel
        The compiled model of each mode, by the mode's name.
    routings : mapping of str to Routing, optional
        How many distinct experts some tokens touch, by name; uniform when left out.
    devices : sequence of DeviceSpec
        With devices, the table has roofline times.

    Raises
    ------
    OptionError
        When an axis has no values.
    InvalidProfileError, ContextTooLongError, PageSizeError, UnknownModeError
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
    sections: list[Section] = []
    for name in axes.modes:
        mode = mode_named(name)
        program = Program.of(models[mode.name])
        columns = _axes(axes, mode)
        for routing_name, routing in (routings or {"uniform": uniform_routing}).items():
            labels = {"mode": mode.name, "routing": routing_name}
            for device in devices or (None,):
                named = labels if device is None else {**labels, "device": device.key}
                sections.append(
                    Section(
                        program=program,
                        labels=named,
                        axes=columns,
                        rules=RULES,
                        documents="batch",
                        routing=routing,
                        device=device,
                    )
                )
    return Grid(sections=tuple(sections))


def _require_values(axes: PageAxes) -> None:
    for name in ("modes", "pages", "batches", "new_tokens", "prompt_tokens"):
        if not getattr(axes, name):
            raise OptionError(f"axis {name} has no values; give at least one")
    for batch in axes.batches:
        whole_number(batch, what="batch", high=MAX_BATCH, error=InvalidProfileError)
    for name in ("new_tokens", "prompt_tokens"):
        for tokens in getattr(axes, name):
            whole_number(tokens, what=name, high=MAX_CONTEXT, error=InvalidProfileError)


def _axes(axes: PageAxes, mode: Mode) -> tuple[Axis, ...]:
    tilings = [tile(width, height, mode) for width, height in axes.pages]
    image = max(tiling.image_tokens for tiling in tilings)
    prompt, new = max(axes.prompt_tokens), max(axes.new_tokens)
    if image + prompt + new > MAX_CONTEXT:
        raise ContextTooLongError(
            f"the largest point of mode {mode.name} needs {image + prompt + new:,} tokens ({image:,} of the image, "
            f"{prompt:,} of the prompt, {new:,} new), over the model's {MAX_CONTEXT:,} positions; make new_tokens "
            f"{MAX_CONTEXT - image - prompt:,} at most, or choose a smaller mode or prompt"
        )
    page = Axis(
        name="page",
        columns={
            "page_width": tuple(width for width, _ in axes.pages),
            "page_height": tuple(height for _, height in axes.pages),
            "crop_columns": tuple(tiling.columns for tiling in tilings),
            "crop_rows": tuple(tiling.rows for tiling in tilings),
            "views": tuple(tiling.views for tiling in tilings),
            "image_tokens": tuple(tiling.image_tokens for tiling in tilings),
        },
    )
    return (
        page,
        Axis.of("batch", axes.batches),
        Axis.of("prompt_tokens", axes.prompt_tokens),
        Axis.of("new_tokens", axes.new_tokens),
    )
