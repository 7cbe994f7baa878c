"""The toy model as a service, and clocks that run it on machines of several memories and speeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType

import pytest
from attrs import evolve, frozen

import modelmeter
from modelmeter.binding import Binding
from modelmeter.capacity import Service
from modelmeter.categories import Category
from modelmeter.costs import Time
from modelmeter.model import AnalyticModel
from modelmeter.predict.time_model import PredictionFacts, TimeModel
from modelmeter.workload import StageRun, Workload, WorkloadItem


@frozen(kw_only=True)
class _Machine:
    """The toy's clock on a machine with a name, a memory and a speed."""

    clock: TimeModel
    key: str
    memory_bytes: int  # bytes
    slowness: float  # times as long as the toy's seconds

    @property
    def facts(self) -> PredictionFacts:
        """The clock's facts with another name and memory."""
        facts = self.clock.facts
        return evolve(facts, device=evolve(facts.device, key=self.key, memory_bytes=self.memory_bytes))

    def times(self, model: AnalyticModel, run: StageRun, binding: Binding) -> Mapping[tuple[str, Category], Time]:
        """Return the clock's times, so many times as long."""
        return {key: time * self.slowness for key, time in self.clock.times(model, run, binding).items()}


MakeMachine = Callable[..., TimeModel]


@pytest.fixture(scope="session")
def machine(toy: ModuleType) -> MakeMachine:
    """Return a maker of machines."""

    def make(key: str = "toy", *, memory_bytes: int = 20_000, slowness: float = 1.0) -> TimeModel:
        return _Machine(clock=toy.ToyClock(), key=key, memory_bytes=memory_bytes, slowness=slowness)

    return make


@pytest.fixture(scope="session")
def service(toy: ModuleType) -> Service:
    """Return the toy serving pages of 5 tokens and three decode steps: T = 5, 6, 7."""

    def workload_of(batch: int) -> Workload:
        runs = (
            StageRun(stage="prefill", count=1, bindings={"B": batch, "S": 5}),
            StageRun(stage="decode", count=3, bindings={"B": batch, "T": 5}, sweep="T"),
        )
        return Workload(name="toy pages", items=(WorkloadItem(name="page", documents=batch, runs=runs),))

    return Service(model=toy.toy_model(), workload_of=workload_of)


@pytest.fixture(scope="session")
def ocr() -> Service:
    """Return DeepSeek-OCR serving one view of a page: a prompt of 283 tokens and 100 new ones."""

    def workload_of(batch: int) -> Workload:
        runs = (
            StageRun(stage="vision_global", count=batch, bindings={}),
            StageRun(stage="prefill", count=1, bindings={"B": batch, "S": 283, "N": 273}),
            StageRun(stage="decode", count=99, bindings={"B": batch, "T": 283}, sweep="T"),
        )
        return Workload(name="views", items=(WorkloadItem(name="page", documents=batch, runs=runs),))

    return Service(model=modelmeter.load("deepseek-ocr", "base"), workload_of=workload_of)
