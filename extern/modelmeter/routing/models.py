"""Routing models: how many distinct experts some tokens touch, each with the sentence that it rests on."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from attrs import field, frozen

from modelmeter.errors import ModelMeterError, UnknownNameError
from modelmeter.expert_counts import Routing, fewest_routing, most_routing, uniform_routing

LARGEST_EXPONENT = 100.0
"""A Zipf law this steep already sends every token to the same experts; beyond it, probabilities leave a float."""


class RoutingError(ModelMeterError, ValueError):
    """A routing model that cannot be: its exponent, or its histogram."""


class UnknownRoutingError(UnknownNameError):
    """A routing model that does not exist."""


class MissingHistogramError(RoutingError, FileNotFoundError):
    """A histogram file that cannot be read at all."""


@runtime_checkable
class NamedRouting(Protocol):
    """A `modelmeter.expert_counts.Routing` that says what it is."""

    @property
    def name(self) -> str:
        """The text that `parse_routing` takes."""
        ...

    @property
    def statement(self) -> str:
        """What it assumes, in one sentence."""
        ...

    def __call__(self, experts: int, top_k: int, tokens: int) -> float:
        """Return how many distinct experts some tokens touch."""
        ...


@frozen(kw_only=True)
class Ruled:
    """A routing model that a function states.

    Examples
    --------
    >>> UNIFORM.name, round(UNIFORM(64, 6, 8), 1)
    ('uniform', 34.9)
    """

    name: str
    statement: str
    rule: Routing

    @property
    def __name__(self) -> str:
        """The name, as functions have it: what a report calls the routing."""
        return self.name

    def __call__(self, experts: int, top_k: int, tokens: int) -> float:
        """Return how many distinct experts some tokens touch."""
        return self.rule(experts, top_k, tokens)


UNIFORM = Ruled(
    name="uniform",
    statement="every token picks its k experts uniformly and independently: E*(1 - (1 - k/E)**T) expected",
    rule=uniform_routing,
)
FEWEST = Ruled(name="top-k", statement="every token picks the same k experts: the lower bound", rule=fewest_routing)
MOST = Ruled(
    name="most",
    statement="tokens share no expert while any is left, min(E, T*k): the upper bound",
    rule=most_routing,
)


def _checked_exponent(_owner: object, _attribute: object, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST_EXPONENT:
        raise RoutingError(
            f"the Zipf exponent is {value!r}; it must be a finite number from 0 (uniform) to {LARGEST_EXPONENT:g}"
        )


@frozen(kw_only=True)
class Zipf:
    """Expert i, counted from 1, is drawn with a probability in proportion to i**-exponent.

    A token draws its k experts one after the other without replacement (successive sampling), independently of other
    tokens. The chance p_i that a token picks expert i is then exact up to quadrature (`inclusion_probabilities`), and
    T tokens touch sum_i 1 - (1 - p_i)**T experts on average.

    Examples
    --------
    >>> flat, steep = Zipf(exponent=0.0), Zipf(exponent=1.1)
    >>> round(flat(64, 6, 8), 1), round(steep(64, 6, 8), 1), round(steep(64, 6, 1), 9)
    (34.9, 25.1, 6.0)
    """

    exponent: float = field(validator=_checked_exponent)

    @property
    def name(self) -> str:
        """The text that `parse_routing` takes."""
        return f"zipf:{self._written}"

    @property
    def __name__(self) -> str:
        """The name, as functions have it: what a report calls the routing."""
        return self.name

    @property
    def statement(self) -> str:
        """What it assumes."""
        return (
            f"expert i is drawn in proportion to i**-{self._written}, k per token without replacement, tokens "
            "independent: sum of 1 - (1 - p_i)**T expected"
        )

    @property
    def _written(self) -> str:
        """The exponent with every digit that tells it from another: two of them never share a name."""
        return str(float(self.exponent)).removesuffix(".0")

    def __call__(self, experts: int, top_k: int, tokens: int) -> float:
        """Return the expected number of distinct experts that some tokens touch."""
        weights = tuple(rank**-self.exponent for rank in range(1, experts + 1))
        return expected_distinct(inclusion_probabilities(weights, top_k), tokens)


def expected_distinct(picked: tuple[float, ...], tokens: int) -> float:
    """Return sum_i 1 - (1 - p_i)**T for the chances p_i that one token picks each expert.

    Examples
    --------
    >>> expected_distinct((0.5, 0.5, 1.0), 2)
    2.5
    """
    return sum(1.0 if chance >= 1 else -math.expm1(tokens * math.log1p(-chance)) for chance in picked if tokens)


_STEP = 0.1  # of the logarithm of time; the sums of chances agree with k to 1e-9 (a test)
_EARLY, _LATE = 1e-14, 40.0  # expected arrivals of the likeliest expert, and of the least likely, at the ends


@lru_cache(maxsize=256)
def inclusion_probabilities(weights: tuple[float, ...], draws: int) -> tuple[float, ...]:
    """Return the chance of each item to be among some draws without replacement, each in proportion to its weight.

    The draws are the first arrivals of independent Poisson clocks with the weights as rates, so item i is among k
    draws when fewer than k others ring before it: the integral over t of w_i exp(-w_i t) P(fewer than k others by t).
    The trapezoidal rule in log t converges exponentially, as the integrand vanishes at both ends.

    Source: Rosen, "Asymptotic theory for order sampling", J. Statist. Plann. Inference 62 (1997), section 2
    (successive sampling as order sampling with exponential clocks).

    Examples
    --------
    >>> [round(chance, 6) for chance in inclusion_probabilities((2.0, 1.0, 1.0), 1)]
    [0.5, 0.25, 0.25]
    """
    if draws >= len(weights):
        return (1.0,) * len(weights)
    rates = np.array(weights)
    start, end = math.log(_EARLY / rates.max()), math.log(_LATE / rates.min())
    times = np.exp(np.arange(start, end + _STEP, _STEP))
    rung = -np.expm1(-rates[:, None] * times)  # [item, time]: chance that its clock rang
    chances: list[float] = []
    for item, rate in enumerate(weights):
        count = np.zeros((draws, len(times)))  # [others that rang, time]
        count[0] = 1.0
        for other in range(len(weights)):
            if other == item:
                continue
            arrived = count * rung[other]
            count -= arrived
            count[1:] += arrived[:-1]
        density = rate * times * np.exp(-rate * times)
        chances.append(min(1.0, float((density * count.sum(axis=0)).sum() * _STEP)))
    return tuple(chances)
