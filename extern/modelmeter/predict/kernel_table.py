"""KernelTable: the time of any call from a calibration's samples: exact, between, beside or beyond them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import combinations
from types import MappingProxyType

import numpy as np
from attrs import field, frozen

from modelmeter.errors import ModelMeterError
from modelmeter.predict.calibration import Calibration, Sample, sample_key
from modelmeter.predict.kernel_time import KernelTime, Method, Work
from modelmeter.predict.lattice import Lattice, Sizes, log_ratio
from modelmeter.predict.residuals import Spreads
from modelmeter.predict.sites import Site, site_of
from modelmeter.signature import Signature

NEAREST = 4
"""Points that a blend weighs."""

STATED_SPREADS: Mapping[Method, float] = MappingProxyType(
    {Method.EXACT: 0.04, Method.BRACKET: 0.06, Method.BLEND: 0.15, Method.HOLD: 0.15, Method.PHYSICAL: 0.5}
)
"""What a figure may be off by at least, and where too few like it could be checked in the calibration.

A calibration times calls by themselves: what the same call costs inside the model (caches, allocator) it cannot show.
"""


class MissingKernelTimeError(ModelMeterError, LookupError):
    """A call that no sample of the calibration can stand for."""


@frozen(kw_only=True)
class _Point:
    """A sample on its curve."""

    site: Site
    seconds: float
    limit: float  # seconds at the machine's peak rates
    launches: int

    @property
    def axes(self) -> tuple[int, ...]:
        return self.site.axes


@frozen(kw_only=True)
class KernelTable:
    """Times of calls on one machine, looked up by signature.

    The order of resolution: the very call; two measured sizes of the same call, linear in the logarithms; the
    efficiency of the nearest calls, of the same curve or else of the same kind; nothing is an error unless physical
    times are asked for. Efficiency is the time at peak rates over the measured time.

    How far a figure may be off is seen from the calibration itself: a pass, a sample or a whole curve is left out and
    predicted from what remains, by the same method. The logarithms of measured over predicted time are the residuals
    that an interval resamples (`modelmeter.predict.spread.Spread`).

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
            f"of the kind {site.kind!r}. It covers {covered or 'no model'}. Calibrate this model variant, with its "
            "--moe if one is given, by `dsocr-graph calibrate`, or accept peak rates for what is missing "
            "with --physical"
        )

    def _look_up(self, key: str, site: Site, limit: float) -> KernelTime:
        if key in self._central:
            return self._answer(self._central[key], Method.EXACT, site)
        found = self._estimate(site, limit, self._curves.get(site.key, ()), self._kinds.get(site.kind, ()))
        if found is not None:
            return self._answer(*found, site)
        if self.physical:
            return self._answer(max(limit / self._mean_efficiency, self._floor), Method.PHYSICAL, site)
        raise self._missing(key, site)

    def _estimate(
        self, site: Site, limit: float, curve: Sequence[_Point], relatives: Sequence[_Point]
    ) -> tuple[float, Method] | None:
        """Return the seconds at a site from points of its curve, or else of its kind, and how; None without either."""
        if not curve:
            return (self._blend(limit, _nearest_work(relatives, limit)), Method.BLEND) if relatives else None
        around = _lattice(curve).between(site.axes)
        if around is not None:
            return around.seconds, Method.BRACKET if around.between else Method.EXACT
        inside = all(
            min(column) <= size <= max(column)
            for size, column in zip(site.axes, zip(*(point.axes for point in curve), strict=True), strict=True)
        )
        return self._blend(limit, _nearest(curve, site.axes)), Method.BLEND if inside else Method.HOLD

    def _answer(self, seconds: float, method: Method, site: Site) -> KernelTime:
        spread = self._spreads.of(site.family, method)
        return KernelTime(seconds=seconds, method=method, family=site.family, group=site.key, spread=spread)

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
    def _spreads(self) -> Spreads:
        return Spreads.from_residuals(self._residuals(), stated=STATED_SPREADS)

    def _residuals(self) -> Iterator[tuple[str, Method, float]]:
        """Yield logarithms of measured over predicted time of what is left out: a pass, a sample, a whole curve."""
        for point, sample in zip(self._points, self.calibration.samples, strict=True):
            others = [other for other in self._curves[point.site.key] if other is not point]
            strangers = [other for other in self._kinds[point.site.kind] if other.site.key != point.site.key]
            predicted = [(seconds, Method.EXACT) for seconds in _with_a_pass_less(sample, self._share)]
            predicted += [self._estimate(point.site, point.limit, curve, strangers) for curve in (others, ())]
            for seconds, method in filter(None, predicted):
                yield point.site.family, method, math.log(point.seconds / seconds)

    @property
    def _share(self) -> float:
        """The quantile of the passes that counts: on a CPU the lower, since noise only adds; on a GPU the median."""
        return 0.25 if self.calibration.machine.kind == "cpu" else 0.5

    @cached_property
    def _central(self) -> Mapping[str, float]:
        return {sample.key: sample.quantile(self._share) for sample in self.calibration.samples}

    @cached_property
    def _launches(self) -> Mapping[str, int]:
        return {sample.signature.text: sample.launches for sample in self.calibration.samples}

    @cached_property
    def _floor(self) -> float:
        return min(self._central.values(), default=1e-6)

    @cached_property
    def _curves(self) -> Mapping[str, tuple[_Point, ...]]:
        return _grouped(self._points, lambda point: point.site.key)

    @cached_property
    def _kinds(self) -> Mapping[str, tuple[_Point, ...]]:
        return _grouped(self._points, lambda point: point.site.kind)

    @cached_property
    def _points(self) -> tuple[_Point, ...]:
        return tuple(
            _Point(
                site=site_of(sample.signature, sample.conditions),
                seconds=self._central[sample.key],
                limit=self._limit(Work(flops=sample.flops, bytes=sample.bytes)),
                launches=sample.launches,
            )
            for sample in self.calibration.samples
        )

    @cached_property
    def _mean_efficiency(self) -> float:
        logs = [math.log(point.limit / point.seconds) for point in self._points]
        return math.exp(float(np.mean(logs))) if logs else 1.0


def _with_a_pass_less(sample: Sample, share: float) -> list[float]:
    """Return the figure that a sample would have without each one of its passes; none where it has but one."""
    if len(sample.seconds) == 1:
        return []
    rests = tuple(combinations(sample.seconds, len(sample.seconds) - 1))
    return np.quantile(rests, share, axis=1).tolist()


def _grouped(points: Sequence[_Point], name: Callable[[_Point], str]) -> Mapping[str, tuple[_Point, ...]]:
    found: dict[str, list[_Point]] = {}
    for point in points:
        found.setdefault(name(point), []).append(point)
    return {key: tuple(group) for key, group in found.items()}


def _lattice(points: Sequence[_Point]) -> Lattice:
    """Return the points as a lattice; equal ones are averaged in the logarithm."""
    logs: dict[Sizes, list[float]] = {}
    for point in points:
        logs.setdefault(point.axes, []).append(math.log(point.seconds))
    axes = tuple(map(str, range(len(points[0].axes))))
    return Lattice(axes=axes, points={sizes: math.exp(sum(each) / len(each)) for sizes, each in logs.items()})


def _nearest(points: Sequence[_Point], at: tuple[int, ...]) -> list[tuple[float, _Point]]:
    """Return the nearest points in the logarithms of the sizes, with weights that fall with the distance."""

    def distance(point: _Point) -> float:
        return math.sqrt(sum(log_ratio(size, other) ** 2 for size, other in zip(at, point.axes, strict=True)))

    return _weighted(points, [distance(point) for point in points])


def _nearest_work(points: Sequence[_Point], limit: float) -> list[tuple[float, _Point]]:
    """Return the points that are nearest in time at peak rates."""
    return _weighted(points, [abs(math.log(point.limit / limit)) for point in points])


def _weighted(points: Sequence[_Point], distances: Sequence[float]) -> list[tuple[float, _Point]]:
    order = np.argsort(distances, kind="stable")[:NEAREST]
    return [(1.0 / (distances[index] + 1e-3) ** 2, points[index]) for index in order]
