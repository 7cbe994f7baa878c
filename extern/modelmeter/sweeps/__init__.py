"""Sweeps: a compiled model at grids of workloads, routings and devices, as tables; needs neither torch nor a graph."""

from modelmeter.sweeps.errors import (
    MissingPackageError,
    SchedulerError,
    SweepError,
    SweepFileError,
    SweepFormulaError,
    SweepOverflowError,
)
from modelmeter.sweeps.grid import Axis, Chunk, Grid, Section, StageRule
from modelmeter.sweeps.program import Program
from modelmeter.sweeps.tables import Detail, StageTable, Table, chunk_table, stage_tables

__all__ = [
    "Axis",
    "Chunk",
    "Detail",
    "Grid",
    "MissingPackageError",
    "Program",
    "SchedulerError",
    "Section",
    "StageRule",
    "StageTable",
    "SweepError",
    "SweepFileError",
    "SweepFormulaError",
    "SweepOverflowError",
    "Table",
    "chunk_table",
    "stage_tables",
]
