"""Which operators make a kind of work more or less: their calls in one execution, and their work in all runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import frozen

from modelmeter.binding import Binding
from modelmeter.compare.metrics import Metric
from modelmeter.compare.setup import Setup
from modelmeter.compare.words import arrow
from modelmeter.costs import Number
from modelmeter.model import Leaf
from modelmeter.units import format_bytes, format_flops, format_seconds

_NOISE = 1e-9  # of the work; sums of floats in another order


@frozen(kw_only=True)
class OperatorWork:
    """Calls of an operator in one execution of each stage, and its work in all runs."""

    calls: int = 0
    work: Number = 0  # FLOPs or bytes


def operator_work(setup: Setup, leaves: Iterable[Leaf], metric: Metric) -> dict[str, OperatorWork]:
    """Return the work of operators, by name without the namespace.

    Parameters
    ----------
    setup : Setup
        Whose runs count.
    leaves : iterable of Leaf
        Whose calls count; of stages that do not run, there is no work.
    metric : Metric
        FLOPs or bytes; of a time, the bytes.
    """
    bindings: dict[str, list[tuple[float, Binding]]] = {}
    for each in setup.runs:
        run = each.run
        made = Binding(bindings=run.bindings, count=run.count, sweep=run.sweep, routing=setup.routing)
        bindings.setdefault(run.stage, []).append((each.weight, made))
    found: dict[str, OperatorWork] = {}
    for leaf in leaves:
        name = name_of(leaf)
        texts = _texts(leaf, metric)
        work = sum(weight * binding.sum(text) for weight, binding in bindings.get(leaf.stage, ()) for text in texts)
        held = found.get(name, OperatorWork())
        found[name] = OperatorWork(calls=held.calls + leaf.calls, work=held.work + leaf.calls * work)
    return found


def name_of(leaf: Leaf) -> str:
    """Return the name of a leaf's operator without the namespace."""
    return leaf.op.partition("::")[2] or leaf.op


def operators_differing(
    before: Mapping[str, OperatorWork], after: Mapping[str, OperatorWork], metric: Metric
) -> list[str]:
    """Return which operators do more or less, the largest difference first.

    Examples
    --------
    >>> one, other = {"cat": OperatorWork(calls=1, work=2_000)}, {"cat": OperatorWork(calls=3, work=9_000)}
    >>> operators_differing(one, other, Metric.BYTES), operators_differing(other, one, Metric.FLOPS)
    (['cat calls 1 → 3 (+7.00 kB)'], ['cat calls 3 → 1 (-7.00 kFLOP)'])
    """
    nothing = OperatorWork()
    pairs = {name: (before.get(name, nothing), after.get(name, nothing)) for name in (*before, *after)}
    differing = {
        name: pair
        for name, pair in pairs.items()
        if abs(pair[1].work - pair[0].work) > _NOISE * max(pair[0].work, pair[1].work)
    }
    largest = sorted(differing, key=lambda name: (-abs(differing[name][1].work - differing[name][0].work), name))
    return [_words(name, *differing[name], metric) for name in largest]


def amount(metric: Metric, work: Number) -> str:
    """Write FLOPs, or the bytes of anything else: what operators do is known, not how long each takes."""
    return format_flops(work) if metric is Metric.FLOPS else format_bytes(work)


def figure(metric: Metric, value: Number) -> str:
    """Write a total of work in the unit of its metric.

    Examples
    --------
    >>> figure(Metric.TIME, 0.001379), figure(Metric.FLOPS, 2e9), figure(Metric.BYTES, 512)
    ('1.38 ms', '2.00 GFLOP', '512 B')
    """
    return format_seconds(value) if metric is Metric.TIME else amount(metric, value)


def _words(name: str, before: OperatorWork, after: OperatorWork, metric: Metric) -> str:
    if before.calls == after.calls:
        return f"{name} {amount(metric, before.work)} → {amount(metric, after.work)}"
    change = after.work - before.work
    sign = "+" if change > 0 else ""
    return f"{name} calls {arrow(before.calls, after.calls)} ({sign}{amount(metric, change)})"


def _texts(leaf: Leaf, metric: Metric) -> tuple[str, ...]:
    cost = leaf.cost
    if metric is Metric.FLOPS:
        return cost.matmul_flops.text, cost.vector_flops.text
    return ((cost.fused_bytes if metric is Metric.FUSED_BYTES else cost.bytes).text,)
