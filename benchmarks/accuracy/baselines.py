"""What a prediction has to beat: four simpler ways to turn the same model into seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from attrs import frozen

from modelmeter.costs import Draws
from modelmeter.model import AnalyticModel, Leaf
from modelmeter.predict import Calibrated, Calibration
from modelmeter.predict.time_model import DeviceFacts

Bindings = Mapping[str, int]


@frozen(kw_only=True)
class PeakRoofline:
    """The larger of FLOPs and bytes over peaks, per call.

    The floor and the efficiencies are 0 and 1 for the datasheet's bound; else they are fitted to the calibration.
    """

    peaks: DeviceFacts
    dtype: str  # whose matrix peak divides all FLOPs
    floor: float = 0.0  # seconds per call
    compute: float = 1.0  # achieved share of the peak FLOP/s
    memory: float = 1.0  # achieved share of the peak bandwidth

    def seconds(self, model: AnalyticModel, stage: str, bindings: Bindings) -> float:
        """Return the time of one execution of a stage."""
        leaves = model.leaves_by_stage[stage]
        flops = np.array([_flops(leaf, bindings) for leaf in leaves])
        moved = np.array([leaf.cost.bytes.at(bindings) for leaf in leaves])
        return float(self.calls(flops, moved) @ np.array([leaf.calls for leaf in leaves]))

    def calls(self, flops: Draws, moved: Draws) -> Draws:
        """Return the time of each of some calls."""
        peak = self.peaks.matrix_flops_per_second.get(self.dtype, self.peaks.vector_flops_per_second)
        bandwidth = self.peaks.bytes_per_second
        return self.floor + np.maximum(flops / (peak * self.compute), moved / (bandwidth * self.memory))


def _flops(leaf: Leaf, bindings: Bindings) -> float:
    return leaf.cost.matmul_flops.at(bindings) + leaf.cost.vector_flops.at(bindings)


def fitted_roofline(calibration: Calibration, peaks: DeviceFacts, dtype: str) -> PeakRoofline:
    """Return the roofline with a floor whose three parameters fit the calibration's samples best.

    The sum of squared logarithms of the errors is minimised by a search over a grid that is refined three times.
    """
    samples = [sample for sample in calibration.samples if sample.flops or sample.bytes]
    seconds = np.array([sample.quantile(0.5) for sample in samples])
    flops = np.array([sample.flops for sample in samples])
    moved = np.array([sample.bytes for sample in samples])

    def roofline(parameters: Draws) -> PeakRoofline:
        floor, compute, memory = map(float, np.exp(parameters))
        return PeakRoofline(peaks=peaks, dtype=dtype, floor=floor, compute=compute, memory=memory)

    def loss(parameters: Draws) -> float:
        return float(np.mean(np.log(roofline(parameters).calls(flops, moved) / seconds) ** 2))

    best = np.log(np.array([1e-5, 0.5, 0.5]))
    for width in (3.0, 1.0, 0.3, 0.1):
        steps = np.linspace(-width, width, 9)
        best = min((best + np.array([a, b, c]) for a in steps for b in steps for c in steps), key=loss)
    return roofline(best)


def sum_of_device_times(predictor: Calibrated) -> Callable[[AnalyticModel, str, Bindings], float]:
    """Return a function that adds up the kernels' times and leaves the host out."""
    return lambda model, stage, bindings: sum(call.device_seconds for call in predictor.calls(model, stage, bindings))


def larger_of_host_and_device(predictor: Calibrated) -> Callable[[AnalyticModel, str, Bindings], float]:
    """Return a function that takes the larger of the host's and the device's sums."""

    def seconds(model: AnalyticModel, stage: str, bindings: Bindings) -> float:
        calls = predictor.calls(model, stage, bindings)
        return max(sum(call.host_seconds for call in calls), sum(call.device_seconds for call in calls))

    return seconds
