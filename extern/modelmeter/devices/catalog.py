"""The device table: reads devices.toml, finds a device by name or alias."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from modelmeter.devices.spec import MATRIX_DTYPES, Architecture, DeviceSpec, Link
from modelmeter.errors import InvalidDeviceError, UnknownDeviceError
from modelmeter.units import gb_to_bytes, mib_to_bytes, si_gb_to_bytes, tflops_to_flops

_TEXTS = {"name", "vendor", "architecture", "aliases", "links", "date", "note"}
_NUMBERS = {
    # key in the table (with its unit) -> field, conversion to base units
    "fp32_tflops": ("vector_fp32_flops", tflops_to_flops),
    "memory_gib": ("memory_bytes", gb_to_bytes),
    "bandwidth_gb_per_s": ("memory_bandwidth", si_gb_to_bytes),
    "l2_mib": ("l2_bytes", mib_to_bytes),
    "sm_count": ("sm_count", None),
    "tdp_watts": ("tdp", None),
}
_WHOLE = {"memory_bytes", "l2_bytes", "sm_count"}
_MATRIX = {f"{dtype}_tflops": dtype for dtype in MATRIX_DTYPES}


def available_devices() -> tuple[str, ...]:
    """Return the keys of every device in the table, sorted.

    Examples
    --------
    >>> "h200" in available_devices()
    True
    """
    return tuple(sorted(_shipped()))


def load_device(name: str) -> DeviceSpec:
    """Return a device by key or alias; case, spaces, dashes and a leading vendor name do not matter.

    Parameters
    ----------
    name : str
        E.g. ``"h200"``, ``"H100 SXM"``, ``"NVIDIA GeForce RTX 4090"``.

    Raises
    ------
    UnknownDeviceError
        When no device or more than one has this name (``"a100"``); the message lists the devices.

    Examples
    --------
    >>> load_device("NVIDIA A100-SXM4-40GB").memory_bandwidth
    1555000000000.0
    """
    return _find(name, _shipped())


def read_catalog(text: str) -> dict[str, DeviceSpec]:
    """Read a device table in the form of devices.toml.

    Parameters
    ----------
    text : str
        TOML with the tables ``sources``, ``architectures`` and ``devices``.

    Returns
    -------
    dict of str to DeviceSpec
        The devices by key.

    Raises
    ------
    InvalidDeviceError
        When the text is no TOML, a key is unknown or missing, a source is not defined, two devices share a
        name, or a device's numbers cannot be right.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidDeviceError(f"the device table is no TOML: {error}") from error
    sources: dict[str, str] = table.get("sources", {})
    architectures = {
        name: Architecture(name=name, **_with_source(f"architecture {name!r}", entry, sources))
        for name, entry in table.get("architectures", {}).items()
    }
    devices = {key: _device(key, entry, sources, architectures) for key, entry in table.get("devices", {}).items()}
    _check_names(devices)
    return devices


@lru_cache(maxsize=1)
def _shipped() -> Mapping[str, DeviceSpec]:
    return read_catalog((files("modelmeter.devices") / "devices.toml").read_text(encoding="utf-8"))


def _find(name: str, devices: Mapping[str, DeviceSpec]) -> DeviceSpec:
    wanted = _normal(name)
    for device in devices.values():
        if wanted in map(_normal, (device.key, device.name, *device.aliases)):
            return device
    several = [key for key in devices if wanted and _normal(key).startswith(wanted)]
    hint = f"{name!r} could be {' or '.join(several)}: name one" if several else ""
    raise UnknownDeviceError("device", name, devices, hint=hint)


def _normal(name: str) -> str:
    """Reduce a spelling to what tells devices apart: 'NVIDIA GeForce RTX 4090' and 'rtx-4090' are one."""
    words = name.lower().replace("-", " ").replace("_", " ").split()
    return "".join(word for word in words if word not in {"nvidia", "geforce", "amd", "instinct"})


def _with_source(where: str, entry: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    source = str(entry.get("source"))
    if source not in sources:
        raise InvalidDeviceError(f"{where}: source {source!r} is not defined; known are {sorted(sources)}")
    return {**entry, "source": sources[source]}


def _device(
    key: str, entry: Mapping[str, Any], sources: Mapping[str, str], architectures: Mapping[str, Architecture]
) -> DeviceSpec:
    where = f"device {key!r}"
    known = _TEXTS | _NUMBERS.keys() | _MATRIX.keys()
    unknown = sorted(entry.keys() - known)
    missing = sorted((_NUMBERS.keys() | _TEXTS - {"aliases", "note"} | {"bf16_tflops"}) - entry.keys())
    if unknown or missing:
        raise InvalidDeviceError(f"{where}: unknown keys {unknown}, missing keys {missing}; known are {sorted(known)}")
    chip = entry["architecture"]
    if chip not in architectures:
        raise InvalidDeviceError(f"{where}: architecture {chip!r} is not defined; known are {sorted(architectures)}")
    cited: dict[str, str] = {}

    def number(field: str, figure: object) -> float:
        if not isinstance(figure, dict) or set(figure) - {"name"} != {"value", "source"}:
            form = '{ value = NUMBER, source = "KEY" }'
            raise InvalidDeviceError(f"{where}: {field} must be {form}, not {figure!r}")
        checked = _with_source(f"{where}, {field}", figure, sources)
        value = checked["value"]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidDeviceError(f"{where}: {field} is {value!r}, not a number")
        cited[field] = checked["source"]
        return value

    matrix = {
        dtype: tflops_to_flops(float(number(f"matrix_flops.{dtype}", entry[name])))
        for name, dtype in _MATRIX.items()
        if name in entry
    }
    fields: dict[str, Any] = {}
    for name, (field, convert) in _NUMBERS.items():
        value = float(number(field, entry[name]))
        base = convert(value) if convert else value
        fields[field] = round(base) if field in _WHOLE and math.isfinite(base) else base
    links = tuple(
        Link(name=link["name"], bandwidth=si_gb_to_bytes(float(number(f"links.{link['name']}", link))))
        for link in entry["links"]
    )
    return DeviceSpec(
        key=key,
        name=entry["name"],
        vendor=entry["vendor"],
        architecture=architectures[chip],
        aliases=tuple(entry.get("aliases", ())),
        matrix_flops=matrix,
        links=links,
        sources=cited,
        date=entry["date"],
        note=entry.get("note", ""),
        **fields,
    )


def _check_names(devices: Mapping[str, DeviceSpec]) -> None:
    owner: dict[str, str] = {}
    for device in devices.values():
        for name in (device.key, device.name, *device.aliases):
            first = owner.setdefault(_normal(name), device.key)
            if first != device.key:
                raise InvalidDeviceError(f"devices {first!r} and {device.key!r} share the name {name!r}")
