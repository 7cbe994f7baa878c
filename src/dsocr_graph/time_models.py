"""Which time model an analysis uses: a calibration, tables of measured engines, or a device's roofline."""

from __future__ import annotations

from pathlib import Path

import modelmeter
from dsocr_graph.errors import OptionError
from modelmeter.predict import Calibrated, Roofline, TimeModel, read_calibration
from modelmeter.predict.engine import Engine

RUNTIMES = ("eager", "cudagraph", "engine")


def require_calibrated(time_model: TimeModel | None, model: str, *, physical: bool) -> None:
    """Do nothing unless a calibration is of other models only, and is not said to do all the same.

    Calls of another model tell little of this one's: most have none of its sizes near.

    Raises
    ------
    OptionError
        When it is; the message names the models that it is of.

    Examples
    --------
    >>> require_calibrated(None, "deepseek-ocr", physical=False)
    """
    if not isinstance(time_model, Calibrated) or physical:
        return
    covered = dict.fromkeys(each.name for each in time_model.calibration.models)
    if covered and model not in covered:
        raise OptionError(
            f"the calibration is of calls of {', '.join(covered)}, not of {model}; make one with "
            f"`dsocr-graph calibrate --model {model}`, or predict from what it has all the same with --physical"
        )


def choose_time_model(
    *,
    device: str | None,
    calibration: str | Path | None = None,
    runtime: str | None = None,
    moe: str = "grouped",
    physical: bool = False,
) -> TimeModel | None:
    """Return what predicts times, or None where none are asked for.

    Parameters
    ----------
    device : str or None
        A device of modelmeter's table.
    calibration : str or Path, optional
        A calibration file: times are predicted for the machine it was made on.
    runtime : str, optional
        "eager" (the default with a calibration), "cudagraph", or "engine" for tables of measured engines.
    moe : str
        "grouped" or "loop": how the calibrated model runs its experts.
    physical : bool
        Allow peak rates for calls that nothing was measured for.

    Raises
    ------
    OptionError
        When the options do not go together.
    DsocrGraphError, ModelMeterError
        When the file or the device cannot be used.

    Examples
    --------
    >>> choose_time_model(device="h200").facts.device.name
    'NVIDIA H200 SXM 141GB'
    >>> choose_time_model(device="h200", runtime="fast")
    Traceback (most recent call last):
    dsocr_graph.errors.OptionError: runtime 'fast' is not known; choose one of eager, cudagraph, engine
    """
    if runtime is not None and runtime not in RUNTIMES:
        raise OptionError(f"runtime {runtime!r} is not known; choose one of {', '.join(RUNTIMES)}")
    if calibration is None and moe != "grouped":
        raise OptionError(
            f"moe {moe!r} is how a calibrated prediction runs experts; give --calibration, or leave it out"
        )
    if calibration is None and runtime is None and physical:
        raise OptionError(
            "physical allows rates where nothing was measured; a roofline has nothing else. Give --calibration or "
            "--runtime engine, or leave it out"
        )
    if runtime == "cudagraph" and moe == "loop":
        raise OptionError(
            "the loop over experts waits for the host in every layer, which no CUDA graph holds; "
            "choose runtime 'eager', or moe 'grouped'"
        )
    if calibration is not None:
        if runtime == "engine":
            raise OptionError(
                "runtime 'engine' predicts from tables of measured engines, a calibration from the calls of one "
                "machine; leave out --calibration, or choose runtime 'eager' or 'cudagraph'"
            )
        if device is not None:
            raise OptionError(
                f"a calibration is of one machine, so --device {device} has nothing to say; leave one of them out"
            )
        return Calibrated(
            calibration=read_calibration(calibration), runtime=runtime or "eager", moe=moe, physical=physical
        )
    if runtime in {"eager", "cudagraph"}:
        raise OptionError(
            f"runtime {runtime!r} needs a calibration; make one with `dsocr-graph calibrate` and give it with "
            "--calibration, or choose runtime 'engine', which has tables"
        )
    if device is None:
        if runtime == "engine":
            raise OptionError("runtime 'engine' needs a device; name one with --device")
        return None
    hardware = modelmeter.load_device(device)
    return Engine.on(hardware, physical=physical) if runtime == "engine" else Roofline(device=hardware)
