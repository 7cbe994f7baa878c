"""What a prediction has to beat: four simpler ways to turn the same model into seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from attrs import frozen

from modelmeter.model import AnalyticModel, Leaf
from modelmeter.predict import Calibrated, Calibration
from modelmeter.predict.time_model import DeviceFacts

Bindings = Mapping[str, int]


@frozen(kw_only=True)
class Roofline:
    """The largest of matrix work, vector work and traffic over peaks, per call.

    The floor and the efficiencies are 0 and 1 for the datasheet's bound; else they are fitted to the calibration.
    """

    peaks: DeviceFacts
    floor: float = 0.0  # seconds per call
    compute: float = 1.0  # achieved share of the peak FLOP/s
    memory: float = 1.0  # achieved share of the peak bandwidth

    def seconds(self, model: AnalyticModel, stage: str, bindings: Bindings) -> float:
        """Return the time of one execution of a stage."""
        return sum(self._call(leaf, bindings) * leaf.calls for leaf in model.leaves_by_stage[stage])

    def _call(self, leaf: Leaf, bindings: Bindings) -> float:
        dtype = leaf.dtype.value if leaf.dtype is not None else ""
        peak = self.peaks.matrix_flops_per_second.get(dtype, self.peaks.vector_flops_per_second)
        flops = leaf.cost.matmul_flops.at(bindings) / peak
        vector = leaf.cost.vector_flops.at(bindings) / self.peaks.vector_flops_per_second
        memory = leaf.cost.bytes.at(bindings) / self.peaks.bytes_per_second
        return self.floor + max(flops / self.compute, vector / self.compute, memory / self.memory)


def fitted_roofline(calibration: Calibration, peaks: DeviceFacts, dtype: str) -> Roofline:
    """Return the roofline with a floor whose three parameters fit the calibration's samples best.

    The sum of squared logarithms of the errors is minimised by a search over a grid that is refined three times.
    """
    samples = [sample for sample in calibration.samples if sample.flops or sample.bytes]
    seconds = np.array([sample.quantile(0.5) for sample in samples])
    peak = peaks.matrix_flops_per_second.get(dtype, peaks.vector_flops_per_second)
    flops = np.array([sample.flops for sample in samples]) / peak
    memory = np.array([sample.bytes for sample in samples]) / peaks.bytes_per_second

    def loss(parameters: Sequence[float]) -> float:
        floor, compute, bandwidth = np.exp(parameters)
        predicted = floor + np.maximum(flops / compute, memory / bandwidth)
        return float(np.mean(np.log(predicted / seconds) ** 2))

    best = np.log([1e-5, 0.5, 0.5])
    for width in (3.0, 1.0, 0.3, 0.1):
        steps = np.linspace(-width, width, 9)
        grid = [best + np.array([a, b, c]) for a in steps for b in steps for c in steps]
        best = min(grid, key=loss)
    floor, compute, bandwidth = np.exp(best)
    return Roofline(peaks=peaks, floor=float(floor), compute=float(compute), memory=float(bandwidth))


def sum_of_device_times(predictor: Calibrated) -> Callable[[AnalyticModel, str, Bindings], float]:
    """Return a function that adds up the kernels' times and leaves the host out."""
    return lambda model, stage, bindings: sum(call.device_seconds for call in predictor.calls(model, stage, bindings))


def larger_of_host_and_device(predictor: Calibrated) -> Callable[[AnalyticModel, str, Bindings], float]:
    """Return a function that takes the larger of the host's and the device's sums."""

    def seconds(model: AnalyticModel, stage: str, bindings: Bindings) -> float:
        calls = predictor.calls(model, stage, bindings)
        return max(sum(call.host_seconds for call in calls), sum(call.device_seconds for call in calls))

    return seconds
