"""Prediction of time from cost; for now a roofline over datasheet peaks.

>>> LABEL
'datasheet roofline, not calibrated'
"""

from modelmeter.predict.roofline import LABEL, Roofline, RooflineError

__all__ = ["LABEL", "Roofline", "RooflineError"]
