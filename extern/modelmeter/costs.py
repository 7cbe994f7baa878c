"""Cost and Time: what work amounts to in numbers; records that add up and scale."""

from __future__ import annotations

from typing import Self

from attrs import fields, frozen

Number = int | float


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
    """Predicted seconds, split by what bounds the work.

    Examples
    --------
    >>> time = Time(matrix_units=1.0, memory=3.0)
    >>> time.seconds, time.bound_by
    (4.0, 'memory')
    """

    matrix_units: float = 0.0  # seconds of work that matrix units bound
    vector_units: float = 0.0  # seconds of work that vector units bound
    memory: float = 0.0  # seconds of work that memory bandwidth bounds

    @property
    def seconds(self) -> float:
        """All seconds."""
        return self.matrix_units + self.vector_units + self.memory

    @property
    def bound_by(self) -> str:
        """What bounds most of the time: "matrix units", "vector units" or "memory"."""
        parts = {"matrix units": self.matrix_units, "vector units": self.vector_units, "memory": self.memory}
        return max(parts, key=lambda name: parts[name])

    def __add__(self, other: Self) -> Self:
        return type(self)(
            matrix_units=self.matrix_units + other.matrix_units,
            vector_units=self.vector_units + other.vector_units,
            memory=self.memory + other.memory,
        )

    def __mul__(self, factor: float) -> Self:
        return type(self)(
            matrix_units=self.matrix_units * factor,
            vector_units=self.vector_units * factor,
            memory=self.memory * factor,
        )

    __rmul__ = __mul__


TIME_NAMES = tuple(attribute.name for attribute in fields(Time))


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
