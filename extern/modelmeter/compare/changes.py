"""What changed and why: the change of a total, split into parts, each with its reasons; largest first."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from modelmeter.compare.counterfactual import is_noise
from modelmeter.compare.group import same_model
from modelmeter.compare.memory_changes import memory_entries
from modelmeter.compare.metrics import HELD_METRICS, Metric
from modelmeter.compare.part_changes import Change, part_changes
from modelmeter.compare.reason import Reason, ranked
from modelmeter.compare.side import Side
from modelmeter.compare.side_words import pixels_differing
from modelmeter.costs import Number


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
    entries = memory_entries(before, after, metric) if metric in HELD_METRICS else part_changes(before, after, metric)
    return Changes(
        label=after.label,
        metric=metric,
        before=before.totals[metric],
        after=after.totals[metric],
        entries=tuple(sorted(entries, key=_rank)),
        causes=_causes(entries, before, after),
    )


def _causes(entries: Sequence[Change], before: Side, after: Side) -> tuple[Reason, ...]:
    """Return what the causes that act on all parts add to all of them, and what is left."""
    effects: dict[str, Number] = {}
    for reason in (reason for entry in entries for reason in entry.reasons if reason.of_all):
        effects[reason.text] = effects.get(reason.text, 0) + (reason.effect or 0)
    if not effects:
        return ()
    whole = sum(entry.difference for entry in entries)
    rest = whole - sum(effects.values())
    found = [Reason(text=text, effect=effect, of_all=True) for text, effect in effects.items()]
    if not is_noise(rest, [entry.before for entry in entries]):
        found.append(Reason(text=_left(before, after), effect=rest))
    return ranked(found, whole)


def _left(before: Side, after: Side) -> str:
    """Return what is left when both sides run the same, with the sizes of views that a model has built in."""
    if same_model(before, after):
        return "the variants themselves"
    views = [f"{stage}: {text}" for stage in before.stages for text in pixels_differing(before, after, stage)]
    among = f", among it {', '.join(views)}" if views else ""
    return f"the models themselves at the same executions and dims{among}"


def _rank(entry: Change) -> tuple[object, ...]:
    return -abs(entry.difference), entry.phase, () if entry.role is None else entry.role.order
