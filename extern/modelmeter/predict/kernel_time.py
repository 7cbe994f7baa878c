"""KernelTime: the time of one kernel or call, how it was found, and how far it may be off."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from functools import cached_property

from attrs import frozen

from modelmeter.costs import Draws
from modelmeter.predict.spread import Spread


class Method(StrEnum):
    """How a time was found, best first."""

    EXACT = "exact"  # this very call was measured
    BRACKET = "bracket"  # between two measured sizes of the same call
    BLEND = "blend"  # by the efficiency of the nearest measured calls of its kind
    HOLD = "hold"  # beyond the measured sizes, at the efficiency of the last
    PHYSICAL = "physical"  # from rates of the device, no measurement of the call: only when asked for


@frozen(kw_only=True)
class Work:
    """What a call does, to compare its time with that of other calls."""

    flops: float
    bytes: float  # moved, unfused


@frozen(kw_only=True)
class KernelTime:
    """Seconds of one execution on the device.

    Attributes
    ----------
    family : str
        Kind of operator, for statements on where a prediction comes from: "gemm", "attention", "memory", ...
    group : str
        Calls of one group err together: they rest on the same measured points.
    spread : Spread
        How far the seconds may be off.
    """

    seconds: float
    method: Method
    family: str
    group: str
    spread: Spread

    @cached_property
    def factors(self) -> Draws:
        """True over predicted time in each sampled run."""
        return self.spread.factors(self.group)


@frozen(kw_only=True)
class SourceShare:
    """The part of a prediction that one family of operators has by one method.

    Attributes
    ----------
    family : str
        As in `KernelTime`.
    seconds : float
        Predicted, on the device, of all executions.
    calls : int
        Executions.
    """

    family: str
    method: Method
    seconds: float
    calls: int


def statement_of(times: Iterable[tuple[KernelTime, float]]) -> tuple[SourceShare, ...]:
    """Return the seconds and calls of some times with their numbers of executions, by family and method.

    Returns
    -------
    tuple of SourceShare
        The one with the most seconds first.

    Examples
    --------
    >>> time = KernelTime(seconds=2.0, method=Method.EXACT, family="gemm", group="", spread=Spread(stated=0.0))
    >>> [(share.family, share.seconds, share.calls) for share in statement_of([(time, 3.0), (time, 1.0)])]
    [('gemm', 8.0, 4)]
    """
    sums: dict[tuple[str, Method], tuple[float, float]] = {}
    for time, calls in times:
        seconds, executions = sums.get((time.family, time.method), (0.0, 0.0))
        sums[time.family, time.method] = seconds + time.seconds * calls, executions + calls
    shares = [
        SourceShare(family=family, method=method, seconds=seconds, calls=round(calls))
        for (family, method), (seconds, calls) in sums.items()
    ]
    return tuple(sorted(shares, key=lambda share: -share.seconds))
