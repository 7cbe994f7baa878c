"""ParallelReport: what each device of a layout does and holds, what devices exchange, and how long it takes."""

from __future__ import annotations

from typing import Self

from attrs import evolve, frozen

from modelmeter.costs import Cost, Number
from modelmeter.devices.spec import Link
from modelmeter.parallel.layout import Layout
from modelmeter.parallel.links import Latency


@frozen(kw_only=True)
class PartReport:
    """What one device of a part does in the whole workload, and holds at most; its devices are alike."""

    name: str
    encodes: bool  # whether it is of the encoder, not of the decoder
    devices: int  # that are alike
    cost: Cost  # of one device
    repeated: Cost  # part of `cost` that every tensor rank does alike
    weight_bytes: int
    replicated_weight_bytes: int  # part of `weight_bytes` that every tensor rank holds
    buffer_bytes: int  # of registered buffers, which every tensor rank holds
    kv_cache_bytes: Number  # at the peak of the stage where they are most
    activation_bytes: Number  # at the peak of the stage where they are most, inputs included
    peak_bytes: Number  # weights, buffers, and the most of cache and activations together
    compute_seconds: float
    communication_seconds: float

    @property
    def held_bytes(self) -> int:
        """Bytes of weights and buffers."""
        return self.weight_bytes + self.buffer_bytes


@frozen(kw_only=True)
class CollectiveReport:
    """One kind of exchange in one stage, as one device of a part sees it."""

    part: str
    stage: str
    operation: str  # such as "all-reduce"
    what: str  # such as "attention output"
    ranks: int  # devices that take part
    calls: int
    bytes: Number  # of all messages: what is reduced, gathered or handed on
    sent_bytes: float  # that one device sends for them
    seconds: float

    def __add__(self, other: Self) -> Self:
        return evolve(
            self,
            calls=self.calls + other.calls,
            bytes=self.bytes + other.bytes,
            sent_bytes=self.sent_bytes + other.sent_bytes,
            seconds=self.seconds + other.seconds,
        )


@frozen(kw_only=True)
class StageTime:
    """How long a stage takes in the whole workload."""

    stage: str
    compute_seconds: float  # on the longest path through the devices
    communication_seconds: float  # on the same path
    busy_seconds: float  # of it that the busiest device computes or exchanges

    @property
    def seconds(self) -> float:
        """All of it; nothing overlaps."""
        return self.compute_seconds + self.communication_seconds

    @property
    def idle_fraction(self) -> float:
        """Share of the time that the busiest device waits for others."""
        return max(0.0, 1 - self.busy_seconds / self.seconds)  # sums of many parts differ in their last digits

    def __add__(self, other: Self) -> Self:
        return type(self)(
            stage=self.stage,
            compute_seconds=self.compute_seconds + other.compute_seconds,
            communication_seconds=self.communication_seconds + other.communication_seconds,
            busy_seconds=self.busy_seconds + other.busy_seconds,
        )


@frozen(kw_only=True)
class ParallelReport:
    """A workload on several devices.

    Attributes
    ----------
    model, workload, device : str
    layout : Layout
    link : Link or None
        What devices exchange over, both directions together; None when there is one device.
    latency : Latency
    memory_bytes : int
        Of one device.
    parts : tuple of PartReport
    collectives : tuple of CollectiveReport
    stages : tuple of StageTime
    peaks_are_lower_bounds : bool
        Whether devices may need more memory than the parts say.
    assumptions : tuple of str
        What is approximated, a sentence each.
    """

    model: str
    workload: str
    device: str
    layout: Layout
    link: Link | None
    latency: Latency
    memory_bytes: int
    parts: tuple[PartReport, ...]
    collectives: tuple[CollectiveReport, ...]
    stages: tuple[StageTime, ...]
    peaks_are_lower_bounds: bool
    assumptions: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """The whole workload, stage after stage."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def cost(self) -> Cost:
        """Of all devices together."""
        return sum((part.cost * part.devices for part in self.parts), Cost())

    @property
    def device_bytes(self) -> Number:
        """The most one device holds: what the encoder and a decoder part hold, and the larger peak beside it."""
        encoder = sum(part.held_bytes for part in self.parts if part.encodes)
        decoder = max((part.held_bytes for part in self.parts if not part.encodes), default=0)
        return encoder + decoder + max(part.peak_bytes - part.held_bytes for part in self.parts)

    @property
    def fits(self) -> bool:
        """Whether that is no more than a device's memory."""
        return self.device_bytes <= self.memory_bytes
