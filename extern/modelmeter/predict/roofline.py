"""Roofline: the least time that a device's datasheet peaks allow; nothing here is fitted to a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
from attrs import frozen

from modelmeter.binding import Array, Binding
from modelmeter.categories import Category
from modelmeter.costs import Number, Time
from modelmeter.devices import DeviceSpec, available_devices, load_device
from modelmeter.dtypes import DType
from modelmeter.errors import InvalidDeviceError, ModelMeterError
from modelmeter.model import AnalyticModel, Leaf
from modelmeter.predict.time_model import DeviceFacts, PredictionFacts
from modelmeter.workload import StageRun

LABEL = "datasheet roofline, not calibrated"

_PEAK_NAMES = {DType.BF16: "bf16", DType.FP16: "fp16", DType.FP8_E4M3: "fp8", DType.FP8_E5M2: "fp8"}


class RooflineError(ModelMeterError, ValueError):
    """Matrix work in a type that the device has no peak for."""


@frozen(kw_only=True)
class Roofline:
    """Time of a leaf: the largest of matrix work, vector work and traffic over their peaks.

    ``max(tensor_core_flops / matrix peak, cuda_core_flops / fp32 vector peak, bytes / bandwidth)`` for each
    execution, for kernels that run one after the other with nothing in the caches. Launches, host work and achievable
    fractions of the peaks are left out; all vector work is taken at the fp32 rate.

    Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009.

    Parameters
    ----------
    device : DeviceSpec
        Whose dense peaks divide.
    fused : bool
        Whether traffic is that of fused chains; the default is eager execution, each kernel by itself.

    Examples
    --------
    >>> from modelmeter.devices import load_device
    >>> roofline = Roofline(device=load_device("h200"))
    >>> roofline.time_of(DType.BF16, ("0", "0", "4800000000"), Binding(bindings={}, count=2)).seconds
    0.002
    """

    device: DeviceSpec
    fused: bool = False

    @property
    def facts(self) -> PredictionFacts:
        """What the times are: a bound by a device's datasheet, no prediction."""
        return PredictionFacts(
            method=LABEL, traffic="fused" if self.fused else "unfused", device=DeviceFacts.of(self.device)
        )

    def times(self, model: AnalyticModel, run: StageRun, binding: Binding) -> Mapping[tuple[str, Category], Time]:
        """Return the time of all executions of a run, by module and category.

        Raises
        ------
        RooflineError
            When the device has no peak for the type of a leaf's matrix work.
        """
        times: dict[tuple[str, Category], Time] = {}
        for leaf in model.leaves_by_stage[run.stage]:
            key = (leaf.module, leaf.category)
            times[key] = times.get(key, Time()) + self.time(leaf, binding) * leaf.calls
        return times

    def time(self, leaf: Leaf, binding: Binding) -> Time:
        """Return the time of a leaf over all executions of a binding, one call each.

        Raises
        ------
        RooflineError
            When the device has no peak for the type of the leaf's matrix work.
        """
        cost = leaf.cost
        moved = cost.fused_bytes if self.fused else cost.bytes
        try:
            return self.time_of(
                leaf.dtype, (cost.tensor_core_flops.text, cost.cuda_core_flops.text, moved.text), binding
            )
        except InvalidDeviceError as error:
            raise RooflineError(f"no time for {leaf.id}: {error}") from error

    def time_of(self, dtype: DType | None, texts: tuple[str, str, str], binding: Binding) -> Time:
        """Return the time of work given as texts of tensor-core FLOPs, CUDA-core FLOPs and bytes.

        Raises
        ------
        InvalidDeviceError
            When there is matrix work and the device has no peak for its type.
        """
        matrix, vector, memory = (binding.steps(text) for text in texts)
        if isinstance(matrix, np.ndarray) or matrix:
            matrix = matrix / self._matrix_peak(dtype)
        vector = vector / self.device.vector_fp32_flops
        memory = memory / self.device.memory_bandwidth
        if any(isinstance(part, np.ndarray) for part in (matrix, vector, memory)):
            return _time_of_steps(matrix, vector, memory)
        return _time_of_one(cast("Number", matrix), cast("Number", vector), cast("Number", memory)) * binding.count

    def _matrix_peak(self, dtype: DType | None) -> float:
        if dtype is None:
            raise InvalidDeviceError("its layer does matrix work and states no type")
        name = _PEAK_NAMES.get(dtype, dtype.value)
        try:
            return self.device.peak_flops(name)
        except InvalidDeviceError as error:
            raise InvalidDeviceError(f"{error}. {_remedy(name)}") from error


def _remedy(dtype: str) -> str:
    """Say what to ask for instead of times by a device that has no peak for a type."""
    having = [key for key in available_devices() if dtype in load_device(key).matrix_flops]
    if having:
        return f"Take a device that has one ({', '.join(having)}), or leave times out"
    return "No device of the table has one: leave times out"


def _time_of_one(matrix: Number, vector: Number, memory: Number) -> Time:
    if matrix >= max(vector, memory):
        return Time(matrix_units=float(matrix))
    if vector >= memory:
        return Time(vector_units=float(vector))
    return Time(memory=float(memory))


def _time_of_steps(matrix: Number | Array, vector: Number | Array, memory: Number | Array) -> Time:
    parts = np.stack(np.broadcast_arrays(matrix, vector, memory))
    bound = parts.argmax(axis=0)
    longest = parts.max(axis=0)
    seconds = [float(longest[bound == index].sum()) for index in range(3)]
    return Time(matrix_units=seconds[0], vector_units=seconds[1], memory=seconds[2])
