"""Prediction of time from cost: a bound from datasheet peaks, or a calibration of one machine.

>>> LABEL
'datasheet roofline, not calibrated'
"""

from modelmeter.predict.calibrated import Calibrated, RuntimeNameError, UnscheduledModelError
from modelmeter.predict.calibration import (
    Calibration,
    CalibrationFileError,
    CalibrationMismatchError,
    MissingCalibrationError,
    calibration_from_json,
    calibration_to_json,
    read_calibration,
)
from modelmeter.predict.kernel_time import KernelTime, Method, SourceShare
from modelmeter.predict.roofline import LABEL, Roofline, RooflineError
from modelmeter.predict.tables import KernelTable, MissingKernelTimeError
from modelmeter.predict.time_model import DeviceFacts, PredictionFacts, TimeModel

__all__ = [
    "LABEL",
    "Calibrated",
    "Calibration",
    "CalibrationFileError",
    "CalibrationMismatchError",
    "DeviceFacts",
    "KernelTable",
    "KernelTime",
    "Method",
    "MissingCalibrationError",
    "MissingKernelTimeError",
    "PredictionFacts",
    "Roofline",
    "RooflineError",
    "RuntimeNameError",
    "SourceShare",
    "TimeModel",
    "UnscheduledModelError",
    "calibration_from_json",
    "calibration_to_json",
    "read_calibration",
]
