"""Cost and Time: what work amounts to in numbers; records that add up and scale."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from attrs import field, fields, frozen

Number = int | float
Draws = np.ndarray[Any, np.dtype[np.float64]]
"""Seconds of one figure in each of some sampled runs; draw i of every figure is of the same run."""


@frozen(kw_only=True)
class Cost:
    """FLOPs and bytes of some executions.

    FLOPs are integers. Bytes may be expectations, hence floats, where a router decides which experts are read.

    Examples
    --------
    >>> (Cost(calls=1, matmul_flops=8, bytes=6) * 2 + Cost(calls=1, vector_flops=3)).flops
    19
    """

    calls: int = 0  # operator calls
    matmul_flops: Number = 0  # FLOPs of matrix products and convolutions; one multiply-add is 2
    vector_flops: Number = 0  # FLOPs outside matrix products
    tensor_core_flops: Number = 0  # FLOPs that run on tensor cores
    cuda_core_flops: Number = 0  # FLOPs that run on CUDA cores
    bytes: Number = 0  # bytes moved when every kernel reads its operands and writes its results once
    fused_bytes: Number = 0  # bytes moved when chains of pointwise kernels stay on chip
    weight_bytes_read: Number = 0  # bytes of parameters read, part of `bytes`

    @property
    def flops(self) -> Number:
        """All FLOPs."""
        return self.matmul_flops + self.vector_flops

    def __add__(self, other: Self) -> Self:
        # Written out, as reports add tens of thousands of these.
        return type(self)(
            calls=self.calls + other.calls,
            matmul_flops=self.matmul_flops + other.matmul_flops,
            vector_flops=self.vector_flops + other.vector_flops,
            tensor_core_flops=self.tensor_core_flops + other.tensor_core_flops,
            cuda_core_flops=self.cuda_core_flops + other.cuda_core_flops,
            bytes=self.bytes + other.bytes,
            fused_bytes=self.fused_bytes + other.fused_bytes,
            weight_bytes_read=self.weight_bytes_read + other.weight_bytes_read,
        )

    def __mul__(self, factor: int) -> Self:
        return type(self)(**{name: getattr(self, name) * factor for name in COST_NAMES})

    __rmul__ = __mul__


COST_NAMES = tuple(attribute.name for attribute in fields(Cost))


@frozen(kw_only=True)
class Time:
    """Predicted seconds, split by what bounds the work, with an interval where the prediction has one.

    Examples
    --------
    >>> time = Time(matrix_units=1.0, memory=3.0)
    >>> time.seconds, time.bound_by, time.p10
    (4.0, 'memory', None)
    """

    matrix_units: float = 0.0  # seconds of work that matrix units bound
    vector_units: float = 0.0  # seconds of work that vector units bound
    memory: float = 0.0  # seconds of work that memory bandwidth bounds
    host: float = 0.0  # seconds that the device waits for the host
    draws: Draws | None = field(default=None, eq=False, repr=False)  # seconds in sampled runs; None: no interval
    interval: tuple[float, float] | None = field(default=None, eq=False)  # p10 and p90 as a file has them

    @property
    def seconds(self) -> float:
        """All seconds."""
        return self.matrix_units + self.vector_units + self.memory + self.host

    @property
    def bound_by(self) -> str:
        """What bounds most of the time: "matrix units", "vector units", "memory" or "host"."""
        return max(TIME_NAMES, key=lambda name: getattr(self, name)).replace("_", " ")

    @property
    def p10(self) -> float | None:
        """Seconds that nine of ten runs exceed."""
        return self._quantile(0)

    @property
    def p90(self) -> float | None:
        """Seconds that one of ten runs exceeds."""
        return self._quantile(1)

    def _quantile(self, end: int) -> float | None:
        if self.draws is not None:
            return float(np.quantile(self.draws, (0.1, 0.9)[end]))
        return None if self.interval is None else self.interval[end]

    def __add__(self, other: Self) -> Self:
        return type(self)(
            **{name: getattr(self, name) + getattr(other, name) for name in TIME_NAMES},
            draws=_sum_of_draws(self, other),
            interval=_sum_of_intervals(self, other),
        )

    def __mul__(self, factor: float) -> Self:
        return type(self)(
            **{name: getattr(self, name) * factor for name in TIME_NAMES},
            draws=None if self.draws is None else self.draws * factor,
            interval=None if self.interval is None else (self.interval[0] * factor, self.interval[1] * factor),
        )

    __rmul__ = __mul__


TIME_NAMES = ("matrix_units", "vector_units", "memory", "host")


def _sum_of_draws(left: Time, right: Time) -> Draws | None:
    """Add run by run; a part without draws is taken as certain."""
    if left.draws is None:
        return None if right.draws is None else left.seconds + right.draws
    return left.draws + (right.seconds if right.draws is None else right.draws)


def _sum_of_intervals(left: Time, right: Time) -> tuple[float, float] | None:
    """Add ends: as if the parts erred together, the widest sum that two intervals can have."""
    if left.interval is None and right.interval is None:
        return None
    one, two = left.interval or (left.seconds, left.seconds), right.interval or (right.seconds, right.seconds)
    return (one[0] + two[0], one[1] + two[1])


@frozen(kw_only=True)
class Amount:
    """Cost, and time where a device is given.

    Examples
    --------
    >>> (Amount(cost=Cost(calls=1)) + Amount(cost=Cost(calls=2))).cost.calls
    3
    """

    cost: Cost = Cost()
    time: Time | None = None  # None: no device

    def __add__(self, other: Self) -> Self:
        times = [time for time in (self.time, other.time) if time is not None]
        return type(self)(cost=self.cost + other.cost, time=sum(times[1:], times[0]) if times else None)
