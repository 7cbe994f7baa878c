"""Roofline: the largest of three quotients, each execution by itself, by hand."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.binding import Binding
from modelmeter.devices import load_device
from modelmeter.dtypes import DType
from modelmeter.evaluate import evaluate_stage
from modelmeter.predict import Roofline, RooflineError

H200 = load_device("h200")  # 989 TFLOP/s in bf16, 66.9 TFLOP/s in fp32 on vector units, 4.8 TB/s
ONCE = Binding(bindings={})


@pytest.mark.parametrize(
    ("texts", "seconds", "bound_by"),
    [
        # 989e12 FLOPs of matrix work take a second; 1 byte and 1 FLOP beside it nothing that counts
        (("989000000000000", "1", "1"), 1.0, "matrix units"),
        # 2 * 66.9e12 FLOPs of vector work
        (("1", "133800000000000", "1"), 2.0, "vector units"),
        # 2.4e12 bytes at 4.8e12 bytes a second
        (("1", "1", "2400000000000"), 0.5, "memory"),
    ],
)
def test_the_largest_quotient_is_the_time(texts: tuple[str, str, str], seconds: float, bound_by: str) -> None:
    """Work over its peak, whichever is longest."""
    time = Roofline(device=H200).time_of(DType.BF16, texts, ONCE)
    assert time.seconds == pytest.approx(seconds)
    assert time.bound_by == bound_by


def test_executions_that_are_alike_add_up() -> None:
    """Three executions of 4.8e9 bytes take 3 ms."""
    time = Roofline(device=H200).time_of(DType.BF16, ("0", "0", "4800000000"), Binding(bindings={}, count=3))
    assert time.seconds == pytest.approx(3e-3)


def test_a_sweep_changes_what_bounds_it() -> None:
    """At T = 1, 2, 3: memory takes 2 ms each; matrix work 1, 2, 3 ms and wins ties, so 2 ms + (2 + 3) ms."""
    texts = ("989000000000*T", "0", "9600000000")
    time = Roofline(device=H200).time_of(DType.BF16, texts, Binding(bindings={"T": 1}, count=3, sweep="T"))
    assert time.memory == pytest.approx(2e-3)
    assert time.matrix_units == pytest.approx(5e-3)


@given(st.integers(1, 4), st.integers(1, 4000), st.integers(1, 30))
def test_time_of_a_sweep_equals_single_steps(toy: ModuleType, batch: int, cached: int, steps: int) -> None:
    """Law: a sweep takes as long as its executions one by one."""
    model = toy.toy_model()
    swept = evaluate_stage(model, "decode", count=steps, sweep="T", device=H200, B=batch, T=cached).total.time
    assert swept is not None
    single = [evaluate_stage(model, "decode", device=H200, B=batch, T=cached + i).total.time for i in range(steps)]
    assert swept.seconds == pytest.approx(np.sum([time.seconds for time in single if time]), rel=1e-9)


def test_fused_traffic_shortens_memory_bound_work(toy: ModuleType) -> None:
    """SiLU moves 2 x 320 bytes unfused and none fused; then its 2 x 320 FLOPs of vector work decide."""
    module = "model.layers.[0-1].act"
    unfused = evaluate_stage(toy.toy_model(), "prefill", device=H200, B=2, S=5).modules[module].own.time
    fused = evaluate_stage(toy.toy_model(), "prefill", device=H200, fused=True, B=2, S=5).modules[module].own.time
    assert unfused is not None
    assert fused is not None
    assert (unfused.bound_by, unfused.seconds) == ("memory", pytest.approx(640 / 4.8e12))
    assert (fused.bound_by, fused.seconds) == ("vector units", pytest.approx(640 / 66.9e12))


def test_a_type_without_a_peak_is_an_error(toy: ModuleType) -> None:
    """No A100 has fp8 units: the message names the leaf, the device and the types it has."""
    model = toy.toy_model()
    leaf = next(leaf for leaf in model.leaves if leaf.op == "aten::linear")
    eighth = evolve(leaf, layer=evolve(leaf.layer, dtype=DType.FP8_E4M3), cost=None)
    with pytest.raises(RooflineError, match=r"no time for .*linear: .*A100.* no peak for 'fp8'; it has bf16"):
        Roofline(device=load_device("a100-80gb-sxm")).time(eighth, Binding(bindings={"B": 1, "S": 1}))


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (
            DType.INT8,
            r"no peak for 'int8'; it has .*\. No device of the table has one: leave times out",
        ),
        (
            DType.FP8_E4M3,
            r"no peak for 'fp8'; .*\. Take a device that has one \(b200, .*, l4, .*\), or leave times out",
        ),
    ],
)
def test_the_error_of_a_type_without_a_peak_says_what_to_do(dtype: DType, said: str) -> None:
    """Devices that have such a peak, an L4 in fp8, and otherwise to leave times out."""
    with pytest.raises(ValueError, match=said):
        Roofline(device=load_device("a10")).time_of(dtype, ("1", "0", "0"), ONCE)


def test_matrix_work_without_a_type_is_an_error() -> None:
    """The rate of matrix work is unknown without its type."""
    with pytest.raises(ValueError, match="states no type"):
        Roofline(device=H200).time_of(None, ("1", "0", "0"), ONCE)
