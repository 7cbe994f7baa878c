"""What the host spends around operator calls: per call by class, per launch, per wait for the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsocr_graph.errors import ClockError
from dsocr_graph.timing.clocks import CudaClock
from dsocr_graph.timing.launches import count_launches
from modelmeter.predict.calibration import HostCosts

_CALLS = 200  # in a block, without waiting for the device: their launches fit into the driver's queue of 1,024
_BLOCKS = 9

Probes = Mapping[str, Sequence[Callable[[], object]]]
"""Calls with tiny operands by class of host time, written as models write them."""


@torch.inference_mode()
def measure_host_costs(device: torch.device) -> HostCosts:
    """Return what the host spends.

    On a CPU the time of a call contains that of its host; left are views, which nothing else times, the calls of
    modules, and what any call takes longer among other calls, as in a model, than many times in a row, as it is timed.
    On a GPU the times of blocks of calls are split into a part per class and a part per launch.

    Raises
    ------
    ClockError
        When the profiler may not see the kernels of a GPU, so that launches cannot be counted.

    Examples
    --------
    >>> costs = measure_host_costs(torch.device("cpu"))
    >>> sorted(costs.classes), costs.launch
    (['module', 'turn', 'view'], 0.0)
    """
    probes = _probes(device)
    module = _module_seconds(torch.ones(1, device=device))
    if device.type == "cpu":
        view = statistics.median(block_seconds(call) for call in probes["view"])
        return HostCosts(classes={"view": view, "module": module, "turn": _turn_seconds(probes)})
    classes, launch = _split(probes, device)
    return _with_waits({**classes, "module": module}, launch, device)


def block_seconds(call: Callable[[], object], settle: Callable[[], object] = lambda: None) -> float:
    """Return the CPU time of this thread for one of many calls in a row: the median of some blocks.

    Parameters
    ----------
    call : callable
        What is called.
    settle : callable
        Waits for what the calls have started, between blocks.

    Examples
    --------
    >>> 0 < block_seconds(lambda: sum(range(10))) < 1e-3
    True
    """
    seconds: list[float] = []
    for _ in range(_BLOCKS):
        settle()
        begin = time.thread_time()
        for _ in range(_CALLS):
            call()
        seconds.append((time.thread_time() - begin) / _CALLS)
    return statistics.median(seconds)


def _module_seconds(x: Tensor) -> float:
    """Return what calling a module takes beyond calling a function."""

    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    module = Same()
    return max(0.0, block_seconds(lambda: module(x)) - block_seconds(lambda: module.forward(x)))


def _turn_seconds(probes: Probes) -> float:
    """Return what a call takes longer in turn with all other probes than many times in a row."""
    calls = [call for some in probes.values() for call in some]

    def all_in_turn() -> None:
        for call in calls:
            call()

    in_row = sum(map(block_seconds, calls))
    return max(0.0, block_seconds(all_in_turn) - in_row) / len(calls)


def _probes(device: torch.device) -> Probes:
    x = torch.randn(2, 4, 8, device=device)
    row = torch.randn(8, 8, device=device)
    heads = torch.randn(1, 2, 4, 16, device=device)
    ranks = torch.arange(8, device=device)
    table = torch.randn(16, 8, device=device)
    mask = row > 0
    return {
        "view": (
            lambda: x.transpose(1, 2),
            lambda: x.view(8, 8),
            lambda: x.select(0, 0),
            lambda: x[:, :2],
            lambda: x.unsqueeze(0),
            lambda: x.permute(2, 0, 1),
        ),
        "elementwise": (
            lambda: x * x,
            lambda: x + 1.0,
            lambda: F.silu(x),
            lambda: x.to(torch.float64),
            lambda: x.transpose(1, 2).contiguous(),
        ),
        "reduction": (
            lambda: x.mean(-1, keepdim=True),
            lambda: x.softmax(-1),
            lambda: F.layer_norm(x, (8,)),
            lambda: x.argmax(-1),
        ),
        "gemm": (lambda: F.linear(row, row), lambda: row @ row, lambda: torch.bmm(x, x.transpose(1, 2))),
        "attention": (
            lambda: F.scaled_dot_product_attention(heads, heads, heads),
            lambda: F.scaled_dot_product_attention(heads, heads, heads, is_causal=True),
        ),
        "indexing": (
            lambda: F.embedding(ranks, table),
            lambda: table[ranks],
            ranks.sort,
            lambda: row.topk(2),
            lambda: torch.searchsorted(ranks, ranks),
            lambda: row.index_put((ranks,), row),
            lambda: row.masked_scatter_(mask, table),
        ),
        "allocating": (
            lambda: torch.cat([x, x], -1),
            lambda: torch.zeros(8, device=device),
            lambda: torch.arange(8, device=device),
            lambda: F.pad(x, (0, 1)),
        ),
    }


# --- CUDA


def _split(probes: Probes, device: torch.device) -> tuple[dict[str, float], float]:
    """Return the host's seconds per call by class and per launch, of blocks whose launches are counted."""
    names = list(probes)
    rows: list[list[float]] = []
    seconds: list[float] = []
    for name, calls in probes.items():
        for call in calls:
            for _ in range(3):
                call()
            launches = count_launches(call, device) or 0
            rows.append([*(float(name == other) for other in names), launches])
            seconds.append(block_seconds(call, lambda: torch.cuda.synchronize(device)))
    if not any(row[-1] for row in rows):
        raise ClockError(
            f"torch's profiler sees no kernel on {device}, so that launches cannot be counted: allow this user to "
            "trace the GPU (NVIDIA: NVreg_RestrictProfilingToAdminUsers=0, or the capability SYS_ADMIN in a "
            "container), and close other profilers"
        )
    fitted = non_negative_fit(np.array(rows), np.array(seconds))
    return dict(zip(names, map(float, fitted[:-1]), strict=True)), float(fitted[-1])


def non_negative_fit(rows: np.ndarray, values: np.ndarray, sweeps: int = 5000) -> np.ndarray:
    """Return the x >= 0 that minimises |rows x - values|, by descent along one coordinate after the other.

    Parameters
    ----------
    rows : array
        Shape [equations, unknowns]; no column is zero.
    values : array
        Shape [equations].
    sweeps : int
        Times that every coordinate is set to its best value, the others held.

    Examples
    --------
    The first equation asks for x[0] = -1, which nothing below 0 can give.

    >>> non_negative_fit(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([-1.0, 6.0])).tolist()
    [0.0, 3.0]
    """
    square, target = rows.T @ rows, rows.T @ values
    found = np.zeros(rows.shape[1])
    for _ in range(sweeps):
        for index in range(len(found)):
            step = (target[index] - square[index] @ found) / square[index, index]
            found[index] = max(0.0, found[index] + step)
    return found


def _with_waits(classes: Mapping[str, float], launch: float, device: torch.device) -> HostCosts:
    """Return the costs with what a launch takes to reach an idle device, and what waiting for it takes."""
    x = torch.ones(1, device=device)

    def run(repeats: int) -> None:
        for _ in range(repeats):
            x.add_(1.0)

    kernel = CudaClock(device).window(run, _CALLS)()
    run(3)
    sync = statistics.median(_elapsed(lambda: torch.cuda.synchronize(device)) for _ in range(_CALLS))

    def there_and_back() -> None:
        x.add_(1.0)
        torch.cuda.synchronize(device)

    whole = statistics.median(_elapsed(there_and_back) for _ in range(_CALLS))
    latency = max(0.0, whole - classes["elementwise"] - launch - kernel - sync)
    return HostCosts(classes=classes, launch=launch, latency=latency, sync=sync)


def _elapsed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
