"""Engine: a time model of a serving engine on a GPU, from measured op tables; fused kernels in one CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import numpy as np
from attrs import evolve, field, frozen

from modelmeter.binding import Binding
from modelmeter.categories import Category
from modelmeter.costs import Draws, Time
from modelmeter.devices import DeviceSpec
from modelmeter.errors import ModelMeterError
from modelmeter.expert_counts import Routing, uniform_routing
from modelmeter.model import AnalyticModel, Leaf
from modelmeter.predict.device_records import check_against_tables, load_device_record
from modelmeter.predict.draws import COUNT
from modelmeter.predict.engine_calls import call_of
from modelmeter.predict.engine_plan import EngineKernel, Role, plan_kernels
from modelmeter.predict.expert_draws import active_expert_draws
from modelmeter.predict.kernel_calls import Call, Experts
from modelmeter.predict.kernel_time import KernelTime, SourceShare, statement_of
from modelmeter.predict.op_tables import load_op_tables
from modelmeter.predict.spread import Spread
from modelmeter.predict.sweep import sweep_points, workload_points
from modelmeter.predict.table_times import TableTimes
from modelmeter.predict.time_model import DeviceFacts, PredictionFacts
from modelmeter.workload import StageRun, Workload

GRAPH_LAUNCH = 5e-6
"""Seconds from launching a stage's CUDA graph until its first kernel runs, an assumption: 2.5 us to launch (NVIDIA's
blog on straight-line graphs, 2024) and as much until it starts. Host work of an engine between steps is not in it."""

BOARD_SPREAD = 0.05
"""Standard deviation of the logarithm that all kernels share: boards of one kind differ by up to 8 %, and products are
slower at sustained power than in the short loops that tables are measured in."""

_DTYPES = ("bf16", "fp16")


class EngineDTypeError(ModelMeterError, ValueError):
    """A model in a type that engines, and so the tables, do not run."""


class UntabledKernelError(ModelMeterError, LookupError):
    """A kernel that no table has a relative of."""


@frozen(kw_only=True)
class _Timed:
    """A kernel at some sizes with its time."""

    kernel: EngineKernel
    call: Call
    time: KernelTime
    draws: Draws  # seconds of one execution in sampled runs


@frozen(kw_only=True)
class Engine:
    """Predicts what an engine such as vLLM takes on a GPU, from NVIDIA's measured tables of its kernels.

    An engine captures a stage in a CUDA graph, so there is no host time but one launch; it fuses what lies between two
    products (`modelmeter.predict.engine_plan.plan_kernels`); it runs in bf16 or fp16. Products, attention and experts
    come from the tables (`modelmeter.predict.table_times.TableTimes`). Memory-bound kernels are in no table: they, and
    products of kinds that none has, go by the rates of the device's record, if `physical` allows it.

    Which experts a router picks is drawn under uniform routing; under another routing they are as many as it says.

    Attributes
    ----------
    table_times : TableTimes
        The device and its tables; `Engine.on` loads them.
    physical : bool
        Allow rates for kernels that no table has; `statement` says what rests on them.
    """

    table_times: TableTimes
    physical: bool = False
    _plans: dict[tuple[int, str], tuple[AnalyticModel, tuple[EngineKernel, ...]]] = field(
        factory=dict, init=False, eq=False, repr=False
    )
    _timed: dict[object, _Timed | None] = field(factory=dict, init=False, eq=False, repr=False)

    @classmethod
    def on(cls, device: DeviceSpec, *, framework: str = "vllm", physical: bool = False) -> Self:
        """Return the engine on a device.

        Parameters
        ----------
        device : DeviceSpec
            One of `modelmeter.predict.op_tables.available_table_devices`.
        framework : str
            Whose kernels: "vllm", "sglang" or "trtllm".
        physical : bool
            Allow rates for kernels that no table has.

        Raises
        ------
        MissingTablesPackageError
            When the package with the tables is not installed.
        MissingTablesError
            When it has none of the device, or none under the framework.
        InvalidDeviceError
            When our figures of the device are not those of the package's record.
        UnknownNameError
            When the framework is unknown.
        """
        tables, record = load_op_tables(device.key, framework), load_device_record(device.key)
        check_against_tables(device)
        return cls(table_times=TableTimes(device=device, tables=tables, record=record), physical=physical)

    @property
    def facts(self) -> PredictionFacts:
        """The device, the tables and the framework they were measured with."""
        return PredictionFacts(
            method="tables",
            traffic="fused",
            device=DeviceFacts.of(self.table_times.device),
            runtime="engine",
            source={
                **self.table_times.tables.source,
                "without a table": "rates of the device record" if self.physical else "an error",
            },
        )

    def times(self, model: AnalyticModel, run: StageRun, binding: Binding) -> Mapping[tuple[str, Category], Time]:
        """Return the time of all executions of a run, by module and category.

        A sweep is evaluated at a few of its steps; the others lie linearly between them. The time of a kernel goes to
        the calls whose work it does, of products by their width, of fused memory-bound calls by their bytes. The launch
        is the root module's.

        Raises
        ------
        EngineDTypeError
            When the model is in another type than bf16 or fp16.
        UntabledKernelError
            When no table has a relative of a kernel, and `physical` is False.
        UnscheduledModelError
            When the model carries no schedule.
        """
        times: dict[tuple[str, Category], Time] = {
            (model.root.id, Category.HOST): Time(host=GRAPH_LAUNCH * run.count),
        }
        for sizes, weight in sweep_points(run):
            for timed in self._kernels(model, run.stage, sizes, binding.routing):
                whole = self._time(timed) * (timed.kernel.calls * weight)
                for leaf, share in _shares(timed.kernel, sizes):
                    key = (leaf.module, leaf.category)
                    times[key] = times.get(key, Time()) + whole * share
        return times

    def statement(self, model: AnalyticModel, workload: Workload) -> tuple[SourceShare, ...]:
        """Return how the device time of a workload was found, by family of kernels and method, the largest first.

        "exact" and "bracket" are measured; "blend" and "hold" have the efficiency of measured neighbours; "physical"
        rests on rates.

        Raises
        ------
        EngineDTypeError, UntabledKernelError, UnscheduledModelError
            As `times`.
        """
        return statement_of(
            (timed.time, timed.kernel.calls * weight)
            for stage, sizes, weight in workload_points(workload)
            for timed in self._kernels(model, stage, sizes, uniform_routing)
        )

    # --- kernels

    def _kernels(
        self, model: AnalyticModel, stage: str, sizes: Mapping[str, int], routing: Routing
    ) -> Iterator[_Timed]:
        """Yield the kernels of one execution that take time."""
        for kernel in self._plan(model, stage):
            timed = self._at(kernel, sizes, routing)
            if timed is not None:
                yield timed

    def _plan(self, model: AnalyticModel, name: str) -> tuple[EngineKernel, ...]:
        key = (id(model), name)
        if key not in self._plans:
            _check_dtype(model)
            self._plans[key] = (model, plan_kernels(model, name))  # the model is kept, so that its id stays its own
        return self._plans[key][1]

    def _at(self, kernel: EngineKernel, sizes: Mapping[str, int], routing: Routing) -> _Timed | None:
        moving = tuple((name, size) for name, size in sorted(sizes.items()) if name in kernel.dims)
        key = (id(kernel), moving, routing)
        if key not in self._timed:
            call = call_of(kernel, sizes, routing)
            self._timed[key] = None if call is None else self._timed_call(kernel, call, routing)
        return self._timed[key]

    def _timed_call(self, kernel: EngineKernel, call: Call, routing: Routing) -> _Timed:
        time = self._look_up(kernel, call)
        draws = np.full(COUNT, time.seconds)
        if isinstance(call, Experts) and routing is uniform_routing:
            draws = self._expert_draws(kernel, call)
        return _Timed(kernel=kernel, call=call, time=time, draws=draws * time.factors)

    def _expert_draws(self, kernel: EngineKernel, call: Experts) -> Draws:
        """Return the seconds at as many distinct experts as each sampled run touches."""
        _, *counts = active_expert_draws(
            int(call.experts), int(call.experts_per_token), int(call.tokens), layers=kernel.calls
        )
        seconds = {
            count: self._look_up(kernel, evolve(call, active_experts=count)).seconds for count in dict.fromkeys(counts)
        }
        return np.array([seconds[count] for count in counts])

    def _look_up(self, kernel: EngineKernel, call: Call) -> KernelTime:
        time = self.table_times.time(call)
        if time is None and not self.physical:
            raise self._untabled(kernel, call)
        return self.table_times.physical(call) if time is None else time

    def _untabled(self, kernel: EngineKernel, call: Call) -> UntabledKernelError:
        leaf, source = kernel.leaves[0], " under ".join(self.table_times.tables.source.values())
        signature = "its operands are not kept" if leaf.signature is None else leaf.signature.text
        more = f" with {len(kernel.leaves) - 1} other calls" if len(kernel.leaves) > 1 else ""
        return UntabledKernelError(
            f"{source} has no table of {call.family} kernels on {self.table_times.device.key}: {leaf.id}, {signature}, "
            f"fused{more}. Memory-bound kernels are in no table. Allow the rates of the device's record for what is "
            "missing with physical=True (--physical), and see in `statement` what rests on them; or calibrate on the "
            "device"
        )

    def _time(self, timed: _Timed) -> Time:
        parts = self.table_times.parts(timed.call)
        bound = max(parts, key=lambda name: parts[name])
        split = {name: timed.time.seconds if name == bound else 0.0 for name in parts}
        return Time(
            matrix_units=split["matrix_units"],
            vector_units=split["vector_units"],
            memory=split["memory"],
            draws=timed.draws * Spread(stated=BOARD_SPREAD).factors(f"board {self.table_times.device.key}"),
        )


def _check_dtype(model: AnalyticModel) -> None:
    dtype = model.variant.get("dtype")
    if dtype not in _DTYPES:
        raise EngineDTypeError(
            f"{model.name} is in {dtype or 'a type that its variant does not name'}; engines, and the tables measured "
            f"with them, run {' or '.join(_DTYPES)}. Take the variant with dtype bf16"
        )


def _shares(kernel: EngineKernel, sizes: Mapping[str, int]) -> Sequence[tuple[Leaf, float]]:
    """Return the leaves that a kernel's time belongs to, with shares that add up to 1."""
    if kernel.role is Role.STREAMING:
        weights = [moved.at(sizes) for moved in kernel.moved]
    else:
        weights = [leaf.cost.matmul_flops.at(sizes) for leaf in kernel.leaves]
    whole = sum(weights)
    if not whole:
        return [(leaf, 1 / len(kernel.leaves)) for leaf in kernel.leaves]
    return [(leaf, weight / whole) for leaf, weight in zip(kernel.leaves, weights, strict=True) if weight]
