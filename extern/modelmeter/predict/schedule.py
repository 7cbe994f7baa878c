"""What a model has to say of its calls before their times can be predicted: operands, and the order they run in."""

from __future__ import annotations

from collections.abc import Mapping

from modelmeter.errors import ModelMeterError
from modelmeter.model import AnalyticModel, Leaf, Stage
from modelmeter.signature import Signature

_ADVICE = "predict only models that were compiled by dsocr_graph, and others by a roofline"


class UnscheduledModelError(ModelMeterError, ValueError):
    """A model that says nothing of its calls' operands or order, such as one written by hand."""


def scheduled_stage(model: AnalyticModel, name: str) -> Stage:
    """Return a stage whose calls have an order.

    Raises
    ------
    UnscheduledModelError
        When they have none.
    """
    stage = model.stage(name)
    if not stage.schedule:
        raise UnscheduledModelError(
            f"stage {name!r} of {model.name} does not say in which order its calls run; {_ADVICE}"
        )
    return stage


def signature_at(leaf: Leaf, bindings: Mapping[str, int]) -> Signature:
    """Return the operands of a call with numbers.

    Raises
    ------
    UnscheduledModelError
        When it does not say which they are.
    """
    if leaf.signature is None:
        raise UnscheduledModelError(
            f"leaf {leaf.id!r} does not say which operands it takes; {_ADVICE}. A what-if that changes the call makes "
            "it one that was never measured: leave out the calibration for a roofline, or leave out the what-if"
        )
    return leaf.signature.at(bindings)
