"""Counterfactuals: how much each cause adds to a change, by evaluating a side with one thing after another changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import evolve, frozen

from modelmeter.categories import Category
from modelmeter.compare.group import Key, phase_of, same_model
from modelmeter.compare.metrics import Metric
from modelmeter.compare.reason import Reason
from modelmeter.compare.run_steps import run_steps
from modelmeter.compare.setup import Setup
from modelmeter.compare.side import Side
from modelmeter.compare.side_words import CLOCK_FACTS, facts_differing
from modelmeter.compare.what_if_steps import gained, what_if_steps
from modelmeter.costs import Number
from modelmeter.errors import ModelMeterError

NOISE = 1e-9
"""Of a part's work: sums of floats in another order."""

Kinds = dict[tuple[str, Category], Number]
"""Work of a part by stage and category."""

_Work = dict[Key, Kinds]


@frozen(kw_only=True)
class Explained:
    """What causes that can be told apart add to a change, and what is left between the sides after them.

    Attributes
    ----------
    reasons : mapping of key to tuple of Reason
        Of each part, causes with their effects.
    before, after : Setup
        The first side with every cause changed, and the second without those that it alone has.
    work_before, work_after : mapping of key to Kinds
        What these two do.
    options : frozenset of str
        What-ifs that are among the causes.
    clock : bool
        Whether what makes the times is among the causes.
    """

    reasons: Mapping[Key, tuple[Reason, ...]]
    before: Setup
    after: Setup
    work_before: Mapping[Key, Kinds]
    work_after: Mapping[Key, Kinds]
    options: frozenset[str]
    clock: bool


@frozen(kw_only=True)
class _Step:
    text: str
    before: Setup
    after: Setup
    side: Side  # whose modules the models have


def explained(old: Side, new: Side, metric: Metric) -> Explained | None:
    """Return what causes add to the change of a metric; None where a side cannot be evaluated again.

    What runs comes first, then how tokens choose experts, what makes the times, and what-ifs of one model. Each cause
    is changed with those before it in place, so that effects add up.

    Parameters
    ----------
    old, new : Side
    metric : Metric
        One that work has; parameters are there whatever runs.
    """
    if old.setup is None or new.setup is None or not (_reproduces(old, metric) and _reproduces(new, metric)):
        return None
    steps, now = _walked(old, _on_old(old.setup, new.setup), old.setup)
    timed = _clock_step(old, new, now)
    more, now = _walked(old, timed, now)
    clock, steps = bool(more), [*steps, *more]
    more, now = _walked(old, _what_ifs(now, new.setup), now) if same_model(old, new) else ([], now)
    steps += more
    options = {*gained(old.setup.model.variant, new.setup.model.variant)} if more else set[str]()
    target = new.setup
    if same_model(old, new):
        less, target = _walked(new, _what_ifs(new.setup, old.setup), new.setup)
        steps += [_Step(text=_back(step.text), before=step.after, after=step.before, side=new) for step in less]
        options |= {*gained(new.setup.model.variant, old.setup.model.variant)} if less else set()
    reasons: dict[Key, list[Reason]] = {}
    for step in steps:
        for key, effect in _effects(step, metric).items():
            reasons.setdefault(key, []).append(Reason(text=step.text, effect=effect, of_all=True))
    return Explained(
        reasons={key: tuple(found) for key, found in reasons.items()},
        before=now,
        after=target,
        work_before=_work(now, old, metric),
        work_after=_work(target, new, metric),
        options=frozenset(options),
        clock=clock,
    )


def _walked(side: Side, states: Iterable[tuple[str, Setup]], start: Setup) -> tuple[list[_Step], Setup]:
    """Return steps from state to state, and the last state; it ends before a state that cannot be evaluated."""
    steps: list[_Step] = []
    now = start
    for text, state in states:
        try:
            state.cells()
        except ModelMeterError:
            break
        steps.append(_Step(text=text, before=now, after=state, side=side))
        now = state
    return steps, now


# --- the states


def _on_old(start: Setup, new: Setup) -> Iterator[tuple[str, Setup]]:
    now = start
    for step in run_steps(start, new):
        yield step.text, step.setup
        now = step.setup
    if now.routing_name != new.routing_name:
        text = f"routing {now.routing_name} → {new.routing_name}"
        yield text, evolve(now, routing=new.routing, routing_name=new.routing_name)


def _clock_step(old: Side, new: Side, now: Setup) -> Iterator[tuple[str, Setup]]:
    assert new.setup is not None
    if now.clock is None or new.setup.clock is None or now.clock.facts == new.setup.clock.facts:
        return
    yield (
        ", ".join(facts_differing(old, new, CLOCK_FACTS)) or "times of another source",
        evolve(now, clock=new.setup.clock),
    )


def _what_ifs(now: Setup, other: Setup) -> Iterator[tuple[str, Setup]]:
    for step in what_if_steps(now.model.variant, other.model.variant, now.model):
        yield f"{step.option} {step.captured} → {step.value}", evolve(now, model=step.model)


def _back(text: str) -> str:
    """Return the words of a step that is taken the other way."""
    option, _, change = text.partition(" ")
    return f"{option} {' → '.join(reversed(change.split(' → ')))}"


# --- their work


def _reproduces(side: Side, metric: Metric) -> bool:
    """Whether a side evaluated again is the same: its files may be of different runs, its clock not known."""
    assert side.setup is not None
    try:
        cells = side.setup.cells()
    except ModelMeterError:
        return False
    found = sum(figures.get(metric, 0) for figures in cells.values())
    return math.isclose(found, side.totals.get(metric, math.nan), rel_tol=NOISE)


def _work(setup: Setup, side: Side, metric: Metric) -> _Work:
    work: _Work = {}
    for (stage, module, category), figures in setup.cells().items():
        kinds = work.setdefault((phase_of(side, stage), side.roles[module]), {})
        kinds[stage, category] = kinds.get((stage, category), 0) + figures.get(metric, 0)
    return work


def _effects(step: _Step, metric: Metric) -> dict[Key, Number]:
    before, after = (_work(setup, step.side, metric) for setup in (step.before, step.after))
    sums = [{key: sum(kinds.values()) for key, kinds in work.items()} for work in (before, after)]
    found: dict[Key, Number] = {}
    for key in dict.fromkeys((*sums[0], *sums[1])):
        a, b = (of_side.get(key, 0) for of_side in sums)
        if not is_noise(b - a, [a, b]):
            found[key] = b - a
    return found


def is_noise(effect: Number, amounts: Sequence[Number]) -> bool:
    """Whether an effect is nothing beside the amounts that it is the difference of.

    Examples
    --------
    >>> is_noise(1e-15, [1.0, 1.0]), is_noise(1, [3, 4])
    (True, False)
    """
    return abs(effect) <= NOISE * max(map(abs, amounts), default=0)
