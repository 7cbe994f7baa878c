"""Rules of operators in blocks of fp8: each call's cost by hand, and what is left of it once chains are fused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from dsocr_graph.lowering import lower
from dsocr_graph.models.from_transformers.fp8_ops import (
    FP8,
    block_scaled_grouped_linear,
    block_scaled_linear,
    quantize_rows,
)
from dsocr_graph.scopes import group_by_module
from modelmeter.binding import Binding
from modelmeter.categories import Category
from modelmeter.devices import load_device
from modelmeter.dtypes import DType
from modelmeter.layers.base import Traffic
from modelmeter.model import AnalyticModel, Leaf
from modelmeter.predict.roofline import Roofline, RooflineError

BLOCK = (128, 64)


class Product(nn.Module):
    """y[B, N] = (2 * x[B, K]) @ w[N, K].T in blocks of 128 rows and 64 columns."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=FP8), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(-(-outputs // BLOCK[0]), -(-inputs // BLOCK[1])))

    def forward(self, x: Tensor) -> Tensor:
        """Quantise and multiply."""
        rows, scales = quantize_rows(x * 2, block=BLOCK[1])
        return block_scaled_linear(rows, scales, self.weight, self.scale, block=BLOCK, dtype=x.dtype)


class Experts(nn.Module):
    """y[6 * B, 300] = the rows of 2 experts a token, each times the weight of its own of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8, 300, 200, dtype=FP8), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(8, 3, 4))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Quantise and multiply."""
        rows, scales = quantize_rows(x, block=BLOCK[1])
        return block_scaled_grouped_linear(
            rows, scales, self.weight, self.scale, ends, block=BLOCK, experts_per_token=2, dtype=x.dtype
        )


@pytest.fixture(scope="module")
def product(captured: Callable[..., Any]) -> AnalyticModel:
    """Return a product of 300 outputs and 200 inputs, captured at any B."""
    return lowered(captured, outputs=300, inputs=200)


def lowered(captured: Callable[..., Any], *, outputs: int, inputs: int) -> AnalyticModel:
    """Return a product captured at any B and lowered."""
    with torch.device("meta"):
        module, x = Product(outputs, inputs), torch.empty(5, inputs, dtype=torch.bfloat16)
    return lower(group_by_module(captured(module, x, dynamic_shapes={"x": {0: Dim("B", min=1, max=1 << 20)}})))


def leaf_of(model: AnalyticModel, op: str) -> Leaf:
    """Return the only leaf of an operator."""
    (leaf,) = (leaf for leaf in model.leaves if leaf.op == f"dsocr_graph::{op}")
    return leaf


def test_activations_are_quantised(product: AnalyticModel) -> None:
    """Of 5 rows of 200: absolute value, maximum and division each; bf16 read, fp8 and 4 scales a row written."""
    leaf = leaf_of(product, "quantize_rows")
    layer = leaf.layer.at(B=5)
    assert (leaf.category, layer.matmul_flops(), layer.vector_flops()) == (Category.ELEMENTWISE, 0, 3_000)
    assert layer.traffic() == Traffic(activations_read=2_000, written=1_000 + 5 * 4 * 4)


def test_quantisation_fuses_with_what_made_the_activations(product: AnalyticModel) -> None:
    """Behind the doubling of x, no activation in bf16 is read: 1,000 + 80 of 3,080 bytes are left."""
    assert int(leaf_of(product, "quantize_rows").cost.fused_bytes.at({"B": 5})) == 1_080


def test_a_product_in_blocks(product: AnalyticModel) -> None:
    """2 * 5 * 200 * 300; w and 3 * 4 scales, x and 4 scales a row, all read; y written in bf16."""
    leaf = leaf_of(product, "block_scaled_linear")
    layer = leaf.layer.at(B=5)
    assert (leaf.category, layer.matmul_flops(), layer.vector_flops()) == (Category.LINEAR, 600_000, 0)
    assert layer.traffic() == Traffic(weights_read=60_000 + 48, activations_read=1_000 + 80, written=3_000)


def test_parameters_count_as_they_are_stored(product: AnalyticModel) -> None:
    """60,000 bytes in fp8 and 12 scales of 4."""
    assert (product.parameters, product.parameter_bytes) == (60_012, 60_048)


def test_a_grouped_product_in_blocks(captured: Callable[..., Any]) -> None:
    """12 rows of 6 tokens touch 8 * (1 - (6/8)**6) of 8 experts on average, each with its scales."""
    with torch.device("meta"):
        module, x = Experts(), torch.empty(12, 200, dtype=torch.bfloat16)
        ends = torch.empty(8, dtype=torch.int32)
    layer = leaf_of(lower(group_by_module(captured(module, x, ends))), "block_scaled_grouped_linear").layer
    traffic = layer.traffic()
    assert (layer.matmul_flops(), layer.weight_bytes()) == (1_440_000, 8 * 60_048)  # 2 * 12 * 200 * 300
    assert traffic.weights_read == pytest.approx(8 * (1 - 0.75**6) * 60_048)
    # x 12 * 200, 4 scales of 4 bytes a row, offsets 8 * 4; y 12 * 300 * 2
    assert (traffic.activations_read, traffic.written) == (2_400 + 192 + 32, 7_200)


def test_products_run_at_the_rate_of_fp8(captured: Callable[..., Any]) -> None:
    """100,000 rows, 2 * 4096**2 FLOPs each: 1.70 ms at an H100's 1,979e12 FLOP/s in fp8, half of those at its bf16."""
    leaf = leaf_of(lowered(captured, outputs=4096, inputs=4096), "block_scaled_linear")
    time = Roofline(device=load_device("h100-sxm")).time(leaf, Binding(bindings={"B": 100_000}, count=1))
    assert leaf.dtype is DType.FP8_E4M3
    assert time.matrix_units == pytest.approx(1e5 * 2 * 4096**2 / 1979e12)
    assert time.memory == 0


def test_a_device_without_fp8_says_so(product: AnalyticModel) -> None:
    """An A100's matrix units take no fp8: no rate is guessed."""
    with pytest.raises(RooflineError, match=r"no time for .*fp8"):
        Roofline(device=load_device("a100-80gb-sxm")).time(
            leaf_of(product, "block_scaled_linear"), Binding(bindings={"B": 5}, count=1)
        )
