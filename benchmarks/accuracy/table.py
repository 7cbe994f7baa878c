"""The error table: what was predicted from the kept calibration, beside what was measured and four baselines.

Needs no torch and no device: it reads the calibration, the measurements and the compiled models that `collect.py` left
in benchmarks/accuracy/data/TARGET. Prints the table and writes benchmarks/results/accuracy-TARGET.json and .md.

    python benchmarks/accuracy/table.py [TARGET ...]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import asdict, frozen
from baselines import PeakRoofline, fitted_roofline, larger_of_host_and_device, sum_of_device_times
from cases import PUBLISHED, Case, Target, read_targets
from table_markdown import to_markdown

import modelmeter
from dsocr_graph.workloads import bind_profile, load_profile
from modelmeter.evaluate import evaluate
from modelmeter.measured_total import measured_total
from modelmeter.measurement import Measurement, StageMeasurement, expected_peak_bytes, read_measurement
from modelmeter.model import AnalyticModel
from modelmeter.predict import Calibrated, Calibration, DeviceFacts, read_calibration
from modelmeter.serialize import read_model

RESULTS = Path(__file__).parents[1] / "results"
GOAL_PAGES = (512, 640, 1024)
"""Sizes of the global view that the project wants predicted on a CPU in every type, beside the standard workload."""

Predict = Callable[[AnalyticModel, str, Mapping[str, int]], float]


@frozen(kw_only=True)
class Row:
    """One held-out case; seconds."""

    case: str
    split: str
    stage: str
    runs: int
    measured: float  # median CPU time, or wall time on a GPU
    wall: float  # median
    spread: float  # half the quartiles' range over the median
    attributed: float | None  # calls timed one by one over the run beside them; None where calls were not timed
    peak: float | None  # analytic over measured peak memory, less 1; None where it was not measured
    launches: tuple[int, int] | None  # kernels predicted and counted; None where nothing counts them
    predicted: float
    p10: float
    p90: float
    baselines: Mapping[str, float]

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted / self.measured - 1

    @property
    def covered(self) -> bool:
        """Whether the measured time lies in the predicted interval."""
        return self.p10 <= self.measured <= self.p90


def main() -> int:
    """Recompute the tables of the targets that have data."""
    targets = read_targets()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(targets)}; default: all with data")
    with_data = [name for name, target in targets.items() if (target.data / "calibration.json.gz").exists()]
    names = parser.parse_args().targets or with_data
    for name in names:
        if name not in targets:
            sys.exit(f"no target {name!r} in cases.toml; it has {', '.join(targets)}")
        document, text = report(targets[name])
        print(text)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"accuracy-{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (RESULTS / f"accuracy-{name}.md").write_text(text, encoding="utf-8")
    return 0


def report(target: Target) -> tuple[dict[str, Any], str]:
    """Return a target's error table as a document and as Markdown."""
    calibration = read_calibration(target.data / "calibration.json.gz")
    models = {size: read_model(target.data / f"model-base{size}.json.gz") for size in target.base_sizes}
    files = {size: target.data / f"measurement-base{size}.json" for size in target.base_sizes}
    measurements = {size: read_measurement(file) for size, file in files.items() if file.exists()}
    for measurement in measurements.values():
        calibration.require(measurement.machine)
    predictor = Calibrated(calibration=calibration, moe=target.moe)
    baselines = _baselines(calibration, predictor, target)
    found = {case.name: _measured(measurements.get(case.base_size), case) for case in target.cases}
    rows = [
        _row(case, measured, models[case.base_size], predictor, baselines)
        for case in target.cases
        if (measured := found[case.name]) is not None
    ]
    if not rows:
        sys.exit(f"none of the cases of {target.name} was measured; run collect.py {target.name} --step measure")
    missing = [name for name, measured in found.items() if measured is None]
    splits = {split: _summary([row for row in rows if row.split == split]) for split in _distinct(rows, "split")}
    stages = {stage: _summary([row for row in rows if row.stage == stage]) for stage in _distinct(rows, "stage")}
    document: dict[str, Any] = {
        "target": target.name,
        "machine": asdict(calibration.machine),
        "date": calibration.date,
        "drift": round(calibration.drift, 4),
        "not_measured": missing,
        "goal_not_declared": _goal_not_declared(target),
        "criteria": _criteria(target, rows),
        "summary": {"all": _summary(rows), **splits, **stages},
        "workload": _total(target, models, measurements, predictor) if target.workload else None,
        "cases": [{**asdict(row), "error": row.error, "covered": row.covered} for row in rows],
    }
    rounded = {key: _rounded(value) for key, value in document.items()}
    return rounded, to_markdown(document, calibration, rows)


def _baselines(calibration: Calibration, predictor: Calibrated, target: Target) -> dict[str, Predict]:
    peaks = predictor.facts.device
    if target.device == "cuda":
        peaks = DeviceFacts.of(modelmeter.load_device(calibration.machine.device))
    return {
        "roofline": PeakRoofline(peaks=peaks, dtype=target.dtype).seconds,
        "roofline with floor": fitted_roofline(calibration, peaks, target.dtype).seconds,
        "sum of device times": sum_of_device_times(predictor),
        "max(host, device)": larger_of_host_and_device(predictor),
    }


def _measured(measurement: Measurement | None, case: Case) -> StageMeasurement | None:
    for stage in measurement.stages if measurement is not None else ():
        if stage.stage == case.stage and dict(stage.bindings) == dict(case.bindings):
            return stage
    return None


def _row(
    case: Case,
    measured: StageMeasurement,
    model: AnalyticModel,
    predictor: Calibrated,
    baselines: Mapping[str, Predict],
) -> Row:
    time = predictor.seconds(model, case.stage, case.bindings)
    assert time.p10 is not None
    assert time.p90 is not None
    return Row(
        case=case.name,
        split=case.split,
        stage=case.stage,
        runs=len(measured.wall_seconds),
        measured=measured.seconds,
        wall=statistics.median(measured.wall_seconds),
        spread=measured.spread,
        attributed=measured.attributed if measured.call_seconds else None,
        peak=_peak_error(case, measured, model),
        launches=None
        if measured.launches is None
        else (predictor.launches(model, case.stage, case.bindings), measured.launches),
        predicted=time.seconds,
        p10=time.p10,
        p90=time.p90,
        baselines={name: predict(model, case.stage, case.bindings) for name, predict in baselines.items()},
    )


def _peak_error(case: Case, measured: StageMeasurement, model: AnalyticModel) -> float | None:
    """Return how far the analytic peak, weights and inputs left out, is from the allocator's."""
    if measured.peak_bytes is None:
        return None
    return expected_peak_bytes(model.stage(case.stage), case.bindings, measured.input_bytes) / measured.peak_bytes - 1


def _distinct(rows: Iterable[Row], name: str) -> list[str]:
    return list(dict.fromkeys(getattr(row, name) for row in rows))


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the errors of some cases: of the prediction with the coverage of its intervals, and of each baseline."""
    names = list(rows[0].baselines)
    return {
        "cases": len(rows),
        "prediction": {
            **_errors([row.error for row in rows]),
            "coverage": sum(row.covered for row in rows) / len(rows),
        },
        "baselines": {name: _errors([row.baselines[name] / row.measured - 1 for row in rows]) for name in names},
    }


def _errors(errors: Sequence[float]) -> dict[str, float]:
    sizes = sorted(abs(error) for error in errors)
    return {
        "median": statistics.median(sizes),
        "p90": float(np.quantile(sizes, 0.9)),
        "max": sizes[-1],
        "signed median": statistics.median(errors),
        "within 5 %": sum(size <= 0.05 for size in sizes) / len(sizes),
        "within 10 %": sum(size <= 0.10 for size in sizes) / len(sizes),
        "within 15 %": sum(size <= 0.15 for size in sizes) / len(sizes),
    }


def _criteria(target: Target, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what the project promises of times, beside the least and the most that was found; None: not timed."""
    attributed = [row.attributed for row in rows if row.attributed is not None]
    found: list[dict[str, Any]] = [
        {
            "criterion": "SC-002: cases predicted within 15 % of measured",
            "goal": 0.9,
            "found": [_within(rows, 0.15)],
        },
        {
            "criterion": "SC-003: measured time attributed to modules and categories"
            + (f", least and most of {len(attributed)} cases whose calls were timed" if attributed else ""),
            "goal": 0.9,
            "found": [min(attributed), max(attributed)] if attributed else None,
        },
    ]
    single = [row for row in rows if row.case.startswith("decode B=1 ")]
    if target.device == "cuda" and single:
        criterion = f"host costs: decode steps at B = 1, which the host bounds, within 3 % ({len(single)} cases)"
        found.append({"criterion": criterion, "goal": 1.0, "found": [_within(single, 0.03)]})
    return found


def _goal_not_declared(target: Target) -> list[str]:
    """Return what of the project's goal for a CPU the target of the published model does not run."""
    if target.device != "cpu" or target.model.name != PUBLISHED:
        return []
    sizes = {case.base_size for case in target.cases if case.stage == "vision_global"}
    missing = [f"vision_global base={size}" for size in GOAL_PAGES if size not in sizes]
    return missing if target.workload else [*missing, "the total of the standard workload"]


def _within(rows: Sequence[Row], limit: float) -> float:
    return sum(abs(row.error) <= limit for row in rows) / len(rows)


def _total(
    target: Target,
    models: Mapping[int, AnalyticModel],
    measurements: Mapping[int, Measurement],
    predictor: Calibrated,
) -> dict[str, Any]:
    """Return the whole workload: predicted, and measured as stages times their counts."""
    assert target.workload is not None
    workload = bind_profile(load_profile(target.workload))
    size = int(workload.facts["base_size"])
    time = evaluate(models[size], workload, time_model=predictor).total.total.time
    assert time is not None
    measured = measured_total(workload, measurements[size])
    return {
        "workload": target.workload,
        "measured": measured,
        "predicted": time.seconds,
        "p10": time.p10,
        "p90": time.p90,
        "error": time.seconds / measured - 1,
    }


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    sys.exit(main())
