"""KernelTime: the time of one kernel or call, how it was found, and how far it may be off."""

from __future__ import annotations

from enum import StrEnum

from attrs import frozen


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
    log_spread : float
        Standard deviation of the logarithm of true over predicted time.
    """

    seconds: float
    method: Method
    family: str
    group: str
    log_spread: float


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
