"""Grids of one stage at its own dims, for any compiled model; and sections of a grid under what-ifs and on devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attrs import evolve

from dsocr_graph.errors import OptionError
from modelmeter.devices import DeviceSpec
from modelmeter.model import AnalyticModel
from modelmeter.sweeps import Axis, Grid, Program, Section, StageRule
from modelmeter.whatif import AS_CAPTURED, Options, apply


def stage_grid(
    model: AnalyticModel,
    stage: str,
    sizes: Mapping[str, Sequence[int]],
    *,
    what_ifs: Sequence[Options] = (AS_CAPTURED,),
    devices: Sequence[DeviceSpec] = (),
) -> Grid:
    """Return the grid of a stage: what-ifs change slowest, then devices, then the dims in their order.

    A point is one execution and no page, so that it has the seconds of the stage, and neither TTFT nor seconds a page.

    Parameters
    ----------
    model : AnalyticModel
        Of any stages and dims.
    stage : str
        One of them.
    sizes : mapping of str to sequence of int
        The values of each dim of the stage, all of its dims and no other.
    what_ifs, devices
        As of `dsocr_graph.sweep_pages.page_grid`.

    Raises
    ------
    UnknownStageError
        When the model has no such stage.
    OptionError
        When a dim of the stage has no values, another has, or the stage has none.
    SweepError, WhatIfError, UnsupportedWhatIfError, RoutingError
        When a value is no size, or a what-if cannot be applied to the model.

    Examples
    --------
    >>> import modelmeter
    >>> grid = stage_grid(modelmeter.load("qwen3-8b"), "decode", {"B": (1, 8), "T": (128, 256, 384)})
    >>> grid.points, grid.sections[0].workload(5).items[0].runs[0].bindings
    (6, {'B': 8, 'T': 384})
    """
    dims = model.stage(stage).dims
    if not dims or set(sizes) != set(dims):
        raise OptionError(
            f"stage {stage!r} of {model.name} has the dims {', '.join(dims) or 'none'}, and there are axes of "
            f"{', '.join(sizes) or 'none'}; give one of each dim, and of no other, to a stage that has some"
        )
    rule = StageRule(stage=stage, count="1", bindings={dim: dim for dim in dims})
    axes = tuple(Axis.of(dim, tuple(values)) for dim, values in sizes.items())
    return Grid(
        sections=tuple(
            sections(model, axes, (rule,), labels={}, documents=None, what_ifs=what_ifs, devices=devices),
        )
    )


def sections(
    model: AnalyticModel,
    axes: tuple[Axis, ...],
    rules: tuple[StageRule, ...],
    *,
    labels: Mapping[str, str],
    documents: str | None,
    what_ifs: Sequence[Options],
    devices: Sequence[DeviceSpec],
) -> Iterator[Section]:
    """Yield a section of a grid for each what-if and device, with a column of its own for what any of them changes.

    Parameters
    ----------
    model, axes, rules, labels, documents
        As of `modelmeter.sweeps.Section`.
    what_ifs : sequence of Options
        They change slowest; routing always has a column.
    devices : sequence of DeviceSpec
        With devices, the table has roofline times.

    Raises
    ------
    WhatIfError, UnsupportedWhatIfError, RoutingError
        When a what-if cannot be applied to the model.
    """
    programs = _programs(model, what_ifs)
    for options in what_ifs:
        changed = {**labels, "routing": options.routing.name, **_changes(options, what_ifs, model)}
        for device in devices or (None,):
            yield Section(
                program=programs[_without_routing(options)],
                labels=changed if device is None else {**changed, "device": device.key},
                axes=axes,
                rules=rules,
                documents=documents,
                routing=options.routing,
                device=device,
            )


def _programs(model: AnalyticModel, what_ifs: Sequence[Options]) -> dict[Options, Program]:
    """Return the compiled model under each of the what-ifs but for their routing, which a section chooses."""
    for routing in dict.fromkeys(options.routing for options in what_ifs):
        apply(model, Options(routing=routing))  # refuses a histogram of another model
    distinct = dict.fromkeys(map(_without_routing, what_ifs))
    return {options: Program.of(apply(model, options).model) for options in distinct}


def _without_routing(options: Options) -> Options:
    return evolve(options, routing=AS_CAPTURED.routing)


def _changes(options: Options, what_ifs: Sequence[Options], model: AnalyticModel) -> dict[str, str]:
    """Return the values of the what-ifs that change a call in any of them; the captured type where it is kept."""
    dtype = model.variant.get("dtype", "as captured")
    named = dict.fromkeys(name for each in what_ifs for name in each.changing(dtype))
    changes = {name: getattr(options, name) or dtype for name in named}
    if any(each.groups_weights for each in what_ifs):
        changes["group_size"] = str(options.group_size) if options.groups_weights else ""
    return changes
