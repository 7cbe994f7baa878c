"""Sites: which measured calls are points of one curve, and where on it a call lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from attrs import frozen

from modelmeter.errors import ModelMeterError
from modelmeter.signature import Signature, TensorArgument, Value


class SiteError(ModelMeterError, ValueError):
    """A call whose operands do not fit its operator."""


@frozen(kw_only=True)
class Site:
    """A call as a point on a curve of calls that differ in some sizes only.

    Examples
    --------
    >>> from modelmeter.dtypes import DType
    >>> x = TensorArgument(dtype=DType.BF16, shape=(2, 3, 4), strides=(12, 4, 1))
    >>> w = TensorArgument(dtype=DType.BF16, shape=(8, 4), strides=(4, 1), weight=True)
    >>> site_of(Signature(op="aten::linear", overload="default", arguments={"input": x, "weight": w}), {})
    Site(family='gemm', kind='aten::linear bf16', key='aten::linear bf16 rows 4->8', axes=(6,))
    """

    family: str  # of operators with one physics: "gemm", "grouped gemm", "attention", "convolution", "rows", "memory"
    kind: str  # operator and types: sites of one kind may stand in for each other
    key: str  # kind, layouts and the sizes that stay fixed along the curve
    axes: tuple[int, ...]  # the sizes that move along it


def site_of(signature: Signature, conditions: Mapping[str, int]) -> Site:
    """Return the site of a call with numbers.

    Parameters
    ----------
    signature : Signature
        The call; every size a number.
    conditions : mapping of str to int
        What else its time depends on; see `modelmeter.predict.calibration.Sample`.

    Raises
    ------
    SiteError
        When the operands are not those of the operator.
    """
    rule = _RULES.get(signature.op, _memory)
    try:
        return rule(signature, conditions)
    except (IndexError, KeyError, ValueError) as error:
        raise SiteError(f"{signature.text} has operands that its operator does not take: {error}") from error


# --- products


def _linear(signature: Signature, _conditions: Mapping[str, int]) -> Site:
    """y[m, n] = x[m, k] w[n, k]: a curve in m for each (n, k), bias and layout of x."""
    x, w = signature.tensor("input"), signature.tensor("weight")
    out_features, in_features = _sizes(w)
    kind = f"{signature.op} {x.dtype.value}"
    bias = " bias" if signature.arguments.get("bias") is not None else ""
    rows = math.prod(_sizes(x)[:-1])
    layout = "rows" if x.is_contiguous else "strided rows"
    weight = "" if w.is_contiguous else " transposed"
    key = f"{kind} {layout} {in_features}->{out_features}{weight}{bias}"
    return Site(family="gemm", kind=kind, key=key, axes=(rows,))


def _grouped_linear(signature: Signature, conditions: Mapping[str, int]) -> Site:
    """Many experts' products: a surface in rows and in the share of the experts that could have rows and do."""
    rows, weight = signature.tensor("input"), signature.tensor("weight")
    experts, out_features, in_features = _sizes(weight)
    kind = f"{signature.op} {rows.dtype.value}"
    count = _sizes(rows)[0]
    axes = (count, round(1000 * conditions["active_experts"] / min(experts, count)))
    return Site(family="grouped gemm", kind=kind, key=f"{kind} {experts} x {in_features}->{out_features}", axes=axes)


def _attention(signature: Signature, _conditions: Mapping[str, int]) -> Site:
    """Attention: heads of all sequences, queries, and keys beyond the queries move; the rest is fixed.

    Prompts have as many keys as queries, steps one query: with keys themselves an axis, neither would lie on a line.
    """
    q, k = signature.tensor("query"), signature.tensor("key")
    mask = signature.arguments.get("attn_mask")
    masked = f" {mask.dtype.value} mask" if isinstance(mask, TensorArgument) else ""
    causal = " causal" if signature.arguments.get("is_causal") else ""
    kind = f"{signature.op} {q.dtype.value}"
    key = f"{kind} {_head_layout(q)} d={_sizes(q)[-1]}{masked}{causal}"
    heads = math.prod(_sizes(q)[:-2])
    queries, keys = _sizes(q)[-2], _sizes(k)[-2]
    return Site(family="attention", kind=kind, key=key, axes=(heads, queries, max(0, keys - queries)))


def _flash_attention(signature: Signature, _conditions: Mapping[str, int]) -> Site:
    q, k = signature.tensor("q"), signature.tensor("k")
    batch, queries, heads, width = _sizes(q)
    kind = f"{signature.op} {q.dtype.value}"
    key = f"{kind} d={width}" + (" causal" if signature.arguments.get("causal") else "")
    beyond = max(0, _sizes(k)[1] - queries)
    return Site(family="attention", kind=kind, key=key, axes=(batch * heads, queries, beyond))


def _head_layout(q: TensorArgument) -> str:
    """Tell whether a head's rows lie together in memory, or a row's heads; the same where one of the two is 1."""
    heads, queries = _sizes(q)[-3:-1]
    between_heads, between_rows = (cast("int", stride) for stride in q.strides[-3:-1])
    return "rows of heads" if heads > 1 and queries > 1 and between_heads < between_rows else "heads of rows"


def _convolution(signature: Signature, _conditions: Mapping[str, int]) -> Site:
    """Convolution: images and their pixels move; channels, kernel and stride are fixed."""
    x, w = signature.tensor("input"), signature.tensor("weight")
    kind = f"{signature.op} {x.dtype.value}"
    fixed = {name: value for name, value in signature.arguments.items() if name in _CONVOLUTION_FIXED}
    bias = " bias" if signature.arguments.get("bias") is not None else ""
    layout = "" if x.is_contiguous else " permuted"
    key = f"{kind}{layout} {'x'.join(map(str, w.shape))}{bias} {sorted(fixed.items())}"
    images, _, *space = _sizes(x)
    return Site(family="convolution", kind=kind, key=key, axes=(images, math.prod(space)))


_CONVOLUTION_FIXED = frozenset({"stride", "padding", "dilation", "groups"})


def _product(signature: Signature, _conditions: Mapping[str, int]) -> Site:
    """Products of two activations: a curve in multiply-adds for each equation, layout and width of the first."""
    tensors = signature.tensors
    kind = f"{signature.op} {_types(tensors)}"
    ranks = [len(item.shape) for item in tensors]
    key = f"{kind} {_scalars(signature)} {' '.join(map(_layout, tensors))} {ranks}"
    return Site(family="gemm", kind=kind, key=key, axes=(_multiply_adds(signature),))


def _multiply_adds(signature: Signature) -> int:
    """Return the product of all sizes that an element of the result or of a sum runs through, each once."""
    left, right = signature.tensors
    equation = signature.arguments.get("equation")
    if isinstance(equation, str):
        letters = equation.partition("->")[0].replace(",", "").replace(" ", "")
        return math.prod(dict(zip(letters, (*_sizes(left), *_sizes(right)), strict=True)).values())
    return math.prod(_sizes(left)) * (_sizes(right)[-1] if len(right.shape) > 1 else 1)


# --- rows and memory


def _rows(signature: Signature, _conditions: Mapping[str, int]) -> Site:
    """One result or one order per row: rows and their width move."""
    x = signature.tensors[0]
    kind = f"{signature.op}.{signature.overload} {x.dtype.value}"
    sizes = _sizes(x)
    width = sizes[-1] if sizes else 1
    key = f"{kind} {_layout(x)} {_scalars(signature)}"
    return Site(family="rows", kind=kind, key=key, axes=(math.prod(sizes[:-1]), width))


def _embedding(signature: Signature, _conditions: Mapping[str, int]) -> Site:
    table, indices = signature.tensor("weight"), signature.tensor("indices")
    kind = f"{signature.op} {table.dtype.value}"
    return Site(family="memory", kind=kind, key=f"{kind} {_sizes(table)[1]}", axes=(max(1, indices.elements),))


def _join(signature: Signature, _conditions: Mapping[str, int]) -> Site:
    """Tensors side by side, however many: a curve in the elements of all of them."""
    tensors = signature.tensors
    kind = f"{signature.op} {tensors[0].dtype.value}"
    layouts = " ".join(dict.fromkeys(map(_layout, tensors)))
    key = f"{kind} {layouts} {_scalars(signature)}"
    return Site(family="memory", kind=kind, key=key, axes=(max(1, sum(item.elements for item in tensors)),))


def _memory(signature: Signature, _conditions: Mapping[str, int]) -> Site:
    """Pointwise kernels, copies and whatever else is decided by bytes: a curve in elements for each layout."""
    tensors = signature.tensors
    kind = f"{signature.op}.{signature.overload} {_types(tensors)}"
    key = f"{kind} {' '.join(map(_layout, tensors))} {_scalars(signature)}"
    elements = _broadcast_elements(tensors) if tensors else _created_elements(signature)
    return Site(family="memory", kind=kind, key=key, axes=(elements,))


def _broadcast_elements(tensors: Sequence[TensorArgument]) -> int:
    """Return the elements of the operands stretched over each other, or of the largest where they do not fit."""
    rank = max(len(item.shape) for item in tensors)
    shapes = [(1,) * (rank - len(item.shape)) + _sizes(item) for item in tensors]
    columns = list(zip(*shapes, strict=True))
    if all(len({size for size in column if size != 1}) <= 1 for column in columns):
        return max(1, math.prod(max(column) for column in columns))
    return max(1, *(item.elements for item in tensors))


def _created_elements(signature: Signature) -> int:
    """Return the elements of a result that follows from numbers alone: a ramp, or a shape that is filled."""
    arguments = signature.arguments
    if "end" in arguments:
        start, step = arguments.get("start", 0), arguments.get("step", 1)
        span = cast("float", arguments["end"]) - cast("float", start)
        return max(1, math.ceil(span / cast("float", step)))
    size = arguments.get("size", ())
    return max(1, math.prod(cast("tuple[int, ...]", size)))


# --- parts of keys


def _sizes(tensor: TensorArgument) -> tuple[int, ...]:
    return cast("tuple[int, ...]", tensor.shape)


def _types(tensors: Sequence[TensorArgument]) -> str:
    return "*".join(item.dtype.value for item in tensors)


def _layout(tensor: TensorArgument) -> str:
    """Return how a kernel walks through a tensor: a word that does not change along a curve.

    "one": a single element. "row": in order, no gaps. "stretched": some elements are read several times. "gaps": in
    order, with gaps. "inner": not in order, the last axis without gaps. "strided": the last axis has gaps.
    """
    axes = [(cast("int", size), cast("int", stride)) for size, stride in zip(tensor.shape, tensor.strides, strict=True)]
    moving = [(size, stride) for size, stride in axes if size > 1]
    if not moving:
        return "one"
    if any(stride == 0 for _, stride in moving):
        return "stretched"
    if tensor.is_contiguous:
        return "row"
    strides = [stride for _, stride in moving]
    if strides[-1] != 1:
        return "strided"
    return "gaps" if strides == sorted(strides, reverse=True) else "inner"


_SIZE_ARGUMENTS = frozenset(
    {"shape", "size", "end", "start", "split_size", "repeats", "output_size", "device", "fill_value"}
)


def _scalars(signature: Signature) -> str:
    """Return the arguments that choose what a kernel does; those that only repeat sizes are left out."""
    rank = len(signature.tensors[0].shape) if signature.tensors else 0
    kept = (
        f"{name}={_axes(value, rank) if name == 'dim' else repr(value)}"
        for name, value in signature.arguments.items()
        if name not in _SIZE_ARGUMENTS and (name == "dim" or isinstance(value, bool | str | int | float))
    )
    broadcast = "stretch" if len({_sizes(item) for item in signature.tensors if item.elements > 1}) > 1 else ""
    return " ".join((*kept, broadcast)).strip()


def _axes(value: Value, rank: int) -> str:
    """Write axes counted from the last, so that a leading axis more makes no difference."""
    axes = value if isinstance(value, tuple) else (value,)
    return str([axis % rank - rank if isinstance(axis, int) and rank else axis for axis in axes])


_RULES: Mapping[str, Callable[[Signature, Mapping[str, int]], Site]] = {
    "aten::linear": _linear,
    "dsocr_graph::grouped_linear": _grouped_linear,
    "aten::scaled_dot_product_attention": _attention,
    "dsocr_graph::flash_attention": _flash_attention,
    "aten::conv2d": _convolution,
    "aten::matmul": _product,
    "aten::bmm": _product,
    "aten::einsum": _product,
    "aten::layer_norm": _rows,
    "aten::softmax": _rows,
    "aten::topk": _rows,
    "aten::sort": _rows,
    "aten::argsort": _rows,
    "aten::argmax": _rows,
    "aten::mean": _rows,
    "aten::sum": _rows,
    "aten::cumsum": _rows,
    "aten::embedding": _embedding,
    "aten::cat": _join,
}
