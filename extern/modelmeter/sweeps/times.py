"""Roofline times at many points: the seconds of a stage's kernels, summed in closed form along a decode."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from attrs import frozen

from modelmeter.binding import Binding
from modelmeter.devices import DeviceSpec
from modelmeter.errors import InvalidDeviceError
from modelmeter.predict.roofline import Roofline, RooflineError
from modelmeter.sweeps.polynomial import Polynomial
from modelmeter.sweeps.program import Executions, Kernels, Matrix, StageProgram
from modelmeter.sweeps.sizes import Numbers, Sizes, depends_on, runs_of, summed_over_steps

_UNITS = ("matrix units", "vector units", "memory")


@frozen(kw_only=True)
class KernelSeconds:
    """Some kernels on a device: what bounds each, and for how long.

    A kernel takes the longest of its work on matrix units, on vector units and of its traffic; see
    `modelmeter.predict.Roofline`.
    """

    calls: Numbers  # float64, [kernel]
    work: Matrix  # a row per unit and kernel, all kernels of a unit together; FLOPs, FLOPs, bytes
    seconds_per_work: Numbers  # float64, [unit, kernel, 1]

    @classmethod
    def of(cls, kernels: Sequence[Kernels], device: DeviceSpec) -> KernelSeconds:
        """Return the kernels on a device.

        Raises
        ------
        RooflineError
            When the device has no peak for the type of a kernel's matrix work.
        """
        roofline = Roofline(device=device)
        return cls(
            calls=np.array([kernel.calls for kernel in kernels], dtype=np.float64),
            work=Matrix.of(
                [kernel.work[unit] for unit in range(len(_UNITS)) for kernel in kernels],
                [f"{unit} of {kernel.first}" for unit in _UNITS for kernel in kernels],
            ),
            seconds_per_work=np.array([_seconds_per_work(kernel, roofline) for kernel in kernels]).T.reshape(
                len(_UNITS), len(kernels), 1
            ),
        )

    def of_one(self, sizes: Sizes) -> Numbers:
        """Return the seconds of one execution at each point."""
        return self.calls @ self._units(sizes).max(axis=0, initial=0)

    def along(self, executions: Executions) -> Numbers:
        """Return the seconds of all executions, for work that is linear in the dim that grows."""
        assert executions.sweep is not None
        start = self._work(executions.sizes)
        growth = self._work(executions.sizes.moved(executions.sweep, 1)) - start
        return self.calls @ sum_of_largest(
            start * self.seconds_per_work, growth * self.seconds_per_work, executions.count
        )

    def _units(self, sizes: Sizes) -> Numbers:
        return self._work(sizes) * self.seconds_per_work

    def _work(self, sizes: Sizes) -> Numbers:
        return self.work.values(sizes).reshape(len(_UNITS), len(self.calls), sizes.points)


@frozen(kw_only=True)
class StageSeconds:
    """A stage on a device, its kernels told apart by how they change along a sweep."""

    steady: KernelSeconds  # the same at each execution
    linear: KernelSeconds  # grow by as much with each execution
    curved: KernelSeconds  # change in another way

    @classmethod
    def of(cls, stage: StageProgram, device: DeviceSpec, sweep: str | None) -> StageSeconds:
        """Return a stage on a device.

        Raises
        ------
        RooflineError
            When the device has no peak for the type of a kernel's matrix work.
        """
        kinds: dict[int, list[Kernels]] = {0: [], 1: [], 2: []}
        for kernel in stage.kernels:
            kinds[0 if sweep is None else max(_degree(terms, sweep) for terms in kernel.work)].append(kernel)
        steady, linear, curved = (KernelSeconds.of(kernels, device) for kernels in kinds.values())
        return cls(steady=steady, linear=linear, curved=curved)

    def at(self, executions: Executions) -> Numbers:
        """Return the seconds of all executions at each point."""
        sizes, sweep = executions.sizes, executions.sweep
        # Neighbours of a grid mostly differ only in how often a stage runs.
        starts, lengths = runs_of(sizes.points, *(column for name, column in sizes.columns.items() if name != sweep))
        found = np.repeat(self.steady.of_one(sizes.at(starts)), lengths) * executions.count
        if sweep is None:
            return found
        if len(self.linear.calls):
            found = found + self.linear.along(executions)
        if len(self.curved.calls):
            found = found + summed_over_steps(sizes, sweep, executions.count, self.curved.of_one)
        return found


def sum_of_largest(start: Numbers, growth: Numbers, count: Numbers) -> Numbers:
    """Return the sum over i = 0 ... count - 1 of the largest of three lines, ``start + growth * i``.

    The lines change places at three crossings at most; between two, one of them is the largest, and its sum is the
    number of terms times the value in their middle.

    Parameters
    ----------
    start, growth : array
        [3, ..., point].
    count : array
        Whole numbers from 1 up, [point].

    Examples
    --------
    The largest of 3, i and 0 for i = 0 ... 5: 3 + 3 + 3 + 3 + 4 + 5.

    >>> column = lambda *values: np.array(values, dtype=float).reshape(3, 1)
    >>> sum_of_largest(column(3, 0, 0), column(0, 1, 0), np.array([6])).tolist()
    [21.0]
    """
    cuts = [_crossing(start, growth, one, two, count) for one, two in ((0, 1), (0, 2), (1, 2))]
    ends = np.sort(np.stack(cuts), axis=0)
    edges = [np.zeros_like(ends[0]), *ends, np.broadcast_to(count, ends[0].shape)]
    found = np.zeros_like(ends[0])
    for left, right in itertools.pairwise(edges):
        middle = (left + right - 1) / 2
        found += (right - left) * (start + growth * middle).max(axis=0)
    return found


def _crossing(start: Numbers, growth: Numbers, one: int, two: int, count: Numbers) -> Numbers:
    """Return the first i from which on another of two lines is the larger, between 0 and count."""
    slower = growth[two] - growth[one]
    parallel = slower == 0
    at = (start[one] - start[two]) / np.where(parallel, 1.0, slower)
    return np.where(parallel, 0.0, np.clip(np.floor(at) + 1, 0, count))


def _degree(terms: Polynomial, sweep: str) -> int:
    """Return how work changes along a sweep: 0 not at all, 1 linearly, 2 in another way."""
    return max((2 if depends_on(key, sweep) else min(key.count(sweep), 2) for key in terms), default=0)


def _seconds_per_work(kernel: Kernels, roofline: Roofline) -> tuple[float, float, float]:
    """Return the seconds that one FLOP or byte takes in each unit; nothing for a unit without work."""
    units = [("1", "0", "0"), ("0", "1", "0"), ("0", "0", "1")]
    none = Binding(bindings={})
    try:
        matrix, vector, memory = (
            roofline.time_of(kernel.dtype, (a, b, c), none).seconds if kernel.work[index] else 0.0
            for index, (a, b, c) in enumerate(units)
        )
    except InvalidDeviceError as error:
        raise RooflineError(f"no time for {kernel.first}: {error}") from error
    return matrix, vector, memory
