"""Times: what bounds them, and how their intervals add up, scale and come back from a file."""

from __future__ import annotations

import json
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.categories import Category
from modelmeter.costs import Time
from modelmeter.devices import load_device
from modelmeter.evaluate import EvaluationError, evaluate
from modelmeter.reports import Report, report_from_json


def test_the_interval_is_of_the_sampled_runs() -> None:
    """Of the runs 0, 1, ... 10, one tenth lies below 1 and one tenth above 9."""
    time = Time(memory=5.0, draws=np.arange(11.0))
    assert (time.p10, time.p90) == (1.0, 9.0)
    assert (Time(memory=5.0).p10, Time(memory=5.0).p90) == (None, None)


def test_runs_are_added_one_by_one() -> None:
    """Two parts that err together are twice as wide as one; two that err against each other cancel."""
    one = Time(memory=5.0, draws=np.arange(11.0))
    against = Time(host=5.0, draws=np.arange(11.0)[::-1])
    assert ((one + one).p10, (one + one).p90) == (2.0, 18.0)
    assert ((one + against).p10, (one + against).p90) == (10.0, 10.0)
    assert (one + against).bound_by == "memory"  # as much as the host, and named first


def test_a_part_without_runs_is_certain() -> None:
    """It moves both ends by its seconds, on either side."""
    one, certain = Time(memory=5.0, draws=np.arange(11.0)), Time(host=2.0)
    for total in (one + certain, certain + one):
        assert (total.seconds, total.p10, total.p90) == (7.0, 3.0, 11.0)


def test_a_factor_scales_all_of_it() -> None:
    """Three executions take three times as long, ends included."""
    time = Time(memory=5.0, host=1.0, draws=np.arange(11.0)) * 3
    assert (time.seconds, time.host, time.p10, time.p90) == (18.0, 3.0, 3.0, 27.0)
    assert (Time(memory=4.0, interval=(3.0, 6.0)) * 0.5).p90 == 3.0


def test_intervals_without_runs_add_end_by_end() -> None:
    """From a file, only the ends are known: 3 + 2 and 6 + 2."""
    read, certain = Time(memory=4.0, interval=(3.0, 6.0)), Time(host=2.0)
    assert ((read + certain).p10, (read + certain).p90) == (5.0, 8.0)


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50), st.floats(0.001, 1000))
def test_an_interval_is_ordered_and_scales(draws: list[float], factor: float) -> None:
    """Law: p10 is at most p90, and both scale with the time."""
    time = Time(memory=1.0, draws=np.array(draws))
    scaled = time * factor
    assert time.p10 is not None
    assert time.p90 is not None
    assert time.p10 <= time.p90
    assert scaled.p10 == pytest.approx(time.p10 * factor)
    assert scaled.p90 == pytest.approx(time.p90 * factor)


@pytest.fixture
def report(toy: ModuleType) -> Report:
    """Return the toy pages with predicted times."""
    return evaluate(toy.scheduled_toy_model(), toy.toy_workload(), time_model=toy.ToyClock())


def test_a_report_has_the_times_of_its_time_model(report: Report) -> None:
    """Prefill 14.5 s, three steps of 8 s: 38.5 s, of which 1.5 s are views; p10 is 1.5 + 0.6 * 37."""
    time = report.total.total.time
    assert time is not None
    assert (time.seconds, time.host) == (38.5, 1.5)
    assert time.p10 == pytest.approx(1.5 + 0.6 * 37)
    assert time.p90 == pytest.approx(1.5 + 1.4 * 37)
    views = report.total.categories[Category.HOST]
    assert views.time == Time(host=1.5)
    assert (views.cost.calls, views.cost.bytes) == (0, 0)
    assert report.total.modules["model"].own.time == Time(memory=3.0, host=1.5)  # three cats and three views


def test_every_split_of_times_adds_up(report: Report) -> None:
    """Stages, components, categories and own modules each sum to the total."""
    total = report.total
    splits = (total.stages, total.components, total.categories)
    sums = [sum(amount.time.seconds for amount in split.values() if amount.time) for split in splits]
    sums.append(sum(module.own.time.seconds for module in total.modules.values() if module.own.time))
    assert sums == [38.5] * 4


def test_an_interval_comes_back_from_a_file(report: Report) -> None:
    """Both ends are in the file; read again they are what they were, and written again the text is the same."""
    text = report.to_json()
    again = report_from_json(text)
    assert again.total.total.time is not None
    assert again.total.total.time.p10 == pytest.approx(1.5 + 0.6 * 37)
    assert again.prediction == report.prediction
    assert again.to_json() == text


def test_an_interval_needs_both_ends(report: Report) -> None:
    """A file with one end of it is no report."""
    document = json.loads(report.to_json())
    del document["total"]["total"]["seconds_p90"]
    with pytest.raises(ValueError, match="an amount has the keys"):
        report_from_json(json.dumps(document))


def test_a_device_and_a_time_model_are_one_too_many(toy: ModuleType) -> None:
    """Times come from one of them."""
    with pytest.raises(EvaluationError, match="not from both"):
        evaluate(toy.toy_model(), toy.toy_workload(), device=load_device("h200"), time_model=toy.ToyClock())
