"""A bf16 capture under the what-if fp32 costs what an fp32 capture costs: the transform agrees with the compiler."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from dsocr_graph.compiling import analytic_model
from dsocr_graph.models.registry import Variant, model_named
from modelmeter.evaluate import evaluate_stage
from modelmeter.model import AnalyticModel
from modelmeter.whatif import Options, apply

pytestmark = pytest.mark.slow

SIZES: Mapping[str, Mapping[str, int]] = {
    "vision_global": {},
    "vision_local": {"V": 4, "H": 2},
    "prefill": {"B": 2, "S": 300, "N": 273},
    "decode": {"B": 2, "T": 500},
}
COUNTED = ("matmul_flops", "vector_flops", "tensor_core_flops", "bytes", "weight_bytes_read")


@pytest.fixture(scope="module")
def pair() -> tuple[AnalyticModel, AnalyticModel]:
    """Return the small model captured in bf16 and asked in fp32, and the same captured in fp32."""
    named = model_named("deepseek-ocr-tiny")
    bf16, fp32 = (
        analytic_model(named, Variant(base_size=1024, dtype=dtype, attention="sdpa")) for dtype in ("bf16", "fp32")
    )
    return apply(bf16, Options(weight_dtype="fp32", activation_dtype="fp32", kv_dtype="fp32")).model, fp32


@pytest.mark.parametrize("stage", SIZES)
def test_a_what_if_costs_what_the_capture_costs(pair: tuple[AnalyticModel, AnalyticModel], stage: str) -> None:
    """FLOPs, bytes, weights and KV cache are equal to the last digit; casts that vanish are no kernels in either."""
    asked, captured = (evaluate_stage(each, stage, **SIZES[stage]) for each in pair)
    for figure in COUNTED:
        assert getattr(asked.total.cost, figure) == getattr(captured.total.cost, figure), figure
    assert asked.memory.weight_bytes == captured.memory.weight_bytes
    assert asked.memory.kv_cache_bytes == captured.memory.kv_cache_bytes


@pytest.mark.parametrize("stage", SIZES)
def test_its_stated_bounds_are_close(pair: tuple[AnalyticModel, AnalyticModel], stage: str) -> None:
    """Fused bytes are a lower bound within 4 %, and the peak is within 2 %, as their assumptions say they may be."""
    asked, captured = (evaluate_stage(each, stage, **SIZES[stage]) for each in pair)
    assert 0.96 * captured.total.cost.fused_bytes < asked.total.cost.fused_bytes <= captured.total.cost.fused_bytes
    assert asked.memory.peak_bytes == pytest.approx(captured.memory.peak_bytes, rel=0.02)
