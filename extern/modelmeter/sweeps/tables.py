"""Tables: the costs of a chunk of a grid as columns, in total or by module and category."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum

import numpy as np
from attrs import frozen

from modelmeter.categories import Category
from modelmeter.sweeps.errors import SweepError
from modelmeter.sweeps.grid import Chunk, Grid, Section, StageRule
from modelmeter.sweeps.program import EXACT_FLOAT, INTEGER_QUANTITIES, QUANTITIES, Executions, Matrix, StageProgram
from modelmeter.sweeps.sizes import Numbers


class Detail(StrEnum):
    """What a row of a sweep is."""

    TOTALS = "totals"  # a point
    MODULES = "modules"  # a category of work of a module in a stage, at a point


UNITS: Mapping[str, str] = {
    "flops": "FLOPs",
    "tensor_core_flops": "FLOPs",
    "cuda_core_flops": "FLOPs",
    "bytes": "bytes",
    "fused_bytes": "bytes",
    "weight_bytes_read": "bytes",
    "kv_cache_bytes": "bytes",
    "running_bytes": "bytes",
    "peak_bytes": "bytes",
    "calls": "calls",
    "point": "1",
}
"""The unit of each column of figures; `STAGE_seconds` is in seconds, an axis says the units of its columns."""


@frozen(kw_only=True)
class Table:
    """Columns of equal length, in order: labels, axes, figures.

    Attributes
    ----------
    columns : mapping of str to array
        FLOPs are int64, exact; they are float64 only where a router decides how many. Bytes are float64, as they are
        expectations where a router decides which experts are read. Seconds are float64; NaN where there are none.
    units : mapping of str to str
        The unit of each column of numbers: of the axes, "1" where it is a count, and of the figures.
    """

    columns: Mapping[str, Numbers]
    units: Mapping[str, str]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.columns.values())))


def chunk_table(grid: Grid, chunk: Chunk, detail: Detail) -> Table:
    """Evaluate a chunk.

    Parameters
    ----------
    grid : Grid
    chunk : Chunk
        One of its chunks.
    detail : Detail

    Raises
    ------
    SweepOverflowError
        When a count of FLOPs may pass 2**63 - 1.
    SweepError
        When a rule yields a count below 0 or a size below 1, or per-module tables are asked for with a device.
    """
    section = grid.sections[chunk.section]
    if detail is Detail.TOTALS:
        return _totals(section, chunk, whole=grid.counts_are_whole)
    if section.device is not None:
        raise SweepError("tables by module have no times; leave out the devices, or sweep totals")
    return _modules(grid, chunk)


def _totals(section: Section, chunk: Chunk, *, whole: bool) -> Table:
    columns = section.columns(chunk.start, chunk.stop)
    points = chunk.stop - chunk.start
    figures = {
        name: np.zeros(points, np.int64 if whole and index < INTEGER_QUANTITIES else np.float64)
        for index, name in enumerate(QUANTITIES)
    }
    kv_cache, stage_peak = np.zeros(points), np.zeros(points)
    seconds = {name: np.zeros(points) for name in section.seconds}
    for rule in section.rules:
        running = section.running(rule, columns)
        if running is None:
            continue
        stage, executions, chosen = section.stage(rule), running.executions, running.points
        for name, values in zip(QUANTITIES, quantity_sums(stage, stage.total, executions, whole=whole), strict=True):
            figures[name][chosen] += running.spread(values[0])
        left_behind, peak = map(running.spread, _memory(stage, executions))
        kv_cache[chosen] = np.maximum(kv_cache[chosen], left_behind)
        stage_peak[chosen] = np.maximum(stage_peak[chosen], peak)
        if section.seconds:
            seconds[rule.stage][chosen] = running.spread(section.seconds[rule.stage].at(executions))
    resident = section.program.held_bytes + stage_peak
    figures |= {
        "kv_cache_bytes": kv_cache,
        "running_bytes": resident,
        "peak_bytes": np.maximum(resident, section.program.load_bytes),
    }
    times = _times(section, columns, seconds) if section.seconds else {}
    return _table(section, {**_labels(section.labels, points), **columns, **figures, **times})


def _table(section: Section, columns: Mapping[str, Numbers]) -> Table:
    numbers = (name for name, values in columns.items() if values.dtype != object)
    return Table(columns=columns, units={name: section.units.get(name) or _unit(name) for name in numbers})


def _unit(figure: str) -> str:
    return "seconds" if figure.endswith("_seconds") else UNITS[figure]


def quantity_sums(stage: StageProgram, matrix: Matrix, executions: Executions, *, whole: bool) -> list[Numbers]:
    """Return each quantity over all executions, [row, point], of a matrix that has as many rows of each.

    Integers are added as floats as long as these are exact, which is several times quicker.
    """
    rows = len(matrix.labels) // len(QUANTITIES)
    integers = rows * INTEGER_QUANTITIES
    found = matrix.sums(executions)
    parts = [found[index * rows : (index + 1) * rows] for index in range(len(QUANTITIES))]
    if not whole or not rows:
        return parts
    bound = matrix.bound(executions, integers, f"stage {stage.name!r}") * matrix.denominator
    exact = found[:integers].astype(np.int64) if bound < EXACT_FLOAT else matrix.integer_sums(executions, integers)
    return [*exact.reshape(INTEGER_QUANTITIES, rows, -1), *parts[INTEGER_QUANTITIES:]]


def _memory(stage: StageProgram, executions: Executions) -> tuple[Numbers, Numbers]:
    """Return the KV cache left behind and the peak, at the first or the last execution, whichever needs more."""
    first = stage.memory.values(executions.sizes)
    if executions.sweep is None:
        return first[0], first[1:].max(axis=0, initial=0)
    last = stage.memory.values(executions.last())
    first_peak, last_peak = first[1:].max(axis=0, initial=0), last[1:].max(axis=0, initial=0)
    return np.where(first_peak > last_peak, first[0], last[0]), np.maximum(first_peak, last_peak)


def _times(section: Section, columns: Mapping[str, Numbers], seconds: Mapping[str, Numbers]) -> dict[str, Numbers]:
    from modelmeter.reports.serving import DECODE, PREFILL  # reports take a tenth of a second to import

    found = {f"{stage}_seconds": values for stage, values in seconds.items()}
    if section.documents is None:
        return found
    total = sum(seconds.values(), np.zeros(len(next(iter(columns.values())))))
    if PREFILL in seconds:
        found["ttft_seconds"] = sum(
            (values for stage, values in seconds.items() if stage != DECODE), np.zeros_like(total)
        )
    decode = next((rule for rule in section.rules if rule.stage == DECODE), None)
    if decode is not None:
        found["tpot_seconds"] = _per_execution(section, decode, columns, seconds[DECODE])
    found["page_seconds"] = total / section.page_count(columns)
    return found


def _per_execution(section: Section, rule: StageRule, columns: Mapping[str, Numbers], seconds: Numbers) -> Numbers:
    found = np.full_like(seconds, np.nan)
    running = section.running(rule, columns)
    if running is not None:
        found[running.points] = seconds[running.points] / running.spread(running.executions.count)
    return found


@frozen(kw_only=True)
class StageTable:
    """The cells of a stage at some points: a table by module before it is written out in rows."""

    stage: str
    cells: tuple[tuple[str, Category], ...]  # module id and category
    points: Numbers  # int64, within the chunk: those that run the stage
    calls: Numbers  # int64, operator calls, [cell, point]
    figures: Mapping[str, Numbers]  # FLOPs and bytes by quantity, [cell, point]


def stage_tables(grid: Grid, chunk: Chunk) -> Iterator[StageTable]:
    """Yield the tables by module of a chunk, stage by stage: what a module runs itself, by category of work.

    Raises
    ------
    SweepOverflowError
        When a count of FLOPs may pass 2**63 - 1.
    SweepError
        When a rule yields a count below 0 or a size below 1.
    """
    section = grid.sections[chunk.section]
    columns = section.columns(chunk.start, chunk.stop)
    for rule in section.rules:
        running = section.running(rule, columns)
        if running is not None:
            stage, executions = section.stage(rule), running.executions
            sums = quantity_sums(stage, stage.table, executions, whole=grid.counts_are_whole)
            calls = np.multiply.outer(np.array(stage.calls, np.int64), executions.count)
            yield StageTable(
                stage=stage.name,
                cells=stage.cells,
                points=np.arange(chunk.stop - chunk.start)[running.points],
                calls=running.spread(calls),
                figures={name: running.spread(values) for name, values in zip(QUANTITIES, sums, strict=True)},
            )


def _modules(grid: Grid, chunk: Chunk) -> Table:
    section = grid.sections[chunk.section]
    columns = section.columns(chunk.start, chunk.stop)
    parts = [_module_rows(table, section.labels, columns, chunk.first) for table in stage_tables(grid, chunk)]
    if not parts:
        raise SweepError(f"no stage runs at points {chunk.first} to {chunk.first + chunk.stop - chunk.start - 1}")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["point"], kind="stable")
    return _table(section, {name: values[order] for name, values in joined.items()})


def _module_rows(
    table: StageTable, labels: Mapping[str, str], columns: Mapping[str, Numbers], first: int
) -> dict[str, Numbers]:
    cells, points = len(table.cells), len(table.points)
    figures = {"calls": table.calls, **table.figures}
    return {
        "point": np.repeat(table.points + first, cells),
        **_labels(labels, cells * points),
        **{name: np.repeat(values[table.points], cells) for name, values in columns.items()},
        **_labels({"stage": table.stage}, cells * points),
        "module": _repeated([module for module, _ in table.cells], points),
        "category": _repeated([category.value for _, category in table.cells], points),
        **{name: values.T.ravel() for name, values in figures.items()},
    }


def _labels(labels: Mapping[str, str], rows: int) -> dict[str, Numbers]:
    return {name: np.broadcast_to(np.array(label, dtype=object), rows) for name, label in labels.items()}


def _repeated(names: list[str], times: int) -> Numbers:
    return np.tile(np.array(names, dtype=object), times)
