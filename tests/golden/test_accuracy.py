"""The kept error tables follow from the kept calibrations and measurements, and simpler methods are computed right."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modelmeter.dtypes import DType
from modelmeter.machine import Machine
from modelmeter.predict import Calibration, DeviceFacts
from modelmeter.predict.calibration import HostCosts, Peaks, Sample
from modelmeter.signature import Signature, TensorArgument

FOLDER = Path(__file__).parents[2] / "benchmarks" / "accuracy"
KEPT = sorted(path.name for path in (FOLDER / "data").iterdir() if (path / "calibration.json.gz").exists())


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script `table.py`; it and its neighbours are no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import table  # pyright: ignore[reportMissingImports]

    return table


def test_there_is_data() -> None:
    """At least one machine was calibrated and measured."""
    assert "cpu-fp32" in KEPT


@pytest.mark.parametrize("target", KEPT)
def test_the_table_follows_from_the_data(target: str, benchmark: ModuleType) -> None:
    """Recomputed figures equal the kept ones, and no declared case is missing."""
    document, text = benchmark.report(benchmark.read_targets()[target])
    kept = json.loads((benchmark.RESULTS / f"accuracy-{target}.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(document)) == kept, f"run `make accuracy ARGS={target}` and say what moved"
    assert text == (benchmark.RESULTS / f"accuracy-{target}.md").read_text(encoding="utf-8")
    assert document["not_measured"] == []


@pytest.mark.parametrize("target", KEPT)
def test_the_prediction_beats_every_baseline_that_knows_less(target: str, benchmark: ModuleType) -> None:
    """Its median error is below those of both rooflines."""
    summary = json.loads((benchmark.RESULTS / f"accuracy-{target}.json").read_text(encoding="utf-8"))["summary"]["all"]
    for name in ("roofline", "roofline with floor"):
        assert summary["prediction"]["median"] < summary["baselines"][name]["median"]


def test_the_table_needs_no_torch() -> None:
    """Anyone can recompute it."""
    program = "import sys, table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=FOLDER, check=False).returncode == 0


def test_errors_are_summed_up_as_declared(benchmark: ModuleType) -> None:
    """Of -20, -4, 0, 2 and 12 %: sizes 0, 2, 4, 12 and 20, so the median is 4; p90 is 0.6 of the way from 12 to 20."""
    found = benchmark._errors([-0.20, -0.04, 0.0, 0.02, 0.12])
    assert found["median"] == pytest.approx(0.04)
    assert found["p90"] == pytest.approx(0.168)
    assert found["signed median"] == pytest.approx(0.0)
    assert (found["within 5 %"], found["within 10 %"]) == (0.6, 0.6)


def test_attribution_is_a_row_of_every_table_with_its_range(benchmark: ModuleType) -> None:
    """Of cases with 93, 136 % and none timed: 93 to 136 %; where no call was timed, the row says so."""
    target = benchmark.read_targets()["cpu-fp32"]
    rows = [_row(benchmark, attributed) for attributed in (0.93, 1.36, None)]
    attributed = benchmark._criteria(target, rows)[1]
    assert attributed["criterion"].startswith("SC-003")
    assert "of 2 cases" in attributed["criterion"]
    assert attributed["found"] == [0.93, 1.36]
    untimed = benchmark._criteria(target, rows[2:])[1]
    assert (untimed["criterion"][:6], untimed["found"]) == ("SC-003", None)
    for name in KEPT:
        text = (benchmark.RESULTS / f"accuracy-{name}.md").read_text(encoding="utf-8")
        (row,) = [line for line in text.splitlines() if line.startswith("| SC-003")]
        assert ("not timed" in row) == (name == "cpu-fp32-loop")
    assert "93.0% to 136.0%" in " | ".join(_table_markdown()._criterion(attributed))


def test_what_was_not_declared_of_the_goal_is_said(benchmark: ModuleType) -> None:
    """In bf16 the workload's total; in fp32 nothing; of models that stand for others no goal is set."""
    missing = {name: benchmark._goal_not_declared(target) for name, target in benchmark.read_targets().items()}
    assert missing.pop("cpu-bf16") == ["the total of the standard workload"]
    assert not any(missing.values())


def _row(benchmark: ModuleType, attributed: float | None) -> Any:
    return benchmark.Row(
        case="decode B=1 T=9",
        split="unseen length",
        stage="decode",
        runs=3,
        measured=1.0,
        wall=1.0,
        spread=0.01,
        attributed=attributed,
        peak=None,
        launches=None,
        predicted=1.0,
        p10=0.9,
        p90=1.1,
        baselines={},
    )


def _table_markdown() -> ModuleType:
    import table_markdown  # pyright: ignore[reportMissingImports]

    return table_markdown


def test_the_fitted_roofline_finds_its_own_parameters(benchmark: ModuleType) -> None:
    """Samples made with a floor of 10 us, half the FLOP/s and a quarter of the bandwidth give these back."""
    import baselines  # pyright: ignore[reportMissingImports]

    peaks = DeviceFacts(
        key="cpu",
        name="",
        matrix_flops_per_second={"fp32": 1e12},
        vector_flops_per_second=1e12,
        bytes_per_second=1e10,
        memory_bytes=1,
    )
    samples = tuple(
        Sample(
            signature=Signature(
                op="aten::exp",
                overload="default",
                arguments={"self": TensorArgument(dtype=DType.FP32, shape=(index,), strides=(1,))},
            ),
            seconds=(1e-5 + max(flops / 0.5e12, moved / 0.25e10),),
            flops=flops,
            bytes=moved,
        )
        for index, (flops, moved) in enumerate(
            [(10.0**power, 1.0) for power in range(5, 11)] + [(1.0, 10.0**power) for power in range(3, 9)]
        )
    )
    calibration = Calibration(
        machine=Machine(kind="cpu", device="", driver="", memory_bytes=1, threads=1, torch=""),
        date="2026-11-25",
        models=(),
        peaks=Peaks(matrix_flops={"fp32": 1e12}, vector_flops=1e12, bandwidth=1e10),
        host=HostCosts(classes={}),
        samples=samples,
    )
    fitted = baselines.fitted_roofline(calibration, peaks, "fp32")
    assert math.log(fitted.floor / 1e-5) == pytest.approx(0, abs=0.1)
    assert (fitted.compute, fitted.memory) == (pytest.approx(0.5, rel=0.1), pytest.approx(0.25, rel=0.1))
