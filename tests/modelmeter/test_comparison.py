"""Predicted beside measured: the toy's calls by hand, sums that agree, and measurements that do not belong."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.categories import Category
from modelmeter.costs import Time
from modelmeter.machine import Machine
from modelmeter.measurement import Measurement, StageMeasurement
from modelmeter.reports.comparison import (
    Compared,
    MeasurementMismatchError,
    StageComparison,
    UnknownMeasuredStageError,
    compare,
    sum_compared,
)

MACHINE = Machine(kind="cpu", device="toy machine", driver="", memory_bytes=1 << 30, threads=1, torch="2.13.0")

# Measured calls of a prefill in the order of its schedule: view, up, act, view, up, act, view, experts, head.
# Up 1.0 and 1.5, act 2.0 each, experts 2.5, head 5.0: 14 s; three views of 0.25: 14.75 s of 16 s.
CALLS = (0.25, 1.0, 2.0, 0.25, 1.5, 2.0, 0.25, 2.5, 5.0)
PREFILL = StageMeasurement(
    stage="prefill",
    bindings={"B": 2, "S": 5},
    warmups=1,
    wall_seconds=(17.0, 16.5, 18.0),
    cpu_seconds=(15.0, 16.0, 16.0, 17.0),
    call_seconds=CALLS,
)
BLOCK, UP, ACT = "model.layers.[0-1]", "model.layers.[0-1].up", "model.layers.[0-1].act"


def _measurement(*stages: StageMeasurement, **changes: object) -> Measurement:
    measurement = Measurement(
        machine=MACHINE,
        date="2026-01-03",
        model="toy",
        variant={"dtype": "bf16", "attention": "none"},
        weights="random",
        stages=stages,
    )
    return evolve(measurement, **changes)


def _compared(toy: ModuleType, stage: StageMeasurement = PREFILL) -> StageComparison:
    (found,) = compare(toy.scheduled_toy_model(), _measurement(stage), toy.ToyClock())
    return found


def test_the_whole_stage(toy: ModuleType) -> None:
    """14.5 s predicted (9.3 to 19.7) beside the median CPU time of 16 s; quartiles 15.75 and 16.25 of four runs."""
    total = _compared(toy).total
    assert (total.predicted.seconds, total.measured, total.ratio) == (14.5, 16.0, 14.5 / 16)
    assert total.covered is True
    assert _compared(toy).spread == pytest.approx(0.25 / 16)
    assert _compared(toy).runs == 4
    assert total.spread is None  # its calls are of all kinds


def test_modules_hold_everything_below_them(toy: ModuleType) -> None:
    """The block is its two products and its two activations; the model has the views as well; the root is all of it."""
    modules = _compared(toy).modules
    figures = {name: (row.predicted.seconds, row.measured, row.calls) for name, row in modules.items()}
    assert figures == {
        "": (14.5, 14.75, 9),
        "model": (10.5, 9.75, 8),
        BLOCK: (6.0, 6.5, 4),
        UP: (2.0, 2.5, 2),
        ACT: (4.0, 4.0, 2),
        "model.experts": (3.0, 2.5, 1),
        "lm_head": (4.0, 5.0, 1),
    }
    assert (modules[UP].predicted.p10, modules[UP].predicted.p90) == (pytest.approx(1.2), pytest.approx(2.8))


def test_categories_and_the_rest_add_up_to_the_stage(toy: ModuleType) -> None:
    """Products 9 beside 10 s, activations 4 beside 4 s, views 1.5 beside 0.75 s; Python between calls 1.25 s."""
    found = _compared(toy)
    figures = {category: (row.predicted.seconds, row.measured) for category, row in found.categories.items()}
    assert figures == {Category.LINEAR: (9.0, 10.0), Category.ACTIVATION: (4.0, 4.0), Category.HOST: (1.5, 0.75)}
    assert (found.rest.predicted.seconds, found.rest.measured) == (0.0, 1.25)
    assert found.attributed == 14.75 / 16 == 1 - found.rest.measured / found.total.measured


def test_a_call_on_a_cpu_holds_what_its_host_does(toy: ModuleType) -> None:
    """Of each cell of work 0.25 s on the host, four cells and 1 s in all: of the calls, and nothing between them."""

    class Calling(toy.ToyClock):
        def times(self, *arguments: object) -> dict[tuple[str, Category], Time]:
            times = super().times(*arguments)
            more = Time(host=0.25, draws=np.full(11, 0.25))
            return {cell: time if cell[1] is Category.HOST else time + more for cell, time in times.items()}

    (found,) = compare(toy.scheduled_toy_model(), _measurement(PREFILL), Calling())
    assert found.total.predicted.seconds == 15.5
    assert found.modules[""].predicted.seconds == 15.5
    assert found.cells[UP, Category.LINEAR].predicted.seconds == 2.25
    assert found.cells[UP, Category.LINEAR].predicted.bound_by != "host"
    assert found.rest.predicted.seconds == 0.0


def test_calls_slower_under_the_clock_are_scaled_down(toy: ModuleType) -> None:
    """Calls that take 32 s under instrumentation and 16 s without are 200 %, count half, and leave nothing between."""
    total = sum(CALLS)
    found = _compared(toy, evolve(PREFILL, call_seconds=tuple(32 * seconds / total for seconds in CALLS)))
    assert found.modules[""].measured == pytest.approx(16)
    assert found.rest.measured == 0
    assert found.attributed == pytest.approx(2)
    assert found.modules[UP].measured == pytest.approx(16 * 2.5 / total)


def test_the_spread_is_between_calls_that_are_alike(toy: ModuleType) -> None:
    """Of 1, 2, 3, 4, 5 s the quartiles are 2 and 4: 1/3 of the median; of fewer than four nothing is said."""
    model = toy.scheduled_toy_model()
    (stage,) = [stage for stage in model.stages if stage.name == "decode"]
    repeated = evolve(
        model,
        stages=(evolve(stage, schedule=(0, 1, 1, 1, 1, 1, 2)),),
        leaves=tuple(
            evolve(leaf, calls=5) if leaf.module == UP else leaf for leaf in model.leaves if leaf.stage == "decode"
        ),
        free=(),
    )
    measured = StageMeasurement(
        stage="decode",
        bindings={"B": 2, "T": 5},
        warmups=0,
        wall_seconds=(20.0,),
        call_seconds=(1.0, 3.0, 1.0, 5.0, 2.0, 4.0, 1.0),
    )
    (found,) = compare(repeated, _measurement(measured), toy.ToyClock())
    assert found.modules[UP].spread == pytest.approx(1 / 3)
    assert found.cells["model", Category.DATA_MOVEMENT].spread is None
    assert found.modules[""].spread == pytest.approx(1 / 3)  # of what has one


# On a GPU: the kernels of the calls above; views have none, and products wait 0.5 s for the host.
ON_GPU = evolve(
    PREFILL, cpu_seconds=(), wall_seconds=(16.0,), device_seconds=(0.0, 0.5, 2.0, 0.0, 1.0, 2.0, 0.0, 2.0, 4.5)
)


def test_what_a_device_waits_is_the_host_of_the_calls_module(toy: ModuleType) -> None:
    """Up 0.5 and 1.0 s of kernels and 1.0 s of waits; all kernels 12 s, all waits 4 * 0.5 + 3 * 0.25 = 2.75 s."""
    found = _compared(toy, ON_GPU)
    assert found.cells[UP, Category.LINEAR].measured == 1.5
    assert found.cells[UP, Category.HOST].measured == 1.0
    assert (found.modules[UP].measured, found.modules[UP].calls) == (2.5, 2)
    assert found.categories[Category.HOST].measured == 2.75
    assert found.modules[""].measured == 14.75
    assert found.rest.measured == 1.25


def test_kernels_and_host_are_predicted_apart_on_a_gpu(toy: ModuleType) -> None:
    """Twice the kernels' 13 s and 1.5 s of views are 29 s: what is not kernels is the host of the module, 16 s."""
    slow = toy.ToyClock()

    class Waiting(toy.ToyClock):
        def times(self, *arguments: object) -> dict[object, Time]:
            return {key: time * 2 for key, time in slow.times(*arguments).items()}

    (found,) = compare(toy.scheduled_toy_model(), _measurement(ON_GPU), Waiting(), kernels=slow)
    assert found.total.predicted.seconds == 29.0
    assert found.cells[UP, Category.LINEAR].predicted.seconds == 2.0
    assert found.cells[UP, Category.HOST].predicted.seconds == 2.0
    assert found.categories[Category.HOST].predicted.seconds == 16.0
    assert found.modules[""].predicted.seconds == 29.0
    assert found.rest.predicted.seconds == 0.0


def test_rounding_is_no_time(toy: ModuleType) -> None:
    """Cells and a whole that differ by the order of summation, here a part in 10^15, leave nothing between calls."""

    class Rounded(toy.ToyClock):
        def times(self, *arguments: object) -> dict[tuple[str, Category], Time]:
            return {cell: time * (1 + 1e-15) for cell, time in super().times(*arguments).items()}

    (found,) = compare(toy.scheduled_toy_model(), _measurement(ON_GPU), Rounded(), kernels=toy.ToyClock())
    # of the products of a module nothing but the host, 0.5 s of views and none of rounding
    assert found.cells[UP, Category.HOST].predicted.seconds == 0.0
    assert found.rest.predicted.seconds == 0.0
    assert found.rest.predicted.p90 == 0.0


def test_an_untimed_run_compares_the_whole_only(toy: ModuleType) -> None:
    """Without timed calls there are no modules, and all of the time is the rest."""
    found = _compared(toy, evolve(PREFILL, call_seconds=()))
    assert (found.modules, found.categories, found.cells) == ({}, {}, {})
    assert found.rest.measured == found.total.measured == 16.0


def test_nothing_measured_has_no_ratio() -> None:
    """Where no time was seen there is nothing to divide by; where no interval is, nothing to lie in."""
    row = Compared(predicted=Time(memory=1.0), measured=0.0, calls=1, spread=None)
    assert (row.ratio, row.covered) == (None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "other"}, "the model is other, not toy"),
        ({"variant": {"dtype": "fp32", "attention": "none"}}, "dtype is fp32, not bf16"),
        ({"variant": {"dtype": "bf16"}}, "attention is not given, not none"),
    ],
)
def test_a_measurement_of_another_model_is_refused(toy: ModuleType, changes: dict[str, object], message: str) -> None:
    """Every difference is named, with what to do."""
    with pytest.raises(MeasurementMismatchError, match=f"{message}.*Measure this one") as caught:
        compare(toy.scheduled_toy_model(), _measurement(PREFILL, **changes), toy.ToyClock())
    assert isinstance(caught.value, ValueError)


def test_a_prediction_may_be_of_another_variant_than_the_graph(toy: ModuleType) -> None:
    """What a time model runs in another way is compared with measurements of that way, and with no other."""
    model = toy.scheduled_toy_model()
    other = _measurement(PREFILL, variant={"dtype": "bf16", "attention": "loop"})
    (found,) = compare(model, other, toy.ToyClock(), variant={"attention": "loop"})
    assert found.total.predicted.seconds == 14.5
    with pytest.raises(MeasurementMismatchError, match="attention is none, not loop"):
        compare(model, _measurement(PREFILL), toy.ToyClock(), variant={"attention": "loop"})


def test_other_calls_than_the_graph_has_are_refused(toy: ModuleType) -> None:
    """Eight timed calls do not belong to a schedule of nine."""
    with pytest.raises(MeasurementMismatchError, match="'prefill' has 8 timed calls, the graph of toy has 9"):
        _compared(toy, evolve(PREFILL, call_seconds=CALLS[:8]))


def test_a_stage_that_the_model_lacks_is_refused(toy: ModuleType) -> None:
    """The known ones are listed."""
    with pytest.raises(UnknownMeasuredStageError, match=r"unknown stage 'warmup'.*decode, prefill"):
        _compared(toy, evolve(PREFILL, stage="warmup"))


seconds = st.floats(0, 1e3)


@given(st.lists(seconds, min_size=9, max_size=9), st.floats(0.1, 1e4))
def test_cells_and_the_rest_are_the_stage(toy: ModuleType, calls: list[float], whole: float) -> None:
    """Law: whatever was measured, cells and the rest add up to the stage, and the root is the sum of the cells."""
    found = _compared(toy, evolve(PREFILL, call_seconds=tuple(calls), cpu_seconds=(), wall_seconds=(whole,)))
    cells = sum_compared(found.cells.values())
    assert cells.measured + found.rest.measured == pytest.approx(whole)
    assert cells.predicted.seconds + found.rest.predicted.seconds == pytest.approx(14.5)
    assert found.modules[""].measured == pytest.approx(cells.measured)
    assert sum(row.calls for row in found.categories.values()) == found.modules[""].calls == 9
    assert np.allclose(found.modules[""].predicted.draws, cells.predicted.draws)
