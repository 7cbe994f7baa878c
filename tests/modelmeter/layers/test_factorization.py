"""Decompositions of matrices, worked by hand."""

from __future__ import annotations

import pytest

from modelmeter.dtypes import DType
from modelmeter.layers import Factorization, Operand
from modelmeter.layers.factorization import FACTORIZATIONS, UnknownFactorizationError

MATRIX = Operand(elements=72, dtype=DType.FP32)


def _factorization(kind: str, **changes: object) -> Factorization:
    fields = {
        "kind": kind,
        "matrices": 2,
        "rows": 6,
        "columns": 6,
        "reads": (MATRIX,),
        "writes": (MATRIX,),
        "dtype": DType.FP32,
    }
    return Factorization(**(fields | changes))


@pytest.mark.parametrize(
    ("kind", "right_sides", "flops"),
    [
        ("cholesky", 0, 2 * 72),  # 216/3
        ("lu", 0, 2 * 144),  # 2/3 of 216
        ("inverse", 0, 2 * 432),
        ("solve", 4, 2 * (144 + 288)),  # LU, then two triangular systems of 36*4 multiply-adds
        ("triangular_solve", 4, 2 * 144),
        ("qr", 0, 2 * 576),  # 4*216 - 4/3*216
        ("symmetric_eigenvectors", 0, 2 * 9 * 216),
        ("svd", 0, 2 * 26 * 216),
    ],
)
def test_flops_of_two_matrices_of_6(kind: str, right_sides: int, flops: int) -> None:
    """The textbook's figures, two times."""
    layer = _factorization(kind, right_sides=right_sides)
    assert (layer.vector_flops(), layer.matmul_flops()) == (flops, 0)
    assert layer.traffic().bytes == 2 * 288


def test_complex_matrices_take_four_times_as_many() -> None:
    """A complex multiply-add is 8 FLOPs."""
    assert _factorization("lu", dtype=DType.COMPLEX64).vector_flops() == 4 * 288


def test_a_tall_matrix_is_cheaper_than_its_square() -> None:
    """12 x 3: Gram-Schmidt's leading term 4*12*9 less 4/3*27, twice."""
    assert _factorization("qr", rows=12, columns=3).vector_flops() == 2 * (432 - 36)


@pytest.mark.parametrize("kind", FACTORIZATIONS)
def test_no_kind_is_free(kind: str) -> None:
    """Each takes some FLOPs, and twice as many backward."""
    layer = _factorization(kind, right_sides=1)
    assert layer.vector_flops() > 0
    assert layer.backward_vector_flops() == pytest.approx(2 * layer.vector_flops())


def test_an_unknown_kind_is_named() -> None:
    """The error lists the kinds."""
    with pytest.raises(UnknownFactorizationError, match="no factorization 'schur'; known are cholesky, lu"):
        _factorization("schur")
