"""Decompositions of matrices, inverses and systems of equations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from dsocr_graph.ir import Argument, OpCall
from dsocr_graph.lowering.reduction import reduction
from dsocr_graph.lowering.registry import Approximation, Rule, lowers, operands
from modelmeter.dims import product
from modelmeter.layers import BaseLayer, Factorization, Reduction

_KINDS: Mapping[str, tuple[str, ...]] = {
    "cholesky": ("linalg_cholesky", "linalg_cholesky_ex", "cholesky"),
    "lu": (
        *("linalg_lu", "linalg_lu_factor", "linalg_lu_factor_ex", "linalg_det", "linalg_slogdet", "det", "slogdet"),
        *("logdet", "_linalg_det", "_linalg_slogdet"),
    ),
    "qr": ("linalg_qr", "qr"),
    "inverse": ("linalg_inv", "linalg_inv_ex", "inverse", "cholesky_inverse"),
    "svd": ("linalg_svd", "svd", "linalg_pinv", "pinverse", "_linalg_svd"),
    "singular_values": ("linalg_svdvals", "linalg_matrix_rank", "linalg_cond", "nuclear_norm"),
    "symmetric_eigenvectors": ("linalg_eigh", "_linalg_eigh"),
    "symmetric_eigenvalues": ("linalg_eigvalsh",),
    "eigenvectors": ("linalg_eig",),
    "eigenvalues": ("linalg_eigvals",),
    "householder": ("linalg_householder_product",),
    "exponential": ("linalg_matrix_exp", "matrix_exp"),
}
"""Operators, without namespace, by kind of factorization."""

_SYSTEMS: Mapping[str, tuple[str, ...]] = {
    "solve": ("linalg_solve", "linalg_solve_ex", "_linalg_solve_ex"),
    "triangular_solve": ("linalg_solve_triangular", "triangular_solve"),
    "cholesky_solve": ("cholesky_solve",),
    "least_squares": ("linalg_lstsq",),
}
"""Operators on a matrix and right-hand sides, by kind."""

_MATRIX_FIRST = ("solve", "least_squares")  # the others of the old interface take the right-hand side first
_NOTE = "FLOPs of the textbook's algorithm to leading order, in one pass over memory; iterations depend on the data"


def _factorization_rule(kind: str) -> Rule:
    return lambda call: _of_matrix(call, kind, position=0, right_sides=False)


def _system_rule(kind: str) -> Rule:
    def rule(call: OpCall) -> Approximation:
        first = kind in _MATRIX_FIRST or call.op == "aten::linalg_solve_triangular"
        return _of_matrix(call, kind, position=0 if first else 1, right_sides=True)

    return rule


def _of_matrix(call: OpCall, kind: str, *, position: int, right_sides: bool) -> Approximation:
    matrix = call.reads[position]
    rows, columns = matrix.shape[-2:]
    if isinstance(rows, int) and isinstance(columns, int):
        rows, columns = max(rows, columns), min(rows, columns)
    other = call.reads[1 - position] if right_sides else None
    vector = other is not None and len(other.shape) == len(matrix.shape) - 1
    layer = Factorization(
        kind=kind,
        matrices=product(matrix.shape[:-2]),
        rows=rows,
        columns=columns,
        right_sides=0 if other is None else 1 if vector else other.shape[-1],
        reads=operands(call.reads),
        writes=operands(call.writes),
        dtype=matrix.dtype,
    )
    return Approximation(layer=layer, note=_NOTE)


@lowers("aten::linalg_norm", "aten::linalg_matrix_norm")
def norm(call: OpCall) -> BaseLayer | Approximation:
    """y = norm of rows or matrices: a sum, unless it is one of singular values (2, -2 and "nuc" of a matrix)."""
    default: Argument = "fro" if call.op.endswith("matrix_norm") else None
    order = call.value("ord", default)
    dims = call.value("dim", (-2, -1))
    of_matrix = call.op.endswith("matrix_norm") or (isinstance(dims, tuple) and len(dims) == 2)
    if of_matrix and order in (2, -2, "nuc"):
        return _of_matrix(call, "singular_values", position=0, right_sides=False)
    return cast("Reduction", reduction(call))


for _kind, _operators in _KINDS.items():
    lowers(*(f"aten::{_operator}" for _operator in _operators))(_factorization_rule(_kind))
for _kind, _operators in _SYSTEMS.items():
    lowers(*(f"aten::{_operator}" for _operator in _operators))(_system_rule(_kind))
