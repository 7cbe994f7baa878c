"""How many points a second a sweep evaluates, how long it takes to load, and whether its memory grows with the grid.

Sweeps pages of DeepSeek-OCR in a process of its own per figure: first without writing files, then to CSV and Parquet
files of a temporary folder, from the first point to the finished file. Sets beside it the time that torch's
FlopCounterMode takes for one point on `meta` tensors, measured in the same run. Prints a table and writes
benchmarks/results/sweep.json.

    python benchmarks/sweep.py [--points N] [--workers N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "sweep.json"
TOTALS_PER_SECOND, TABLES_PER_SECOND, LOAD_SECONDS = 1_000_000, 50_000, 1.0
MEMORY_GROWTH = 1.05  # of the peak, from a tenth of the points to all of them
BATCHES, PAGES = 64, ((1700, 2200), (1654, 2339), (1920, 1080), (640, 480))
POINTS_OF_TABLES = 1024  # evaluated at once: [cell, point] arrays of 10 kB a point


def load_seconds() -> tuple[float, object]:
    """Import, read and compile the model of Gundam mode; return the seconds and the model."""
    start = time.perf_counter()
    import modelmeter
    from modelmeter.sweeps import Program

    model = modelmeter.load("deepseek-ocr", "gundam")
    Program.of(model)
    seconds = time.perf_counter() - start
    assert "torch" not in sys.modules, "a sweep must not load torch"
    return seconds, model


def totals(points: int, workers: int, *, device: str | None) -> float:
    """Sweep totals; return the seconds."""
    from modelmeter.sweeps.run import sweep

    grid = _grid(points, device)
    start = time.perf_counter()
    rows = sum(table.rows for table in sweep(grid, workers=workers))
    seconds = time.perf_counter() - start
    assert rows == points
    return seconds


def written(points: int, workers: int, ending: str) -> float:
    """Sweep totals to a file; return the seconds."""
    from modelmeter.sweeps.run import sweep_to_file

    grid = _grid(points, None)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        out = sweep_to_file(grid, Path(folder) / f"sweep.{ending}", workers=workers)
        seconds = time.perf_counter() - start
        assert out.stat().st_size > points, "a row has more than a byte"
    return seconds


def tables(points: int, workers: int) -> float:
    """Evaluate every module, category and quantity at each point; return the seconds."""
    from modelmeter.sweeps import stage_tables

    grid = _grid(points, None)

    def filled(chunk: object) -> int:
        return sum(len(table.cells) * len(table.points) for table in stage_tables(grid, chunk))

    start = time.perf_counter()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        cells = sum(_few_at_a_time(pool, filled, grid.chunks(POINTS_OF_TABLES), workers))
    seconds = time.perf_counter() - start
    assert cells > points * 100, "a table by module has over a hundred cells"
    return seconds


def _few_at_a_time(
    pool: ThreadPoolExecutor, work: Callable[[object], int], chunks: Iterator[object], workers: int
) -> Iterator[int]:
    waiting = deque()
    for chunk in chunks:
        waiting.append(pool.submit(work, chunk))
        if len(waiting) > workers:
            yield waiting.popleft().result()
    yield from (pending.result() for pending in waiting)


def _grid(points: int, device: str | None) -> object:
    import modelmeter
    from dsocr_graph.sweep_pages import PageAxes, page_grid

    tokens = points // (BATCHES * len(PAGES) * 5)
    axes = PageAxes(
        modes=("Gundam",),
        pages=PAGES,
        batches=tuple(range(1, BATCHES + 1)),
        prompt_tokens=(8, 10, 12, 14, 16),
        new_tokens=tuple(range(1, tokens + 1)),
    )
    devices = [] if device is None else [modelmeter.load_device(device)]
    return page_grid(axes, {"Gundam": modelmeter.load("deepseek-ocr", "gundam")}, devices=devices)


def counted_seconds(runs: int) -> float:
    """Count one decode step of the full-size model by FlopCounterMode on `meta`; return the seconds of a run."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dsocr_graph.models.registry import Variant, model_named

    _, stages = model_named("deepseek-ocr").build(Variant(base_size=1024, dtype="bf16", attention="sdpa"))
    decode = next(stage for stage in stages if stage.name == "decode")

    def count() -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            decode.module(*decode.inputs)
        return counter.get_total_flops()

    assert count() > 10**9, "a decode step of the full model has over 10**9 FLOPs"
    start = time.perf_counter()
    for _ in range(runs):
        count()
    return (time.perf_counter() - start) / runs


def figure(name: str, points: int, workers: int) -> dict[str, float]:
    """Measure one figure in this process; return it with the peak resident memory."""
    if name == "load":
        seconds = load_seconds()[0]
    elif name == "counter":
        seconds = counted_seconds(points)
    elif name in {"csv", "parquet"}:
        seconds = written(points, workers, name)
    elif name == "tables":
        seconds = tables(points, workers)
    else:
        seconds = totals(points, workers, device="h200" if name == "times" else None)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return {"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}


def apart(name: str, points: int, workers: int) -> dict[str, float]:
    """Measure one figure in a process of its own."""
    command = [sys.executable, __file__, "--only", name, "--points", str(points), "--workers", str(workers)]
    # One thread per chunk: products of matrices must not start threads of their own.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the figure {name!r} failed; run `{' '.join(command)}` by hand to see why:\n{done.stderr}")
    return json.loads(done.stdout)


def measure(points: int, workers: int) -> dict[str, object]:
    """Measure every figure."""
    load = min(apart("load", 0, workers)["seconds"] for _ in range(3))
    small, large = apart("totals", points // 10, workers), apart("totals", points, workers)
    times = apart("times", points, workers)
    files = {name: apart(name, points // 8, workers) for name in ("csv", "parquet")}
    few, many = apart("tables", points // 100, workers), apart("tables", points // 10, workers)
    counter = apart("counter", 5, workers)["seconds"]
    return {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "versions": {name: metadata.version(name) for name in ("numpy", "pyarrow", "torch")},
        "workers": workers,
        "load": {"seconds": round(load, 3), "goal": LOAD_SECONDS, "met": load < LOAD_SECONDS},
        "totals": _rate(points, large, small, TOTALS_PER_SECOND),
        "tables by module": _rate(points // 10, many, few, TABLES_PER_SECOND),
        "totals with roofline times": _rate(points, times, None, None),
        **{f"totals written as {name}": _rate(points // 8, run, None, None) for name, run in files.items()},
        "flop counter on meta, one decode step": {"seconds": round(counter, 4)},
        "points in the time of one count": round(counter * points / large["seconds"]),
    }


def _rate(points: int, run: dict[str, float], tenth: dict[str, float] | None, goal: int | None) -> dict[str, object]:
    found: dict[str, object] = {"points": points, "points per second": round(points / run["seconds"])}
    if goal is not None:
        found |= {"goal": goal, "met": points / run["seconds"] >= goal}
    found["peak MiB"] = round(run["peak_mib"], 1)
    if tenth is not None:
        flat = run["peak_mib"] <= MEMORY_GROWTH * tenth["peak_mib"]
        found |= {"peak MiB at a tenth of the points": round(tenth["peak_mib"], 1), "memory is flat": flat}
    return found


def main() -> int:
    """Measure, print, write; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=5_120_000, help="a multiple of 128,000 (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one figure in this process
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(figure(options.only, options.points, options.workers)))
        return 0
    result = measure(options.points, options.workers)
    for name, value in result.items():
        print(f"{name}: {value}")
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    missed = [name for name, value in result.items() if isinstance(value, dict) and value.get("met") is False]
    print(f"missed: {', '.join(missed)}" if missed else "every goal is met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
