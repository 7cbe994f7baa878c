"""Matrix products: linear, mm, bmm, matmul, einsum and the grouped products of expert layers."""

from __future__ import annotations

from typing import cast

from dsocr_graph.ir import OpCall, TensorSpec
from dsocr_graph.lowering.registry import Approximation, Unsupported, lowers
from modelmeter.dims import Dim, experts_touched, product, simplify
from modelmeter.layers import BaseLayer, GroupedLinear, Linear, Matmul


@lowers("aten::linear")
def linear(call: OpCall) -> Linear:
    """y[..., N] = x[..., K] @ w[N, K].T + b[N]."""
    x, w = call.tensor("input"), call.tensor("weight")
    return Linear(
        rows=product(x.shape[:-1]),
        in_features=w.shape[1],
        out_features=w.shape[0],
        bias=call.has("bias"),
        dtype=x.dtype,
    )


@lowers("aten::addmm")
def addmm(call: OpCall) -> Linear:
    """y[M, N] = x[M, K] @ w[K, N] + b."""
    x, w = call.tensor("mat1"), call.tensor("mat2")
    return Linear(rows=x.shape[0], in_features=w.shape[0], out_features=w.shape[1], bias=True, dtype=x.dtype)


def _product(sizes: tuple[Dim, Dim, Dim, Dim], left: TensorSpec, right: TensorSpec) -> Matmul:
    """Return batch products of [m, k] by [k, n]; `sizes` is batch, m, k, n."""
    batch, m, k, n = sizes
    return Matmul(
        batch=batch,
        m=m,
        k=k,
        n=n,
        dtype=left.dtype,
        left_elements=left.stored_elements,
        right_elements=right.stored_elements,
        left_weight=left.is_weight,
        right_weight=right.is_weight,
    )


@lowers("aten::mm")
def mm(call: OpCall) -> Matmul:
    """y[M, N] = a[M, K] @ b[K, N]."""
    a, b = call.tensor("self"), call.tensor("mat2")
    return _product((1, a.shape[0], a.shape[1], b.shape[1]), a, b)


@lowers("aten::bmm")
def bmm(call: OpCall) -> Matmul:
    """y[B, M, N] = a[B, M, K] @ b[B, K, N]."""
    a, b = call.tensor("self"), call.tensor("mat2")
    return _product((a.shape[0], a.shape[1], a.shape[2], b.shape[2]), a, b)


@lowers("aten::matmul")
def matmul(call: OpCall) -> Matmul:
    """y = a @ b with broadcast batch axes; a vector counts as a matrix of one row or column."""
    a, b, y = call.tensor("self"), call.tensor("other"), call.result
    m = a.shape[len(a.shape) - 2] if len(a.shape) > 1 else 1
    n = b.shape[len(b.shape) - 1] if len(b.shape) > 1 else 1
    kept = (len(a.shape) > 1) + (len(b.shape) > 1)
    return _product((product(y.shape[: len(y.shape) - kept]), m, a.shape[len(a.shape) - 1], n), a, b)


@lowers("aten::einsum")
def einsum(call: OpCall) -> Matmul | Unsupported:
    """Contract two operands: batch, free and summed indices are read off the equation."""
    equation = str(call.value("equation"))
    tensors = call.tensor_list("tensors")
    left_of, _, out = equation.replace(" ", "").partition("->")
    terms = left_of.split(",")
    if len(tensors) != 2 or len(terms) != 2 or "." in equation or not out:
        return Unsupported(reason=f"{equation!r} is not two operands with an explicit result and no ellipsis")
    sizes: dict[str, Dim] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        sizes.update(zip(term, tensor.shape, strict=True))
    first, second, result = set(terms[0]), set(terms[1]), set(out)
    if (first ^ second) - result:
        return Unsupported(reason=f"{equation!r} sums an index of one operand alone")

    def extent(indices: set[str]) -> Dim:
        return product(sizes[index] for index in sorted(indices))

    spread = (first & second & result, (first - second) & result, (first & second) - result, (second - first) & result)
    batch, m, k, n = (extent(indices) for indices in spread)
    return _product((batch, m, k, n), tensors[0], tensors[1])


@lowers("dsocr_graph::grouped_linear")
def grouped_linear(call: OpCall) -> GroupedLinear:
    """y[R, N]: rows of x[R, K], sorted by expert, each times its expert's w[e, N, K].T; R = tokens x top-k."""
    x, w = call.tensor("input"), call.tensor("weight")
    top_k = call.integer("experts_per_token", 1)
    tokens = x.shape[0] // top_k if isinstance(x.shape[0], int) else simplify(x.shape[0] / top_k)
    experts = cast("int", w.shape[0])
    return GroupedLinear(
        rows=x.shape[0],
        in_features=w.shape[2],
        out_features=w.shape[1],
        experts=experts,
        active_experts=experts_touched(experts, top_k, tokens),
        dtype=x.dtype,
    )


@lowers("aten::_grouped_mm")
def grouped_mm(call: OpCall) -> BaseLayer | Approximation:
    """y[R, N]: rows of x[R, K] in groups, each times its w[e, K, N]; the operator does not say the top-k."""
    x, w = call.tensor("self"), call.tensor("mat2")
    experts = cast("int", w.shape[0])
    layer = GroupedLinear(
        rows=x.shape[0],
        in_features=w.shape[1],
        out_features=w.shape[2],
        experts=experts,
        active_experts=experts_touched(experts, 1, x.shape[0]),
        dtype=x.dtype,
    )
    return Approximation(layer=layer, note="distinct experts as if each row picked its expert on its own (top-1)")
