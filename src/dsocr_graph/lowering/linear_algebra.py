"""Decompositions of matrices, inverses and systems of equations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from dsocr_graph.ir import Argument, OpCall, TensorSpec
from dsocr_graph.lowering.reduction import reduction
from dsocr_graph.lowering.registry import Approximation, Rule, lowers, operands
from modelmeter.dims import Dim, product
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

_OPERANDS: Mapping[str, tuple[str, str]] = {
    "linalg_solve_triangular": ("self", "B"),
    "triangular_solve": ("A", "self"),
    "cholesky_solve": ("input2", "self"),
    "linalg_lstsq": ("self", "b"),
}
"""Arguments that are the matrix and the right-hand sides, by operator; A and B in those that are not here."""

_WITH_VECTORS = ("solve", "least_squares")  # kinds that take vectors for right-hand sides
_NOTE = "FLOPs of the textbook's algorithm to leading order, in one pass over memory; iterations depend on the data"


def _factorization_rule(kind: str) -> Rule:
    return lambda call: _of_matrix(call, kind, call.reads[0])


def _system_rule(kind: str) -> Rule:
    def rule(call: OpCall) -> Approximation:
        first, second = _OPERANDS.get(call.op.partition("::")[2], ("A", "B"))
        matrix, sides = call.tensor(first), call.tensor(second)
        vectors = kind in _WITH_VECTORS and _are_vectors(matrix, sides)
        each = 1 if vectors else sides.shape[-1 if call.value("left", True) else -2]
        batch = call.writes[0].shape[: -1 if vectors else -2]
        return _of_matrix(call, kind, matrix, right_sides=product((each, _repeats(matrix.shape[:-2], batch))))

    return rule


def _are_vectors(matrix: TensorSpec, sides: TensorSpec) -> bool:
    """Whether right-hand sides are one vector for each matrix, by the rule of `torch.linalg.solve`."""
    return len(sides.shape) == 1 or sides.shape == matrix.shape[:-1]


def _repeats(matrices: tuple[Dim, ...], batch: tuple[Dim, ...]) -> Dim:
    """Return how many of a result's batch share a matrix, which is decomposed once for all of them."""
    padded = (1,) * (len(batch) - len(matrices)) + matrices
    return product(size for own, size in zip(padded, batch, strict=True) if own == 1)


def _of_matrix(call: OpCall, kind: str, matrix: TensorSpec, right_sides: Dim = 0) -> Approximation:
    rows, columns = matrix.shape[-2:]
    if isinstance(rows, int) and isinstance(columns, int):
        rows, columns = max(rows, columns), min(rows, columns)
    layer = Factorization(
        kind=kind,
        matrices=product(matrix.shape[:-2]),
        rows=rows,
        columns=columns,
        right_sides=right_sides,
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
        return _of_matrix(call, "singular_values", call.reads[0])
    return cast("Reduction", reduction(call))


for _kind, _operators in _KINDS.items():
    lowers(*(f"aten::{_operator}" for _operator in _operators))(_factorization_rule(_kind))
for _kind, _operators in _SYSTEMS.items():
    lowers(*(f"aten::{_operator}" for _operator in _operators))(_system_rule(_kind))
