"""What an emitter has to know of times: a bound by a datasheet, or a prediction."""

from __future__ import annotations

from modelmeter.costs import Amount
from modelmeter.predict import LABEL
from modelmeter.predict.time_model import PredictionFacts


def is_bound(prediction: PredictionFacts) -> bool:
    """Tell whether times are a roofline's, which no run reaches, rather than predictions of a run."""
    return prediction.method == LABEL


def has_interval(amount: Amount) -> bool:
    """Tell whether an amount has a time with an interval."""
    return amount.time is not None and amount.time.p10 is not None
