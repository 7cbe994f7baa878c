"""Rates and costs of the toy, by hand: a prefill of 14.5 s and three decode steps of 8 s, at any batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

import modelmeter
from modelmeter.capacity import (
    CapacityError,
    MissingPriceError,
    Prices,
    Service,
    clock_of,
    cost_per_thousand_pages,
    serve,
    serve_continuously,
)
from modelmeter.devices import load_device
from modelmeter.evaluate import evaluate, evaluate_stage
from modelmeter.predict.time_model import TimeModel
from modelmeter.reports.serving import serving_of
from modelmeter.workload import StageRun, Workload, WorkloadItem

MakeMachine = Callable[..., TimeModel]


def test_whole_batches(service: Service, machine: MakeMachine) -> None:
    """2 pages in 14.5 + 3*8 = 38.5 s: 19.25 s each, 86400/19.25 a day; the first token after 14.5 s."""
    found = serve(service, 2, time=machine())
    assert found.ttft is not None
    assert (found.page.seconds, found.ttft.seconds) == (19.25, 14.5)
    assert found.tpot is not None
    assert found.tpot.seconds == 8.0
    assert found.pages_per_day == pytest.approx(4488.31, abs=0.01)
    assert found.decided_by == "decode (62% of the time), bound by memory"


def test_continuous_batching(service: Service, machine: MakeMachine) -> None:
    """Of 4 slots: 14.5 + 24/4 = 20.5 s a page, first token 20.5 + 14.5, a token (24 + 3*14.5)/3 = 22.5 s."""
    found = serve_continuously(service, 4, time=machine())
    assert found.ttft is not None
    assert (found.page.seconds, found.ttft.seconds) == (20.5, 35.0)
    assert found.tpot is not None
    assert found.tpot.seconds == pytest.approx(22.5)
    # 4 prefills of 14.5 s and 24 s of decode in a cycle of 82 s.
    assert found.decided_by == "prefill (71% of the time), bound by matrix units"


def test_predictions_say_where_they_come_from(service: Service, machine: MakeMachine) -> None:
    """The toy's clock is a calibration of a date, under a version of torch."""
    statement = serve(service, 2, time=machine()).assumptions[0]
    assert statement == "times: predicted by calibration, runtime eager (date: 2026-01-02; torch: 2.13.0)"


def test_an_interval_stays_with_the_times(service: Service, machine: MakeMachine) -> None:
    """Work takes 0.6 to 1.4 times as long: of 8 s a step, 4.8 to 11.2 s, batch or not."""
    tpot = serve(service, 2, time=machine()).tpot
    assert tpot is not None
    assert (tpot.p10, tpot.p90) == (pytest.approx(4.8), pytest.approx(11.2))
    rate = serve_continuously(service, 2, time=machine()).pages_per_second
    assert rate.p10 is not None
    assert rate.p90 is not None
    assert rate.p10 < rate.value < rate.p90


@given(slots=st.integers(1, 200))
def test_slots_raise_throughput_up_to_what_prefill_allows(service: Service, machine: MakeMachine, slots: int) -> None:
    """More slots share a step, and no number of them makes a page take less than its own vision and prefill."""
    fewer, more = (serve_continuously(service, count, time=machine()) for count in (slots, slots + 1))
    assert 14.5 < more.page.seconds < fewer.page.seconds


def test_one_slot_is_one_page_after_the_other(ocr: Service) -> None:
    """Continuous batching of one request: the same seconds a page and a token as batches of one."""
    device = load_device("h200")
    one, serial = serve_continuously(ocr, 1, time=device), serve(ocr, 1, time=device)
    assert one.page.seconds == pytest.approx(serial.page.seconds)
    assert one.tpot is not None
    assert serial.tpot is not None
    assert one.tpot.seconds == pytest.approx(serial.tpot.seconds)
    assert one.ttft is not None
    assert serial.ttft is not None
    assert one.ttft.seconds == pytest.approx(serial.page.seconds + serial.ttft.seconds)


@pytest.mark.parametrize("batch", [1, 8])
def test_figures_are_those_of_a_report(ocr: Service, batch: int) -> None:
    """Times by stage alone give what a whole evaluation gives."""
    device = load_device("l40s")
    whole = serving_of(evaluate(ocr.model, ocr.workload_of(batch), device=device))[-1]
    found = serve(ocr, batch, time=device)
    assert found.page.seconds == pytest.approx(whole.page.seconds, rel=1e-12)
    assert found.ttft is not None
    assert found.ttft.seconds == pytest.approx(whole.ttft.seconds, rel=1e-12)
    assert found.tpot is not None
    assert whole.tpot is not None
    assert found.tpot.seconds == pytest.approx(whole.tpot.seconds, rel=1e-12)


def test_memory_is_that_of_a_report(ocr: Service) -> None:
    """The same stages, allocations and bytes."""
    assert ocr.memory(8) == evaluate(ocr.model, ocr.workload_of(8)).memory


def test_an_efficiency_is_stated_and_stretches_times(ocr: Service) -> None:
    """At half of every peak all takes twice as long, and the result says so; without it, it is called a bound."""
    bound, half = (serve(ocr, 4, time=load_device("h200"), efficiency=fraction) for fraction in (None, 0.5))
    assert half.page.seconds == pytest.approx(2 * bound.page.seconds)
    assert half.assumptions[0].startswith("times: datasheet roofline at an assumed 0.5 of every peak")
    assert "a bound that no run reaches" in bound.assumptions[0]


def test_cost_at_a_price(service: Service, machine: MakeMachine) -> None:
    """1000 pages of 19.25 s are 19,250 s; at 3.60 an hour, 0.001 a second, they cost 19.25."""
    prices = Prices(currency="EUR", per_hour={"toy": 3.6})
    assert cost_per_thousand_pages(serve(service, 2, time=machine()), prices) == pytest.approx(19.25)


@given(price=st.floats(0.01, 1000), factor=st.floats(0.1, 10))
def test_cost_scales_with_the_price(service: Service, machine: MakeMachine, price: float, factor: float) -> None:
    """So many times the price, so many times the cost."""
    found = serve(service, 2, time=machine())
    one, other = (
        cost_per_thousand_pages(found, Prices(currency="EUR", per_hour={"toy": each}))
        for each in (price, price * factor)
    )
    assert other == pytest.approx(one * factor)


def test_a_device_without_a_price_is_an_error(service: Service, machine: MakeMachine) -> None:
    """The message names the device, those with a price, and what to do."""
    prices = Prices(currency="EUR", per_hour={"h200": 3.6})
    with pytest.raises(
        MissingPriceError, match=r"'toy' has no price; there is one for h200\. Give the price of an hour"
    ):
        cost_per_thousand_pages(serve(service, 2, time=machine()), prices)


@pytest.mark.parametrize("price", [0, -1, float("inf"), float("nan")])
def test_a_price_out_of_range_is_an_error(price: float) -> None:
    """Free devices would make every plan the same."""
    with pytest.raises(CapacityError, match=r"price of an hour of h200 is .*; expected a finite number above 0"):
        Prices(currency="EUR", per_hour={"h200": price})


def test_a_price_without_a_currency_is_an_error() -> None:
    """A number alone says nothing."""
    with pytest.raises(CapacityError, match="currency is ' '; give its name"):
        Prices(currency=" ", per_hour={})


@pytest.mark.parametrize("run", [serve, serve_continuously])
@pytest.mark.parametrize("batch", [0, -1, 1.5, True])
def test_a_batch_below_one_is_an_error(
    service: Service, machine: MakeMachine, run: Callable[..., object], batch: int
) -> None:
    """Nothing is served without a request."""
    with pytest.raises(CapacityError, match=r"batch is .*; expected a whole number from 1 up"):
        run(service, batch, time=machine())


def test_a_workload_of_another_batch_is_an_error(service: Service) -> None:
    """A function that forgets the batch is found out."""
    fixed = evolve(service, workload_of=lambda _: service.workload_of(2))
    with pytest.raises(CapacityError, match="item 'page' of workload 'toy pages' has 2 documents at batch 3"):
        fixed.memory(3)


def test_a_workload_without_a_prefill_is_an_error(service: Service) -> None:
    """No stage yields a first token."""

    def decode_only(batch: int) -> Workload:
        workload = service.workload_of(batch)
        (item,) = workload.items
        return evolve(workload, items=(evolve(item, runs=item.runs[1:]),))

    with pytest.raises(CapacityError, match="no first token without the stage 'prefill'"):
        evolve(service, workload_of=decode_only).memory(1)


def test_an_encoder_yields_pages_and_no_tokens() -> None:
    """8 images take one run of SigLIP; a page is an eighth of it, without a first token or further ones."""
    model, device = modelmeter.load("siglip-so400m-patch14-384"), load_device("h200")

    def images(batch: int) -> Workload:
        run = StageRun(stage="encode", count=1, bindings={"B": batch})
        return Workload(name="images", items=(WorkloadItem(name="image", documents=batch, runs=(run,)),))

    found = serve(Service(model=model, workload_of=images), 8, time=device)
    together = evaluate_stage(model, "encode", B=8, device=device).total.time
    assert together is not None
    assert found.page.seconds == pytest.approx(together.seconds / 8)
    assert (found.ttft, found.tpot) == (None, None)
    with pytest.raises(CapacityError, match="continuous batching is about tokens, and workload 'images' of siglip"):
        serve_continuously(Service(model=model, workload_of=images), 8, time=device)


def test_an_efficiency_of_predictions_is_an_error(machine: MakeMachine) -> None:
    """Measured times need no factor."""
    with pytest.raises(CapacityError, match=r"efficiency 0\.5 scales the roofline of a device"):
        clock_of(machine(), efficiency=0.5)


def test_an_efficiency_above_one_is_an_error() -> None:
    """No device exceeds its peaks."""
    with pytest.raises(CapacityError, match=r"that a device is assumed to reach, is 1\.2; expected a fraction"):
        clock_of(load_device("h200"), efficiency=1.2)
