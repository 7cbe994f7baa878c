"""Look-ups in a calibration: exact, between, beside and beyond its samples."""

import math

import pytest

from modelmeter.dtypes import DType
from modelmeter.machine import Machine
from modelmeter.predict.calibration import Calibration, HostCosts, Peaks, Sample
from modelmeter.predict.kernel_table import STATED_SPREADS, KernelTable, MissingKernelTimeError, Work
from modelmeter.predict.kernel_time import Method
from modelmeter.predict.sites import SiteError, site_of
from modelmeter.predict.spread import Spread
from modelmeter.signature import Signature, TensorArgument

MACHINE = Machine(kind="cpu", device="test", driver="", memory_bytes=1 << 30, threads=1, torch="2.13.0")
PEAKS = Peaks(matrix_flops={"fp32": 1e9}, vector_flops=1e9, bandwidth=1e9)


def tensor(*shape: int, dtype: DType = DType.FP32, strides: tuple[int, ...] | None = None) -> TensorArgument:
    """Return a contiguous operand, or one with strides."""
    packed = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return TensorArgument(dtype=dtype, shape=shape, strides=strides or packed)


def linear(rows: int, inner: int = 4, outer: int = 8) -> Signature:
    """Return x[rows, inner] times w[outer, inner]."""
    return Signature(
        op="aten::linear",
        overload="default",
        arguments={"input": tensor(rows, inner), "weight": tensor(outer, inner)},
    )


def linear_sample(rows: int, *seconds: float, inner: int = 4, outer: int = 8) -> Sample:
    """Return a linear layer timed in some passes."""
    work = linear_work(rows, inner, outer)
    return Sample(signature=linear(rows, inner, outer), seconds=seconds, flops=work.flops, bytes=work.bytes)


def linear_work(rows: int, inner: int = 4, outer: int = 8) -> Work:
    """2*m*k*n FLOPs, and 4 bytes for each element of x, w and y."""
    return Work(flops=2 * rows * inner * outer, bytes=4 * (rows * inner + inner * outer + rows * outer))


def table(*samples: Sample, physical: bool = False) -> KernelTable:
    """Return the table of a calibration with these samples."""
    calibration = Calibration(
        machine=MACHINE, date="2026-11-25", models=(), peaks=PEAKS, host=HostCosts(classes={}), samples=samples
    )
    return KernelTable(calibration=calibration, physical=physical)


def test_a_measured_call_is_answered_by_its_own_lower_quartile() -> None:
    """Passes 1, 2 and 3 s: the lower quartile on a CPU is 1.5 s."""
    found = table(linear_sample(16, 3.0, 1.0, 2.0)).time(linear(16), linear_work(16))
    assert (found.seconds, found.method) == (1.5, Method.EXACT)


def test_the_shape_of_the_rows_does_not_matter() -> None:
    """[2, 8, 4] and [16, 4] are the same 16 rows to a linear layer."""
    folded = Signature(
        op="aten::linear",
        overload="default",
        arguments={"input": tensor(2, 8, 4), "weight": tensor(8, 4)},
    )
    found = table(linear_sample(16, 1.0)).time(folded, linear_work(16))
    assert (found.seconds, found.method) == (1.0, Method.EXACT)


def test_a_size_between_two_is_linear_in_the_logarithms() -> None:
    """32 rows lie halfway between 16 (1 s) and 64 (4 s) in the logarithm: sqrt(1 * 4) = 2 s."""
    found = table(linear_sample(16, 1.0), linear_sample(64, 4.0)).time(linear(32), linear_work(32))
    assert (found.seconds, found.method) == (pytest.approx(2.0), Method.BRACKET)


def test_a_size_beyond_holds_the_efficiency_of_the_last() -> None:
    """128 rows do almost twice the work of 64 (flops 8,192 against 4,096 at 1 GFLOP/s; floor 1 s each): see below.

    Limits at peak rates, the fastest call (1 s) included: 1 + max(8192e-9, 6272e-9) and 1 + max(4096e-9, 3200e-9).
    Their ratio is 1.0000041, so the time of the call is that of the last point.
    """
    found = table(linear_sample(16, 1.0), linear_sample(64, 4.0)).time(linear(128), linear_work(128))
    assert found.method is Method.HOLD
    assert 1.0 < found.seconds <= 4.0 * 1.00001


def test_an_unmeasured_shape_takes_the_efficiency_of_its_kind() -> None:
    """Twice as slow as the limit everywhere: 2 * limit for a new (k, n) too."""
    samples = [linear_sample(10**6, 2 * 64e-3), linear_sample(10**7, 2 * 64e-2)]  # 64 FLOPs a row at 1 GFLOP/s
    found = table(*samples).time(linear(10**6, 4, 16), linear_work(10**6, 4, 16))
    assert found.method is Method.BLEND
    assert found.seconds == pytest.approx(2 * 128e-3, rel=0.4)


def test_a_call_without_a_relative_is_an_error_that_names_it() -> None:
    """The message has the call, what is covered and what to do."""
    call = Signature(op="aten::exp", overload="default", arguments={"self": tensor(4)})
    with pytest.raises(MissingKernelTimeError, match=r"aten::exp.*fp32\[4\].*covers no model.*--physical"):
        table(linear_sample(16, 1.0)).time(call, Work(flops=4, bytes=32))


def test_physical_times_are_labelled() -> None:
    """With `physical`, the same call gets a time that says so."""
    call = Signature(op="aten::exp", overload="default", arguments={"self": tensor(4)})
    found = table(linear_sample(16, 1.0), physical=True).time(call, Work(flops=4, bytes=32))
    assert found.method is Method.PHYSICAL
    assert found.seconds > 0


def test_another_dtype_is_no_relative() -> None:
    """bf16 products are not predicted from fp32 ones."""
    call = Signature(
        op="aten::linear",
        overload="default",
        arguments={"input": tensor(16, 4, dtype=DType.BF16), "weight": tensor(8, 4, dtype=DType.BF16)},
    )
    with pytest.raises(MissingKernelTimeError, match="aten::linear bf16"):
        table(linear_sample(16, 1.0)).time(call, linear_work(16))


def test_a_strided_input_is_another_curve() -> None:
    """A sliced input can cost 50 times a contiguous one, so it never lies on its curve."""
    sliced = Signature(
        op="aten::linear",
        overload="default",
        arguments={"input": tensor(16, 4, strides=(8, 1)), "weight": tensor(8, 4)},
    )
    assert site_of(sliced, {}).key != site_of(linear(16), {}).key
    assert site_of(sliced, {}).kind == site_of(linear(16), {}).kind


def test_operands_that_do_not_fit_are_refused() -> None:
    """A linear layer with a weight of one axis."""
    call = Signature(op="aten::linear", overload="default", arguments={"input": tensor(16, 4), "weight": tensor(8)})
    with pytest.raises(SiteError, match="aten::linear"):
        site_of(call, {})


def test_attention_shares_a_curve_between_one_sequence_and_many() -> None:
    """Decode of 1 and of 2 sequences with 10 heads differ in heads (10, 20) and keys only."""

    def step(batch: int, keys: int) -> Signature:
        q, kv = tensor(batch, 10, 1, 128), tensor(batch, 10, keys, 128)
        return Signature(
            op="aten::scaled_dot_product_attention",
            overload="default",
            arguments={"query": q, "key": kv, "value": kv},
        )

    one, two = site_of(step(1, 100), {}), site_of(step(2, 300), {})
    assert one.key == two.key
    assert (one.axes, two.axes) == ((10, 1, 99), (20, 1, 299))  # keys beyond the queries


def prompt(tokens: int) -> Signature:
    """Return causal attention of a prompt over itself, 10 heads."""
    q = tensor(1, 10, tokens, 128)
    return Signature(
        op="aten::scaled_dot_product_attention",
        overload="default",
        arguments={"query": q, "key": q, "value": q, "is_causal": True},
    )


def test_attention_of_a_prompt_is_interpolated_along_its_length() -> None:
    """Queries and keys grow together: 200 tokens lie halfway between 100 (1 s) and 400 (16 s): 4 s."""
    samples = [Sample(signature=prompt(tokens), seconds=(seconds,)) for tokens, seconds in ((100, 1.0), (400, 16.0))]
    found = table(*samples).time(prompt(200), Work(flops=1, bytes=1))
    assert (found.seconds, found.method) == (pytest.approx(4.0), Method.BRACKET)


def grouped(tokens: int) -> Signature:
    """Return a grouped product, 2 of 8 experts for each token."""
    return Signature(
        op="dsocr_graph::grouped_linear",
        overload="default",
        arguments={"input": tensor(2 * tokens, 4), "weight": tensor(8, 8, 4), "experts_per_token": 2},
    )


def test_a_grouped_product_is_interpolated_at_the_same_share_of_experts() -> None:
    """2 and 8 tokens with all the experts they can have, 4 and 8: 4 tokens with 8 lie halfway, sqrt(1 * 4) = 2 s."""
    samples = [
        Sample(signature=grouped(2), seconds=(1.0,), conditions={"active_experts": 4}),
        Sample(signature=grouped(8), seconds=(4.0,), conditions={"active_experts": 8}),
    ]
    found = table(*samples).time(grouped(4), Work(flops=1, bytes=1), {"active_experts": 8})
    assert (found.seconds, found.method) == (pytest.approx(2.0), Method.BRACKET)


def test_sums_along_different_axes_are_different_curves() -> None:
    """Along the last axis a row is read in order, along the first in strides."""
    first, last = (
        Signature(op="aten::sum", overload="dim_IntList", arguments={"self": tensor(8, 4), "dim": (axis,)})
        for axis in (0, -1)
    )
    same = Signature(op="aten::sum", overload="dim_IntList", arguments={"self": tensor(8, 4), "dim": (1,)})
    assert site_of(first, {}).key != site_of(last, {}).key
    assert site_of(same, {}).key == site_of(last, {}).key


def test_a_ramp_is_as_long_as_it_is() -> None:
    """From 1,000 to 1,010 are 10 elements; a fill is as large as its shape, whatever its value."""
    ramp = Signature(op="aten::arange", overload="start", arguments={"start": 1000, "end": 1010})
    fill = Signature(op="aten::full", overload="default", arguments={"size": (2, 3), "fill_value": 100000})
    assert (site_of(ramp, {}).axes, site_of(fill, {}).axes) == ((10,), (6,))


def test_launches_of_an_uncounted_shape_are_those_of_its_kind() -> None:
    """Products with another number of axes still start as many kernels."""
    known = Signature(
        op="aten::matmul", overload="default", arguments={"self": tensor(2, 3, 4, 5), "other": tensor(2, 3, 5, 4)}
    )
    other = Signature(op="aten::matmul", overload="default", arguments={"self": tensor(3, 4), "other": tensor(4, 5)})
    assert table(Sample(signature=known, seconds=(1.0,), launches=3)).launches(other) == 3


def test_samples_on_one_curve_are_averaged_in_the_logarithm() -> None:
    """[2, 8, 4] and [16, 4] are the same 16 rows, 1 and 4 s: another shape of 16 rows takes sqrt(1 * 4) = 2 s."""

    def folded(*rows: int) -> Signature:
        return Signature(
            op="aten::linear",
            overload="default",
            arguments={"input": tensor(*rows, 4), "weight": tensor(8, 4)},
        )

    samples = [Sample(signature=folded(*rows), seconds=(seconds,)) for rows, seconds in (((2, 8), 1.0), ((16,), 4.0))]
    found = table(*samples).time(folded(4, 4), linear_work(16))
    assert (found.seconds, found.method) == (pytest.approx(2.0), Method.EXACT)


# --- how far a figure may be off

# Ten sizes of one curve, each twice as large as the one before and twice as slow, but every second one is off by a
# factor. Left out, a size lies between its neighbours: its residual is the logarithm of the factor, or its negative.
CURVE = [2**power for power in range(10)]


def zigzag(factor: float, *, passes: int = 1) -> KernelTable:
    """Return a table whose bracketed figures are wrong by a factor, now up, now down."""
    return table(
        *(linear_sample(rows, *[1e-6 * rows * factor ** (index % 2)] * passes) for index, rows in enumerate(CURVE))
    )


def bracketed(found: KernelTable) -> Spread:
    """Return the spread of a size between two samples."""
    time = found.time(linear(3), linear_work(3))
    assert time.method is Method.BRACKET
    return time.spread


def test_what_is_left_out_says_how_far_a_bracket_is_off() -> None:
    """Ten sizes have eight inside, which is enough: four are 1.2 times their neighbours' figure, four are a 1.2th."""
    log = math.log(1.2)
    assert sorted(bracketed(zigzag(1.2)).residuals) == pytest.approx([-log] * 4 + [log] * 4)


def test_a_table_that_is_further_off_has_wider_intervals() -> None:
    """A factor of 1.4 against 1.2, with the same draws."""
    narrow, wide = (bracketed(zigzag(factor)).factors("one group") for factor in (1.2, 1.4))
    assert wide.max() > narrow.max() > 1 > narrow.min() > wide.min()


def test_a_table_without_residuals_has_the_stated_spread() -> None:
    """Two samples of one pass: nothing can be left out and bracketed."""
    found = table(linear_sample(16, 1.0), linear_sample(64, 4.0)).time(linear(32), linear_work(32))
    assert found.spread == Spread(stated=STATED_SPREADS[Method.BRACKET])


def test_a_pass_that_is_left_out_says_how_far_a_measured_figure_is_off() -> None:
    """Passes of 1, 2 and 4 s: the lower quartile is 1.5; without one of them 2.5, 1.75 and 1.25."""
    found = table(linear_sample(16, 1.0, 2.0, 4.0)).time(linear(16), linear_work(16))
    by_hand = [math.log(1.5 / rest) for rest in (2.5, 1.75, 1.25)]
    assert sorted(found.spread.residuals) == pytest.approx(sorted(by_hand))


def test_another_table_of_the_same_calibration_has_the_same_intervals() -> None:
    """Nothing of an interval is left to chance."""
    first, second = (zigzag(1.3, passes=3).time(linear(3), linear_work(3)).factors for _ in range(2))
    assert first.tolist() == second.tolist()
