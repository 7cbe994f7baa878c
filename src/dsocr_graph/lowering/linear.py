"""Matrix products: linear, mm, bmm, matmul, einsum and the grouped products of expert layers."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import cast

from dsocr_graph.ir import OpCall, TensorSpec
from dsocr_graph.lowering.registry import Approximation, Unsupported, lowers, operands, pointwise
from modelmeter.dims import Dim, product, simplify
from modelmeter.expert_counts import experts_touched
from modelmeter.layers import BaseLayer, GroupedLinear, Linear, Matmul, Reduction


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


def matrix_product(sizes: tuple[Dim, Dim, Dim, Dim], left: TensorSpec, right: TensorSpec) -> Matmul:
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
    return matrix_product((1, a.shape[0], a.shape[1], b.shape[1]), a, b)


@lowers("aten::bmm")
def bmm(call: OpCall) -> Matmul:
    """y[B, M, N] = a[B, M, K] @ b[B, K, N]."""
    a, b = call.tensor("self"), call.tensor("mat2")
    return matrix_product((a.shape[0], a.shape[1], a.shape[2], b.shape[2]), a, b)


@lowers("aten::matmul", "aten::linalg_matmul")
def matmul(call: OpCall) -> Matmul:
    """y = a @ b with broadcast batch axes; a vector counts as a matrix of one row or column."""
    a, b, y = call.tensor("self"), call.tensor("other"), call.result
    m = a.shape[len(a.shape) - 2] if len(a.shape) > 1 else 1
    n = b.shape[len(b.shape) - 1] if len(b.shape) > 1 else 1
    kept = (len(a.shape) > 1) + (len(b.shape) > 1)
    return matrix_product((product(y.shape[: len(y.shape) - kept]), m, a.shape[len(a.shape) - 1], n), a, b)


@lowers("aten::einsum")
def einsum(call: OpCall) -> BaseLayer | Unsupported | None:
    """Contract one or two operands: batch, free and summed indices are read off the equation."""
    equation = str(call.value("equation"))
    tensors = call.tensor_list("tensors")
    terms, out = equation_terms(equation, [len(tensor.shape) for tensor in tensors])
    if len(tensors) == 1:
        return _of_one(call, terms[0], out)
    if len(tensors) != 2:
        return Unsupported(
            reason=f"{equation!r} has more than two operands; the order of its products is torch's choice"
        )
    sizes: dict[str, Dim] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        sizes.update(zip(term, tensor.shape, strict=True))
    first, second, result = set(terms[0]), set(terms[1]), set(out)
    if (first ^ second) - result:
        return Unsupported(reason=f"{equation!r} sums an index of one operand alone")
    if not (first & second) - result:  # nothing is summed: torch multiplies, broadcast
        return pointwise(call, flops_per_element=6 if call.result.dtype.is_complex else 1)

    def extent(indices: set[str]) -> Dim:
        return product(sizes[index] for index in sorted(indices))

    spread = (first & second & result, (first - second) & result, (first & second) - result, (second - first) & result)
    batch, m, k, n = (extent(indices) for indices in spread)
    return matrix_product((batch, m, k, n), tensors[0], tensors[1])


def equation_terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the indices of each operand and of the result; an ellipsis stands for capital letters from the end.

    Where an equation names no result, it has the indices that occur once, in their order.

    Examples
    --------
    >>> equation_terms("...ij, ...jk -> ...ik", [4, 3]), equation_terms("ij,jk", [2, 2])
    ((['YZij', 'Zjk'], 'YZik'), (['ij', 'jk'], 'ik'))
    """
    operands, arrow, out = equation.replace(" ", "").partition("->")
    terms = operands.split(",")
    spread = [
        rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)
    ]
    letters = string.ascii_uppercase
    expanded = [
        term.replace("...", letters[len(letters) - count :] if count else "")
        for term, count in zip(terms, spread, strict=True)
    ]
    common = letters[len(letters) - max(spread) :] if max(spread) else ""
    if not arrow:
        once = sorted(index for index in set(operands) - set(",.") if operands.count(index) == 1)
        out = "..." * bool(common) + "".join(once)
    return expanded, out.replace("...", common)


def _of_one(call: OpCall, term: str, out: str) -> BaseLayer | None:
    """Return the sum over the indices that the result lacks; a permutation or a diagonal is a view."""
    if set(term) == set(out):
        return None
    x = call.reads[0]
    return Reduction(op="sum", elements=x.elements, reads=operands((x,)), writes=operands(call.writes), dtype=x.dtype)


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
