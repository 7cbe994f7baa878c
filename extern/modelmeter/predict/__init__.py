"""Prediction of time from cost: a bound from datasheet peaks, or a calibration of one machine.

>>> LABEL
'datasheet roofline, not calibrated'
"""

from modelmeter.predict.calibrated import Calibrated, RuntimeNameError
from modelmeter.predict.calibration import (
    Calibration,
    CalibrationFileError,
    CalibrationMismatchError,
    MissingCalibrationError,
    calibration_from_json,
    calibration_to_json,
    read_calibration,
)
from modelmeter.predict.device_records import MissingTablesError, check_against_tables
from modelmeter.predict.engine import Engine, EngineDTypeError, UntabledKernelError
from modelmeter.predict.kernel_table import KernelTable, MissingKernelTimeError
from modelmeter.predict.kernel_time import KernelTime, Method, SourceShare
from modelmeter.predict.op_tables import available_table_devices
from modelmeter.predict.roofline import LABEL, Roofline, RooflineError
from modelmeter.predict.schedule import UnscheduledModelError
from modelmeter.predict.table_files import MissingTablesPackageError
from modelmeter.predict.time_model import DeviceFacts, PredictionFacts, TimeModel

__all__ = [
    "LABEL",
    "Calibrated",
    "Calibration",
    "CalibrationFileError",
    "CalibrationMismatchError",
    "DeviceFacts",
    "Engine",
    "EngineDTypeError",
    "KernelTable",
    "KernelTime",
    "Method",
    "MissingCalibrationError",
    "MissingKernelTimeError",
    "MissingTablesError",
    "MissingTablesPackageError",
    "PredictionFacts",
    "Roofline",
    "RooflineError",
    "RuntimeNameError",
    "SourceShare",
    "TimeModel",
    "UnscheduledModelError",
    "UntabledKernelError",
    "available_table_devices",
    "calibration_from_json",
    "calibration_to_json",
    "check_against_tables",
    "read_calibration",
]
