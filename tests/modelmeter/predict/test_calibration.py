"""What a calibration file may hold: figures that times can be made of, and one sample a call."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from modelmeter.dtypes import DType
from modelmeter.machine import Machine
from modelmeter.predict.calibration import (
    Calibration,
    CalibrationFileError,
    HostCosts,
    Peaks,
    Sample,
    Sentinel,
    calibration_from_json,
    calibration_to_json,
)
from modelmeter.signature import Signature, TensorArgument

X = TensorArgument(dtype=DType.FP32, shape=(4,), strides=(1,))
SAMPLE = Sample(
    signature=Signature(op="aten::exp", overload="default", arguments={"self": X}),
    seconds=(2e-6, 3e-6),
    conditions={"active_experts": 3},
    flops=4.0,
    bytes=32.0,
)
CALIBRATION = Calibration(
    machine=Machine(kind="cpu", device="a CPU", driver="", memory_bytes=1, threads=1, torch="2.13.0"),
    date="2026-01-03",
    models=(),
    peaks=Peaks(matrix_flops={"fp32": 1e12}, vector_flops=1e11, bandwidth=1e10),
    host=HostCosts(classes={"view": 1e-6, "module": 0.0}),
    samples=(SAMPLE,),
    sentinels=(Sentinel(elapsed=0.0, name="copy", seconds=0.5),),
)


def test_figures_that_are_possible_are_read() -> None:
    """Costs of the host may be nothing, and a sentinel may be the first thing that is timed."""
    assert calibration_from_json(calibration_to_json(CALIBRATION)) == CALIBRATION


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda file: file["host"]["classes"].update(view=-5),
            "HostCosts.classes.view is -5.0; it is finite and not n",
        ),
        (
            lambda file: file["host"].update(launch=float("nan")),
            "HostCosts.launch is nan; it is finite and not negative",
        ),
        (lambda file: file["host"].update(latency=float("inf")), "HostCosts.latency is inf"),
        (lambda file: file["host"].update(sync=-1e-6), "HostCosts.sync is -1e-06"),
        (lambda file: file["peaks"].update(bandwidth=0), "Peaks.bandwidth is 0.0; it is positive and finite"),
        (lambda file: file["peaks"].update(vector_flops=-1), "Peaks.vector_flops is -1.0"),
        (lambda file: file["peaks"]["matrix_flops"].update(fp32=0), "Peaks.matrix_flops.fp32 is 0.0"),
        (lambda file: file["sentinels"][0].update(seconds=0), "Sentinel.seconds is 0.0; it is positive and finite"),
        (
            lambda file: file["sentinels"][0].update(elapsed=-1),
            "Sentinel.elapsed is -1.0; it is finite and not negative",
        ),
        (lambda file: file["samples"][0].update(launches=-1), "Sample.launches of aten::exp.* is -1"),
        (lambda file: file["samples"][0].update(flops=-4), "Sample.flops of aten::exp.* is -4.0"),
        (lambda file: file["samples"][0].update(bytes=float("nan")), "Sample.bytes of aten::exp.* is nan"),
        (
            lambda file: file["samples"][0]["conditions"].update(active_experts=-3),
            "conditions.active_experts of .* is -3",
        ),
        (lambda file: file["samples"][0].update(seconds=[1e-6, 0]), r"has the times \(1e-06, 0.0\); they are positive"),
        (
            lambda file: file["samples"].append(file["samples"][0]),
            "more than one sample of 1 of the calls, first aten",
        ),
    ],
)
def test_a_figure_that_no_time_can_be_made_of_is_refused_by_name(edit: Edit, message: str) -> None:
    """The message names the file, the figure and what it has to be."""
    document = json.loads(calibration_to_json(CALIBRATION))
    edit(document)
    with pytest.raises(CalibrationFileError, match=f"c.json is no calibration: .*{message}") as caught:
        calibration_from_json(json.dumps(document), source="c.json")
    assert isinstance(caught.value, ValueError)


def test_equal_calls_under_other_conditions_are_two_samples() -> None:
    """A grouped product with three and with four active experts takes two times."""
    document = json.loads(calibration_to_json(CALIBRATION))
    document["samples"].append({**document["samples"][0], "conditions": {"active_experts": 4}})
    assert len(calibration_from_json(json.dumps(document)).samples) == 2
