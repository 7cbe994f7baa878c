"""Machine: where times were measured; what has to agree before measured times may be used together."""

from __future__ import annotations

import re

from attrs import asdict, frozen


@frozen(kw_only=True)
class Machine:
    """A device with the software that drives it.

    Examples
    --------
    >>> cpu = Machine(
    ...     kind="cpu", device="AMD EPYC, 2 cores", driver="", memory_bytes=24 << 30, threads=1, torch="2.13.0"
    ... )
    >>> cpu.differences(cpu)
    ()
    """

    kind: str  # "cpu" or "cuda"
    device: str  # as the driver or the operating system names it
    driver: str  # version of the GPU driver; empty for a CPU
    memory_bytes: int  # of the device
    threads: int  # of torch, within an operator
    torch: str  # version, without the build

    @property
    def slug(self) -> str:
        """The device's name as part of a file's.

        Examples
        --------
        >>> Machine(kind="cuda", device="NVIDIA H200", driver="", memory_bytes=1, threads=1, torch="2.13.0").slug
        'nvidia-h200'
        """
        return re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-")

    def differences(self, other: Machine) -> tuple[str, ...]:
        """Return what tells two machines apart, in words; empty when their times may be used together.

        Memory may differ by what the system takes for itself.
        """
        mine, theirs = asdict(self), asdict(other)
        return tuple(
            f"{name} is {mine[name]!r}, not {theirs[name]!r}"
            for name in mine
            if name != "memory_bytes" and mine[name] != theirs[name]
        )
