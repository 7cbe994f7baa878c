"""Errors of several devices: degrees that do not fit a model, a link that is not there, a model without a plan."""

from __future__ import annotations

from modelmeter.errors import ModelMeterError, UnknownNameError


class LayoutError(ModelMeterError, ValueError):
    """Degrees that do not go together, or do not divide what they are to; the message names those that do."""


class MissingLinkError(ModelMeterError, LookupError):
    """A device without a link to others, asked to work with others."""


class UnknownLinkError(UnknownNameError):
    """A link that a device does not have; the message lists those it has."""


class MissingPlanError(ModelMeterError, LookupError):
    """A model whose division does not follow from its structure, while no plan was given.

    Examples
    --------
    >>> raise MissingPlanError("toy", "layers.0.mixer is neither attention nor feed-forward")
    Traceback (most recent call last):
    modelmeter.parallel.errors.MissingPlanError: how devices share toy does not follow from its structure: layers.0...
    """

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(
            f"how devices share {model} does not follow from its structure: {reason}; state it as a "
            "modelmeter.parallel.ShardingPlan and give that to modelmeter.parallel.distribute as plan=..."
        )


class UndividedLayerError(ModelMeterError, NotImplementedError):
    """A layer in a role for which no rule says how to divide it."""
