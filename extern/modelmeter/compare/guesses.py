"""Reasons of sides that cannot be evaluated again, such as bare reports: what differs, without how much it adds."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence

from modelmeter.compare.absence import executions
from modelmeter.compare.group import Group, Key, same_model
from modelmeter.compare.layer_words import calls_differing, sizes_differing
from modelmeter.compare.metrics import Metric
from modelmeter.compare.operator_work import figure
from modelmeter.compare.reason import Reason
from modelmeter.compare.side_words import (
    CLOCK_FACTS,
    facts_differing,
    left_out_words,
    routing_words,
    variant_words,
    versions_differing,
)
from modelmeter.compare.words import arrow
from modelmeter.costs import Number


def guessed(old: Group, new: Group, key: Key, metric: Metric) -> list[Reason]:
    """Return what differs between two groups, causes first: runs, sizes, variant, operators, layers, devices."""
    found = [*_runs(old, new)]
    if same_model(old.side, new.side):
        found += _texts(variant_words(old.side, new.side, key))
    found += _texts(routing_words(old.side, new.side, key))
    found += _inside(old, new)
    if not found:
        found += _texts(left_out_words(old, new))
    if metric is Metric.TIME:
        found += _texts(facts_differing(old.side, new.side, CLOCK_FACTS))
    if metric is Metric.TIME or not found:
        found += _texts(versions_differing(old.side, new.side))
    if not found:
        found += _texts(facts_differing(old.side, new.side, ("model",)))
    before, after = old.total(metric), new.total(metric)
    if not found:
        same = f"{metric.value} of the same calls {figure(metric, before)} → {figure(metric, after)}"
        return [Reason(text=same, effect=after - before)]
    return [*found, *_unknown(found, old, new, after - before)]


def _unknown(found: Sequence[Reason], old: Group, new: Group, difference: Number) -> Iterator[Reason]:
    """Yield that the cause is not known where all that differs works against the change."""
    if difference and all(reason.way and (reason.way > 0) != (difference > 0) for reason in found):
        alone = [group.side.label for group in (old, new) if group.side.model is None]
        advice = f": no model.json with the operators of {' and '.join(alone)} is given" if alone else ""
        yield Reason(text=f"what {'raises' if difference > 0 else 'lowers'} it is not known{advice}")


def _texts(words: Iterator[str]) -> list[Reason]:
    return [Reason(text=text) for text in words]


def _changed(what: str, before: float, after: float) -> Reason:
    return Reason(text=f"{what} {arrow(before, after)}", raises=after > before)


# --- how often, at which sizes


def _runs(old: Group, new: Group) -> Iterator[Reason]:
    for stage in dict.fromkeys((*old.stages, *new.stages)):
        a, b = (group.side.stages.get(stage) for group in (old, new))
        counts = [0 if side is None else side.executions for side in (a, b)]
        if counts[0] != counts[1]:
            yield Reason(text=executions(old, new, stage), raises=counts[1] > counts[0])
        if a is None or b is None:
            continue
        for dim in a.sizes:
            if dim in b.sizes and a.sizes[dim] != b.sizes[dim]:
                mean = "" if dim in a.fixed and dim in b.fixed else "mean "
                yield _changed(f"{stage} {mean}{dim}", a.sizes[dim], b.sizes[dim])
        yield from _texts(other_dims(old, new, stage))


def other_dims(old: Group, new: Group, stage: str, among: Container[str] | None = None) -> Iterator[str]:
    """Yield the dims that one side alone has: as another name, where each side has one and of the same size.

    Parameters
    ----------
    old, new : Group
        On sides that both run the stage.
    stage : str
    among : container of str, optional
        Dims that count; all by default.
    """
    a, b = (group.side.stages[stage].sizes for group in (old, new))
    gone, come = (
        [dim for dim in _dims_beside(group, stage, others) if among is None or dim in among]
        for group, others in ((old, b), (new, a))
    )
    if len(gone) == len(come) == 1 and a[gone[0]] == b[come[0]]:
        yield f"{stage} {gone[0]} is called {come[0]} in {new.side.label}"
        return
    for group, dims in ((old, gone), (new, come)):
        if dims:
            legend = {} if group.side.model is None else group.side.model.dims
            named = [f"{dim} ({legend[dim]})" if dim in legend else dim for dim in dims]
            yield f"{stage} depends on {' and '.join(named)} in {group.side.label} alone"


def _dims_beside(group: Group, stage: str, others: Mapping[str, float]) -> list[str]:
    """Return the dims of a stage that others have not, without sizes that the model does not ask for."""
    model = group.side.model
    asked = None if model is None else model.stage(stage).dims
    return [dim for dim in group.side.stages[stage].sizes if dim not in others and (asked is None or dim in asked)]


# --- which operators, which layers


def _inside(old: Group, new: Group) -> Iterator[Reason]:
    a, b = ([leaf for stage in stages for leaf in group.leaves(stage)] for group, stages in _sides(old, new))
    modules = old.instances, new.instances
    sizes = sizes_differing(a, b)
    yield from _texts(iter(sizes))
    if all(modules) and modules[0] != modules[1]:
        yield _changed("modules", *modules)
    if old.side.model is None or new.side.model is None:
        for one, other in _pairs(old, new):
            if old.calls(one) != new.calls(other):
                yield _changed(f"{other} operator calls", old.calls(one), new.calls(other))
    else:
        yield from _texts(iter(calls_differing(a, b, modules)))


def _sides(old: Group, new: Group) -> list[tuple[Group, list[str]]]:
    pairs = _pairs(old, new)
    return [(old, [one for one, _ in pairs]), (new, [other for _, other in pairs])]


def _pairs(old: Group, new: Group) -> list[tuple[str, str]]:
    """Return the stages to set beside each other: those of one name, else the first of each side."""
    shared = [(stage, stage) for stage in old.stages if stage in new.stages]
    return shared or [*zip(old.stages[:1], new.stages[:1], strict=False)]
