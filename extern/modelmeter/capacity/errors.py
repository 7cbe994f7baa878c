"""Errors of capacity questions: what was asked cannot be, or nothing meets it."""

from __future__ import annotations

from modelmeter.errors import ModelMeterError


class CapacityError(ModelMeterError, ValueError):
    """A batch, target, price, fraction or limit that is out of its range, or does not go with the rest.

    Examples
    --------
    >>> issubclass(CapacityError, ValueError)
    True
    """


class MissingPriceError(ModelMeterError, LookupError):
    """A device whose cost is asked for and that has no price."""


class DoesNotFitError(ModelMeterError, MemoryError):
    """A model that has no room on a device, not even for one request."""


class NothingMeetsTargetsError(ModelMeterError, ValueError):
    """Targets that no device and batch of a search meets."""
