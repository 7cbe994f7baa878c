"""Errors of several devices: degrees that do not fit a model, a link or a sharding plan that is not there."""

from __future__ import annotations

from modelmeter.errors import ModelMeterError, UnknownNameError


class LayoutError(ModelMeterError, ValueError):
    """Degrees that do not go together, or do not divide what they are to; the message names those that do."""


class MissingLinkError(ModelMeterError, LookupError):
    """A device without a link to others, asked to work with others."""


class UnknownLinkError(UnknownNameError):
    """A link that a device does not have; the message lists those it has."""


class MissingPlanError(ModelMeterError, LookupError):
    """A model that ships no sharding plan, while none was given."""


class UndividedLayerError(ModelMeterError, NotImplementedError):
    """A layer in a role for which no rule says how to divide it."""
