"""Yardsticks: the best rates of a device, and fixed calls that show whether its speed drifts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from attrs import frozen
from torch.nn import functional as F

from dsocr_graph.timing.clocks import Clock
from dsocr_graph.timing.operands import TORCH_DTYPES
from modelmeter.dtypes import DType
from modelmeter.layers.pointwise_flops import flops_per_element
from modelmeter.predict.calibration import Peaks


@frozen(kw_only=True)
class _Sizes:
    """Large enough for the best rate of a kind of device, small enough for a few tenths of a second."""

    product: int  # rows, columns and inner size of a matrix product
    copied: int  # bytes, beyond the caches
    pointwise: int  # elements, within the caches
    sentinel_product: int
    sentinel_copied: int  # bytes


_SIZES: Mapping[str, _Sizes] = MappingProxyType(
    {
        "cpu": _Sizes(product=1024, copied=2**28, pointwise=2**15, sentinel_product=512, sentinel_copied=2**26),
        "cuda": _Sizes(product=8192, copied=2**30, pointwise=2**22, sentinel_product=4096, sentinel_copied=2**28),
    }
)
_WINDOWS = 5
_REPEATS = 20  # of calls that are short on every device


@torch.inference_mode()
def measure_peaks(dtypes: Iterable[str], clock: Clock, device: torch.device) -> Peaks:
    """Return the best rates that torch reaches on a device.

    Parameters
    ----------
    dtypes : iterable of str
        Types to multiply matrices of, such as "bf16"; fp32 is measured in any case.
    clock : Clock
        Of the device.
    device : torch.device
        Where to.

    Examples
    --------
    >>> from dsocr_graph.timing.clocks import CpuClock
    >>> peaks = measure_peaks((), CpuClock(threads=1), torch.device("cpu"))
    >>> list(peaks.matrix_flops), peaks.bandwidth > 1e8
    (['fp32'], True)
    """
    sizes = _SIZES[device.type]
    x, y, z = (torch.randn(sizes.pointwise, device=device) for _ in range(3))
    multiply_add = _best(clock, lambda: torch.addcmul(x, y, z, value=0.5), _REPEATS)
    return Peaks(
        matrix_flops={
            dtype: 2 * sizes.product**3 / _best(clock, _product(sizes.product, DType(dtype), device))
            for dtype in sorted({*dtypes, "fp32"})
        },
        vector_flops=flops_per_element("scaled_product") * sizes.pointwise / multiply_add,
        bandwidth=2 * sizes.copied / _best(clock, _copy(sizes.copied, device)),
    )


class Sentinels:
    """Two calls of fixed sizes, timed now and then through a calibration.

    Examples
    --------
    >>> from dsocr_graph.timing.clocks import CpuClock
    >>> sorted(Sentinels(CpuClock(threads=1), torch.device("cpu")).seconds())
    ['copy', 'gemm']
    """

    def __init__(self, clock: Clock, device: torch.device) -> None:
        sizes = _SIZES[device.type]
        self._clock = clock
        self._calls: Mapping[str, Callable[[], object]] = {
            "gemm": _product(sizes.sentinel_product, DType.FP32, device),
            "copy": _copy(sizes.sentinel_copied, device),
        }

    @torch.inference_mode()
    def seconds(self) -> dict[str, float]:
        """Return what each takes now."""
        return {name: _best(self._clock, call) for name, call in self._calls.items()}


def _product(size: int, dtype: DType, device: torch.device) -> Callable[[], object]:
    x, y = (torch.randn(size, size, device=device).to(TORCH_DTYPES[dtype]) for _ in range(2))
    return lambda: F.linear(x, y)  # the second one transposed, as models have it and libraries like it


def _copy(size: int, device: torch.device) -> Callable[[], object]:
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _best(clock: Clock, call: Callable[[], object], repeats: int = 1) -> float:
    """Return the shortest time of one execution over some windows; the first warms up."""

    def run(repeats: int) -> None:
        for _ in range(repeats):
            call()

    run(1 + clock.warmups)
    window = clock.window(run, repeats)
    return min(window() for _ in range(_WINDOWS))
