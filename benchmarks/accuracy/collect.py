"""Calibrates and measures a target of cases.toml in one run, interleaved, and keeps what it found.

Writes benchmarks/accuracy/data/TARGET: the calibration, a measurement and the compiled model per page size. `table.py`
makes the error table of them. An interrupted run goes on where it stopped; `--minutes` stops one in time.

    python benchmarks/accuracy/collect.py cpu-fp32
    python benchmarks/accuracy/collect.py cuda-bf16 --step calibrate --minutes 9
    python benchmarks/accuracy/collect.py cuda-bf16 --step measure --minutes 9
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import evolve
from cases import BASE_SIZE, Case, Target, read_targets

from dsocr_graph.compiling import analytic_model
from dsocr_graph.emit.files import write_artefacts
from dsocr_graph.emit.progress import progress_lines
from dsocr_graph.errors import DsocrGraphError
from dsocr_graph.models.registry import Variant
from dsocr_graph.timing.bench import INSTRUMENTED_PASSES, Bench, RunTime
from dsocr_graph.timing.calibrate import Calibrator
from dsocr_graph.timing.machine import this_machine
from dsocr_graph.timing.plan import Point, plan_calls
from dsocr_graph.timing.timed_calls import CallTimes, median_times
from modelmeter.errors import ModelMeterError
from modelmeter.measurement import Measurement, StageMeasurement, measurement_to_json, read_measurement
from modelmeter.model import AnalyticModel
from modelmeter.predict import calibration_to_json
from modelmeter.serialize import compress, model_to_json, read_model

WARMUPS = {"cpu": 1, "cuda": 3}
LONG_SECONDS = 10.0
"""A case whose runs take longer is warmed up once in all: what a first run loses is below a percent of it."""


def main() -> int:
    """Collect a target's data; exit status 3 when the time was up before all was done."""
    targets = read_targets()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=sorted(targets))
    parser.add_argument("--step", choices=("all", "calibrate", "host", "measure"), default="all")
    parser.add_argument("--minutes", type=float, help="begin nothing new after so long")
    options = parser.parse_args()
    deadline = float("inf") if options.minutes is None else time.monotonic() + 60 * options.minutes
    target = targets[options.target]
    collection = Collection(target, progress=progress_lines(), deadline=deadline)
    if options.step == "host":
        collection.measure_host()
        return 0
    for index in range(target.passes):
        if options.step != "measure":
            collection.calibrate(index + 1)
        if options.step != "calibrate":
            collection.measure((index + 1) / target.passes)
    if options.step != "calibrate":
        collection.examine()
    return 3 if collection.late else 0


class Collection:
    """What is collected of one target; everything is written as soon as it is there."""

    def __init__(self, target: Target, *, progress: Callable[[str], None], deadline: float) -> None:
        self.late = False
        self._target = target
        self._progress = progress
        self._deadline = deadline
        self._machine = this_machine(target.device, threads=target.threads)
        target.data.mkdir(parents=True, exist_ok=True)
        self._models = {size: self._compiled(size) for size in target.base_sizes}
        self._measured = {size: self._kept(size) for size in target.base_sizes}
        self._calibrator: Calibrator | None = None
        self._benches: dict[int, Bench] = {}
        self._warm: set[str] = set()  # cases that ran since the calibration last had the machine

    def calibrate(self, passes: int) -> None:
        """Time every planned call once more, until so many passes are done."""
        calibrator = self._calibrator or self._new_calibrator()
        self._calibrator = calibrator
        while calibrator.passes < passes and not self._is_late():
            self._warm.clear()
            calibrator.run_pass()
            self._write_calibration(calibrator)

    def measure_host(self) -> None:
        """Measure what the host spends anew, in a calibration that is done."""
        calibrator = self._new_calibrator()
        calibrator.measure_host()
        self._write_calibration(calibrator)

    def measure(self, share: float) -> None:
        """Run every case until it has this share of its repeats."""
        for case in self._target.cases:
            while len(self._runs(case)) < round(case.repeats * share) and not self._is_late():
                self._run(case)

    def examine(self) -> None:
        """Time the calls of each case in turns with whole runs, and see what it allocates and launches, once.

        The loop over experts follows the data and is in no graph: its calls cannot be timed one by one.
        """
        for case in self._target.cases if self._target.moe == "grouped" else ():
            found = self._find(case)
            if found is None or found.call_seconds or self._is_late():
                continue
            self._progress(f"timing the calls of {case.name}")
            bench, point, long = self._bench(case.base_size), _point(case), _is_long(found)
            runs: list[RunTime] = []
            passes: list[CallTimes] = []
            for _ in range(1 if long else INSTRUMENTED_PASSES):
                runs.append(bench.run(point))
                passes.append(bench.call_times(point))
            times = median_times(passes)
            examined = evolve(
                found,
                call_seconds=times.seconds,
                device_seconds=times.device_seconds,
                beside_seconds=tuple(run.cpu if found.cpu_seconds else run.wall for run in runs),
                peak_bytes=found.peak_bytes if long else bench.peak_bytes(point),
                launches=bench.launches(point),
            )
            self._keep(case.base_size, examined)

    def _write_calibration(self, calibrator: Calibrator) -> None:
        text = calibration_to_json(calibrator.calibration())
        write_artefacts(self._target.data, {"calibration.json.gz": compress(text)})

    def _is_late(self) -> bool:
        self.late = self.late or time.monotonic() > self._deadline
        return self.late

    def _run(self, case: Case) -> None:
        bench = self._bench(case.base_size)
        point = _point(case)
        found = self._find(case)
        if found is None:
            experts, _ = bench.warm_up(point)
            found = StageMeasurement(
                stage=case.stage,
                bindings=dict(case.bindings),
                warmups=WARMUPS[self._target.device],
                input_bytes=bench.input_bytes(point),
                wall_seconds=(),
                active_experts=experts,
            )
        if case.name not in self._warm and not _is_long(found):
            for _ in range(found.warmups):
                bench.run(point)
        self._warm.add(case.name)
        run = bench.run(point)
        self._progress(f"{case.name}: {run.wall:.3f} s wall, {run.cpu:.3f} s CPU")
        cpu_seconds = (*found.cpu_seconds, run.cpu) if self._target.device == "cpu" else ()
        self._keep(case.base_size, evolve(found, wall_seconds=(*found.wall_seconds, run.wall), cpu_seconds=cpu_seconds))

    def _runs(self, case: Case) -> tuple[float, ...]:
        found = self._find(case)
        return found.wall_seconds if found is not None else ()

    def _find(self, case: Case) -> StageMeasurement | None:
        stages = self._measured[case.base_size].stages
        return next((stage for stage in stages if _same(stage, case.stage, case.bindings)), None)

    def _keep(self, size: int, stage: StageMeasurement) -> None:
        measurement = self._measured[size]
        others = tuple(other for other in measurement.stages if not _same(other, stage.stage, stage.bindings))
        self._measured[size] = evolve(measurement, stages=(*others, stage))
        write_artefacts(self._target.data, {self._file(size).name: measurement_to_json(self._measured[size])})

    def _kept(self, size: int) -> Measurement:
        path = self._file(size)
        if path.exists():
            measurement = read_measurement(path)
            differences = measurement.machine.differences(self._machine)
            if differences:
                sys.exit(f"{path} is of another machine: {'; '.join(differences)}; delete {path.parent} to begin anew")
            return measurement
        return Measurement(
            machine=self._machine,
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            model=self._target.model.name,
            variant={**self._variant(size).facts(), "moe": self._target.moe},
            weights="random",
            stages=(),
        )

    def _file(self, size: int) -> Path:
        return self._target.data / f"measurement-base{size}.json"

    def _variant(self, size: int) -> Variant:
        return Variant(base_size=size, dtype=self._target.dtype, attention="sdpa")

    def _compiled(self, size: int) -> AnalyticModel:
        """Return the compiled model that lies beside the data, or compile it and lay it there."""
        path = self._target.data / f"model-base{size}.json.gz"
        if not path.exists():
            model = analytic_model(self._target.model, self._variant(size), progress=self._progress)
            write_artefacts(path.parent, {path.name: compress(model_to_json(model))})
        return read_model(path)

    def _bench(self, size: int) -> Bench:
        """Return the model with weights at a page size; the weights exist once."""
        if BASE_SIZE not in self._benches:
            self._benches[BASE_SIZE] = Bench(
                self._target.model,
                self._variant(BASE_SIZE),
                moe=self._target.moe,
                device=self._target.device,
                threads=self._target.threads,
                analytic=self._models[BASE_SIZE],
                progress=self._progress,
            )
        if size not in self._benches:
            self._benches[size] = self._benches[BASE_SIZE].at(self._variant(size), analytic=self._models[size])
        return self._benches[size]

    def _new_calibrator(self) -> Calibrator:
        points = {
            size: [
                Point(stage=sizes.stage, bindings=sizes.bindings)
                for sizes in self._target.calibrate
                if sizes.base_size == size
            ]
            for size in self._target.base_sizes
        }
        return Calibrator(
            plan_calls(
                [(self._calibrated(size), found) for size, found in points.items() if found],
                moe=self._target.moe,
                row_lattice=self._target.device == "cuda",
            ),
            machine=self._machine,
            journal=self._target.data / "calibration.partial",
            progress=self._progress,
        )

    def _calibrated(self, size: int) -> AnalyticModel:
        """Return the compiled model whose calls are timed."""
        if self._target.calibrated == self._target.model:
            return self._models[size]
        return analytic_model(self._target.calibrated, self._variant(size), progress=self._progress)


def _is_long(stage: StageMeasurement) -> bool:
    return bool(stage.wall_seconds) and statistics.median(stage.wall_seconds) > LONG_SECONDS


def _point(case: Case) -> Point:
    return Point(stage=case.stage, bindings=case.bindings)


def _same(stage: StageMeasurement, name: str, bindings: Mapping[str, int]) -> bool:
    return stage.stage == name and dict(stage.bindings) == dict(bindings)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (DsocrGraphError, ModelMeterError) as error:
        sys.exit(f"collect.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("collect.py: interrupted; the same command goes on from what is kept")
