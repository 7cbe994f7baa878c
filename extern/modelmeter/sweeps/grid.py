"""Grid: the points of a sweep in a stable order, made when they are asked for; a point is a workload."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from modelmeter.errors import UnboundDimError
from modelmeter.expert_counts import Routing, uniform_routing
from modelmeter.model import require_room
from modelmeter.sweeps.errors import SweepError
from modelmeter.sweeps.polynomial import dims_of, has_whole_values, polynomial
from modelmeter.sweeps.program import Executions, Program, StageProgram
from modelmeter.sweeps.sizes import Numbers, Sizes, runs_of
from modelmeter.workload import StageRun, Workload, WorkloadItem

if TYPE_CHECKING:
    from modelmeter.devices import DeviceSpec
    from modelmeter.sweeps.times import StageSeconds

COUNT = "1"
"""The unit of a column that counts something its name says, such as a dim of a stage."""


def _checked_columns(axis: Axis, attribute: object, columns: Mapping[str, tuple[int, ...]]) -> None:
    lengths = {name: len(values) for name, values in columns.items()}
    if not lengths or set(lengths.values()) == {0}:
        raise SweepError(f"axis {axis.name!r} has no values; give at least one")
    if len(set(lengths.values())) > 1:
        raise SweepError(f"axis {axis.name!r} has columns of unequal length: {lengths}; give a value of each per step")
    for name, values in columns.items():
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
                raise SweepError(
                    f"axis {axis.name!r}: {name} is {value!r}; expected a whole number from 0 to 2**31 - 1"
                )


def _checked_units(axis: Axis, attribute: object, units: Mapping[str, str]) -> None:
    unknown = sorted(units.keys() - axis.columns.keys())
    if unknown:
        raise SweepError(
            f"axis {axis.name!r} has units of {', '.join(unknown)}, which it has no column of; its columns are "
            f"{', '.join(axis.columns)}"
        )


@frozen(kw_only=True)
class Axis:
    """Values that a grid runs through; several columns change together, such as the width and height of a page.

    Examples
    --------
    >>> axis = Axis.of("batch", range(1, 4), unit="pages")
    >>> axis.columns, axis.units
    ({'batch': (1, 2, 3)}, {'batch': 'pages'})
    """

    name: str
    columns: Mapping[str, tuple[int, ...]] = field(validator=_checked_columns)
    units: Mapping[str, str] = field(
        factory=dict[str, str], validator=_checked_units
    )  # by column; the others are counts

    @classmethod
    def of(cls, name: str, values: Iterator[int] | range | tuple[int, ...], *, unit: str | None = None) -> Axis:
        """Return an axis of one column."""
        return cls(name=name, columns={name: tuple(values)}, units={} if unit is None else {name: unit})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


@frozen(kw_only=True)
class StageRule:
    """How a stage runs at a point, as expressions in the columns of the axes.

    Examples
    --------
    >>> StageRule(stage="decode", count="new - 1", bindings={"B": "batch", "T": "N + prompt"}, sweep="T").sweep
    'T'
    """

    stage: str
    count: str  # executions; the stage does not run where it is 0
    bindings: Mapping[str, str] = field(factory=dict[str, str])
    sweep: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The expressions."""
        return (self.count, *self.bindings.values())


def _checked_rules(section: Section, attribute: object, rules: tuple[StageRule, ...]) -> None:
    if not rules:
        raise SweepError(f"a section of {section.program.model} runs no stage; give at least one StageRule")
    known = {name for axis in section.axes for name in axis.columns}
    for rule in rules:
        stage = section.program.stage(rule.stage)
        missing = set(stage.dims) - rule.bindings.keys()
        if missing or (rule.sweep is not None and rule.sweep not in rule.bindings):
            raise UnboundDimError(missing or {str(rule.sweep)}, stage.dims)
        used = {dim for text in rule.texts for key in polynomial(text) for part in key for dim in dims_of(part)}
        if used - known:
            raise SweepError(
                f"the rule of stage {rule.stage!r} reads {', '.join(sorted(used - known))}, which no axis has; the "
                f"columns of the axes are {', '.join(sorted(known))}"
            )


def _checked_axes(section: Section, attribute: object, axes: tuple[Axis, ...]) -> None:
    names = [name for axis in axes for name in axis.columns] + list(section.labels)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not axes:
        raise SweepError(
            "a section needs axes, and its columns and labels different names; repeated are "
            f"{', '.join(repeated) or 'none'}"
        )


@frozen(kw_only=True)
class Running:
    """A stage at some points; neighbours at which it runs alike are evaluated once."""

    points: slice | Numbers  # that run the stage: all, or these by index
    lengths: Numbers | None  # neighbours that each of the executions stands for; None: one each
    executions: Executions

    def spread(self, values: Numbers) -> Numbers:
        """Return values of the executions at each of the points, which are the last axis."""
        return values if self.lengths is None else np.repeat(values, self.lengths, axis=-1)


@frozen(kw_only=True)
class Section:
    """One model, routing and device at the product of some axes, the last axis changing fastest.

    Examples
    --------
    >>> import modelmeter
    >>> program = Program.of(modelmeter.load("deepseek-ocr", "base"))
    >>> decode = StageRule(stage="decode", count="1", bindings={"B": "B", "T": "T"})
    >>> section = Section(program=program, axes=(Axis.of("B", (1, 2)), Axis.of("T", (8, 9))), rules=(decode,))
    >>> section.points, section.workload(2).items[0].runs[0].bindings
    (4, {'B': 2, 'T': 8})
    """

    program: Program
    labels: Mapping[str, str] = field(factory=dict[str, str])  # columns that do not change, such as mode and device
    axes: tuple[Axis, ...] = field(validator=_checked_axes)
    rules: tuple[StageRule, ...] = field(validator=_checked_rules)
    documents: str | None = "1"  # pages at a point, as an expression; None: stages alone, without figures of a page
    routing: Routing = uniform_routing
    device: DeviceSpec | None = None  # with one, there are roofline times

    @property
    def points(self) -> int:
        """How many points it has."""
        return math.prod(map(len, self.axes))

    @property
    def units(self) -> Mapping[str, str]:
        """The unit of each column of the axes; a count where the axis says none."""
        return {name: axis.units.get(name, COUNT) for axis in self.axes for name in axis.columns}

    def columns(self, start: int, stop: int) -> dict[str, Numbers]:
        """Return the columns of the axes at points start ... stop - 1, int64."""
        places = np.unravel_index(np.arange(start, stop), tuple(map(len, self.axes)))
        return {
            name: values[place]
            for axis, place in zip(self._arrays, places, strict=True)
            for name, values in axis.items()
        }

    def running(self, rule: StageRule, columns: Mapping[str, Numbers]) -> Running | None:
        """Return where a stage runs and how, or None where it runs at no point.

        Raises
        ------
        SweepError
            When a count or a dim is no whole number, a count is below 0 or a dim below 1.
        SizeLimitError
            When a dim is beyond the largest size that the model has room for.
        """
        read = self._read(columns)
        count = _whole(read, rule.count, f"count of stage {rule.stage!r}")
        _require(rule, "count", count, 0)
        sizes = {dim: _whole(read, text, f"{dim} of stage {rule.stage!r}") for dim, text in rule.bindings.items()}
        points: slice | Numbers = slice(None)
        if not count.all():
            points = np.flatnonzero(count)
            count, sizes = count[points], {dim: size[points] for dim, size in sizes.items()}
        if not len(count):
            return None
        for dim, size in sizes.items():
            _require(rule, dim, size, 1)
        self._require_room(rule, count, sizes)
        starts, lengths = runs_of(len(count), count, *sizes.values())
        held = Sizes(columns=sizes, points=len(count), routing=self.asked)
        if len(starts) == len(count):
            return Running(
                points=points, lengths=None, executions=Executions(sizes=held, count=count, sweep=rule.sweep)
            )
        once = Executions(sizes=held.at(starts), count=count[starts], sweep=rule.sweep)
        return Running(points=points, lengths=lengths, executions=once)

    def page_count(self, columns: Mapping[str, Numbers]) -> Numbers:
        """Return the documents at each point; one where it is no page."""
        return _whole(self._read(columns), self.documents or "1", "documents of a point")

    def workload(self, point: int) -> Workload:
        """Return a point as `modelmeter.evaluate` takes it."""
        columns = self.columns(point, point + 1)
        runs: list[StageRun] = []
        for rule in self.rules:
            running = self.running(rule, columns)
            if running is None:
                continue
            executions = running.executions
            sizes = {dim: int(executions.sizes.columns[dim][0]) for dim in rule.bindings}
            runs.append(StageRun(stage=rule.stage, count=int(executions.count[0]), bindings=sizes, sweep=rule.sweep))
        documents = int(self.page_count(columns)[0])
        return Workload(
            name=f"point {point}", items=(WorkloadItem(name="page", documents=documents, runs=tuple(runs)),)
        )

    def stage(self, rule: StageRule) -> StageProgram:
        """Return the compiled stage of a rule."""
        return self.program.stage(rule.stage)

    def _require_room(self, rule: StageRule, count: Numbers, sizes: Mapping[str, Numbers]) -> None:
        program = self.program
        last = {dim: size + count - 1 if dim == rule.sweep else size for dim, size in sizes.items()}
        largest = {dim: int(size.max()) for dim, size in last.items()}
        require_room(program.model, program.limits, program.dims, f"stage {rule.stage!r} of the grid", largest)

    def _read(self, columns: Mapping[str, Numbers]) -> Sizes:
        return Sizes(columns=columns, points=len(next(iter(columns.values()))), routing=self.asked)

    @cached_property
    def asked(self) -> Routing:
        """The routing, remembering its answers: few numbers of tokens recur at many points."""
        return lru_cache(maxsize=65536)(self.routing)

    @cached_property
    def seconds(self) -> Mapping[str, StageSeconds]:
        """The stages on the device, by name; empty without one."""
        if self.device is None:
            return {}
        from modelmeter.sweeps.times import StageSeconds  # predicting takes a tenth of a second to import

        return {rule.stage: StageSeconds.of(self.stage(rule), self.device, rule.sweep) for rule in self.rules}

    @cached_property
    def _arrays(self) -> list[dict[str, Numbers]]:
        return [{name: np.array(values, np.int64) for name, values in axis.columns.items()} for axis in self.axes]


def _whole(sizes: Sizes, text: str, what: str) -> Numbers:
    terms = polynomial(text)
    values = sizes.value(terms)
    rounded = np.rint(values)
    if has_whole_values(terms):
        return rounded.astype(np.int64)
    broken = np.abs(values - rounded) > _ROUNDING * np.maximum(1, np.abs(values))
    if broken.any():
        raise SweepError(
            f"{what} is {values[broken][0]:g}, from {text!r}; expected a whole number at every point of the grid, such "
            "as floor(...) or ceiling(...) of it"
        )
    return rounded.astype(np.int64)


_ROUNDING = 1e-12  # of a sum of products of floats


def _require(rule: StageRule, what: str, values: Numbers, least: int) -> None:
    if values.min() < least:
        text = rule.count if what == "count" else rule.bindings[what]
        raise SweepError(
            f"{what} of stage {rule.stage!r} is {int(values.min())}, from {text!r}; expected a whole number from "
            f"{least} up at every point of the grid"
        )


@frozen(kw_only=True)
class Chunk:
    """Neighbouring points of a section: what is evaluated at once."""

    index: int  # its place among all chunks
    section: int
    start: int  # first point within the section
    stop: int
    first: int  # first point within the grid


def _checked_sections(grid: Grid, attribute: object, sections: tuple[Section, ...]) -> None:
    if not sections:
        raise SweepError("a grid needs at least one section")
    shapes = {
        (
            tuple(section.labels),
            tuple(name for axis in section.axes for name in axis.columns),
            tuple(rule.stage for rule in section.rules),
            section.device is None,
        )
        for section in sections
    }
    if len(shapes) > 1:
        raise SweepError(
            "the sections of a grid make one table: they need the same labels, columns of axes and stages, and a "
            f"device each or none; found {sorted(map(str, shapes))}"
        )


@frozen(kw_only=True)
class Grid:
    """Sections one after the other, which make one table."""

    sections: tuple[Section, ...] = field(validator=_checked_sections)

    @property
    def points(self) -> int:
        """How many points it has."""
        return sum(section.points for section in self.sections)

    @cached_property
    def counts_are_whole(self) -> bool:
        """Whether FLOPs are integers at every point: no router decides how many."""
        return all(section.stage(rule).counts_are_whole for section in self.sections for rule in section.rules)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield chunks of at most so many points, in order; none reaches over two sections."""
        index = first = 0
        for number, section in enumerate(self.sections):
            for start in range(0, section.points, size):
                stop = min(start + size, section.points)
                yield Chunk(index=index, section=number, start=start, stop=stop, first=first + start)
                index += 1
            first += section.points

    def chunk_count(self, size: int) -> int:
        """Return how many chunks there are."""
        return sum(-(-section.points // size) for section in self.sections)
