"""Products of vectors and matrices with an addend, over chosen axes, or of a power."""

from __future__ import annotations

from typing import cast

from attrs import evolve

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.linear import matrix_product
from dsocr_graph.lowering.registry import Approximation, Unsupported, lowers
from modelmeter.dims import product
from modelmeter.layers import BaseLayer, Linear, Matmul

_ADDEND = "the addend's read and its addition to the result are left out"


@lowers("aten::mv")
def mv(call: OpCall) -> Matmul:
    """y[M] = a[M, K] @ v[K]."""
    a, v = call.tensor("self"), call.tensor("vec")
    return matrix_product((1, a.shape[0], a.shape[1], 1), a, v)


@lowers("aten::dot", "aten::vdot")
def dot(call: OpCall) -> Matmul:
    """y = a[K] . b[K]."""
    a, b = call.reads[0], call.reads[-1]
    return matrix_product((1, 1, a.shape[0], 1), a, b)


@lowers("aten::linalg_vecdot")
def vecdot(call: OpCall) -> Matmul | Unsupported:
    """y[...] = a[..., K] . b[..., K]."""
    a, b = call.tensor("x"), call.tensor("y")
    if call.integer("dim", -1) not in (-1, len(a.shape) - 1):
        return Unsupported(reason="a product over another axis than the last")
    return matrix_product((call.result.elements, 1, a.shape[-1], 1), a, b)


@lowers("aten::baddbmm", "aten::baddbmm_")
def baddbmm(call: OpCall) -> Approximation:
    """y[B, M, N] = c + a[B, M, K] @ b[B, K, N]."""
    a, b = call.tensor("batch1"), call.tensor("batch2")
    return Approximation(layer=matrix_product((a.shape[0], a.shape[1], a.shape[2], b.shape[2]), a, b), note=_ADDEND)


@lowers("aten::addbmm", "aten::addbmm_")
def addbmm(call: OpCall) -> Approximation:
    """y[M, N] = c + sum over B of a[B, M, K] @ b[B, K, N]: a product over B*K."""
    a, b = call.tensor("batch1"), call.tensor("batch2")
    sizes = (1, a.shape[1], product((a.shape[0], a.shape[2])), b.shape[2])
    return Approximation(layer=matrix_product(sizes, a, b), note=_ADDEND)


@lowers("aten::addmv", "aten::addmv_")
def addmv(call: OpCall) -> Approximation:
    """y[M] = c + a[M, K] @ v[K]."""
    a, v = call.tensor("mat"), call.tensor("vec")
    return Approximation(layer=matrix_product((1, a.shape[0], a.shape[1], 1), a, v), note=_ADDEND)


@lowers("aten::_addmm_activation")
def addmm_activation(call: OpCall) -> Approximation:
    """y[M, N] = relu or gelu of x[M, K] @ w[K, N] + b."""
    x, w = call.tensor("mat1"), call.tensor("mat2")
    layer = Linear(rows=x.shape[0], in_features=w.shape[0], out_features=w.shape[1], bias=True, dtype=x.dtype)
    return Approximation(layer=layer, note="the activation in the product's kernel is left out")


@lowers("aten::inner")
def inner(call: OpCall) -> Matmul | Unsupported:
    """y[..., M] = a[..., K] @ b[M, K].T."""
    a, b = call.tensor("self"), call.tensor("other")
    if not a.shape or not b.shape:
        return Unsupported(reason="a scalar times a tensor")
    sizes = (1, product(a.shape[:-1]), a.shape[-1], product(b.shape[:-1]))
    return matrix_product(sizes, a, b)


@lowers("aten::tensordot")
def tensordot(call: OpCall) -> Matmul:
    """y = a and b summed over pairs of axes: one product of what is left of each."""
    a, b = call.tensor("self"), call.tensor("other")
    summed = {axis % len(a.shape) for axis in cast("tuple[int, ...]", call.value("dims_self"))}
    gone = {axis % len(b.shape) for axis in cast("tuple[int, ...]", call.value("dims_other"))}
    m = product(size for axis, size in enumerate(a.shape) if axis not in summed)
    k = product(size for axis, size in enumerate(a.shape) if axis in summed)
    n = product(size for axis, size in enumerate(b.shape) if axis not in gone)
    return matrix_product((1, m, k, n), a, b)


@lowers("aten::linalg_matrix_power", "aten::matrix_power")
def matrix_power(call: OpCall) -> BaseLayer | Unsupported:
    """y[..., n, n] = a[..., n, n] ** p: squares, and a product for each other bit of p that is set."""
    a, power = call.reads[0], call.integer("n", 1)
    if power < 2:
        return Unsupported(reason=f"the power {power} is no product")
    size = a.shape[-1]
    products = power.bit_length() - 1 + power.bit_count() - 1
    batch = product((products, *a.shape[:-2]))
    return Matmul(batch=batch, m=size, k=size, n=size, dtype=a.dtype)


@lowers("aten::bilinear")
def bilinear(call: OpCall) -> Approximation:
    """y[..., o] = sum over i, j of a[..., i] b[..., j] w[o, i, j] + c[o]: a linear layer of all products a b."""
    a, w = call.tensor("input1"), call.tensor("weight")
    layer = Linear(
        rows=product(a.shape[:-1]),
        in_features=product(w.shape[1:]),
        out_features=w.shape[0],
        bias=call.has("bias"),
        dtype=a.dtype,
    )
    return Approximation(layer=layer, note="all products of both inputs are read from memory; making them is left out")


@lowers("aten::_int_mm", "aten::_scaled_mm")
def narrow_mm(call: OpCall) -> Matmul | Approximation:
    """y[M, N] = a[M, K] @ b[K, N] of int8 or fp8, in a wider type."""
    a, b = call.tensor("self"), call.tensor("mat2")
    layer = evolve(matrix_product((1, a.shape[0], a.shape[1], b.shape[1]), a, b), out_dtype=call.writes[0].dtype)
    if call.op == "aten::_int_mm":
        return layer
    return Approximation(layer=layer, note="the operands' scales, and the multiplication by them, are left out")
