"""Sides set beside each other: totals, and rows by stage, role and module that add up to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import evolve, frozen

from modelmeter.compare.align import Alignment, align
from modelmeter.compare.changes import Changes, changes_of
from modelmeter.compare.errors import CompareError, MissingFigureError
from modelmeter.compare.kinds import kinds_of
from modelmeter.compare.metrics import ADDITIVE, GATES, HELD_METRICS, Metric
from modelmeter.compare.side import RESIDENT, Figures, Side
from modelmeter.costs import Number


@frozen(kw_only=True)
class Fact:
    """What each side is, in one respect; None where a side has no such fact."""

    name: str
    values: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        """Whether the sides differ in it."""
        return len(set(self.values)) > 1


@frozen(kw_only=True)
class Row:
    """One part of every side; an empty mapping where a side does not have the part."""

    name: str
    figures: tuple[Figures, ...]


@frozen(kw_only=True)
class SideBySide:
    """Sides beside each other; the first is what the others are compared with.

    Attributes
    ----------
    facts : tuple of Fact
        What the sides are.
    totals : tuple of (mapping of Metric to number)
        One of each side.
    memory : tuple of (mapping of str to bytes)
        What the peak of each side consists of.
    stages, roles, modules : tuple of Row
        The same work split in three ways; the rows of each add up to the totals, by every metric in `additive`.
    alignment : Alignment
        Which modules are in which row of `modules`, and which rows might be one.
    additive : tuple of Metric
        Metrics of rows that all sides have.
    changes : tuple of Changes
        Of each other side against the first, by each of `explained`.
    explained : tuple of Metric
        What is explained; rows are ranked by the first of `additive` among them, `ranked_by`.
    """

    sides: tuple[Side, ...]
    facts: tuple[Fact, ...]
    totals: tuple[Figures, ...]
    memory: tuple[Mapping[str, Number], ...]
    stages: tuple[Row, ...]
    roles: tuple[Row, ...]
    modules: tuple[Row, ...]
    alignment: Alignment
    additive: tuple[Metric, ...]
    ranked_by: Metric
    explained: tuple[Metric, ...]
    changes: tuple[Changes, ...]

    def knows(self, metric: Metric, side: int) -> bool:
        """Whether parts of a side have a metric, so that a part without it has none of it."""
        return _has_parts(self.sides[side], metric)


@frozen(kw_only=True)
class Movement:
    """A total that moved by more than a threshold."""

    metric: Metric
    label: str  # of the side that moved
    before: Number
    after: Number

    @property
    def percent(self) -> float:
        """The change in percent of the first side's total; infinite where that is nothing."""
        return (self.after - self.before) / self.before * 100 if self.before else float("inf")


def set_side_by_side(sides: Sequence[Side], *, ranked_by: Metric | None = None) -> SideBySide:
    """Compare sides with the first of them.

    Parameters
    ----------
    sides : sequence of Side
        Two or more.
    ranked_by : Metric or None
        What "what changed and why" explains; time if all sides have it, else FLOPs, and so on, the first that moved.

    Raises
    ------
    CompareError
        When there are fewer than two sides, or no figure that all have.
    MissingFigureError
        When a side lacks the metric to rank by.

    Examples
    --------
    >>> import modelmeter
    >>> from modelmeter.compare import side_of_report
    >>> from modelmeter.workload import StageRun, Workload, WorkloadItem
    >>> def decode(label, cached):
    ...     step = StageRun(stage="decode", count=1, bindings={"B": 1, "T": cached})
    ...     workload = Workload(name="step", items=(WorkloadItem(name="one", documents=1, runs=(step,)),))
    ...     model = modelmeter.load("deepseek-ocr", "tiny")
    ...     return side_of_report(modelmeter.evaluate.evaluate(model, workload), label=label, model=model)
    >>> compared = set_side_by_side([decode("short", 100), decode("long", 1000)], ranked_by=Metric.FLOPS)
    >>> for entry in compared.changes[0].entries:
    ...     print(entry.name, entry.difference, [(reason.text, reason.effect) for reason in entry.reasons])
    decode, decoder: attention 55944000 [('decode T 100 → 1,000', 55944000)]
    """
    if len(sides) < 2:
        raise CompareError(f"a comparison needs two sides or more, this one has {len(sides)}; name another one")
    additive = tuple(metric for metric in ADDITIVE if all(_has_parts(side, metric) for side in sides))
    if not additive:
        kinds = "; ".join(f"{side.label} has {', '.join(side.totals) or 'none'}" for side in sides)
        raise CompareError(f"the sides have no figure in common: {kinds}; give a device to those without times")
    asked = _leading(sides, additive) if ranked_by is None else ranked_by
    alignment = align([kinds_of(side) for side in sides])
    return SideBySide(
        sides=tuple(sides),
        facts=_facts(sides),
        totals=tuple(side.totals for side in sides),
        memory=tuple(side.memory for side in sides),
        stages=_stage_rows(sides),
        roles=_role_rows(sides),
        modules=_module_rows(sides, alignment),
        alignment=alignment,
        additive=additive,
        ranked_by=_row_metric(asked, additive),
        explained=(asked,),
        changes=_changes(sides, asked),
    )


def with_explained(compared: SideBySide, metrics: Sequence[Metric]) -> SideBySide:
    """Return a comparison that explains the change of further totals as well, in that order.

    Raises
    ------
    MissingFigureError
        When a side lacks one.
    """
    further = [metric for metric in dict.fromkeys(metrics) if metric not in compared.explained]
    changes = [each for metric in further for each in _changes(compared.sides, metric)]
    return evolve(compared, explained=(*compared.explained, *further), changes=(*compared.changes, *changes))


def _changes(sides: Sequence[Side], metric: Metric) -> tuple[Changes, ...]:
    known = all(metric in side.totals and (metric in HELD_METRICS or _has_parts(side, metric)) for side in sides)
    if not known:
        raise _missing(sides, metric)
    return tuple(changes_of(sides[0], side, metric) for side in sides[1:])


def _row_metric(asked: Metric, additive: Sequence[Metric]) -> Metric:
    """Return what rows are ranked by: of memory, the parameters' bytes where they are known by module."""
    if asked in additive:
        return asked
    return Metric.WEIGHT_BYTES if Metric.WEIGHT_BYTES in additive else additive[0]


def movements(compared: SideBySide, gates: Sequence[str], percent: float) -> tuple[Movement, ...]:
    """Return the totals that moved by more than some percent, up or down.

    Parameters
    ----------
    compared : SideBySide
    gates : sequence of str
        Which totals, by the words of `modelmeter.compare.metrics.GATES`.
    percent : float
        The largest change that passes, of the first side's total.

    Raises
    ------
    CompareError
        When a word is none of them, or the threshold is negative.
    MissingFigureError
        When a side lacks the figure.

    Examples
    --------
    >>> Movement(metric=Metric.FLOPS, label="new", before=200, after=230).percent
    15.0
    """
    unknown = [gate for gate in gates if gate not in GATES]
    if unknown:
        raise CompareError(f"no total {', '.join(map(repr, unknown))}; choose of {', '.join(GATES)}")
    if not percent >= 0:
        raise CompareError(f"the threshold is {percent} %; expected 0 or more")
    found: list[Movement] = []
    for metric in (GATES[gate] for gate in gates):
        if any(metric not in side.totals for side in compared.sides):
            raise _missing(compared.sides, metric)
        before = compared.totals[0][metric]
        others = zip(compared.sides[1:], compared.totals[1:], strict=True)
        moved = [
            Movement(metric=metric, label=side.label, before=before, after=after[metric]) for side, after in others
        ]
        found += [each for each in moved if each.before != each.after and abs(each.percent) > percent]
    return tuple(found)


# --- rows


def _stage_rows(sides: Sequence[Side]) -> tuple[Row, ...]:
    """Return what runs in each stage; parameters belong to none."""
    sums = [side.sum_by(lambda piece: piece.stage) for side in sides]
    names = dict.fromkeys(name for of_side in sums for name in of_side if name != RESIDENT)
    return tuple(Row(name=name, figures=tuple(of_side.get(name, {}) for of_side in sums)) for name in names)


def _role_rows(sides: Sequence[Side]) -> tuple[Row, ...]:
    roles = sorted({role for side in sides for role in side.by_role}, key=lambda role: role.order)
    return tuple(Row(name=role.name, figures=tuple(side.by_role.get(role, {}) for side in sides)) for role in roles)


def _module_rows(sides: Sequence[Side], alignment: Alignment) -> tuple[Row, ...]:
    sums = [_by_row(side, rows) for side, rows in zip(sides, alignment.rows, strict=True)]
    names = dict.fromkeys(name for of_side in sums for name in of_side)
    return tuple(Row(name=name, figures=tuple(of_side.get(name, {}) for of_side in sums)) for name in names)


def _by_row(side: Side, rows: Mapping[str, str]) -> dict[str, Figures]:
    return side.sum_by(lambda piece: rows[piece.module])


# --- facts and figures


def _facts(sides: Sequence[Side]) -> tuple[Fact, ...]:
    names = dict.fromkeys(name for side in sides for name in side.facts)
    return tuple(Fact(name=name, values=tuple(side.facts.get(name) for side in sides)) for name in names)


def _has_parts(side: Side, metric: Metric) -> bool:
    return any(metric in figures for figures in side.work.values())


def _leading(sides: Sequence[Side], additive: Sequence[Metric]) -> Metric:
    """Return time if there is one, else FLOPs; the first that moved, as equal figures would explain nothing."""
    moved = [metric for metric in additive if len({side.totals[metric] for side in sides}) > 1]
    return (moved or additive)[0]


def _missing(sides: Sequence[Side], metric: Metric) -> MissingFigureError:
    lacking = [side.label for side in sides if metric not in side.totals or not _has_parts(side, metric)]
    known = {
        Metric.TIME: "analyze it with a device, or give --device where it is a model",
        Metric.PARAMETERS: "give the directory that `analyze` wrote: parameters of modules are in its model.json",
    }
    advice = known.get(metric, "leave it out, or give a model or a report of one")
    return MissingFigureError(f"{', '.join(lacking)} has no {metric.value}: {advice}")
