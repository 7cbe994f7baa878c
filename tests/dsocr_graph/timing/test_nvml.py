"""A GPU's clock and power, with a library made up for the test: what is kept, and what is silent when absent."""

import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from dsocr_graph.timing.nvml import GpuWatch, Reading, gpu_reader

CUDA = torch.device("cuda", 0)


class FakeError(Exception):
    """Stands for the library's own."""


def fake_nvml(**changes: object) -> SimpleNamespace:
    """Return a library that knows one GPU, at 1,500 MHz and 321.5 W."""
    calls: dict[str, object] = {
        "NVMLError": FakeError,
        "NVML_CLOCK_SM": 1,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda name: name,
        "nvmlDeviceGetClockInfo": lambda handle, kind: {("GPU-12ab", 1): 1500}[handle, kind],
        "nvmlDeviceGetPowerUsage": lambda handle: {"GPU-12ab": 321_500}[handle],
    }
    return SimpleNamespace(**(calls | changes))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what puts such a library, and a GPU, in place."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="12ab"))
    return lambda **changes: monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(**changes))


def failing(*_: object) -> None:
    """Fail as the library does."""
    raise FakeError


def test_a_reading_is_megahertz_and_watts_of_the_right_device(installed: Callable[..., None]) -> None:
    """The library is asked by the device's identity and speaks of milliwatts: 321,500 of them."""
    installed()
    read = gpu_reader(CUDA)
    assert read is not None
    assert read() == Reading(clock_mhz=1500.0, power_watts=321.5)


@pytest.mark.parametrize("changes", [{"nvmlInit": failing}, {"nvmlDeviceGetHandleByUUID": failing}])
def test_a_driver_that_does_not_answer_is_as_good_as_none(
    installed: Callable[..., None], changes: dict[str, object]
) -> None:
    """No library of the driver, or a device that it does not know."""
    installed(**changes)
    assert gpu_reader(CUDA) is None


def test_without_the_package_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is an extra; a CPU has no such state anyway."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_reader(CUDA) is None
    assert gpu_reader(torch.device("cpu")) is None
    with GpuWatch(None) as watch:
        pass
    assert watch.state() is None


def test_a_figure_that_is_refused_is_no_sample(installed: Callable[..., None]) -> None:
    """A GPU whose power this user may not see: nothing is made up."""
    installed(nvmlDeviceGetPowerUsage=failing)
    with GpuWatch(gpu_reader(CUDA)) as watch:
        pass
    assert watch.state() is None


def test_samples_become_medians_and_extremes() -> None:
    """Of 1500, 1200 and 1800 MHz 1500 and 1200; of 300, 500 and 400 W 400 and 500."""
    readings = iter([Reading(1500, 300), Reading(1200, 500), Reading(1800, 400)])
    with GpuWatch(lambda: next(readings, None), seconds_apart=0.001) as watch:
        deadline = time.monotonic() + 5
        while (state := watch.state()) is None or state.samples < 3:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert (state.samples, state.median_clock_mhz, state.least_clock_mhz) == (3, 1500, 1200)
    assert (state.median_power_watts, state.most_power_watts) == (400, 500)


def test_nothing_is_sampled_once_the_block_is_over() -> None:
    """The thread is gone when the block ends; one sample at least was taken."""
    count = 0

    def read() -> Reading:
        nonlocal count
        count += 1
        return Reading(1.0, 1.0)

    with GpuWatch(read, seconds_apart=0.001):
        pass
    taken = count
    time.sleep(0.02)
    assert count == taken >= 1
