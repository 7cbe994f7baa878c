"""Serving figures of the toy pages, by hand: a prefill of 14.5 s and three steps of 8 s for 2 documents."""

from __future__ import annotations

from types import ModuleType

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.costs import Time
from modelmeter.evaluate import evaluate
from modelmeter.reports import Report
from modelmeter.reports.serving import Rate, Serving, serving_of
from modelmeter.workload import StageRun, Workload, WorkloadItem


def _report(toy: ModuleType, *items: WorkloadItem) -> Report:
    workload = Workload(name="toy pages", items=items) if items else toy.toy_workload()
    return evaluate(toy.scheduled_toy_model(), workload, time_model=toy.ToyClock())


def _item(toy: ModuleType, name: str, *, documents: int, steps: int) -> WorkloadItem:
    prefill, decode = toy.toy_workload().items[0].runs
    runs = (prefill, evolve(decode, count=steps)) if steps else (prefill,)
    return WorkloadItem(name=name, documents=documents, runs=runs)


def _of(report: Report, name: str) -> Serving:
    return next(serving for serving in serving_of(report) if serving.name == name)


def test_figures_of_a_page(toy: ModuleType) -> None:
    """38.5 s for 2 documents of 4 tokens each: 19.25 s a page, 2/38.5 pages and 8/38.5 tokens a second."""
    page = _of(_report(toy), "page")
    assert (page.documents, page.output_tokens) == (2, 8)
    assert page.ttft.seconds == 14.5
    assert page.tpot is not None
    assert page.tpot.seconds == 8.0
    assert page.page.seconds == 19.25
    assert page.pages_per_second.value == pytest.approx(2 / 38.5)
    assert page.tokens_per_second.value == pytest.approx(8 / 38.5)


def test_intervals_of_a_page(toy: ModuleType) -> None:
    """Work takes 0.6 to 1.4 times as long, 1.5 s of views are certain; the slowest runs have the lowest rate."""
    page = _of(_report(toy), "page")
    assert (page.ttft.p10, page.ttft.p90) == (pytest.approx(1.5 + 0.6 * 13), pytest.approx(1.5 + 1.4 * 13))
    assert page.tpot is not None
    assert (page.tpot.p10, page.tpot.p90) == (pytest.approx(4.8), pytest.approx(11.2))
    assert page.pages_per_second.p10 == pytest.approx(2 / (1.5 + 1.4 * 37))
    assert page.pages_per_second.p90 == pytest.approx(2 / (1.5 + 0.6 * 37))


def test_figures_of_a_workload(toy: ModuleType) -> None:
    """Two pages one after the other: the mean waits of documents and tokens, and all pages over all of the time."""
    report = _report(toy, _item(toy, "first", documents=1, steps=3), _item(toy, "second", documents=3, steps=1))
    whole = serving_of(report)[-1]
    # 14.5 + 24 and 14.5 + 8 s; 4 documents; 1*4 + 3*2 = 10 tokens; 4 steps
    assert (whole.name, whole.documents, whole.output_tokens) == ("all", 4, 10)
    assert whole.ttft.seconds == 14.5
    assert whole.tpot is not None
    assert whole.tpot.seconds == 8.0
    assert whole.page.seconds == pytest.approx(61 / 4)
    assert whole.pages_per_second.value == pytest.approx(4 / 61)
    assert whole.tokens_per_second.value == pytest.approx(10 / 61)


def test_one_token_has_no_time_per_further_token(toy: ModuleType) -> None:
    """A page without a decode waits for its first token only."""
    page = _of(_report(toy, _item(toy, "short", documents=1, steps=0)), "short")
    assert page.tpot is None
    assert (page.output_tokens, page.page.seconds) == (1, page.ttft.seconds)


def test_what_is_not_served_has_no_figures(toy: ModuleType) -> None:
    """A model without a prefill, and a report without times, have none."""
    decode = StageRun(stage="decode", count=3, bindings={"B": 2, "T": 5}, sweep="T")
    steps = WorkloadItem(name="steps", documents=2, runs=(decode,))
    assert serving_of(_report(toy, steps)) == ()
    assert serving_of(evaluate(toy.toy_model(), toy.toy_workload())) == ()
    # beside a page that is served, it is left out of the sums too
    both = serving_of(_report(toy, steps, _item(toy, "page", documents=2, steps=3)))
    assert [serving.name for serving in both] == ["page", "all"]
    assert both[1].page.seconds == 19.25


@given(st.integers(1, 64), st.floats(0.001, 1e3), st.floats(1.0, 3.0))
def test_rates_are_the_inverse_of_times(count: int, seconds: float, factor: float) -> None:
    """Law: a rate times its time is the count, and its interval is ordered."""
    time = Time(memory=seconds, interval=(seconds / factor, seconds * factor))
    rate = Rate.of(count, time)
    assert rate.value * seconds == pytest.approx(count)
    assert rate.p10 is not None
    assert rate.p90 is not None
    assert rate.p10 <= rate.value * (1 + 1e-12)
    assert rate.value <= rate.p90 * (1 + 1e-12)
