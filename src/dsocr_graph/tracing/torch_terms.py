"""Terms: torch's dtypes and symbolic sizes in those of modelmeter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.fx import Node

from dsocr_graph.errors import CaptureError
from dsocr_graph.models.stage_spec import StageSpec, declared_leaves, linear_in
from modelmeter.dim_text import parse
from modelmeter.dims import Dim, never_negative, simplify, symbol
from modelmeter.dtypes import DType

_DTYPES: Mapping[torch.dtype, DType] = {
    torch.float64: DType.FP64,
    torch.float32: DType.FP32,
    torch.bfloat16: DType.BF16,
    torch.float16: DType.FP16,
    torch.float8_e4m3fn: DType.FP8_E4M3,
    torch.float8_e5m2: DType.FP8_E5M2,
    torch.int64: DType.INT64,
    torch.int32: DType.INT32,
    torch.int16: DType.INT16,
    torch.int8: DType.INT8,
    torch.uint8: DType.UINT8,
    torch.bool: DType.BOOL,
    torch.complex128: DType.COMPLEX128,
    torch.complex64: DType.COMPLEX64,
}


def dtype_of(dtype: torch.dtype, name: str) -> DType:
    """Return the type of a tensor's elements; the name is the tensor's, for the message.

    Raises
    ------
    CaptureError
        For a type that has no counterpart.

    Examples
    --------
    >>> dtype_of(torch.bfloat16, "x")
    <DType.BF16: 'bf16'>
    """
    known = _DTYPES.get(dtype)
    if known is None:
        raise CaptureError(
            f"tensor {name!r} has dtype {dtype}, which has no analytic counterpart; "
            f"known are {', '.join(sorted(str(item) for item in _DTYPES))}"
        )
    return known


def symbols_of(stage: StageSpec, inputs: Sequence[Node]) -> dict[sympy.Symbol, sympy.Expr]:
    """Return the declared dim for each of torch's renamed symbols (`s77`), by the shapes of a stage's inputs."""
    found: dict[sympy.Symbol, sympy.Expr] = {}
    if stage.dynamic_shapes is None:
        return found
    for node, declared in zip(inputs, declared_leaves(stage.dynamic_shapes), strict=True):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or declared is None:
            continue
        for axis, dim in declared.items():
            size = value.shape[axis]
            if dim is None or not isinstance(size, torch.SymInt):
                continue
            label, factor, offset = linear_in(dim)
            expr = sympy.expand((size.node.expr - offset) / factor)
            if isinstance(expr, sympy.Symbol):
                alias = stage.aliases.get(label)
                found[expr] = sympy.sympify(parse(alias) if alias else symbol(label))
    return found


def size_in(expr: sympy.Expr, symbols: Mapping[sympy.Symbol, sympy.Expr]) -> Dim:
    """Return torch's expression of a size in other symbols and sympy's own functions.

    Examples
    --------
    >>> size_in(2 * sympy.Symbol("s77"), {sympy.Symbol("s77"): symbol("B")})
    2*B
    """
    return simplify(_without_torch_functions(expr.xreplace(symbols)))


def _without_torch_functions(expr: Any) -> Any:  # noqa: ANN401 - sympy has no types for these
    if not expr.args:
        return expr
    arguments = [_without_torch_functions(argument) for argument in expr.args]
    kind = type(expr).__name__
    if kind in {"FloorDiv", "CleanDiv", "IntTrueDiv"}:
        quotient = sympy.expand(arguments[0] / arguments[1])
        return quotient if kind != "FloorDiv" or quotient.is_integer else sympy.floor(quotient)
    if kind in {"PythonMod", "Mod"}:
        quotient = sympy.expand(arguments[0] / arguments[1])
        return sympy.Integer(0) if quotient.is_integer else arguments[0] - arguments[1] * sympy.floor(quotient)
    if kind == "ToFloat":
        return arguments[0]
    if kind in {"TruncToInt", "FloorToInt"}:  # of a size times a factor: none is negative
        return sympy.floor(sympy.nsimplify(arguments[0], rational=True))
    if kind in {"Max", "Min"}:
        return _extreme(arguments, largest=kind == "Max")
    return expr.func(*arguments)


def _extreme(arguments: Sequence[Any], *, largest: bool) -> Any:  # noqa: ANN401 - sympy has no types for these
    """Return the largest or smallest argument where that holds for all sizes, else the open Max or Min."""
    for candidate in arguments:
        sign = 1 if largest else -1
        if all(never_negative(sign * (candidate - other)) for other in arguments):
            return candidate
    return (sympy.Max if largest else sympy.Min)(*arguments)
