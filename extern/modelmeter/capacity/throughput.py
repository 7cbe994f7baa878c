"""What one device yields at a batch: seconds a page, pages a day, TTFT, TPOT, and cost at a price."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import field, frozen

from modelmeter.capacity.checks import require_positive
from modelmeter.capacity.clocks import clock_of, statement
from modelmeter.capacity.errors import CapacityError, MissingPriceError
from modelmeter.capacity.service import Service
from modelmeter.costs import Time
from modelmeter.devices import DeviceSpec
from modelmeter.predict.time_model import PredictionFacts, TimeModel
from modelmeter.reports.report import ItemReport, RunMemory
from modelmeter.reports.serving import Rate, serving_of_items

DAY = 86_400
"""Seconds."""

HOUR = 3_600
"""Seconds."""


@frozen(kw_only=True)
class Performance:
    """What a device yields that always has pages to serve."""

    prediction: PredictionFacts  # of the times: the device, and whether they are a bound
    batch: int  # requests in flight
    continuous: bool  # whether a request starts as soon as another ends; else whole batches, one after the other
    memory: RunMemory
    page: Time  # device time a page, all pages of the workload in equal shares
    ttft: Time | None  # time to first token, of the page that waits longest; None where pages have no tokens
    tpot: Time | None  # time per output token after the first, the mean; None where there is one token at most
    decided_by: str  # stage that takes most of the time, and what bounds it
    assumptions: tuple[str, ...]

    @property
    def pages_per_second(self) -> Rate:
        """Pages a second, with an interval where the times have one."""
        return Rate.of(1, self.page)

    @property
    def pages_per_day(self) -> float:
        """Pages in 86,400 s."""
        return DAY / self.page.seconds


def serve(
    service: Service, batch: int, *, time: DeviceSpec | TimeModel, efficiency: float | None = None
) -> Performance:
    """Return what a device yields that serves whole batches of equal pages, one batch after the other.

    Parameters
    ----------
    service : Service
    batch : int
        Pages processed together.
    time : DeviceSpec or TimeModel
        A device stands for its roofline: a bound.
    efficiency : float, optional
        Fraction of every peak that a device is assumed to reach.

    Raises
    ------
    CapacityError
        When the batch is no whole number from 1 up, or the efficiency no fraction or given with a time model.
    ModelMeterError
        When the time model has no time for a run.
    """
    clock = clock_of(time, efficiency=efficiency)
    items = service.timed(batch, clock)
    served = serving_of_items(items)
    return Performance(
        prediction=clock.facts,
        batch=batch,
        continuous=False,
        memory=service.memory(batch),
        page=_mean_page(items),
        ttft=longest(page.ttft for page in served[:-1]) if served else None,
        tpot=served[-1].tpot if served else None,
        decided_by=decisive_stage(stage_times(items)),
        assumptions=(
            statement(clock),
            "batches: equal pages start and end together, one batch after the other; the kinds of pages come in equal "
            "shares",
            *(_OF_TOKENS if served else ()),
        ),
    )


_OF_TOKENS = (
    "TTFT: vision and prefill of the whole batch, of the kind of page that takes longest; the wait for a batch to "
    "gather, or for the one before it, is left out",
    "TPOT: the mean over all decode steps",
)


def _mean_page(items: Sequence[ItemReport]) -> Time:
    """Return the device time a page, all pages in equal shares."""
    total = sum(stage_times(items).values(), Time())
    return total * (1 / sum(item.documents for item in items))


def longest(times: Iterable[Time]) -> Time:
    """Return the longest of some times."""
    return max(times, key=lambda time: time.seconds)


def stage_times(items: Iterable[ItemReport]) -> Mapping[str, Time]:
    """Return the time of each stage over all items."""
    times: dict[str, Time] = {}
    for item in items:
        for stage, amount in item.breakdown.stages.items():
            times[stage] = times.get(stage, Time()) + (amount.time or Time())
    return times


def decisive_stage(times: Mapping[str, Time]) -> str:
    """Name the stage that takes most of the time, and what bounds it.

    Examples
    --------
    >>> decisive_stage({"prefill": Time(matrix_units=1.0), "decode": Time(memory=3.0)})
    'decode (75% of the time), bound by memory'
    """
    name, time = max(times.items(), key=lambda entry: entry[1].seconds)
    share = time.seconds / sum(each.seconds for each in times.values())
    return f"{name} ({share:.0%} of the time), bound by {time.bound_by}"


def _checked_prices(owner: object, attribute: object, value: Mapping[str, float]) -> None:
    for device, price in value.items():
        require_positive(price, f"price of an hour of {device}")


def _checked_currency(owner: object, attribute: object, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise CapacityError(f"currency is {value!r}; give its name, such as 'USD'")


@frozen(kw_only=True)
class Prices:
    """What an hour of a device costs, in one currency.

    Raises
    ------
    CapacityError
        A price that is no finite number above 0, or a currency without a name.

    Examples
    --------
    >>> prices = Prices(currency="USD", per_hour={"l4": 0.8})
    >>> prices.of("l4")
    0.8
    >>> prices.of("h200")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    modelmeter.capacity.errors.MissingPriceError: device 'h200' has no price; there is one for l4. Give the price of ...
    """

    currency: str = field(validator=_checked_currency)
    per_hour: Mapping[str, float] = field(converter=dict[str, float], validator=_checked_prices)  # by device key

    def of(self, device: str) -> float:
        """Return the price of an hour of a device.

        Raises
        ------
        MissingPriceError
            When the device has none.
        """
        if device not in self.per_hour:
            known = ", ".join(sorted(self.per_hour)) or "no device"
            raise MissingPriceError(
                f"device {device!r} has no price; there is one for {known}. Give the price of an hour of {device}, or "
                "leave it out of the search"
            )
        return self.per_hour[device]


def cost_per_thousand_pages(performance: Performance, prices: Prices) -> float:
    """Return what a thousand pages cost on a device that is never idle, in the currency of the prices.

    Raises
    ------
    MissingPriceError
        When the device has no price.
    """
    return prices.of(performance.prediction.device.key) * 1000 * performance.page.seconds / HOUR
