"""Journal: what a calibration has measured so far, line by line, so that an interrupted one goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard, cast

from attrs import asdict, define, evolve, field

from dsocr_graph.errors import JournalError, OutputError
from modelmeter.gpu_state import GpuState
from modelmeter.machine import Machine
from modelmeter.predict.calibration import HostCosts, Peaks, Sentinel

_VERSION = 1


@define(kw_only=True)
class Findings:
    """What has been measured so far."""

    seconds: list[list[float]]  # by call of the plan, one figure a pass
    launches: dict[int, int] = field(factory=dict[int, int])  # kernels, by call of the plan
    peaks: Peaks | None = None
    host: HostCosts | None = None
    sentinels: list[Sentinel] = field(factory=list[Sentinel])
    gpu: list[GpuState] = field(factory=list[GpuState])

    @property
    def passes(self) -> int:
        """Passes that every call has been through."""
        return min(map(len, self.seconds))


def _rounded(value: float) -> float:
    """Return a figure with the digits that a measurement has.

    Examples
    --------
    >>> _rounded(0.001234567)
    0.001235
    """
    return float(f"{value:.4g}")


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


class Journal:
    """A file with one line of JSON per finding, after a line that says what it belongs to.

    Parameters
    ----------
    path : Path or None
        The file; None keeps nothing. One that is there already is continued.
    machine : Machine
        What is calibrated.
    plan : str
        Identity of the plan.
    calls : int
        Calls of the plan.

    Raises
    ------
    JournalError
        When the file is of another machine, torch or plan, or damaged.
    OutputError
        When it cannot be read or written.

    Examples
    --------
    >>> machine = Machine(kind="cpu", device="toy", driver="", memory_bytes=1, threads=1, torch="2.13.0")
    >>> journal = Journal(None, machine=machine, plan="abc", calls=2)
    >>> journal.add_time(1, 0.5, launches=0)
    >>> journal.findings.seconds, journal.findings.passes
    ([[], [0.5]], 0)
    """

    def __init__(self, path: Path | None, *, machine: Machine, plan: str, calls: int) -> None:
        self._path = path
        self.findings = Findings(seconds=[[] for _ in range(calls)])
        if path is None:
            return
        header = {"journal": _VERSION, "plan": plan, "machine": asdict(machine)}
        lines = self._complete_lines(path)
        if not lines:
            self._append(header)
            return
        self._check(lines[0], machine, plan)
        for number, line in enumerate(lines[1:], start=2):
            self._take(line, number)

    def add_time(self, call: int, seconds: float, *, launches: int) -> None:
        """Keep the time of a call of the plan, by its position, in the pass under way."""
        self.findings.seconds[call].append(_rounded(seconds))
        self.findings.launches[call] = launches
        self._append({"call": call, "seconds": _rounded(seconds), "launches": launches})

    def add_peaks(self, peaks: Peaks) -> None:
        """Keep the best rates."""
        matrix = {dtype: _rounded(rate) for dtype, rate in peaks.matrix_flops.items()}
        self.findings.peaks = Peaks(
            matrix_flops=matrix, vector_flops=_rounded(peaks.vector_flops), bandwidth=_rounded(peaks.bandwidth)
        )
        self._append({"peaks": asdict(self.findings.peaks)})

    def add_host(self, host: HostCosts) -> None:
        """Keep what the host spends."""
        self.findings.host = HostCosts(
            classes={name: _rounded(seconds) for name, seconds in host.classes.items()},
            launch=_rounded(host.launch),
            latency=_rounded(host.latency),
            sync=_rounded(host.sync),
        )
        self._append({"host": asdict(self.findings.host)})

    def add_sentinel(self, sentinel: Sentinel) -> None:
        """Keep the time of a fixed call."""
        kept = evolve(sentinel, elapsed=round(sentinel.elapsed, 1), seconds=_rounded(sentinel.seconds))
        self.findings.sentinels.append(kept)
        self._append({"sentinel": asdict(kept)})

    def add_gpu(self, state: GpuState) -> None:
        """Keep the state of the GPU during a pass, or during the part of it that this process timed."""
        self.findings.gpu.append(state)
        self._append({"gpu": asdict(state)})

    def remove(self) -> None:
        """Take the file away, once what it says is kept elsewhere."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _append(self, document: Mapping[str, object]) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(document) + "\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def _complete_lines(self, path: Path) -> list[str]:
        """Return the lines of a file that is there; the last one goes if writing it was cut off."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                return []
            data = path.read_bytes()
            complete = data[: data.rfind(b"\n") + 1]
            if complete != data:
                path.write_bytes(complete)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            return complete.decode().splitlines()
        except UnicodeDecodeError as error:
            raise self._damaged(1, str(error)) from error

    def _check(self, line: str, machine: Machine, plan: str) -> None:
        try:
            header = json.loads(line)
            version, theirs, their_plan = header["journal"], Machine(**header["machine"]), header["plan"]
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged(1, str(error)) from error
        differences = [*theirs.differences(machine)]
        if version != _VERSION:
            differences.append(f"its format is {version!r}, not {_VERSION!r}")
        if their_plan != plan:
            differences.append("its plan has other calls: another model, mode, type, release or other points")
        if differences:
            raise JournalError(
                f"{self._path} is of another calibration that was interrupted: {'; '.join(differences)}. Go on with "
                f"that one as it was started, or delete {self._path} to begin this one anew"
            )

    def _take(self, line: str, number: int) -> None:
        try:
            document = cast("dict[str, Any]", json.loads(line))
            if "call" in document:
                self._take_time(document)
            elif "sentinel" in document:
                self.findings.sentinels.append(Sentinel(**document["sentinel"]))
            elif "gpu" in document:
                self.findings.gpu.append(GpuState(**document["gpu"]))
            elif "peaks" in document:
                self.findings.peaks = Peaks(**document["peaks"])
            else:
                self.findings.host = HostCosts(**document["host"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._damaged(number, str(error)) from error

    def _take_time(self, document: Mapping[str, Any]) -> None:
        call, seconds, launches = document["call"], document["seconds"], document["launches"]
        calls = len(self.findings.seconds)
        if not (_is_count(call) and call < calls):
            raise ValueError(f"call is {call!r}; the plan has 0 to {calls - 1}")
        if type(seconds) not in {int, float} or not 0 < seconds < float("inf"):
            raise ValueError(f"seconds is {seconds!r}; it is positive and finite")
        if not _is_count(launches):
            raise ValueError(f"launches is {launches!r}; it is a whole number, 0 or more")
        self.findings.seconds[call].append(float(seconds))
        self.findings.launches[call] = launches

    def _damaged(self, number: int, reason: str) -> JournalError:
        return JournalError(
            f"{self._path}, line {number}, is not what an interrupted calibration writes ({reason}); delete it and "
            "calibrate anew"
        )

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot write {self._path}, which keeps what a calibration has measured so far: "
            f"{error.strerror or error}; choose another --out"
        )
