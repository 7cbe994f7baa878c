"""Errors of sweeps: grids that cannot be, numbers that arrays cannot hold, files that cannot be written."""

from __future__ import annotations

from modelmeter.errors import ModelMeterError


class SweepError(ModelMeterError, ValueError):
    """A grid, or options of a sweep, that cannot be.

    Examples
    --------
    >>> issubclass(SweepError, ValueError)
    True
    """


class SweepFormulaError(SweepError):
    """A cost that a sweep cannot compile: no sum of products of dims and known functions."""


class SweepOverflowError(ModelMeterError, OverflowError):
    """A count that leaves 64-bit integers at some points of a grid."""


class SweepFileError(ModelMeterError, OSError):
    """A result that cannot be written, or an unfinished one of another sweep."""


class SchedulerError(ModelMeterError, ConnectionError):
    """A Dask scheduler that cannot be reached."""


class MissingPackageError(ModelMeterError, ImportError):
    """An optional package that an option needs and that is not installed."""
