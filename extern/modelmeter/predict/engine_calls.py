"""From a planned kernel of a model to the record that tables are looked up by, at the sizes of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import sympy

from modelmeter.dim_binding import bind
from modelmeter.dims import Dim
from modelmeter.expert_counts import Routing, distinct_experts
from modelmeter.layers import BaseLayer, GroupedLinear, Linear, Matmul, MoEExperts, ScaledDotProductAttention
from modelmeter.layers.convolution import Conv1d, Conv2d
from modelmeter.model import Leaf
from modelmeter.predict.engine_plan import EngineKernel, Role
from modelmeter.predict.kernel_calls import Attention, Call, Experts, Gemm, KernelWork, Product, Streaming, Untabled


def call_of(kernel: EngineKernel, bindings: Mapping[str, int], routing: Routing) -> Call | None:
    """Return the kernel at some sizes, or None for one that fusion leaves nothing to move.

    Raises
    ------
    UnboundDimError
        When a dim has no size.
    """
    if kernel.role is Role.STREAMING:
        return _streaming(kernel, bindings)
    layers = [leaf.layer.at(routing=routing, **bindings) for leaf in kernel.leaves if _is_product(leaf)]
    if kernel.role is Role.EXPERTS:
        return _experts(kernel, layers, bindings, routing)
    layer = layers[0]
    if kernel.role is Role.GEMM:
        assert isinstance(layer, Linear)
        out_features = sum(_number(cast("Linear", each).out_features) for each in layers)
        return Gemm(rows=_number(layer.rows), out_features=out_features, in_features=_number(layer.in_features))
    if isinstance(layer, ScaledDotProductAttention):
        return _attention(layer)
    return _other_product(layer)


def _streaming(kernel: EngineKernel, bindings: Mapping[str, int]) -> Streaming | None:
    moved = sum(part.at(bindings) for part in (*kernel.moved, kernel.read_back))
    flops = sum(leaf.cost.vector_flops.at(bindings) for leaf in kernel.leaves)
    return Streaming(bytes=moved, vector_flops=flops) if moved else None


def _attention(layer: ScaledDotProductAttention) -> Attention | Untabled:
    if not layer.runs_on_tensor_cores() or layer.value_head_dim != layer.head_dim:
        return _untabled(layer, "attention")
    return Attention(
        batch=_number(layer.batch),
        heads=_number(layer.heads),
        kv_heads=_number(layer.kv_heads),
        query_length=_number(layer.query_length),
        key_length=_number(layer.key_length),
        head_dim=_number(layer.head_dim),
        causal=layer.causal,
        mask_bytes=0.0 if layer.mask is None else _number(layer.mask.bytes),
    )


def _other_product(layer: BaseLayer) -> Product | Untabled:
    if not layer.runs_on_tensor_cores():
        return _untabled(layer, "fp32 product")
    traffic = layer.traffic()
    work = KernelWork(
        flops=_number(layer.matmul_flops()),
        bytes=_number(traffic.bytes),
        cold_bytes=_number(traffic.weights_read),
    )
    if isinstance(layer, Matmul):
        rows, out_features = _number(layer.batch) * _number(layer.m), _number(layer.n)
        like = Gemm(rows=rows, out_features=out_features, in_features=_number(layer.k))
        return Product(family="batched product", like=like, work=work)
    if isinstance(layer, Conv1d | Conv2d) and layer.groups == 1:
        out_features = _number(layer.out_channels)
        rows = _number(traffic.written) / layer.dtype.itemsize / out_features
        like = Gemm(rows=rows, out_features=out_features, in_features=work.flops / (2 * rows * out_features))
        return Product(family="convolution", like=like, work=work)
    return _untabled(layer, "other product")


def _experts(
    kernel: EngineKernel, layers: list[BaseLayer], bindings: Mapping[str, int], routing: Routing
) -> Experts | Untabled:
    """Return the block of a gated mixture of experts; other products by experts are of no table."""
    first = layers[0]
    if isinstance(first, MoEExperts) and first.gated and len(layers) == 1:
        return Experts(
            tokens=_number(first.tokens),
            hidden_size=_number(first.hidden_size),
            intermediate_size=_number(first.intermediate_size),
            experts_per_token=_number(first.experts_per_token),
            experts=_number(first.experts),
            active_experts=_number(first.active_experts),
        )
    routed = next((found for leaf in kernel.leaves if (found := _routed(leaf)) is not None), None)
    if routed is None or not isinstance(first, GroupedLinear) or not _is_gated(layers):
        return _sum_untabled(layers)
    experts, per_token, tokens = (_number(bind(size, bindings, routing=routing)) for size in routed)
    return Experts(
        tokens=tokens,
        hidden_size=_number(first.in_features),
        intermediate_size=_number(first.out_features),
        experts_per_token=per_token,
        experts=experts,
        active_experts=_number(first.active_experts),
    )


def _routed(leaf: Leaf) -> tuple[Dim, Dim, Dim] | None:
    """Return experts, experts per token and tokens, as the layer's number of active experts is written."""
    layer = leaf.layer
    if not isinstance(layer, GroupedLinear) or not isinstance(layer.active_experts, sympy.Expr):
        return None
    found = sorted(layer.active_experts.atoms(distinct_experts), key=str)
    if len(found) != 1:
        return None
    experts, per_token, tokens = found[0].args
    return cast("tuple[Dim, Dim, Dim]", (experts, per_token, tokens))


def _is_gated(layers: list[BaseLayer]) -> bool:
    """Whether the products are gate, up and down of one block."""
    sizes = [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, GroupedLinear)]
    return len(sizes) == 3 and sizes[0] == sizes[1] == (sizes[2][1], sizes[2][0])


def _is_product(leaf: Leaf) -> bool:
    return leaf.cost.matmul_flops.text != "0"


def _untabled(layer: BaseLayer, family: str) -> Untabled:
    work = KernelWork(flops=_number(layer.matmul_flops()), bytes=_number(layer.traffic().bytes))
    return Untabled(family=family, work=work, on_matrix_units=layer.runs_on_tensor_cores())


def _sum_untabled(layers: list[BaseLayer]) -> Untabled:
    parts = [_untabled(layer, "experts") for layer in layers]
    work = KernelWork(flops=sum(part.work.flops for part in parts), bytes=sum(part.work.bytes for part in parts))
    return Untabled(family="experts", work=work, on_matrix_units=all(part.on_matrix_units for part in parts))


def _number(size: Dim) -> float:
    """Return a dim that is bound."""
    assert isinstance(size, int | float), size
    return size
