"""Running a sweep: chunks on threads or on Dask, their tables in order, in memory that does not grow with the grid."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from modelmeter.sweeps.dask import on_dask
from modelmeter.sweeps.errors import SweepError
from modelmeter.sweeps.files import UnfinishedFile, file_format
from modelmeter.sweeps.grid import Chunk, Grid
from modelmeter.sweeps.tables import Detail, Table, chunk_table

CHUNK_POINTS = {Detail.TOTALS: 16384, Detail.MODULES: 256}
"""Points that are evaluated at once: so many that arrays outweigh Python, so few that they stay in a core's cache."""

_SECONDS_BETWEEN_LINES = 2.0


class Pending(Protocol):
    """A table that is being made."""

    def result(self) -> Table:
        """Wait for it and return it."""
        ...


Submit = Callable[[Chunk], Pending]


def sweep(
    grid: Grid,
    *,
    detail: Detail | str = Detail.TOTALS,
    workers: int | None = None,
    scheduler: str | None = None,
    chunk_points: int | None = None,
) -> Iterator[Table]:
    """Yield the tables of a grid, chunk by chunk, in its order.

    Parameters
    ----------
    grid : Grid
        Points to evaluate.
    detail : Detail or str
        "totals": a row per point. "modules": a row per point, stage, module and category of work.
    workers : int, optional
        Threads, or processes of a local Dask cluster; the number of cores when left out.
    scheduler : str, optional
        "local", or the address of a Dask scheduler such as ``tcp://host:8786``; threads of this process when left out.
    chunk_points : int, optional
        Points evaluated at once; `CHUNK_POINTS` when left out.

    Raises
    ------
    SweepError
        When an option cannot be, or the grid has a point that cannot be.
    SweepOverflowError
        When a count of FLOPs may pass 2**63 - 1.
    MissingPackageError, SchedulerError
        When Dask is asked for and not installed, or not reached.

    Examples
    --------
    A step has 2 * 574,095,360 FLOPs in products with weights, 2 * 11 * 64 * 1280 of them in fp32 routers and so not
    on tensor cores, and 12 * 4 * 1280 * (T + 1) in attention.

    >>> import modelmeter
    >>> from modelmeter.sweeps import Axis, Program, Section, StageRule
    >>> program = Program.of(modelmeter.load("deepseek-ocr", "base"))
    >>> decode = StageRule(stage="decode", count="1", bindings={"B": "B", "T": "T"})
    >>> axes = (Axis.of("B", (1, 2)), Axis.of("T", (9,)))
    >>> grid = Grid(sections=(Section(program=program, axes=axes, rules=(decode,)),))
    >>> [table.columns["tensor_core_flops"].tolist() for table in sweep(grid)]
    [[1147002880, 2294005760]]
    """
    chosen = _detail(detail)
    size = _chunk_points(chosen, chunk_points)
    with _submit(grid, chosen, workers=workers, scheduler=scheduler) as (submit, most):
        for _, table in _in_order(grid.chunks(size), submit, most):
            yield table


def sweep_to_file(
    grid: Grid,
    out: str | Path,
    *,
    detail: Detail | str = Detail.TOTALS,
    workers: int | None = None,
    scheduler: str | None = None,
    chunk_points: int | None = None,
    resume: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the table of a grid to a CSV or Parquet file, chunk by chunk.

    What is done is kept in a folder beside the file, ``OUT.parts``, until the file is complete; the file then takes its
    name in one step. A sweep that was interrupted goes on from there with `resume`, to the same bytes.

    Parameters
    ----------
    grid, detail, workers, scheduler, chunk_points
        As `sweep` takes them.
    out : str or Path
        A file whose name ends in .csv or .parquet.
    resume : bool
        Whether to keep the parts of an interrupted sweep of the same grid; otherwise they are made anew.
    progress : callable
        Told in words how far the sweep is, every two seconds or so.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    SweepFileError
        When the file cannot be written, or the parts are of another sweep.
    SweepError, SweepOverflowError, MissingPackageError, SchedulerError
        As `sweep` raises them; pyarrow is needed for Parquet.
    """
    chosen = _detail(detail)
    size = _chunk_points(chosen, chunk_points)
    target = UnfinishedFile.at(Path(out), file_format(Path(out)), grid=grid, detail=chosen, chunk_points=size)
    target.prepare(resume=resume)
    done = target.finished(grid.chunk_count(size))
    clock = _Clock(points=grid.points, progress=progress)
    clock.skip(sum(chunk.stop - chunk.start for chunk in grid.chunks(size) if chunk.index in done))
    with _submit(grid, chosen, workers=workers, scheduler=scheduler) as (submit, most):
        left = (chunk for chunk in grid.chunks(size) if chunk.index not in done)
        for chunk, table in _in_order(left, submit, most):
            target.write(chunk, table)
            clock.add(chunk.stop - chunk.start)
    target.finish(grid.chunk_count(size))
    return target.path


def _detail(detail: Detail | str) -> Detail:
    if detail not in set(Detail):
        raise SweepError(f"detail is {detail!r}; choose one of {', '.join(Detail)}")
    return Detail(detail)


def _chunk_points(detail: Detail, chunk_points: int | None) -> int:
    _require_count("chunk_points", chunk_points)
    return CHUNK_POINTS[detail] if chunk_points is None else chunk_points


def _require_count(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise SweepError(f"{name} is {value!r}; expected a whole number from 1 up")


def _submit(
    grid: Grid, detail: Detail, *, workers: int | None, scheduler: str | None
) -> AbstractContextManager[tuple[Submit, int]]:
    """Return how to start a chunk, and how many may be under way."""
    _require_count("workers", workers)
    count = workers or os.cpu_count() or 1
    return _on_threads(grid, detail, count) if scheduler is None else on_dask(grid, detail, scheduler, count)


@contextmanager
def _on_threads(grid: Grid, detail: Detail, workers: int) -> Generator[tuple[Submit, int]]:
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        yield partial(pool.submit, _on_this_grid(grid, detail)), workers + 1
    finally:
        pool.shutdown(cancel_futures=True)


def _on_this_grid(grid: Grid, detail: Detail) -> Callable[[Chunk], Table]:
    return lambda chunk: chunk_table(grid, chunk, detail)


def _in_order(chunks: Iterable[Chunk], submit: Submit, most: int) -> Iterator[tuple[Chunk, Table]]:
    """Keep so many chunks under way and yield each with its table, in order."""
    waiting: deque[tuple[Chunk, Pending]] = deque()
    for chunk in chunks:
        waiting.append((chunk, submit(chunk)))
        if len(waiting) > most:
            first, pending = waiting.popleft()
            yield first, pending.result()
    for first, pending in waiting:
        yield first, pending.result()


class _Clock:
    """Says now and then how far a sweep is."""

    def __init__(self, *, points: int, progress: Callable[[str], None]) -> None:
        self._points, self._progress = points, progress
        self._start = self._said = time.monotonic()
        self._kept = self._done = 0

    def skip(self, points: int) -> None:
        """Count points that an earlier run made."""
        self._kept = points
        if points:
            self._progress(f"{points:,} of {self._points:,} points are there already")

    def add(self, points: int) -> None:
        """Count points as done."""
        self._done += points
        now = time.monotonic()
        if now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            rate = self._done / (now - self._start)
            left = (self._points - self._kept - self._done) / rate
            self._progress(
                f"{self._kept + self._done:,} of {self._points:,} points, {rate:,.0f} a second, {left:,.0f} s left"
            )
