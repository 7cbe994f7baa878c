"""The time of a workload from single stages that were measured."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.machine import Machine
from modelmeter.measured_total import UnmeasuredRunError, measured_total, workload_points
from modelmeter.measurement import Measurement, StageMeasurement
from modelmeter.workload import StageRun, Workload, WorkloadItem

CPU = Machine(kind="cpu", device="a CPU", driver="", memory_bytes=1, threads=1, torch="2.13.0")
VISION = StageRun(stage="vision_local", count=3, bindings={"V": 6, "H": 3, "W": 2})


def decode(count: int, T: int, B: int = 1) -> StageRun:
    """Return so many steps from T cached tokens on."""
    return StageRun(stage="decode", count=count, bindings={"B": B, "T": T}, sweep="T")


def workload(*runs: StageRun) -> Workload:
    """Return a workload of one page per run."""
    items = tuple(WorkloadItem(name=str(number), documents=1, runs=(run,)) for number, run in enumerate(runs))
    return Workload(name="pages", items=items)


def measured(*stages: tuple[str, dict[str, int], float]) -> Measurement:
    """Return a measurement of stages at sizes, with their seconds."""
    return Measurement(
        machine=CPU,
        date="2026-11-25",
        model="toy",
        variant={},
        weights="random",
        stages=tuple(
            StageMeasurement(stage=stage, bindings=sizes, warmups=1, wall_seconds=(seconds,))
            for stage, sizes, seconds in stages
        ),
    )


def test_points_are_distinct_and_a_sweep_has_three() -> None:
    """Two pages share their first step and their crops: 1 + 3 + 2 points."""
    points = workload_points(workload(VISION, decode(11, 20), VISION, decode(21, 20)))
    assert [(point.stage, point.bindings.get("T"), point.count) for point in points] == [
        ("vision_local", None, 1),
        ("decode", 20, 1),
        ("decode", 25, 1),
        ("decode", 30, 1),
        # 20 is there already, and 30 is the middle of 20 to 40
        ("decode", 40, 1),
    ]


def test_a_short_sweep_has_no_more_points_than_steps() -> None:
    """One step is one point, two are two."""
    assert [len(workload_points(workload(decode(count, 5)))) for count in (1, 2, 3)] == [1, 2, 3]


def test_executions_are_summed() -> None:
    """Three executions of 2 s are 6 s; a size that the stage does not depend on (W) need not be stated."""
    assert measured_total(workload(VISION), measured(("vision_local", {"V": 6, "H": 3}, 2.0))) == 6.0


def test_steps_lie_between_the_measured_ones() -> None:
    """T = 10..14 with 1 s at 10, 2 s at 12 and 4 s at 14: 1 + 1.5 + 2 + 3 + 4 = 11.5 s."""
    times = measured(*(("decode", {"B": 1, "T": T}, seconds) for T, seconds in ((14, 4.0), (10, 1.0), (12, 2.0))))
    assert measured_total(workload(decode(5, 10)), times) == pytest.approx(11.5)


@given(count=st.integers(1, 500), first=st.integers(1, 4000), base=st.floats(0, 10), slope=st.floats(0, 0.1))
def test_a_linear_cost_is_summed_exactly(count: int, first: int, base: float, slope: float) -> None:
    """Steps of base + slope * T from T = a on: n * base + slope * (n * a + n (n - 1) / 2)."""
    run = decode(count, first)
    times = measured(
        *(
            ("decode", dict(point.bindings), base + slope * point.bindings["T"] + 1e-9)
            for point in workload_points(workload(run))
        )
    )
    expected = count * (base + 1e-9) + slope * (count * first + count * (count - 1) / 2)
    assert measured_total(workload(run), times) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (VISION, "vision_local at V=6, H=3, W=2 was not measured in full; measured are no sizes of it. Measure"),
        (decode(5, 10, B=2), "decode at B=2, T=10 to T=14 was not measured in full; measured are B=1, T=10; B=1, T=12"),
        (decode(5, 10), "decode at B=1, T=10 to T=14 was not measured in full"),  # up to 12 only
        (decode(2, 9), "decode at B=1, T=9 to T=10 was not measured in full"),
    ],
)
def test_what_was_not_measured_is_named(run: StageRun, message: str) -> None:
    """The message says what is missing, what there is and which command makes it."""
    times = measured(("decode", {"B": 1, "T": 10}, 1.0), ("decode", {"B": 1, "T": 12}, 2.0))
    with pytest.raises(UnmeasuredRunError, match=re.escape(message)):
        measured_total(workload(run), times)
