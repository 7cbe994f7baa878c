"""Reasons of a part's change: causes that an evaluation tells apart, then what differs in what is left, by kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from attrs import frozen

from modelmeter.categories import Category
from modelmeter.compare.absence import counterparts, why_absent
from modelmeter.compare.counterfactual import Explained, Kinds, is_noise
from modelmeter.compare.group import HELD, Group, Key, same_model
from modelmeter.compare.guesses import guessed, other_dims
from modelmeter.compare.held_reasons import of_held
from modelmeter.compare.layer_words import sizes_differing
from modelmeter.compare.metrics import Metric
from modelmeter.compare.operator_work import name_of, operator_work, operators_differing
from modelmeter.compare.reason import Reason, ranked
from modelmeter.compare.roles import Tower
from modelmeter.compare.side_words import (
    CLOCK_FACTS,
    facts_differing,
    left_out_words,
    pixels_differing,
    variant_words,
    versions_differing,
)
from modelmeter.compare.words import arrow
from modelmeter.costs import Number
from modelmeter.model import AnalyticModel, Leaf

SHOWN_SIZES, SHOWN_CALLS = 3, 3
"""Differences that a reason names: sizes of layers, and counts of calls."""


@frozen(kw_only=True)
class Both:
    """A part on both sides.

    Attributes
    ----------
    old, new : Group
        In another model, one that has nothing of the metric is as good as not there.
    key : tuple of phase and role
    metric : Metric
        What changed.
    known : Explained or None
        What evaluations of the whole tell; None for sides that cannot be evaluated again.
    """

    old: Group
    new: Group
    key: Key
    metric: Metric
    known: Explained | None

    @property
    def amounts(self) -> tuple[Number, Number]:
        """The metric before and after."""
        return self.old.total(self.metric), self.new.total(self.metric)

    @property
    def difference(self) -> Number:
        """How much it changed."""
        return self.amounts[1] - self.amounts[0]

    @property
    def of_one_model(self) -> bool:
        """Whether the sides are of one model, in whatever variant."""
        return same_model(self.old.side, self.new.side)

    @property
    def is_on_both(self) -> bool:
        """Whether both sides have the part."""
        return all((self.old.pieces, self.new.pieces) if self.of_one_model else self.amounts)


def reasons(part: Both) -> tuple[Reason, ...]:
    """Return why a part changed, the largest causes first and those that work against the change last."""
    if not part.is_on_both:
        return (_absence(part),)
    if part.key[0] == HELD:
        return ranked(of_held(part.old, part.new, part.metric), part.difference)
    if part.known is None:
        return ranked(guessed(part.old, part.new, part.key, part.metric), part.difference)
    causes = [*part.known.reasons.get(part.key, ())]
    kinds = [*_kinds(part, part.known)]
    whole = [*_whole(part, part.known, has_words=any(map(_says_more, kinds)))] if kinds else []
    if whole:
        rest = sum(kind.effect or 0 for kind in kinds)
        parts = tuple(kind for kind in ranked(kinds, rest) if _says_more(kind))
        causes.append(Reason(text=", ".join(whole), effect=rest, parts=parts))
    else:
        causes += kinds
    return ranked(causes, part.difference)


def _absence(part: Both) -> Reason:
    """Return the one reason of a part that one side alone has; a cause that explains all of it says more."""
    steps = () if part.known is None else part.known.reasons.get(part.key, ())
    largest = max(steps, key=lambda reason: abs(reason.effect or 0), default=None)
    if largest is not None and is_noise(part.difference - (largest.effect or 0), part.amounts):
        return largest
    return Reason(text="; ".join(why_absent(part.old, part.new, part.metric)), effect=part.difference)


def _whole(part: Both, known: Explained, *, has_words: bool) -> Iterator[str]:
    """Yield causes of all that is left: what tells variants of one model apart, what a side leaves out, versions."""
    old, new = part.old.side, part.new.side
    found: list[str] = []
    if part.of_one_model:
        found += variant_words(old, new, part.key, without=sorted(known.options))
    if part.metric is Metric.TIME and not known.clock:
        found += facts_differing(old, new, CLOCK_FACTS)
    if not found:
        found += left_out_words(part.old, part.new)
    if not found and (part.of_one_model or not has_words):
        found += versions_differing(old, new)
    yield from found


# --- by stage and kind of operator

_NAME = re.compile(r"[A-Za-z]\w*")

_NO_WORDS = "the same calls"


def _says_more(kind: Reason) -> bool:
    return not kind.text.endswith(_NO_WORDS)


@frozen(kw_only=True)
class _Kind:
    """Operators of one category in stages of both sides that are set beside each other."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    category: Category

    @property
    def name(self) -> str:
        return f"{' and '.join(dict.fromkeys((*self.before, *self.after)))} {self.category}"


def _kinds(part: Both, known: Explained) -> Iterator[Reason]:
    """Yield what is left of a part's change by stage and category, each with what differs in it."""
    a, b = known.work_before.get(part.key, {}), known.work_after.get(part.key, {})
    for before, after in _stage_pairs(a, b):
        said = [*_said_of_stage(part, known, before[0])] if before == after else [*_said_of_runs(part, before, after)]
        effects: dict[_Kind, Number] = {}
        for category in Category:
            amounts = _of(a, before, category), _of(b, after, category)
            if not is_noise(amounts[1] - amounts[0], amounts):
                effects[_Kind(before=before, after=after, category=category)] = amounts[1] - amounts[0]
        for kind, effect in sorted(effects.items(), key=lambda each: -abs(each[1])):
            words = [*said, *_words(part, known, kind)]
            said = []  # once, beside what it changes most
            yield Reason(text=f"{kind.name}: {', '.join(words) or _NO_WORDS}", effect=effect)


def _said_of_stage(part: Both, known: Explained, stage: str) -> Iterator[str]:
    """Yield what differs in a stage as a whole: how large its views are, and the dims of one side alone."""
    if any(stage not in group.side.stages for group in (part.old, part.new)):
        return
    yield from pixels_differing(part.old.side, part.new.side, stage)
    texts = [
        text
        for setup, group in ((known.before, part.old), (known.after, part.new))
        for leaf in setup.model.leaves_by_stage[stage]
        if leaf.module in group.modules
        for text in leaf.cost.texts
    ]
    names = {name for text in texts for name in _NAME.findall(text)}
    yield from other_dims(part.old, part.new, stage, names)


def _said_of_runs(part: Both, before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    """Yield how often and at which sizes one stage runs, and one of another name on the other side."""
    if len(before) != 1 or len(after) != 1:
        return
    a, b = part.old.side.stages[before[0]], part.new.side.stages[after[0]]
    if a.executions != b.executions:
        yield f"executions {arrow(a.executions, b.executions)}"
    for dim, size in a.sizes.items():
        if dim in b.sizes and b.sizes[dim] != size:
            yield f"{'' if dim in a.fixed and dim in b.fixed else 'mean '}{dim} {arrow(size, b.sizes[dim])}"


def _stage_pairs(a: Kinds, b: Kinds) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the stages of one name on both sides, and all others of either side together."""
    one, other = ([*dict.fromkeys(stage for stage, _ in kinds)] for kinds in (a, b))
    shared = [stage for stage in one if stage in other]
    rest = tuple(stage for stage in one if stage not in shared), tuple(stage for stage in other if stage not in shared)
    return [*(((stage,), (stage,)) for stage in shared), *([rest] if any(rest) else [])]


def _of(kinds: Kinds, stages: Sequence[str], category: Category) -> Number:
    return sum(kinds.get((stage, category), 0) for stage in stages)


_PRODUCTS = (Category.LINEAR, Category.ATTENTION, Category.CONVOLUTION)


def _words(part: Both, known: Explained, kind: _Kind) -> list[str]:
    """Return sizes and operators that differ; of products the sizes say more, of the rest which operator runs."""
    a = _leaves(known.before.model, part.old, kind.before, kind.category)
    b = _leaves(known.after.model, part.new, kind.after, kind.category)
    work = operator_work(known.before, a, part.metric), operator_work(known.after, b, part.metric)
    sizes, operators = sizes_differing(a, b), operators_differing(*work, part.metric)
    if part.key[1].tower is Tower.WHOLE:  # what runs around the towers may be in another module, or in no stage
        return [*operators[:SHOWN_CALLS], *_moved(part, kind, a, b)]
    if kind.category in _PRODUCTS:
        return [*sizes[:SHOWN_SIZES], *operators[:SHOWN_CALLS]]
    return [*operators[:SHOWN_CALLS], *sizes[:1]]


def _moved(part: Both, kind: _Kind, a: Sequence[Leaf], b: Sequence[Leaf]) -> Iterator[str]:
    """Yield where the other side runs the operators that the side with more of them alone runs in this part."""
    if kind.before != kind.after or part.of_one_model:
        return
    more, less, leaves, others = (part.old, part.new, a, b) if part.difference < 0 else (part.new, part.old, b, a)
    there = {name_of(leaf) for leaf in others}
    alone = [leaf for leaf in leaves if name_of(leaf) not in there]
    yield from counterparts(more, less, kind.before[0], alone, part.metric)


def _leaves(model: AnalyticModel, group: Group, stages: Sequence[str], category: Category) -> list[Leaf]:
    modules = group.modules
    return [
        leaf
        for stage in stages
        for leaf in model.leaves_by_stage[stage]
        if leaf.module in modules and leaf.category is category
    ]
