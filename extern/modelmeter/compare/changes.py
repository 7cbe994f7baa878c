"""What changed and why: the change of a total, split by phase and role, each part with its reasons; largest first."""

from __future__ import annotations

import math
from collections.abc import Mapping

from attrs import frozen

from modelmeter.compare.metrics import Metric
from modelmeter.compare.reasons import Group, reasons
from modelmeter.compare.roles import Role
from modelmeter.compare.side import RESIDENT, Piece, Side
from modelmeter.costs import Number
from modelmeter.reports.serving import DECODE

ENCODE, PREFILL_PHASE, DECODE_PHASE, HELD = "encode", "prefill", "decode", "parameters"
"""Phases: stages of one kind, so that models with other stages can be compared."""

_NOISE = 1e-12  # relative; sums of floats in another order


@frozen(kw_only=True)
class Change:
    """A part of a total's change."""

    phase: str
    role: Role
    before: Number
    after: Number
    work: Mapping[Metric, tuple[Number, Number]]  # of a time: before and after of what it comes from, where known
    reasons: tuple[str, ...]

    @property
    def difference(self) -> Number:
        """What the part adds to the change; negative where it became less."""
        return self.after - self.before


@frozen(kw_only=True)
class Changes:
    """The change of a total from one side to another."""

    label: str  # of the other side
    metric: Metric
    before: Number
    after: Number
    entries: tuple[Change, ...]  # largest first; their differences add up to the whole change

    @property
    def difference(self) -> Number:
        """The whole change."""
        return self.after - self.before


def changes_of(before: Side, after: Side, metric: Metric) -> Changes:
    """Return what each role in each phase adds to the change of a total.

    Parameters
    ----------
    before, after : Side
        Sides that both have the metric.
    metric : Metric
        One of those that parts have.
    """
    old, new = _groups(before, metric), _groups(after, metric)
    pairs = {
        key: (old.get(key) or Group(side=before), new.get(key) or Group(side=after))
        for key in dict.fromkeys((*old, *new))
    }
    entries = [
        Change(
            phase=phase,
            role=role,
            before=one.total(metric),
            after=other.total(metric),
            work=_work(one, other) if metric is Metric.TIME else {},
            reasons=reasons(one, other, metric),
        )
        for (phase, role), (one, other) in pairs.items()
        if not math.isclose(one.total(metric), other.total(metric), rel_tol=_NOISE)
    ]
    return Changes(
        label=after.label,
        metric=metric,
        before=before.totals[metric],
        after=after.totals[metric],
        entries=tuple(sorted(entries, key=lambda entry: (-abs(entry.difference), entry.phase, entry.role.order))),
    )


def phase_of(side: Side, stage: str) -> str:
    """Return the phase of a stage: without keys and values left behind it encodes, else it decodes or prefills.

    Examples
    --------
    >>> from modelmeter.compare.side import Side
    >>> side = Side(
    ...     label="a", facts={}, totals={}, work={}, stages={}, nodes={}, cached=frozenset({"prefill", "decode"})
    ... )
    >>> phase_of(side, "vision"), phase_of(side, "decode")
    ('encode', 'decode')
    """
    if stage == RESIDENT:
        return HELD
    if side.cached and stage not in side.cached:
        return ENCODE
    if not side.cached:
        return DECODE_PHASE if DECODE in stage else PREFILL_PHASE if PREFILL_PHASE in stage else ENCODE
    return DECODE_PHASE if DECODE in stage else PREFILL_PHASE


def _work(old: Group, new: Group) -> dict[Metric, tuple[Number, Number]]:
    amounts = {metric: (old.total(metric), new.total(metric)) for metric in (Metric.FLOPS, Metric.BYTES)}
    return {metric: pair for metric, pair in amounts.items() if all(pair)}


def _groups(side: Side, metric: Metric) -> dict[tuple[str, Role], Group]:
    pieces: dict[tuple[str, Role], list[Piece]] = {}
    for piece, figures in side.work.items():
        if metric in figures:
            pieces.setdefault((phase_of(side, piece.stage), side.roles[piece.module]), []).append(piece)
    return {key: Group(side=side, pieces=tuple(found)) for key, found in pieces.items()}
