"""Factorization: decompositions of matrices, and the systems that are solved by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar

import attrs
import sympy
from attrs import field, frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim, product, simplify
from modelmeter.dtypes import DType
from modelmeter.errors import ModelMeterError
from modelmeter.layers.base import BaseLayer, Operand, Traffic, as_dim
from modelmeter.layers.gradients import differentiable, kernel_gradient

Formula = Callable[[sympy.Expr, sympy.Expr, sympy.Expr], sympy.Expr]
"""FLOPs by the rows m, the columns n <= m and the right-hand sides k."""

_THIRD = sympy.Rational(1, 3)

FACTORIZATIONS: Mapping[str, Formula] = MappingProxyType(
    {
        "cholesky": lambda m, n, k: _THIRD * n**3,
        "lu": lambda m, n, k: m * n**2 - _THIRD * n**3,
        "qr": lambda m, n, k: 4 * m * n**2 - 4 * _THIRD * n**3,  # the reflections 2, and as much to form Q
        "triangular_solve": lambda m, n, k: n**2 * k,
        "solve": lambda m, n, k: 2 * _THIRD * n**3 + 2 * n**2 * k,
        "cholesky_solve": lambda m, n, k: 2 * n**2 * k,
        "inverse": lambda m, n, k: 2 * n**3,
        "least_squares": lambda m, n, k: 2 * m * n**2 - 2 * _THIRD * n**3 + 4 * m * n * k,
        "singular_values": lambda m, n, k: 4 * m * n**2 - 4 * _THIRD * n**3,
        "svd": lambda m, n, k: 6 * m * n**2 + 20 * n**3,
        "symmetric_eigenvalues": lambda m, n, k: 4 * _THIRD * n**3,
        "symmetric_eigenvectors": lambda m, n, k: 9 * n**3,
        "eigenvalues": lambda m, n, k: 10 * n**3,
        "eigenvectors": lambda m, n, k: 25 * n**3,
        "householder": lambda m, n, k: 2 * m * n**2 - 2 * _THIRD * n**3,
        "exponential": lambda m, n, k: 10 * n**3,  # 5 products; squarings, which depend on the norm, are left out
    }
)
"""FLOPs of one matrix to leading order, for each kind.

Source: Golub and Van Loan, Matrix Computations, 4th edition: LU 3.2, triangular systems 3.1, Cholesky 4.2, QR 5.2,
least squares 5.3, unsymmetric eigenproblem 7.5, symmetric eigenproblem 8.3, SVD 8.6 (thin U and V, R-SVD). Exponential:
Bader, Blanes and Casas 2019, a Taylor polynomial of degree 18.
"""


class UnknownFactorizationError(ModelMeterError, ValueError):
    """No such factorization."""


def _known_kind(_layer: object, _attribute: attrs.Attribute[str], kind: str) -> None:
    if kind not in FACTORIZATIONS:
        raise UnknownFactorizationError(f"no factorization {kind!r}; known are {', '.join(FACTORIZATIONS)}")


@frozen(kw_only=True)
class Factorization(BaseLayer):
    """A batch of matrices [rows, columns] decomposed, inverted or solved for right-hand sides.

    FLOPs to leading order, of the textbook's algorithm (`FACTORIZATIONS`, with its source); those that iterate, such as
    an SVD, take as many as their data need. They count outside matrix products, as most of them are no calls of a
    product and many kernels keep to the vector units. Complex matrices count four times. Traffic: one pass over the
    operands. Backward: an estimate, twice the FLOPs.

    Attributes
    ----------
    kind : str
        A key of `FACTORIZATIONS`.
    matrices : Dim
        Matrices in the batch.
    rows, columns : Dim
        Sizes m and n of one; where a matrix is wide, those of its transpose.
    right_sides : Dim
        Columns k of the right-hand side; 0 where there is none.
    reads, writes : tuple of Operand
        What moves.
    dtype : DType
        Type of the matrices.

    Raises
    ------
    UnknownFactorizationError
        On an unknown kind.

    Examples
    --------
    >>> a = Operand(elements=2 * 6 * 6, dtype=DType.FP32)
    >>> layer = Factorization(
    ...     kind="cholesky", matrices=2, rows=6, columns=6, reads=(a,), writes=(a,), dtype=DType.FP32
    ... )
    >>> layer.vector_flops(), layer.traffic().bytes
    (144, 576)
    """

    category: ClassVar[Category] = Category.ELEMENTWISE

    kind: str = field(validator=_known_kind)
    matrices: Dim = field(converter=as_dim)
    rows: Dim = field(converter=as_dim)
    columns: Dim = field(converter=as_dim)
    right_sides: Dim = field(default=0, converter=as_dim)
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    dtype: DType

    def vector_flops(self) -> Dim:
        """FLOPs of one matrix times matrices. Unit: FLOPs."""
        m, n, k = (sympy.sympify(size) for size in (self.rows, self.columns, self.right_sides))
        parts = 4 if self.dtype.is_complex else 1
        return simplify(parts * sympy.sympify(self.matrices) * FACTORIZATIONS[self.kind](m, n, k))

    def weight_bytes(self) -> Dim:
        """Bytes of the operands that are parameters, as far as the kernel reads them."""
        return self.traffic().weights_read

    def traffic(self) -> Traffic:
        """Each operand read once, each result written once."""
        return Traffic.from_operands(self.reads, self.writes)

    def backward_vector_flops(self) -> Dim:
        """Twice the forward FLOPs where there is a gradient. Unit: FLOPs."""
        return product((2, self.vector_flops())) if differentiable(self.reads) and differentiable(self.writes) else 0

    def backward_traffic(self) -> Traffic:
        """Operands and the results' gradients read once, the operands' gradients written once."""
        return kernel_gradient(self.reads, self.writes)
