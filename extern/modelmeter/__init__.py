"""Analytic models of neural networks: layers with closed-form costs, devices, prediction, reports.

The names below load on first use; nothing here imports torch, ever.

>>> import modelmeter
>>> modelmeter.units.bytes_to_gb(2**30)
1.0
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelmeter import compare, devices, errors, evaluate, layers, predict, reports, units, workload
    from modelmeter.devices import DeviceSpec, available_devices, load_device
    from modelmeter.model import AnalyticModel
    from modelmeter.registry import available, load

__all__ = [
    "AnalyticModel",
    "DeviceSpec",
    "available",
    "available_devices",
    "compare",
    "devices",
    "errors",
    "evaluate",
    "layers",
    "load",
    "load_device",
    "predict",
    "reports",
    "units",
    "workload",
]

_SUBMODULES = ("compare", "devices", "errors", "evaluate", "layers", "predict", "reports", "units", "workload")
_HOME = {
    "AnalyticModel": "modelmeter.model",
    "DeviceSpec": "modelmeter.devices",
    "available": "modelmeter.registry",
    "available_devices": "modelmeter.devices",
    "load": "modelmeter.registry",
    "load_device": "modelmeter.devices",
}


def __getattr__(name: str) -> object:
    """Load a submodule or a public name from the module that defines it (PEP 562)."""
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the lazy names with the loaded ones."""
    return sorted({*globals(), *__all__})
