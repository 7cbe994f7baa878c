"""Errors of what-ifs: a choice that does not exist, choices that do not go together, a model that has no such part."""

from __future__ import annotations

from modelmeter.errors import ModelMeterError, UnknownNameError


class WhatIfError(ModelMeterError, ValueError):
    """Choices that do not go together."""


class UnknownChoiceError(UnknownNameError):
    """A choice that an option does not have; the message lists those it has."""


class UnsupportedWhatIfError(ModelMeterError, NotImplementedError):
    """A what-if that asks for a part of a model that cannot be told in it."""
