"""Memory of the toy against a device's, and the largest batch that fits, by hand.

Parameters take 4,302 bytes and loading 8,604. A prefill of 5 tokens peaks at max(508*B, 50*B + 2000) bytes, a decode at
16*7*B + 8; so loading decides up to 508*B = 4,302, and from B = 9 on the prefill does.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.capacity import (
    CapacityError,
    DoesNotFitError,
    Service,
    continuous_memory,
    fit,
    largest_batch,
)
from modelmeter.devices import load_device
from modelmeter.predict.time_model import DeviceFacts, TimeModel

MakeMachine = Callable[..., TimeModel]


def _device(machine: MakeMachine, memory_bytes: int) -> DeviceFacts:
    return machine(memory_bytes=memory_bytes).facts.device


def test_loading_decides_at_a_small_batch(service: Service, machine: MakeMachine) -> None:
    """At B = 1 running takes 4302 + 2050 = 6352 bytes, loading 8604; of 10,000 bytes 9,000 are usable."""
    found = fit(service.memory(1), device=_device(machine, 10_000))
    assert (found.fits, found.usable_bytes, found.spare_bytes) == (True, 9_000, 396)
    assert found.decisive is None
    assert "loading in fp32" in found.reason


def test_the_allocation_that_decides_is_named(service: Service, machine: MakeMachine) -> None:
    """At B = 10 the logits decide: 4302 + 5080 = 9382 bytes, 382 more than there are; 10*5*64 of them are logits."""
    found = fit(service.memory(10), device=_device(machine, 10_000))
    assert (found.fits, found.spare_bytes) == (False, -382)
    assert found.decisive is not None
    assert (found.decisive.at, found.decisive.module) == ("aten::linear", "lm_head")
    assert [(live.name, live.bytes) for live in found.decisive.live] == [("logits", 3_200)]
    assert "stage prefill at aten::linear in lm_head" in found.reason


def test_the_largest_batch_and_what_stops_the_next(service: Service, machine: MakeMachine) -> None:
    """Of 18,000 usable bytes 26 pages take 4302 + 508*26 = 17,510, and 27 would take 18,018."""
    found = largest_batch(service.memory, device=_device(machine, 20_000))
    assert (found.batch, found.fit.memory.peak_bytes) == (26, 17_510)
    assert found.over is not None
    assert found.over.memory.peak_bytes == 18_018


def test_a_limit_can_stop_the_search(service: Service, machine: MakeMachine) -> None:
    """With a limit of 20 nothing larger is tried, and no larger one is said to fail."""
    found = largest_batch(service.memory, device=_device(machine, 20_000), limit=20)
    assert (found.batch, found.limit, found.over) == (20, 20, None)


def test_requests_in_flight_hold_their_keys_and_values(service: Service) -> None:
    """A request at T = 7 leaves 8*7 + 8 = 64 bytes; 29 others beside a prefill of one: 29*64 + 2050 = 3906 bytes."""
    memory = continuous_memory(service, 30)
    peaks = {stage.stage: (stage.peak_bytes, stage.peak_kv_cache_bytes) for stage in memory.stages}
    assert peaks == {"prefill": (3_906, 29 * 64), "decode": (16 * 7 * 30 + 8, 16 * 7 * 30)}


def test_one_request_in_flight_needs_what_a_batch_of_one_needs(service: Service) -> None:
    """Nothing lies beside a request that is alone."""
    assert continuous_memory(service, 1) == service.memory(1)


@given(usable=st.floats(0.44, 1.0), memory_bytes=st.integers(20_000, 10**7))
def test_the_largest_batch_fits_and_one_more_does_not(
    service: Service, machine: MakeMachine, usable: float, memory_bytes: int
) -> None:
    """On any device, unless the limit of the search comes first."""
    device = _device(machine, memory_bytes)
    found = largest_batch(service.memory, device=device, usable=usable)
    assert fit(service.memory(found.batch), device=device, usable=usable).fits
    assert found.batch == 4096 or not fit(service.memory(found.batch + 1), device=device, usable=usable).fits


def test_a_card_of_24_gib_holds_a_page_of_deepseek_ocr(ocr: Service) -> None:
    """Weights of 3,336,106,240 parameters in bf16 and half a gigabyte beside them; loading them in fp32 decides."""
    found = fit(ocr.memory(1), device=load_device("l4"))
    assert found.fits
    assert found.memory.weight_bytes == 2 * 3_336_106_240
    assert found.memory.decided_by == "load"


def test_logits_of_all_positions_decide_a_large_batch(ocr: Service) -> None:
    """64 prompts of 283 tokens: fp32 logits over 129,280 words take 64*283*129280*4 = 9,366,077,440 bytes, twice."""
    found = fit(ocr.memory(64), device=load_device("l4"))
    assert not found.fits
    assert found.decisive is not None
    assert [live.bytes for live in found.decisive.live[:2]] == [9_366_077_440] * 2


def test_keys_and_values_of_requests_in_flight(ocr: Service) -> None:
    """12 layers of 2*1280 bf16 values are 61,440 bytes a token; a request ends with 283 + 99 tokens cached."""
    alone, many = (continuous_memory(ocr, slots).stages[0].peak_bytes for slots in (1, 65))
    assert many - alone == 64 * 61_440 * (283 + 99)


def test_one_request_without_room_is_an_error(service: Service, machine: MakeMachine) -> None:
    """Of 9,000 bytes 8,100 are usable, and loading takes 8,604."""
    with pytest.raises(
        DoesNotFitError, match=r"one request does not fit toy machine: it needs 8\.6040 kB of 8\.1000 kB"
    ):
        largest_batch(service.memory, device=_device(machine, 9_000))


def test_memory_that_falls_is_an_error(service: Service, machine: MakeMachine) -> None:
    """A bisection would then miss the largest batch that fits."""

    def falling(batch: int):  # noqa: ANN202 - a RunMemory
        return evolve(service.memory(1), peak_bytes=5_000 - batch)

    with pytest.raises(CapacityError, match="memory falls from 4,999 bytes at batch 1 to 4,998 at batch 2"):
        largest_batch(falling, device=_device(machine, 20_000), limit=8)


@pytest.mark.parametrize("usable", [0, -0.5, 1.5, float("nan"), True])
def test_a_usable_fraction_out_of_range_is_an_error(service: Service, machine: MakeMachine, usable: float) -> None:
    """A reserve of all memory, of less than none, or no number."""
    with pytest.raises(CapacityError, match="expected a fraction above 0 and up to 1"):
        fit(service.memory(1), device=_device(machine, 20_000), usable=usable)


def test_a_limit_of_zero_is_an_error(service: Service, machine: MakeMachine) -> None:
    """There is no batch to try."""
    with pytest.raises(CapacityError, match="limit is 0; expected a whole number from 1 up"):
        largest_batch(service.memory, device=_device(machine, 20_000), limit=0)
