"""Memory that runs out: refused before a run where its need is known, explained where it was not."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from dsocr_graph.errors import MeasurementMemoryError
from dsocr_graph.timing.cgroup import cgroup_available_bytes
from modelmeter import units

_MEMINFO = Path("/proc/meminfo")
_CPU_OUT_OF_MEMORY = "DefaultCPUAllocator"  # torch's CPU allocator raises a plain RuntimeError that names itself


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that a device has left for tensors, or None where the system does not tell.

    On a CPU it is what the machine has, or what the limit of a container leaves of it.

    Examples
    --------
    >>> available = available_bytes(torch.device("cpu"))
    >>> available is None or available > 0
    True
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    known = (_machine_available_bytes(), cgroup_available_bytes())
    return min((available for available in known if available is not None), default=None)


def _machine_available_bytes() -> int | None:
    if not _MEMINFO.is_file():
        return None
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="ascii").splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def require_memory(what: str, needed: int, device: torch.device, advice: str) -> None:
    """Refuse what a device has no memory for; on Linux the process would be ended without a word.

    Raises
    ------
    MeasurementMemoryError
        When `needed` bytes are not available.

    Examples
    --------
    >>> require_memory("decode at B=1", 2**60, torch.device("cpu"), "measure smaller sizes")
    Traceback (most recent call last):
    dsocr_graph.errors.MeasurementMemoryError: decode at B=1 does not fit on cpu: it needs 1.15 EB, ...
    """
    available = available_bytes(device)
    if available is not None and needed > available:
        raise MeasurementMemoryError(
            f"{what} does not fit on {device}: it needs {units.format_bytes(needed)}, "
            f"{units.format_bytes(available)} are available; {advice}"
        )


@contextmanager
def memory_explained(what: str, needed: int | None, device: torch.device, advice: str) -> Generator[None]:
    """Turn an allocation that fails into an error that says what was running, what it needs and what to do.

    Parameters
    ----------
    what : str
        What runs.
    needed : int or None
        Bytes that it needs, by the analytic model; None where that is not known.
    device : torch.device
        Where it runs.
    advice : str
        What to do.

    Raises
    ------
    MeasurementMemoryError
        Instead of the error of torch's allocator.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and _CPU_OUT_OF_MEMORY not in str(error):
            raise
        stated = "" if needed is None else f"; it needs {units.format_bytes(needed)} by the analytic model"
        raise MeasurementMemoryError(f"{what} ran out of memory on {device}{stated}; {advice}") from error
