"""What a measurement says of a GPU beside its times, and files that were written before it did."""

import json

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.gpu_state import GpuState
from modelmeter.machine import Machine
from modelmeter.measurement import Measurement, StageMeasurement, measurement_from_json, measurement_to_json
from modelmeter.predict.calibration import (
    Calibration,
    HostCosts,
    Peaks,
    calibration_from_json,
    calibration_to_json,
)

MACHINE = Machine(kind="cuda", device="a GPU", driver="1", memory_bytes=1, threads=1, torch="2.13.0")
STATE = GpuState(
    samples=9, median_clock_mhz=1755.0, least_clock_mhz=1410.0, median_power_watts=640.5, most_power_watts=699.0
)
# Two calls of 3 and 1 s in a run of 8 s, of which kernels are 1 and 1 s.
STAGE = StageMeasurement(
    stage="decode",
    bindings={"B": 1},
    warmups=3,
    wall_seconds=(8.0,),
    call_seconds=(3.0, 1.0),
    device_seconds=(1.0, 1.0),
    gpu=STATE,
)
MEASUREMENT = Measurement(
    machine=MACHINE, date="2026-01-03", model="toy", variant={}, weights="random", stages=(STAGE,)
)
CALIBRATION = Calibration(
    machine=MACHINE,
    date="2026-01-03",
    models=(),
    peaks=Peaks(matrix_flops={}, vector_flops=1.0, bandwidth=1.0),
    host=HostCosts(classes={}),
    samples=(),
    gpu=(STATE, STATE),
)


def test_waiting_is_what_kernels_leave_of_a_call() -> None:
    """Of 3 s 2 s, of the other call nothing; half of the run is attributed, and nothing is scaled."""
    assert STAGE.scaled_call_seconds == (3.0, 1.0)
    assert STAGE.scaled_waiting_seconds == (2.0, 0.0)
    assert STAGE.attributed == 0.5


def test_calls_slower_than_the_run_scale_the_waits_as_well() -> None:
    """4 s of calls in a run of 2 s: 200 % as it is, half of each as a share of the run."""
    shorter = evolve(STAGE, wall_seconds=(2.0,))
    assert (shorter.attributed, shorter.scaled_call_seconds) == (2.0, (1.5, 0.5))
    assert shorter.scaled_waiting_seconds == (1.0, 0.0)


def test_calls_are_set_beside_the_runs_they_took_turns_with() -> None:
    """4 s of calls beside a run of 5 s are 80 %, of a run that counts, 8 s, they are 2.4 and 0.8 * 8/5 s."""
    beside = evolve(STAGE, beside_seconds=(5.0,))
    assert beside.attributed == 0.8
    assert beside.scaled_call_seconds == pytest.approx((4.8, 1.6))


def test_without_kernels_apart_nothing_waits() -> None:
    """A CPU's call is all its own."""
    assert evolve(STAGE, device_seconds=()).scaled_waiting_seconds == (0.0, 0.0)


seconds = st.floats(0.0, 1e3)


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=9), st.floats(0.1, 1e4))
def test_waits_are_parts_of_their_calls(calls: list[tuple[float, float]], run: float) -> None:
    """Law: whatever the two passes told, a wait is neither negative nor longer than its call."""
    found = evolve(
        STAGE,
        wall_seconds=(run,),
        call_seconds=tuple(whole for whole, _ in calls),
        device_seconds=tuple(kernels for _, kernels in calls),
    )
    for wait, whole in zip(found.scaled_waiting_seconds, found.scaled_call_seconds, strict=True):
        assert 0 <= wait <= whole


def test_files_keep_the_state_of_the_gpu() -> None:
    """Written and read, both records are the same."""
    assert measurement_from_json(measurement_to_json(MEASUREMENT)) == MEASUREMENT
    assert calibration_from_json(calibration_to_json(CALIBRATION)) == CALIBRATION


def test_files_from_before_are_read() -> None:
    """They say neither what kernels took alone nor what state the GPU was in."""
    document = json.loads(measurement_to_json(MEASUREMENT))
    for name in ("device_seconds", "gpu"):
        del document["stages"][0][name]
    (stage,) = measurement_from_json(json.dumps(document)).stages
    assert stage == evolve(STAGE, device_seconds=(), gpu=None)
    older = json.loads(calibration_to_json(CALIBRATION))
    del older["gpu"]
    assert calibration_from_json(json.dumps(older)) == evolve(CALIBRATION, gpu=())


def test_a_state_that_is_none_is_refused() -> None:
    """A file with half a state is damaged."""
    document = json.loads(measurement_to_json(MEASUREMENT))
    del document["stages"][0]["gpu"]["samples"]
    with pytest.raises(ValueError, match="samples"):
        measurement_from_json(json.dumps(document))
