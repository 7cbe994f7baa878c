"""The machine that this process runs on, as calibrations and measurements record it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

from dsocr_graph.errors import MissingDeviceError, OptionError
from modelmeter.machine import Machine

_CPU_INFO = Path("/proc/cpuinfo")
_NVIDIA_VERSION = Path("/proc/driver/nvidia/version")


def this_machine(device: str, *, threads: int) -> Machine:
    """Return the record of a device of this machine.

    Parameters
    ----------
    device : str
        "cpu", "cuda" or "cuda:INDEX".
    threads : int
        Threads that torch is to use within an operator; it is recorded, not set.

    Raises
    ------
    OptionError
        For another kind of device, or fewer than one thread.
    MissingDeviceError
        When a CUDA device is asked for that is not there.

    Examples
    --------
    >>> machine = this_machine("cpu", threads=1)
    >>> machine.kind, machine.driver, machine.threads
    ('cpu', '', 1)
    """
    if threads < 1:
        raise OptionError(f"threads is {threads}; torch needs at least 1")
    place = _device(device)
    version = torch.__version__.partition("+")[0]
    if place.type == "cpu":
        return Machine(
            kind="cpu", device=_cpu_name(), driver="", memory_bytes=_system_memory(), threads=threads, torch=version
        )
    facts = torch.cuda.get_device_properties(place)
    return Machine(
        kind="cuda",
        device=facts.name,
        driver=_driver_version(),
        memory_bytes=facts.total_memory,
        threads=threads,
        torch=version,
    )


def _device(text: str) -> torch.device:
    """Return a device that is there."""
    try:
        place = torch.device(text)
    except RuntimeError:
        place = None
    if place is None or place.type not in {"cpu", "cuda"}:
        raise OptionError(f"device {text!r} cannot be timed; choose cpu, cuda, or cuda:INDEX for one of several GPUs")
    if place.type == "cpu":
        return place
    if not torch.cuda.is_available():
        built = "is built without CUDA" if torch.version.cuda is None else "finds no usable GPU"
        raise MissingDeviceError(
            f"device {text!r} is asked for, but torch {torch.__version__} {built}; use --device cpu, or a machine with "
            "an NVIDIA GPU, its driver and a CUDA build of torch (`nvidia-smi` shows whether the driver sees the GPU)"
        )
    if place.index is not None and place.index >= torch.cuda.device_count():
        known = ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
        raise MissingDeviceError(f"device {text!r} is not there; this machine has {known}")
    return place


def _cpu_name() -> str:
    """Return the processor as the operating system names it, and how many of its cores this process sees."""
    name = platform.processor() or platform.machine()
    if _CPU_INFO.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", _CPU_INFO.read_text(encoding="utf-8"), re.MULTILINE)
        name = found[1].strip() if found else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def _system_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _driver_version() -> str:
    """Return the version of the GPU driver; where the kernel does not tell, that of the CUDA it supports."""
    if _NVIDIA_VERSION.is_file():
        found = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", _NVIDIA_VERSION.read_text(encoding="utf-8"))
        if found:
            return found[0]
    number: int = torch._C._cuda_getDriverVersion()  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue] - torch has no public name, its CPU builds none at all
    return f"CUDA {number // 1000}.{number % 1000 // 10}"
