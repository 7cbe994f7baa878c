"""Searches over toy machines, by hand: at batch B a page takes 38.5/B s, its first token 14.5 s, further ones 8 s."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.capacity import (
    CapacityError,
    MissingPriceError,
    NothingMeetsTargetsError,
    Prices,
    Service,
    Targets,
    find_plan,
)
from modelmeter.capacity.plan import Candidate
from modelmeter.predict.time_model import TimeModel

MakeMachine = Callable[..., TimeModel]


@pytest.fixture(scope="session")
def clocks(machine: MakeMachine) -> tuple[TimeModel, ...]:
    """Return a small machine that holds 9 pages at most, and a large one that takes half as long."""
    # 0.9*10,000 - 4302 = 4698 = 508*9.2; 0.9*20,000 - 4302 = 13,698 = 508*26.9
    return machine("small", memory_bytes=10_000), machine("large", memory_bytes=20_000, slowness=0.5)


def _named(candidates: tuple[Candidate, ...]) -> list[tuple[str, int, int | None]]:
    return [(each.device.key, each.batch, each.devices) for each in candidates]


def test_the_fewest_devices_come_first(service: Service, clocks: tuple[TimeModel, ...]) -> None:
    """10,000 pages a day of 8.64 s each.

    small: batch 2 19.25 s, 3 devices; batch 8 4.8125 s, 1. large: batch 2 9.625 s, 2 devices; batch 8 1. Of those with
    one, the smaller machine comes first.
    """
    found = find_plan(service, Targets(pages_per_day=10_000), clocks=clocks, batches=(8, 2))
    assert _named(found.ranked) == [("small", 8, 1), ("large", 8, 1), ("large", 2, 2), ("small", 2, 3)]
    assert found.order == "fewest devices first"


def test_with_prices_the_cheapest_comes_first(service: Service, clocks: tuple[TimeModel, ...]) -> None:
    """At batch 2 three small machines at 1.0 an hour cost 3.0, two large ones at 2.0 cost 4.0."""
    prices = Prices(currency="EUR", per_hour={"small": 1.0, "large": 2.0})
    found = find_plan(service, Targets(pages_per_day=10_000), clocks=clocks, batches=(2,), prices=prices)
    assert [(each.device.key, each.cost_per_hour) for each in found.ranked] == [("small", 3.0), ("large", 4.0)]
    # 1000 pages of 19.25 s at 1.0 an hour: 19250/3600
    assert found.ranked[0].cost_per_thousand == pytest.approx(5.347, abs=1e-3)
    assert any("EUR per device hour" in text for text in found.assumptions)


def test_each_rejected_candidate_says_why(service: Service, clocks: tuple[TimeModel, ...]) -> None:
    """The small machine holds no 16 pages (4302 + 508*16 = 12,430 bytes) and is too slow: 14.5 and 8 s."""
    targets = Targets(pages_per_day=10_000, ttft=7.25, tpot=4.0)
    found = find_plan(service, targets, clocks=clocks, batches=(2, 16))
    assert _named(found.ranked) == [("large", 16, 1), ("large", 2, 2)]
    assert [(each.device.key, each.batch, each.decided_by) for each in found.rejected] == [
        ("small", 2, "TTFT 14.50 s is over 7.250 s; TPOT 8.000 s is over 4.000 s"),
        ("small", 16, "memory 12.43 kB is over 9.000 kB"),
    ]


def test_a_search_with_requests_in_flight(service: Service, clocks: tuple[TimeModel, ...]) -> None:
    """A page takes 14.5 + 24/B s: at 4 slots 20.5 s, of 8.64 s a page at 10,000 a day: 3 devices, or 2 large ones."""
    found = find_plan(service, Targets(pages_per_day=10_000), clocks=clocks, batches=(4,), continuous=True)
    assert _named(found.ranked) == [("large", 4, 2), ("small", 4, 3)]
    assert any("continuous batching" in text for text in found.assumptions)


@given(pages=st.floats(1, 10**9), batch=st.integers(1, 9))
def test_the_devices_of_a_plan_are_enough_and_one_less_is_not(
    service: Service, clocks: tuple[TimeModel, ...], pages: float, batch: int
) -> None:
    """For any number of pages."""
    for each in find_plan(service, Targets(pages_per_day=pages), clocks=clocks, batches=(batch,)).ranked:
        assert each.performance is not None
        assert each.devices is not None
        assert each.devices * each.performance.pages_per_day >= pages * (1 - 1e-12)
        assert (each.devices - 1) * each.performance.pages_per_day < pages


def test_an_unreached_target_is_named_with_the_best(service: Service, clocks: tuple[TimeModel, ...]) -> None:
    """The large machine's first token takes 7.25 s at best."""
    with pytest.raises(NothingMeetsTargetsError, match=r"TTFT 7\.250 s is over 1\.000 s, by large at batch 1\. Allow"):
        find_plan(service, Targets(ttft=1.0, tpot=5.0), clocks=clocks, batches=(1, 2))


def test_too_many_devices_are_named(service: Service, clocks: tuple[TimeModel, ...]) -> None:
    """10**6 pages a day need 86,400/10**6 = 0.0864 s a page; 38.5/2/8 = 2.40625 s make 27.85 devices at least."""
    targets = Targets(pages_per_day=10**6, max_devices=5)
    with pytest.raises(NothingMeetsTargetsError, match="device count 28 is over 5, by large at batch 8"):
        find_plan(service, targets, clocks=clocks, batches=(1, 8))


def test_no_room_at_any_batch_is_named(service: Service, clocks: tuple[TimeModel, ...]) -> None:
    """30 pages take 4302 + 508*30 = 19,542 bytes, 18,000 are usable on the large machine."""
    with pytest.raises(NothingMeetsTargetsError, match=r"memory 19\.54 kB is over 18\.00 kB, by large at batch 30"):
        find_plan(service, Targets(), clocks=clocks, batches=(30, 40))


def test_targets_that_are_met_apart_only_are_named(service: Service, clocks: tuple[TimeModel, ...]) -> None:
    """One large machine is enough, or fast enough, and not both.

    With 16 slots: 7.25 + 12/16 = 8 s a page, one device; a token (12 + 15*7.25)/3 = 40 s. With one slot: 19.25 s a
    page, three devices; a token 4 s.
    """
    targets = Targets(pages_per_day=10_000, tpot=10.0, max_devices=1)
    with pytest.raises(NothingMeetsTargetsError, match="each of TPOT, device count is met by one"):
        find_plan(service, targets, clocks=clocks[1:], batches=(1, 16), continuous=True)


@pytest.mark.parametrize("name", ["pages_per_day", "ttft", "tpot", "max_devices"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_target_out_of_range_is_an_error(name: str, value: float) -> None:
    """Zero pages, or a wait below zero, is no target."""
    with pytest.raises(CapacityError, match=f"target {name}"):
        Targets(**{name: value})


def test_a_search_without_devices_or_batches_is_an_error(service: Service, clocks: tuple[TimeModel, ...]) -> None:
    """There is nothing to try."""
    with pytest.raises(CapacityError, match="a plan over 0 devices and 1 batches has nothing to try"):
        find_plan(service, Targets(), clocks=(), batches=(1,))
    with pytest.raises(CapacityError, match="a plan over 2 devices and 0 batches has nothing to try"):
        find_plan(service, Targets(), clocks=clocks, batches=())


def test_a_batch_of_zero_is_an_error(service: Service, clocks: tuple[TimeModel, ...]) -> None:
    """Before anything is tried."""
    with pytest.raises(CapacityError, match="batch is 0; expected a whole number from 1 up"):
        find_plan(service, Targets(), clocks=clocks, batches=(1, 0))


def test_a_device_without_a_price_is_an_error(service: Service, clocks: tuple[TimeModel, ...]) -> None:
    """A search by cost needs every price."""
    prices = Prices(currency="EUR", per_hour={"small": 1.0})
    with pytest.raises(MissingPriceError, match="device 'large' has no price; there is one for small"):
        find_plan(service, Targets(pages_per_day=1), clocks=clocks, prices=prices)
