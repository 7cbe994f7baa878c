"""Layouts: degrees, what follows from them, links and the alpha-beta model."""

import pytest
from attrs import evolve

from modelmeter.devices import DeviceSpec
from modelmeter.devices.spec import Link
from modelmeter.parallel import NCCL_RING, Latency, Layout, LayoutError, MissingLinkError, Operation, UnknownLinkError
from modelmeter.parallel.links import link_of, seconds_of


@pytest.mark.parametrize("degree", [0, -1, 1.5, True])
def test_a_degree_is_a_whole_number_from_one(degree: object) -> None:
    """Nothing is divided into less than one part."""
    with pytest.raises(LayoutError, match=f"pipeline is {degree!r}; a degree is a whole number from 1 up"):
        Layout(pipeline=degree)  # pyright: ignore[reportArgumentType]


def test_experts_fill_tensor_ranks_before_replicas() -> None:
    """8 expert ranks over 2 tensor ranks take 4 replicas; 2 over 4 leave 2 tensor ranks for each expert."""
    wide, narrow = Layout(tensor=2, expert=8, data=4), Layout(tensor=4, expert=2)
    assert (wide.expert_replicas, wide.expert_width) == (4, 1)
    assert (narrow.expert_replicas, narrow.expert_width) == (1, 2)


def test_experts_that_the_grid_has_no_place_for_are_refused() -> None:
    """4 tensor ranks and 3 replicas: 1, 2 and 4 ranks are in one replica, 12 in all three; 6 are one and a half."""
    with pytest.raises(LayoutError, match=r"expert=6 does not fit tensor=4 and data=3: .* allowed are 1, 2, 4, 12$"):
        Layout(tensor=4, data=3, expert=6)


def test_encoders_are_devices_of_the_decoder_as_far_as_there_are() -> None:
    """2 x 2 devices of a decoder encode on 4, or on 6 with two more."""
    assert Layout(tensor=2, pipeline=2, vision_data=4).devices == 4
    assert Layout(tensor=2, pipeline=2, vision_data=6).devices == 6


def test_the_bubble_of_an_even_pipeline() -> None:
    """4 stages and 9 pieces: 3 slots of 12 are empty; with one piece 3 of 4."""
    assert Layout(pipeline=4, micro_batches=9).bubble == 0.25
    assert Layout(pipeline=4).bubble == 0.75


def test_rings_take_their_steps_and_volumes() -> None:
    """4 ranks: an all-reduce takes 6 steps and sends 6/4 of its message, the others 3 steps and 3/4."""
    assert [operation.steps(4) for operation in Operation] == [6, 3, 3, 1]
    assert [operation.sent_bytes(1000, ranks=4) for operation in Operation] == [1500, 750, 750, 1000]


def test_one_direction_of_a_link_is_half_of_what_vendors_state() -> None:
    """100 all-reduces of 4 ranks: 100 * (2 us + 6 * 1 us) + 3e9 bytes at 100 of 200 GB/s = 0.8 ms + 30 ms."""
    latency = Latency(call=2e-6, step=1e-6, source="test")
    link = Link(name="test", bandwidth=200e9)
    seconds = seconds_of(Operation.ALL_REDUCE, ranks=4, calls=100, sent_bytes=3e9, link=link, latency=latency)
    assert seconds == pytest.approx(0.0308)


def test_the_fastest_link_is_taken(device: DeviceSpec) -> None:
    """Of two links the one with more bandwidth, unless one is named."""
    slow = Link(name="slow", bandwidth=1e9)
    both = evolve(device, links=(slow, *device.links), sources={**device.sources, "links.slow": "test"})
    assert link_of(both, None).name == "NVLink4"
    assert link_of(both, "slow") is slow


def test_a_device_without_the_link_is_refused(device: DeviceSpec) -> None:
    """The message names the links there are, or says that there is none."""
    with pytest.raises(UnknownLinkError, match=r"unknown link of .* 'NVLink9'.* Known: NVLink4"):
        link_of(device, "NVLink9")
    with pytest.raises(MissingLinkError, match=r"has no link in the device table"):
        link_of(evolve(device, links=()), None)


def test_a_latency_is_finite_seconds() -> None:
    """Neither less than none nor endless."""
    with pytest.raises(LayoutError, match="step is -1"):
        evolve(NCCL_RING, step=-1)
    with pytest.raises(LayoutError, match="call is inf"):
        evolve(NCCL_RING, call=float("inf"))
