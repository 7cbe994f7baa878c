"""Sizes: the dims of many points as arrays, and what products of them amount to at each point."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from attrs import evolve, field, frozen

from modelmeter.expert_counts import Routing, uniform_routing
from modelmeter.sweeps.errors import SweepError
from modelmeter.sweeps.polynomial import Monomial, Polynomial, arguments, dims_of, is_whole, polynomial

Numbers = np.ndarray[Any, np.dtype[Any]]
"""One number per point: int64 or float64."""

STEPS_AT_ONCE = 1 << 18
"""Executions that are spelled out at once where no closed form sums them."""


@frozen(kw_only=True)
class Sizes:
    """Sizes of the dims at some points, under a routing.

    Examples
    --------
    >>> sizes = Sizes(columns={"B": np.array([1, 2]), "S": np.array([5, 7])}, points=2)
    >>> sizes.value(polynomial("2*B*S + 1")).tolist()
    [11.0, 29.0]
    """

    columns: Mapping[str, Numbers]  # int64, one size per point
    points: int
    routing: Routing = uniform_routing
    _factors: dict[str, Numbers] = field(factory=dict, init=False, eq=False, repr=False)

    def factor(self, name: str) -> Numbers:
        """Return a dim, or the value of a call, at each point."""
        if "(" not in name:
            return self.columns[name]
        if name not in self._factors:
            self._factors[name] = self._called(*arguments(name))
        return self._factors[name]

    def product(self, monomial: Monomial) -> Numbers | int:
        """Return the product of some factors at each point; the empty product is 1."""
        found: Numbers | int = 1
        for name in monomial:
            found = found * self.factor(name)
        return found

    def value(self, terms: Polynomial) -> Numbers:
        """Return a polynomial at each point, as floats."""
        found = np.zeros(self.points)
        for monomial, coefficient in terms.items():
            found += float(coefficient) * self.product(monomial)
        return found

    def largest(self, monomial: Monomial) -> float:
        """Return a bound of a product over all points."""
        return math.prod(float(self.factor(name).max(initial=0)) for name in monomial)

    def at(self, chosen: Numbers) -> Sizes:
        """Return some of the points, by index."""
        columns = {name: column[chosen] for name, column in self.columns.items()}
        return Sizes(columns=columns, points=len(chosen), routing=self.routing)

    def moved(self, dim: str, by: Numbers | int) -> Sizes:
        """Return the points with more of one dim."""
        return evolve(self, columns={**self.columns, dim: self.columns[dim] + by})

    def _called(self, function: str, texts: tuple[str, ...]) -> Numbers:
        values = [self.value(polynomial(text)) for text in texts]
        if function == "distinct_experts":
            return _routed(self.routing, values)
        found: Numbers
        if function in {"floor", "ceiling"}:
            found = (np.floor if function == "floor" else np.ceil)(values[0])
        else:
            pick = np.maximum if function == "Max" else np.minimum
            found = values[0]
            for value in values[1:]:
                found = pick(found, value)
        whole = is_whole(f"{function}({', '.join(texts)})")
        return found.astype(np.int64) if whole else found


def _routed(routing: Routing, values: list[Numbers]) -> Numbers:
    """Ask a routing once per run of equal tokens: neighbours of a grid mostly have the same."""
    experts, top_k = int(values[0][0]), int(values[1][0])
    tokens = values[2].astype(np.int64)
    starts, lengths = runs_of(len(tokens), tokens)
    touched = [routing(experts, top_k, count) for count in tokens[starts].tolist()]
    return np.repeat(np.array(touched, dtype=np.float64), lengths)


def runs_of(points: int, *columns: Numbers) -> tuple[Numbers, Numbers]:
    """Return where runs of equal neighbours start, and how long they are.

    Examples
    --------
    >>> [part.tolist() for part in runs_of(4, np.array([5, 5, 7, 5]))]
    [[0, 2, 3], [2, 1, 1]]
    """
    changed = np.zeros(points, dtype=bool)
    changed[:1] = True
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    starts = np.flatnonzero(changed)
    return starts, np.diff(starts, append=points)


def power_sum(start: Numbers, count: Numbers, power: int) -> Numbers:
    """Return ``start**power + (start + 1)**power + ...`` of so many terms, exactly, in integers.

    Expanded by the binomial theorem; i**j summed over i < n is sum_m S(j, m) m! C(n, m + 1), with Stirling numbers of
    the second kind. Source: Graham, Knuth, Patashnik, "Concrete Mathematics", 2nd ed., equation 6.10.

    Examples
    --------
    5 + 6 + 7, and 25 + 36 + 49.

    >>> [int(power_sum(np.array([5]), np.array([3]), power)[0]) for power in (0, 1, 2)]
    [3, 18, 110]
    """
    choose = [count]  # C(n, m + 1) by m
    for below in range(1, power + 1):
        choose.append(choose[-1] * (count - below) // (below + 1))
    found = np.zeros_like(count)
    for exponent in range(power + 1):
        steps = sum((_ordered_partitions(exponent, parts) * choose[parts] for parts in range(exponent + 1)), 0 * count)
        found = found + math.comb(power, exponent) * start ** (power - exponent) * steps
    return found


def _ordered_partitions(items: int, parts: int) -> int:
    """Return S(items, parts) * parts!: ways to put items into so many named boxes, none empty."""
    return sum((-1) ** (parts - kept) * math.comb(parts, kept) * kept**items for kept in range(parts + 1))


def summed_over_steps(sizes: Sizes, dim: str, count: Numbers, value: Callable[[Sizes], Numbers]) -> Numbers:
    """Return the sum of a value over executions that each have one more of a dim, spelled out step by step.

    Examples
    --------
    Max(T, 6) at T = 5, 6, 7: 6 + 6 + 7.

    >>> sizes = Sizes(columns={"T": np.array([5])}, points=1)
    >>> summed_over_steps(sizes, "T", np.array([3]), lambda each: each.factor("Max(T, 6)")).tolist()
    [19]
    """
    sums: list[Numbers] = []
    for chosen in _blocks(count):
        lengths = count[chosen]
        owner = np.repeat(np.arange(chosen.start, chosen.stop), lengths)
        first = np.cumsum(lengths) - lengths
        step = np.arange(len(owner)) - np.repeat(first, lengths)
        sums.append(np.add.reduceat(value(sizes.at(owner).moved(dim, step)), first))
    return np.concatenate(sums)


def _blocks(count: Numbers) -> Iterator[slice]:
    """Cut points into neighbours of few steps together; one point may have more."""
    if (count < 1).any():
        raise SweepError("a sweep over a dim needs at least one execution at every point that runs the stage")
    start, steps = 0, 0
    for index, length in enumerate(count.tolist()):
        if steps and steps + length > STEPS_AT_ONCE:
            yield slice(start, index)
            start, steps = index, 0
        steps += length
    yield slice(start, len(count))


def depends_on(monomial: Monomial, dim: str) -> bool:
    """Whether a call in a product depends on a dim: then no closed form sums it."""
    return any(name != dim and dim in dims_of(name) for name in monomial)
