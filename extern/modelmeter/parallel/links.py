"""Links: which one devices use, and how long a collective takes over it by the alpha-beta model."""

from __future__ import annotations

import math
from enum import StrEnum

from attrs import Attribute, field, frozen

from modelmeter.costs import Number
from modelmeter.devices import DeviceSpec
from modelmeter.devices.spec import Link
from modelmeter.parallel.errors import LayoutError, MissingLinkError, UnknownLinkError


class Operation(StrEnum):
    """What a group of p ranks does, each in rings.

    Steps and volumes are those of ring algorithms (Thakur, Rabenseifner, Gropp 2005, "Optimization of collective
    communication operations in MPICH"); an all-to-all sends p - 1 equal parts, one to each other rank.
    """

    ALL_REDUCE = "all-reduce"
    ALL_GATHER = "all-gather"
    ALL_TO_ALL = "all-to-all"
    SEND = "send"

    def steps(self, ranks: int) -> int:
        """Return the messages that follow one another.

        Examples
        --------
        >>> Operation.ALL_REDUCE.steps(4), Operation.SEND.steps(2)
        (6, 1)
        """
        if self is Operation.SEND:
            return 1
        return (2 if self is Operation.ALL_REDUCE else 1) * (ranks - 1)

    def sent_bytes(self, message: Number, *, ranks: int) -> float:
        """Return the bytes that a rank sends for messages of some bytes.

        2(p - 1)/p of them in an all-reduce, (p - 1)/p in an all-gather or all-to-all, all in a send.

        Examples
        --------
        >>> Operation.ALL_REDUCE.sent_bytes(100, ranks=4), Operation.ALL_GATHER.sent_bytes(100, ranks=4)
        (150.0, 75.0)
        """
        return float(message) if self is Operation.SEND else message * self.steps(ranks) / ranks


def _seconds(_latency: object, attribute: Attribute[float], value: float) -> None:
    if not math.isfinite(value) or value < 0:
        raise LayoutError(f"{attribute.name} is {value!r}; give finite seconds of at least 0")


@frozen(kw_only=True)
class Latency:
    """The alpha of the alpha-beta model: what a collective takes before bytes count.

    Attributes
    ----------
    call : float
        Seconds of each collective.
    step : float
        Seconds of each of its steps.
    source : str
    """

    call: float = field(validator=_seconds)  # seconds
    step: float = field(validator=_seconds)  # seconds
    source: str


NCCL_RING = Latency(
    call=6.6e-6,
    step=0.6e-6,
    source="NCCL's tuning tables as veScale repeats them (not compared with a release of NCCL): base latency of ring "
    "with the LL protocol, and its step over NVLink (over PCIe 1.0 us)",
)
"""What NCCL's own tuning model assumes for small messages inside one node."""


def link_of(device: DeviceSpec, name: str | None) -> Link:
    """Return a link of a device: the one of a name, or the fastest.

    Raises
    ------
    MissingLinkError
        When the device has no link.
    UnknownLinkError
        When it has none of that name.

    Examples
    --------
    >>> from modelmeter.devices import load_device
    >>> link_of(load_device("h200"), None).name
    'NVLink4'
    """
    if not device.links:
        raise MissingLinkError(
            f"{device.name} has no link in the device table, so it cannot work with other devices; add one with its "
            "source to the table, or choose a layout of one device"
        )
    if name is None:
        return max(device.links, key=lambda link: link.bandwidth)
    found = next((link for link in device.links if link.name == name), None)
    if found is None:
        raise UnknownLinkError(f"link of {device.name}", name, [link.name for link in device.links])
    return found


def seconds_of(
    operation: Operation, *, ranks: int, calls: int, sent_bytes: Number, link: Link, latency: Latency
) -> float:
    """Return the time of collectives: calls * (call + steps * step) + sent bytes / one direction of the link.

    Examples
    --------
    >>> link = Link(name="example", bandwidth=200e9)
    >>> seconds_of(Operation.SEND, ranks=2, calls=10, sent_bytes=1e9, link=link, latency=NCCL_RING)
    0.010072
    """
    return calls * (latency.call + operation.steps(ranks) * latency.step) + sent_bytes / (link.bandwidth / 2)
