"""The change of a total that parts of a model add up to: by phase and role, each with its reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping

from attrs import frozen

from modelmeter.compare.counterfactual import Explained
from modelmeter.compare.group import Group, groups_of
from modelmeter.compare.metrics import Metric
from modelmeter.compare.reason import Reason
from modelmeter.compare.reasons import Both, reasons
from modelmeter.compare.roles import Role
from modelmeter.compare.side import Side
from modelmeter.costs import Number

_NOISE = 1e-12  # relative; sums of floats in another order


@frozen(kw_only=True)
class Change:
    """A part of a total's change."""

    phase: str  # of work, or what kind of memory it is
    role: Role | None  # None: of no one part of the model
    before: Number
    after: Number
    work: Mapping[Metric, tuple[Number, Number]]  # of a time: before and after of what it comes from, where known
    reasons: tuple[Reason, ...]

    @property
    def name(self) -> str:
        """The part in words."""
        return self.phase if self.role is None else f"{self.phase}, {self.role.name}"

    @property
    def difference(self) -> Number:
        """What the part adds to the change; negative where it became less."""
        return self.after - self.before


def part_changes(before: Side, after: Side, metric: Metric, known: Explained | None = None) -> list[Change]:
    """Return the parts whose figure changed, by phase and role.

    Parameters
    ----------
    before, after : Side
    metric : Metric
    known : Explained or None
        What evaluations of the whole tell of the change; None of parameters, or where they tell nothing.
    """
    old, new = groups_of(before, metric), groups_of(after, metric)
    pairs = {
        key: (old.get(key) or Group(side=before), new.get(key) or Group(side=after))
        for key in dict.fromkeys((*old, *new))
    }
    return [
        Change(
            phase=key[0],
            role=key[1],
            before=one.total(metric),
            after=other.total(metric),
            work=_work(one, other) if metric is Metric.TIME else {},
            reasons=reasons(Both(old=one, new=other, key=key, metric=metric, known=known)),
        )
        for key, (one, other) in pairs.items()
        if not math.isclose(one.total(metric), other.total(metric), rel_tol=_NOISE)
    ]


def _work(old: Group, new: Group) -> dict[Metric, tuple[Number, Number]]:
    amounts = {metric: (old.total(metric), new.total(metric)) for metric in (Metric.FLOPS, Metric.BYTES)}
    return {metric: pair for metric, pair in amounts.items() if all(pair)}
