"""DeepSeek-OCR, a device and small workloads for the tests of this folder."""

from collections.abc import Callable

import pytest

import modelmeter
from modelmeter.devices import DeviceSpec
from modelmeter.model import AnalyticModel
from modelmeter.workload import StageRun, Workload, WorkloadItem


@pytest.fixture(scope="session")
def model() -> AnalyticModel:
    """Return the shipped model."""
    return modelmeter.load("deepseek-ocr", "gundam")


@pytest.fixture(scope="session")
def device() -> DeviceSpec:
    """Return a device with a link of 900 GB/s, both directions together."""
    return modelmeter.load_device("h200")


@pytest.fixture(scope="session")
def pages() -> Callable[..., Workload]:
    """Return a maker of workloads: a batch of pages, encoded, read and answered with some steps."""

    def make(batch: int, *, tokens: int = 283, steps: int = 3) -> Workload:
        runs = (
            StageRun(stage="vision_global", count=batch, bindings={}),
            StageRun(stage="prefill", count=1, bindings={"B": batch, "S": tokens, "N": 273}),
            StageRun(stage="decode", count=steps, bindings={"B": batch, "T": tokens}, sweep="T"),
        )
        return Workload(name="pages", items=(WorkloadItem(name="batch", documents=batch, runs=runs),))

    return make
