"""What changed and why: the change of a total, split into parts, each with its reasons; largest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from modelmeter.compare.counterfactual import Explained, Kinds, explained, is_noise
from modelmeter.compare.group import Key, same_model
from modelmeter.compare.memory_changes import memory_entries
from modelmeter.compare.metrics import ADDITIVE, HELD_METRICS, Metric
from modelmeter.compare.part_changes import Change, part_changes
from modelmeter.compare.reason import Reason, ranked
from modelmeter.compare.side import Side
from modelmeter.compare.side_words import pixels_differing
from modelmeter.costs import Number

_OF_WORK = {*ADDITIVE} - {Metric.PARAMETERS, Metric.WEIGHT_BYTES}
"""Metrics of what runs: of these an evaluation tells causes apart."""


@frozen(kw_only=True)
class Changes:
    """The change of a total from one side to another."""

    label: str  # of the other side
    metric: Metric
    before: Number
    after: Number
    entries: tuple[Change, ...]  # largest first; their differences add up to the whole change
    causes: tuple[Reason, ...] = ()  # of all parts together, and what they leave; add up to the whole, or not known

    @property
    def difference(self) -> Number:
        """The whole change."""
        return self.after - self.before


def changes_of(before: Side, after: Side, metric: Metric) -> Changes:
    """Return what each part adds to the change of a total.

    Parameters
    ----------
    before, after : Side
        Sides that both have the metric.
    metric : Metric
        One of those that parts have, or of memory.
    """
    known = explained(before, after, metric) if metric in _OF_WORK else None
    in_memory = metric in HELD_METRICS
    entries = memory_entries(before, after, metric) if in_memory else part_changes(before, after, metric, known)
    return Changes(
        label=after.label,
        metric=metric,
        before=before.totals[metric],
        after=after.totals[metric],
        entries=tuple(sorted(entries, key=_rank)),
        causes=_causes(entries, before, after, known),
    )


def _causes(entries: Sequence[Change], before: Side, after: Side, known: Explained | None) -> tuple[Reason, ...]:
    """Return what the causes that act on all parts add to all of them, and what is left."""
    effects: dict[str, Number] = {}
    for reason in () if known is None else (reason for found in known.reasons.values() for reason in found):
        effects[reason.text] = effects.get(reason.text, 0) + (reason.effect or 0)
    if known is None or not effects:
        return ()
    whole = sum(entry.difference for entry in entries)
    rest = whole - sum(effects.values())
    found = [Reason(text=text, effect=effect, of_all=True) for text, effect in effects.items()]
    if not is_noise(rest, [entry.before for entry in entries]):
        found.append(_left(before, after, known, rest))
    return ranked(found, whole)


def _left(before: Side, after: Side, known: Explained, rest: Number) -> Reason:
    """Return what is left when both sides run the same; of two models what each stage adds to it."""
    if same_model(before, after):
        return Reason(text="the variants themselves", effect=rest)
    parts = [
        Reason(text=": ".join((stage, *pixels_differing(before, after, stage))), effect=effect)
        for stage, effect in _by_stage(known).items()
    ]
    text = "the models themselves at the same executions and dims"
    return Reason(text=text, effect=rest, parts=ranked(parts, rest))


def _by_stage(known: Explained) -> dict[str, Number]:
    """Return by how much the stages differ once all other causes are changed; those that do not are left out."""
    a, b = (_stage_sums(work) for work in (known.work_before, known.work_after))
    pairs = {stage: (a.get(stage, 0), b.get(stage, 0)) for stage in (*a, *b)}
    return {stage: pair[1] - pair[0] for stage, pair in pairs.items() if not is_noise(pair[1] - pair[0], pair)}


def _stage_sums(work: Mapping[Key, Kinds]) -> dict[str, Number]:
    sums: dict[str, Number] = {}
    for kinds in work.values():
        for (stage, _), number in kinds.items():
            sums[stage] = sums.get(stage, 0) + number
    return sums


def _rank(entry: Change) -> tuple[object, ...]:
    return -abs(entry.difference), entry.phase, () if entry.role is None else entry.role.order
