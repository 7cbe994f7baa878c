"""KernelTable: the time of any call from a calibration's samples: exact, between, beside or beyond them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np
from attrs import field, frozen

from modelmeter.errors import ModelMeterError
from modelmeter.predict.calibration import Calibration, Sample, sample_key
from modelmeter.predict.kernel_time import KernelTime, Method, Work
from modelmeter.predict.sites import Site, site_of
from modelmeter.signature import Signature

NEAREST = 4
"""Points that a blend weighs."""

# What one figure of a table may be off by before the table itself shows more: an isolated call against the same call
# inside the model (caches, allocator). Chosen by hand; `benchmarks/accuracy` prints how many intervals cover what was
# measured.
_FLOOR_SPREAD: Mapping[Method, float] = {
    Method.EXACT: 0.04,
    Method.BRACKET: 0.06,
    Method.BLEND: 0.15,
    Method.HOLD: 0.15,
    Method.PHYSICAL: 0.5,
}


class MissingKernelTimeError(ModelMeterError, LookupError):
    """A call that no sample of the calibration can stand for."""


@frozen(kw_only=True)
class _Point:
    axes: tuple[int, ...]
    seconds: float
    limit: float  # seconds at the machine's peak rates
    launches: int


@frozen(kw_only=True)
class KernelTable:
    """Times of calls on one machine, looked up by signature.

    The order of resolution: the very call; two measured sizes of the same call, linear in the logarithms; the
    efficiency of the nearest calls, of the same curve or else of the same kind; nothing is an error unless physical
    times are asked for. Efficiency is the time at peak rates over the measured time.

    Attributes
    ----------
    calibration : Calibration
    physical : bool
        Answer from peak rates and the mean efficiency of the calibration where no call of the kind was measured.
    """

    calibration: Calibration
    physical: bool = False
    _found: dict[str, KernelTime] = field(factory=dict, init=False, eq=False, repr=False)

    def time(self, signature: Signature, work: Work, conditions: Mapping[str, int] | None = None) -> KernelTime:
        """Return the time of a call with numbers.

        Parameters
        ----------
        signature : Signature
            The call.
        work : Work
            Its FLOPs and bytes.
        conditions : mapping of str to int
            What else its time depends on.

        Raises
        ------
        MissingKernelTimeError
            When no call of its kind was measured; the message names the call.
        """
        conditions = conditions or {}
        key = sample_key(signature, conditions)
        if key not in self._found:
            self._found[key] = self._look_up(key, site_of(signature, conditions), self._limit(work))
        return self._found[key]

    def launches(self, signature: Signature) -> int:
        """Return how many kernels a call starts: as counted for this call, else for the nearest of its curve or kind.

        Raises
        ------
        MissingKernelTimeError
            When no call of its kind was measured.
        """
        if signature.text in self._launches:
            return self._launches[signature.text]
        conditions = {"active_experts": 1}  # of no effect on the number of kernels
        site = site_of(signature, conditions)
        points = self._curves.get(site.key)
        if points:
            return _nearest(points, site.axes)[0][1].launches
        relatives = self._kinds.get(site.kind)
        if relatives:
            return Counter(point.launches for point in relatives).most_common(1)[0][0]
        if self.physical:
            return 1
        raise self._missing(signature.text, site)

    def _missing(self, key: str, site: Site) -> MissingKernelTimeError:
        machine = self.calibration.machine
        covered = "; ".join(
            f"{model.name} ({', '.join(f'{name} {value}' for name, value in sorted(model.variant.items()))})"
            for model in self.calibration.models
        )
        return MissingKernelTimeError(
            f"the calibration of {machine.device} of {self.calibration.date} has no time for {key}, nor for any call "
            f"of the kind {site.kind!r}. It covers {covered or 'no model'}. Calibrate this model variant with "
            "`dsocr-graph calibrate`, or accept peak rates for what is missing with --physical"
        )

    def _look_up(self, key: str, site: Site, limit: float) -> KernelTime:
        if key in self._central:
            return self._answer(self._central[key], Method.EXACT, site)
        points = self._curves.get(site.key, ())
        between = interpolate([(point.axes, point.seconds) for point in points], site.axes)
        if between is not None:
            exact = any(point.axes == site.axes for point in points)
            return self._answer(between, Method.EXACT if exact else Method.BRACKET, site)
        if points:
            inside = all(
                min(column) <= size <= max(column)
                for size, column in zip(site.axes, zip(*(point.axes for point in points), strict=True), strict=True)
            )
            seconds = self._blend(limit, _nearest(points, site.axes))
            return self._answer(seconds, Method.BLEND if inside else Method.HOLD, site)
        siblings = self._kinds.get(site.kind, ())
        if siblings:
            return self._answer(self._blend(limit, _nearest_work(siblings, limit)), Method.BLEND, site)
        if self.physical:
            return self._answer(max(limit / self._mean_efficiency, self._floor), Method.PHYSICAL, site)
        raise self._missing(key, site)

    def _answer(self, seconds: float, method: Method, site: Site) -> KernelTime:
        return KernelTime(
            seconds=seconds, method=method, family=site.family, group=site.key, log_spread=_FLOOR_SPREAD[method]
        )

    def _blend(self, limit: float, weighted: Sequence[tuple[float, _Point]]) -> float:
        """Return the limit over the weighted mean of the points' efficiencies, never below the fastest call."""
        logs = [math.log(point.seconds / point.limit) for _, point in weighted]
        slowdown = math.exp(float(np.average(logs, weights=[weight for weight, _ in weighted])))
        return max(limit * slowdown, self._floor)

    def _limit(self, work: Work) -> float:
        """Return the seconds at peak rates, with the fastest call as an offset: small calls are not free."""
        peaks = self.calibration.peaks
        fastest_matrix = max(peaks.matrix_flops.values())
        return max(work.flops / fastest_matrix, work.bytes / peaks.bandwidth) + self._floor

    @cached_property
    def _central(self) -> Mapping[str, float]:
        """One figure per sample: on a CPU the lower quartile, since noise only adds; on a GPU the median."""
        share = 0.25 if self.calibration.machine.kind == "cpu" else 0.5
        return {sample.key: sample.quantile(share) for sample in self.calibration.samples}

    @cached_property
    def _launches(self) -> Mapping[str, int]:
        return {sample.signature.text: sample.launches for sample in self.calibration.samples}

    @cached_property
    def _floor(self) -> float:
        return min(self._central.values(), default=1e-6)

    @cached_property
    def _curves(self) -> Mapping[str, tuple[_Point, ...]]:
        found: dict[str, list[_Point]] = {}
        for site, point in self._sited:
            found.setdefault(site.key, []).append(point)
        return {key: tuple(points) for key, points in found.items()}

    @cached_property
    def _kinds(self) -> Mapping[str, tuple[_Point, ...]]:
        found: dict[str, list[_Point]] = {}
        for site, point in self._sited:
            found.setdefault(site.kind, []).append(point)
        return {key: tuple(points) for key, points in found.items()}

    @cached_property
    def _sited(self) -> tuple[tuple[Site, _Point], ...]:
        return tuple(self._place(sample) for sample in self.calibration.samples)

    def _place(self, sample: Sample) -> tuple[Site, _Point]:
        site = site_of(sample.signature, sample.conditions)
        limit = self._limit(Work(flops=sample.flops, bytes=sample.bytes))
        return site, _Point(axes=site.axes, seconds=self._central[sample.key], limit=limit, launches=sample.launches)

    @cached_property
    def _mean_efficiency(self) -> float:
        logs = [math.log(point.limit / point.seconds) for _, point in self._sited]
        return math.exp(float(np.mean(logs))) if logs else 1.0


def interpolate(points: Sequence[tuple[tuple[int, ...], float]], at: tuple[int, ...]) -> float | None:
    """Return a value between points on a partial grid, linear in the logarithms of sizes and values, or None.

    One axis after the other: where the size was measured, those points; else the nearest smaller and the nearest
    larger size at which the remaining axes can be answered. Equal points are averaged. Nothing is extrapolated.

    Examples
    --------
    >>> round(interpolate([((1,), 10.0), ((4,), 40.0)], (2,)), 6)
    20.0
    >>> interpolate([((1,), 10.0), ((4,), 40.0)], (5,)) is None
    True
    """
    if not points:
        return None
    if not at:
        return math.exp(sum(math.log(value) for _, value in points) / len(points))
    size, rest = at[0], at[1:]
    groups: dict[int, list[tuple[tuple[int, ...], float]]] = {}
    for axes, value in points:
        groups.setdefault(axes[0], []).append((axes[1:], value))
    if size in groups:
        found = interpolate(groups[size], rest)
        if found is not None:
            return found
    low = _first_answer(groups, sorted((other for other in groups if other < size), reverse=True), rest)
    high = _first_answer(groups, sorted(other for other in groups if other > size), rest)
    if low is None or high is None:
        return None
    share = (math.log(max(size, 1)) - _log(low[0])) / (_log(high[0]) - _log(low[0]))
    return math.exp(math.log(low[1]) * (1 - share) + math.log(high[1]) * share)


def _first_answer(
    groups: Mapping[int, Sequence[tuple[tuple[int, ...], float]]], sizes: Sequence[int], rest: tuple[int, ...]
) -> tuple[int, float] | None:
    for size in sizes:
        found = interpolate(groups[size], rest)
        if found is not None:
            return size, found
    return None


@lru_cache(maxsize=4096)
def _log(size: int) -> float:
    return math.log(max(size, 1))


def _nearest(points: Sequence[_Point], at: tuple[int, ...]) -> list[tuple[float, _Point]]:
    """Return the nearest points in the logarithms of the sizes, with weights that fall with the distance."""

    def distance(point: _Point) -> float:
        return math.sqrt(sum((_log(size) - _log(other)) ** 2 for size, other in zip(at, point.axes, strict=True)))

    return _weighted(points, [distance(point) for point in points])


def _nearest_work(points: Sequence[_Point], limit: float) -> list[tuple[float, _Point]]:
    """Return the points that are nearest in time at peak rates."""
    return _weighted(points, [abs(math.log(point.limit / limit)) for point in points])


def _weighted(points: Sequence[_Point], distances: Sequence[float]) -> list[tuple[float, _Point]]:
    order = np.argsort(distances, kind="stable")[:NEAREST]
    return [(1.0 / (distances[index] + 1e-3) ** 2, points[index]) for index in order]
