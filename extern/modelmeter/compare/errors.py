"""Errors of comparisons: part of modelmeter's tree, each also the builtin a caller expects."""

from __future__ import annotations

from modelmeter.errors import ModelMeterError


class CompareError(ModelMeterError, ValueError):
    """Sides that cannot be compared as asked: too few of them, or of kinds that do not fit together."""


class MissingFigureError(CompareError, KeyError):
    """A figure that is asked for and that a side does not have, such as the time of a report without a device."""


class UnknownOperandError(CompareError, LookupError):
    """An operand that is neither a file nor a registered model."""


class MissingWorkloadError(CompareError, LookupError):
    """A model of a table for which the caller gives no workload."""
