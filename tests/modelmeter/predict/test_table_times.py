"""TableTimes: exact, between, beside and beyond measured kernels, on tables small enough for paper."""

from __future__ import annotations

import math

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.devices import load_device
from modelmeter.predict.device_records import DeviceRecord
from modelmeter.predict.kernel_calls import Attention, Experts, Gemm, KernelWork, Product, Streaming, Untabled
from modelmeter.predict.kernel_time import Method
from modelmeter.predict.lattice import Lattice
from modelmeter.predict.op_tables import ExpertSite, OpTables
from modelmeter.predict.table_times import BORROWED_SPREAD, LOG_SPREADS, TableTimes

H200 = load_device("h200")  # 989 TFLOP/s in bf16, 66.9 TFLOP/s on vector units, 4.8 TB/s
RECORD = DeviceRecord(
    system="h200_sxm",
    matrix_flops={"bf16": 989e12},
    memory_bandwidth=4.8e12,
    memory_bytes=141 << 30,
    power=700,
    memory_efficiency=0.8,
    kernel_latency=3e-6,
)
PRODUCTS = Lattice(
    axes=("n", "k", "m"),
    points={
        (1024, 1024, 16): 4e-6,
        (1024, 1024, 64): 4e-6,
        (4096, 1024, 16): 6e-6,
        (4096, 1024, 64): 6e-6,
    },
)
# Three kernels of 4 x 1280 x 896 experts with 2 per token.
EXPERTS = ExpertSite(
    hidden_size=1280,
    intermediate_size=896,
    experts_per_token=2,
    experts=4,
    balanced=True,
    times=Lattice(axes=("tokens",), points={(1,): 40e-6, (8,): 50e-6}),
)


def times_of(**tables: object) -> TableTimes:
    """Return times on an H200 with some tables."""
    return TableTimes(device=H200, tables=OpTables(source={}, **{"gemm": PRODUCTS, **tables}), record=RECORD)


def gemm(rows: float, out_features: float, in_features: float = 1024) -> Gemm:
    """Return a product."""
    return Gemm(rows=rows, out_features=out_features, in_features=in_features)


def test_the_very_call_has_its_measured_time() -> None:
    """n = k = 1024, m = 64 was measured."""
    found = times_of().time(gemm(64, 1024))
    assert found is not None
    assert (found.seconds, found.method) == (pytest.approx(4e-6), Method.EXACT)
    assert found.spread.stated == LOG_SPREADS[Method.EXACT]


def test_between_two_sizes_the_slowdown_is_interpolated() -> None:
    """m = 32 is halfway between 16 and 64 in the logarithm; limits are 4 us (the fastest call) + bytes / 4.8e12.

    Bytes are 2 (m*1024 + 1024*1024 + m*1024) = 2 * 1024 (2 m + 1024): 2,162,688 at 16, 2,228,224 at 32 and 2,359,296 at
    64, so the limits are 4.45056, 4.46421 and 4.49152 us. The slowdown is sqrt(4/4.45056 * 4/4.49152) = 0.894659, and
    4.46421 * 0.894659 = 3.99395 us.
    """
    found = times_of().time(gemm(32, 1024))
    assert found is not None
    assert (found.seconds, found.method) == (pytest.approx(3.99395e-6, rel=1e-5), Method.BRACKET)


def test_an_unseen_width_blends_its_neighbours() -> None:
    """n = 2048 is halfway between 1024 and 4096 at m = 64: the limit times the geometric mean of the slowdowns.

    Bytes: 2 (64*1024 + n*1024 + 64*n) = 131,072 + 2,176 n: 2,359,296 at 1024, 4,587,520 at 2048, 9,043,968 at 4096.
    Limits: 4.49152, 4.95573 and 5.88416 us; slowdowns 4/4.49152 and 6/5.88416, whose mean is 0.952942: 4.72253 us.
    """
    found = times_of().time(gemm(64, 2048))
    assert found is not None
    assert (found.seconds, found.method) == (pytest.approx(4.72253e-6, rel=1e-5), Method.BLEND)
    assert found.group == "gemm 1024x1024x64 4096x1024x64"


def test_beyond_the_table_the_slowdown_at_the_edge_holds() -> None:
    """n = 8192 at m = 64 is as slow as n = 4096, 6/5.88416 of its limit: 4 us + 17,956,864 / 4.8e12 = 7.74101 us."""
    found = times_of().time(gemm(64, 8192))
    assert found is not None
    assert (found.seconds, found.method) == (pytest.approx(7.74101e-6 * 6 / 5.88416, rel=1e-5), Method.HOLD)


def test_weights_come_from_memory_at_the_streaming_ceiling() -> None:
    """A loop that found 2 * 8192 * 8192 bytes of weights in cache (1 us): 134,217,728 / (0.9 * 4.8e12) = 31.0689 us."""
    cached = Lattice(axes=("n", "k", "m"), points={(8192, 8192, 1): 1e-6})
    found = times_of(gemm=cached).time(gemm(1, 8192, 8192))
    assert found is not None
    assert (found.seconds, found.method) == (pytest.approx(31.0689e-6, rel=1e-5), Method.HOLD)


@given(
    slowdown=st.floats(1.2, 20.0),
    rows=st.integers(1, 5000),
    out_features=st.integers(16, 70_000),
    in_features=st.integers(16, 70_000),
)
def test_an_even_table_answers_evenly(slowdown: float, rows: int, out_features: int, in_features: int) -> None:
    """Law: where every call of a table takes its limit times one slowdown, so does every other, seen or not.

    The floor is the table's fastest call, one of next to no work.
    """
    floor = 2e-6
    points = {(1.0, 1.0, 1.0): floor}
    for n in (64, 1024, 16384):
        for k in (64, 1024, 16384):
            for m in (1, 64, 4096):
                work = gemm(m, n, k).work
                points[n, k, m] = slowdown * (floor + max(work.flops / 989e12, work.bytes / 4.8e12))
    found = times_of(gemm=Lattice(axes=("n", "k", "m"), points=points)).time(gemm(rows, out_features, in_features))
    work = gemm(rows, out_features, in_features).work
    limit = floor + max(work.flops / 989e12, work.bytes / 4.8e12)
    assert found is not None
    if out_features >= 64 and in_features >= 64:
        assert found.seconds == pytest.approx(slowdown * limit, rel=1e-9)
    assert found.seconds >= work.flops / 989e12


def test_a_convolution_has_the_efficiency_of_its_product() -> None:
    """Its own bytes count, the method is a blend even at a measured size, and all convolutions err together."""
    call = Product(family="convolution", like=gemm(64, 1024), work=KernelWork(flops=0, bytes=9_600_000))
    found = times_of().time(call)
    assert found is not None
    # limit 4 us + 9.6e6 / 4.8e12 = 6 us, slowdown 4/4.49152 as of the product
    assert (found.seconds, found.method) == (pytest.approx(6e-6 * 4 / 4.49152, rel=1e-5), Method.BLEND)
    assert (found.group, found.spread.stated) == ("convolution", BORROWED_SPREAD)


# --- attention

CAUSAL = Lattice(axes=("d", "g", "h", "b", "s"), points={(64, 1, 12, 1, 1024): 20e-6})
ENCODER = Lattice(axes=("d", "h", "b", "s"), points={(64, 12, 1, 1024): 30e-6})
STEP = Lattice(axes=("d", "g", "h", "b", "s"), points={(128, 1, 10, 1, 1024): 12e-6, (128, 1, 10, 1, 4096): 20e-6})
PROMPT = Attention(batch=1, heads=12, kv_heads=12, query_length=1024, key_length=1024, head_dim=64, causal=True)


def test_each_kind_of_attention_has_its_table() -> None:
    """A causal prompt, an encoder and a step are three tables."""
    times = times_of(context_attention=CAUSAL, encoder_attention=ENCODER, generation_attention=STEP)
    step = Attention(batch=1, heads=10, kv_heads=10, query_length=1, key_length=1024, head_dim=128)
    found = [times.time(call) for call in (PROMPT, evolve(PROMPT, causal=False), step)]
    assert [item and (item.seconds, item.method) for item in found] == [
        (pytest.approx(20e-6), Method.EXACT),
        (pytest.approx(30e-6), Method.EXACT),
        (pytest.approx(12e-6), Method.EXACT),
    ]


def test_cached_keys_come_from_memory() -> None:
    """A loop that found 2 * 10 * 4096 * 128 * 2 bytes of keys and values in cache: 20,971,520 / (0.9 * 4.8e12) s."""
    cached = Lattice(axes=("d", "g", "h", "b", "s"), points={(128, 1, 10, 1, 4096): 1e-6})
    step = Attention(batch=1, heads=10, kv_heads=10, query_length=1, key_length=4096, head_dim=128)
    found = times_of(generation_attention=cached).time(step)
    assert found is not None
    assert (found.seconds, found.method) == (pytest.approx(4.85452e-6, rel=1e-5), Method.HOLD)


def test_a_bias_adds_its_bytes_to_an_attention_without() -> None:
    """The limit grows by the bias.

    FLOPs: 4 * 12 * 1024^2 * 64 = 3.22e9, which take 3.2571 us; bytes: 4 * 12 * 1024 * 64 * 2 = 6.29e6. With the bias's
    12 * 1024^2 * 2 = 25,165,824 bytes it is 31,457,280 / 4.8e12 = 6.5536 us, more than the FLOPs take. The floor is
    30 us, so the slowdown is 30 / 33.2571 and the answer 36.5536 * 30 / 33.2571 us.
    """
    biased = evolve(PROMPT, causal=False, mask_bytes=25_165_824)
    found = times_of(encoder_attention=ENCODER).time(biased)
    assert found is not None
    assert found.seconds == pytest.approx(36.5536e-6 * 30 / 33.2571, rel=1e-4)
    assert (found.method, found.family, found.spread.stated) == (Method.BLEND, "attention with bias", BORROWED_SPREAD)


def test_without_an_encoder_table_causal_attention_stands_in() -> None:
    """Twice the FLOPs at the efficiency of the causal kernel, as a blend."""
    found = times_of(context_attention=CAUSAL).time(evolve(PROMPT, causal=False))
    assert found is not None
    # causal: 1.629 us of FLOPs beside the floor of 20 us; all pairs: 3.257 us
    assert (found.seconds, found.method) == (pytest.approx(20e-6 * 23.2571 / 21.6285, rel=1e-4), Method.BLEND)


@pytest.mark.parametrize(
    "call",
    [
        PROMPT,  # no attention table at all
        evolve(PROMPT, query_length=3),  # some new tokens after cached ones
        Experts(tokens=1, hidden_size=8, intermediate_size=8, experts_per_token=2, experts=4, active_experts=2),
        Streaming(bytes=1.0, vector_flops=0.0),
        Untabled(family="fp32 product", work=KernelWork(flops=1, bytes=1), on_matrix_units=False),
    ],
)
def test_what_no_table_has_is_none(call: Attention | Experts | Streaming | Untabled) -> None:
    """The caller decides between an error and rates."""
    assert times_of().time(call) is None


# --- experts


def test_a_measured_block_of_experts_is_exact() -> None:
    """8 tokens through 2 of 4 experts, in turn: all four are active, as at the site."""
    block = Experts(tokens=8, hidden_size=1280, intermediate_size=896, experts_per_token=2, experts=4, active_experts=4)
    found = times_of(experts=(EXPERTS,)).time(block)
    assert found is not None
    assert (found.seconds, found.method) == (pytest.approx(50e-6), Method.EXACT)


def test_experts_are_compared_at_equal_rows_per_expert() -> None:
    """16 tokens through 2 of 8 experts have 4 rows each, as 8 tokens of 4 experts; twice the weights are read.

    Site at 8 tokens: 4 * 3 * 1280 * 896 * 2 = 27,525,120 bytes of weights and 2 * 16 * 1280 * 2 = 81,920 of rows take
    5.7515 us beside the floor of 4 kernels of 4 us. Here 55,050,240 + 163,840 bytes take 11.5029 us, so the answer is
    50 us * 27.5029 / 21.7515 = 63.22 us.
    """
    block = Experts(
        tokens=16, hidden_size=1280, intermediate_size=896, experts_per_token=2, experts=8, active_experts=8
    )
    found = times_of(experts=(EXPERTS,)).time(block)
    assert found is not None
    assert found.seconds == pytest.approx(50e-6 * 27.5029 / 21.7515, rel=1e-4)


@given(st.floats(1.0, 8.0), st.floats(1.0, 8.0))
def test_more_active_experts_never_take_less_time(one: float, other: float) -> None:
    """Law: the weights read grow with the experts that have rows."""
    few, many = (
        Experts(
            tokens=4, hidden_size=1280, intermediate_size=896, experts_per_token=2, experts=8, active_experts=active
        )
        for active in sorted((one, other))
    )
    times = times_of(experts=(EXPERTS,))
    fast, slow = times.time(few), times.time(many)
    assert fast is not None
    assert slow is not None
    assert fast.seconds <= slow.seconds


# --- rates


def test_a_memory_bound_kernel_by_rates() -> None:
    """3 us and 38.4e6 bytes at 0.8 * 4.8e12 bytes/s, which is 10 us."""
    found = times_of().physical(Streaming(bytes=38.4e6, vector_flops=1e6))
    assert (found.seconds, found.method) == (pytest.approx(13e-6), Method.PHYSICAL)
    assert found.family == "memory"


def test_fp32_products_by_rates_run_on_vector_units() -> None:
    """66.9e6 FLOPs at 0.8 * 66.9e12 FLOP/s take 1.25 us, beside 3 us."""
    call = Untabled(family="fp32 product", work=KernelWork(flops=66.9e6, bytes=8), on_matrix_units=False)
    found = times_of().physical(call)
    assert found.seconds == pytest.approx(4.25e-6)
    parts = times_of().parts(call)
    assert max(parts, key=lambda name: parts[name]) == "vector_units"


def test_spreads_widen_from_measured_to_rates() -> None:
    """The order of resolution is an order of trust."""
    spreads = [LOG_SPREADS[method] for method in Method]
    assert spreads == sorted(spreads)
    assert all(math.isfinite(spread) and spread > 0 for spread in spreads)
