"""Which devices, how many, at which batch: a search over both for what meets targets at the least cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from attrs import field, frozen

from modelmeter import units
from modelmeter.capacity.batching import continuous_memory, serve_continuously
from modelmeter.capacity.checks import require_count, require_positive
from modelmeter.capacity.errors import CapacityError, NothingMeetsTargetsError
from modelmeter.capacity.fits import Fit, fit
from modelmeter.capacity.service import Service
from modelmeter.capacity.throughput import Performance, Prices, cost_per_thousand_pages, serve
from modelmeter.defaults import BATCHES, USABLE
from modelmeter.predict.roofline import RooflineError
from modelmeter.predict.time_model import DeviceFacts, TimeModel


def _optional_positive(unit: str) -> Callable[[object, object, float | None], None]:
    def check(owner: object, attribute: object, value: float | None) -> None:
        if value is not None:
            require_positive(value, f"target {getattr(attribute, 'name', '')} in {unit}")

    return check


def _optional_count(owner: object, attribute: object, value: int | None) -> None:
    if value is not None:
        require_count(value, "target max_devices")


@frozen(kw_only=True)
class Targets:
    """What a service has to reach; None leaves a figure free.

    Raises
    ------
    CapacityError
        A target that is no finite number above 0.

    Examples
    --------
    >>> Targets(ttft=0)
    Traceback (most recent call last):
    modelmeter.capacity.errors.CapacityError: target ttft in seconds is 0; expected a finite number above 0
    """

    pages_per_day: float | None = field(default=None, validator=_optional_positive("pages"))  # at least
    ttft: float | None = field(default=None, validator=_optional_positive("seconds"))  # at most
    tpot: float | None = field(default=None, validator=_optional_positive("seconds"))  # at most
    max_devices: int | None = field(default=None, validator=_optional_count)  # at most


@frozen(kw_only=True)
class Miss:
    """A target that a candidate does not meet."""

    target: str  # "memory", "ttft", "tpot" or "max_devices"
    reached: float  # bytes, seconds or devices
    asked: float  # the same, at most

    @property
    def text(self) -> str:
        """The miss in one sentence."""
        write = _WRITTEN[self.target]
        return f"{_NAMES[self.target]} {write(self.reached)} is over {write(self.asked)}"


_NAMES = {"memory": "memory", "ttft": "TTFT", "tpot": "TPOT", "max_devices": "device count"}
_WRITTEN: dict[str, Callable[[float], str]] = {
    "memory": partial(units.format_bytes, digits=4),
    "ttft": partial(units.format_seconds, digits=4),
    "tpot": partial(units.format_seconds, digits=4),
    "max_devices": units.format_count,
}


@frozen(kw_only=True)
class Candidate:
    """So many devices of one kind at one batch, each serving a share of the pages."""

    device: DeviceFacts
    batch: int
    fit: Fit
    misses: tuple[Miss, ...]  # targets that it does not meet
    without_times: str | None = None  # why the device has no times, such as no peak for a type; None where it has
    performance: Performance | None = None  # of one device; None where the batch has no room or the device no times
    devices: int | None = None  # that reach the pages a day; None likewise
    cost_per_hour: float | None = None  # of all devices; None without prices or performance
    cost_per_thousand: float | None = None  # a thousand pages on devices that are never idle; None likewise

    @property
    def meets_targets(self) -> bool:
        """Whether it is an answer."""
        return not self.misses and self.without_times is None

    @property
    def decided_by(self) -> str:
        """What stands in the way, or what the time goes to."""
        if self.without_times is not None:
            return self.without_times
        if self.misses:
            return "; ".join(miss.text for miss in self.misses)
        assert self.performance is not None
        return self.performance.decided_by


@frozen(kw_only=True)
class Plan:
    """Candidates that meet the targets, the best first, and those that do not."""

    targets: Targets
    ranked: tuple[Candidate, ...]
    rejected: tuple[Candidate, ...]
    order: str  # what "best" is
    assumptions: tuple[str, ...]


def find_plan(
    service: Service,
    targets: Targets,
    *,
    clocks: Iterable[TimeModel],
    batches: Sequence[int] = BATCHES,
    continuous: bool = False,
    usable: float = USABLE,
    prices: Prices | None = None,
) -> Plan:
    """Try every device at every batch and rank what meets the targets.

    Parameters
    ----------
    service : Service
    targets : Targets
    clocks : iterable of TimeModel
        One per device, such as ``clock_of(load_device("h200"))``; each names its device.
    batches : sequence of int
    continuous : bool
        Requests in flight at all ages, `serve_continuously`, instead of whole batches, `serve`.
    usable : float
        Fraction of device memory that a run may take.
    prices : Prices, optional
        With them the cheapest is best, else the fewest devices; equal ones by fewer devices, smaller memory and
        smaller batch.

    Raises
    ------
    CapacityError
        When there is no device or batch to try, one is out of range, or TTFT or TPOT of pages without tokens is asked.
    MissingPriceError
        When there are prices, and none of a device that is tried.
    NothingMeetsTargetsError
        When no candidate meets the targets; the message says which, and the best that was reached.
    ModelMeterError
        When a time model has no time for a run, other than a device without a peak for its type, which is rejected.
    """
    clocks = tuple(clocks)
    if not clocks or not batches:
        raise CapacityError(
            f"a plan over {len(clocks)} devices and {len(batches)} batches has nothing to try; give both"
        )
    for batch in batches:
        require_count(batch, "batch")
    for target in ("ttft", "tpot"):
        if getattr(targets, target) is not None:
            service.require_tokens(f"target {target}")
    if prices is not None:
        for clock in clocks:
            prices.of(clock.facts.device.key)
    search = _Search(service=service, targets=targets, continuous=continuous, usable=usable, prices=prices)
    candidates = [search.candidate(clock, batch) for batch in sorted(set(batches)) for clock in clocks]
    ranked = sorted((each for each in candidates if each.meets_targets), key=_rank)
    if not ranked:
        raise NothingMeetsTargetsError(_why_nothing(candidates, targets))
    assert ranked[0].performance is not None
    return Plan(
        targets=targets,
        ranked=tuple(ranked),
        rejected=tuple(each for each in candidates if not each.meets_targets),
        order="fewest devices first" if prices is None else "cheapest first",
        assumptions=(
            *ranked[0].performance.assumptions,
            f"reserve: {usable:.4g} of each device's memory may be taken; the rest is for the driver, workspaces of "
            "libraries and what an allocator cannot hand out",
            *(
                ("memory: a lower bound under these what-ifs; a batch that fits by it may need more",)
                if service.peaks_are_lower_bounds
                else ()
            ),
            "several devices: each holds the whole model and serves a share of the pages; balance is perfect",
            *(
                ()
                if prices is None
                else (f"prices: {prices.currency} per device hour, as given; idle time is paid for",)
            ),
        ),
    )


@frozen(kw_only=True)
class _Search:
    """What is the same for all candidates."""

    service: Service
    targets: Targets
    continuous: bool
    usable: float
    prices: Prices | None

    def candidate(self, clock: TimeModel, batch: int) -> Candidate:
        device = clock.facts.device
        memory = continuous_memory(self.service, batch) if self.continuous else self.service.memory(batch)
        fitted = fit(memory, device=device, usable=self.usable, lower_bound=self.service.peaks_are_lower_bounds)
        if not fitted.fits:
            miss = Miss(target="memory", reached=memory.peak_bytes, asked=fitted.usable_bytes)
            return Candidate(device=device, batch=batch, fit=fitted, misses=(miss,))
        run = serve_continuously if self.continuous else serve
        try:
            performance = run(self.service, batch, time=clock)
        except RooflineError as error:
            return Candidate(device=device, batch=batch, fit=fitted, misses=(), without_times=str(error))
        wanted = self.targets.pages_per_day
        devices = 1 if wanted is None else math.ceil(wanted / performance.pages_per_day)
        return Candidate(
            device=device,
            batch=batch,
            fit=fitted,
            performance=performance,
            devices=devices,
            cost_per_hour=None if self.prices is None else devices * self.prices.of(device.key),
            cost_per_thousand=None if self.prices is None else cost_per_thousand_pages(performance, self.prices),
            misses=tuple(_misses(performance, devices, self.targets)),
        )


def _misses(performance: Performance, devices: int, targets: Targets) -> Iterator[Miss]:
    ttft, tpot = performance.ttft, performance.tpot
    reached = {
        "ttft": 0.0 if ttft is None else ttft.seconds,
        "tpot": 0.0 if tpot is None else tpot.seconds,
        "max_devices": devices,
    }
    for target, figure in reached.items():
        asked = getattr(targets, target)
        if asked is not None and figure > asked:
            yield Miss(target=target, reached=figure, asked=asked)


def _rank(candidate: Candidate) -> tuple[float, ...]:
    assert candidate.devices is not None
    cost = candidate.cost_per_hour or 0.0
    return (cost, candidate.devices, candidate.device.memory_bytes, candidate.batch)


def _why_nothing(candidates: Sequence[Candidate], targets: Targets) -> str:
    """Say which target no candidate meets and how near the nearest came; or that no candidate meets all of them."""
    tried = f"none of {len(candidates)} candidates ({len({each.device.key for each in candidates})} devices)"
    timed = [each for each in candidates if each.without_times is None]
    if not timed:
        return f"{tried} has times: {candidates[0].without_times}. Choose devices with a peak for it, or another type"
    unmet = [miss for target in _NAMES if (miss := _nearest(timed, target)) is not None]
    if not unmet:
        asked = ", ".join(_NAMES[name] for name in _NAMES if getattr(targets, name, None) is not None)
        return (
            f"{tried} meets all targets at once, though each of {asked} is met by one; allow more of one of them, or "
            "try other batches or devices"
        )
    best = "; ".join(f"{miss.text}, by {each.device.key} at batch {each.batch}" for each, miss in unmet)
    return f"{tried} meets the targets. The best that was reached: {best}. Allow more, or try other batches or devices"


def _nearest(candidates: Sequence[Candidate], target: str) -> tuple[Candidate, Miss] | None:
    """Return the candidate that misses a target by least; None where one meets it or none gets as far."""
    judged = [each for each in candidates if target == "memory" or each.performance is not None]
    missing = [(each, miss) for each in judged for miss in each.misses if miss.target == target]
    if len(missing) < len(judged) or not judged:
        return None
    return min(missing, key=lambda entry: entry[1].reached - entry[1].asked)
