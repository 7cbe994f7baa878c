"""Devices: what a GPU can do at most, as data with sources.

>>> load_device("NVIDIA H200").key
'h200'
"""

from modelmeter.devices.catalog import available_devices, load_device, read_catalog
from modelmeter.devices.spec import DeviceSpec, Link

__all__ = ["DeviceSpec", "Link", "available_devices", "load_device", "read_catalog"]
