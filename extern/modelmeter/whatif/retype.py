"""Layers in other element types: one rule per class of layer for its activations, and one for its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import attrs
from attrs import evolve

from modelmeter.dtypes import DType
from modelmeter.layers import (
    Activation,
    BaseLayer,
    BatchNorm,
    Combination,
    Conv1d,
    Conv2d,
    ConvTranspose,
    DataMovement,
    Elementwise,
    Embedding,
    EmbeddingBag,
    Factorization,
    FourierTransform,
    Gather,
    GroupedLinear,
    GroupNorm,
    Interpolation,
    LayerNorm,
    Linear,
    Matmul,
    MoEExperts,
    Operand,
    Recurrent,
    Reduction,
    RMSNorm,
    ScaledDotProductAttention,
    Scan,
    Scatter,
    SearchSorted,
    Softmax,
    Sort,
    TopK,
    Unclassified,
)
from modelmeter.layers.weight_format import WeightFormat
from modelmeter.whatif.errors import UnsupportedWhatIfError

Kernel = Activation | Combination | Elementwise | Factorization | FourierTransform | Reduction | Scan
Listed = Kernel | Gather | Scatter | Unclassified | DataMovement
Matrix = Linear | GroupedLinear | MoEExperts
Table = (
    BatchNorm | Conv1d | Conv2d | ConvTranspose | Embedding | EmbeddingBag | GroupNorm | LayerNorm | RMSNorm | Recurrent
)
Plain = Interpolation | SearchSorted | Sort | TopK

AnyListed = TypeVar("AnyListed", bound=Listed)

Rule = Callable[[Any, DType, DType], BaseLayer]
"""``(layer, captured type, wanted type) -> layer``."""

MATRICES = (Linear, GroupedLinear, MoEExperts)
"""Layers whose matrices of weights are quantised."""


def with_activations(layer: BaseLayer, captured: DType, wanted: DType) -> BaseLayer:
    """Return a layer whose tensors of the captured type, parameters apart, have another.

    Raises
    ------
    UnsupportedWhatIfError
        When no rule is known for its class.

    Examples
    --------
    >>> layer = Linear(rows=3, in_features=4, out_features=2, bias=False, dtype=DType.BF16)
    >>> wide = with_activations(layer, DType.BF16, DType.FP32)
    >>> wide.traffic().weights_read, wide.traffic().written, wide.tensor_core_flops()
    (16, 24, 0)
    """
    return _rule(layer).activations(layer, captured, wanted)


def with_parameters(layer: BaseLayer, captured: DType, wanted: DType) -> BaseLayer:
    """Return a layer all of whose parameters of the captured type have another.

    Raises
    ------
    UnsupportedWhatIfError
        When no rule is known for its class.

    Examples
    --------
    >>> layer = Linear(rows=3, in_features=4, out_features=2, bias=False, dtype=DType.BF16)
    >>> with_parameters(layer, DType.BF16, DType.FP32).traffic().weights_read
    32
    """
    return _rule(layer).parameters(layer, captured, wanted)


def with_narrow_inputs(layer: BaseLayer, captured: DType, wanted: DType) -> BaseLayer:
    """Return a layer of weights that reads its input and multiplies in a narrow type; its results keep theirs.

    Raises
    ------
    UnsupportedWhatIfError
        When no rule is known for its class.
    """
    _rule(layer)
    if not isinstance(layer, MATRICES) or layer.dtype is not captured:
        return layer
    stored = layer.weights or WeightFormat(dtype=captured, other_dtype=captured)
    return evolve(layer, dtype=wanted, out_dtype=captured, weights=stored)


def with_matrices(layer: BaseLayer, captured: DType, stored: WeightFormat) -> BaseLayer:
    """Return a layer whose matrices of weights, where they are of the captured type, are stored in a format.

    Raises
    ------
    UnsupportedWhatIfError
        When no rule is known for its class.
    """
    _rule(layer)
    if not isinstance(layer, MATRICES) or _parameter_type(layer) is not captured:
        return layer
    return evolve(layer, weights=stored)


def with_table(layer: BaseLayer, stored: WeightFormat) -> BaseLayer:
    """Return a layer that looks rows up in a table that is stored in a format; other layers stay as they are.

    Examples
    --------
    >>> layer = Embedding(rows=3, width=4, vocabulary=10, index_dtype=DType.INT64, dtype=DType.BF16)
    >>> with_table(layer, WeightFormat(dtype=DType.FP8_E4M3, other_dtype=DType.BF16)).traffic().weights_read
    12
    """
    return evolve(layer, weights=stored) if isinstance(layer, Embedding | EmbeddingBag) else layer


# --- rules


@attrs.frozen(kw_only=True)
class _Rules:
    activations: Rule
    parameters: Rule


def _rule(layer: BaseLayer) -> _Rules:
    if type(layer) not in _RULES:
        known = ", ".join(sorted(kind.__name__ for kind in _RULES))
        raise UnsupportedWhatIfError(
            f"no rule gives a {type(layer).__name__} other element types; known are {known}. Add one to "
            "modelmeter.whatif.retype"
        )
    return _RULES[type(layer)]


def _operands(operands: tuple[Operand, ...], captured: DType, wanted: DType, *, weight: bool) -> tuple[Operand, ...]:
    return tuple(
        evolve(each, dtype=wanted) if each.weight is weight and each.dtype is captured else each for each in operands
    )


def _listed(layer: AnyListed, captured: DType, wanted: DType, *, weight: bool) -> AnyListed:
    reads = _operands(layer.reads, captured, wanted, weight=weight)
    writes = _operands(layer.writes, captured, wanted, weight=weight)
    return evolve(layer, reads=reads, writes=writes)


def _listed_activations(layer: Listed, captured: DType, wanted: DType) -> BaseLayer:
    return _listed(layer, captured, wanted, weight=False)


def _listed_parameters(layer: Listed, captured: DType, wanted: DType) -> BaseLayer:
    return _listed(layer, captured, wanted, weight=True)


def _kernel_activations(layer: Kernel, captured: DType, wanted: DType) -> BaseLayer:
    return _own_type(_listed(layer, captured, wanted, weight=False), captured, wanted)


def _moved_activations(layer: DataMovement, captured: DType, wanted: DType) -> BaseLayer:
    return _without_idle_cast(_listed(layer, captured, wanted, weight=False))


def _moved_parameters(layer: DataMovement, captured: DType, wanted: DType) -> BaseLayer:
    return _without_idle_cast(_listed(layer, captured, wanted, weight=True))


def _without_idle_cast(layer: DataMovement) -> DataMovement:
    """Return a cast between equal types as what it is: nothing."""
    kinds = {operand.dtype for operand in (*layer.reads, *layer.writes)}
    return evolve(layer, reads=(), writes=()) if layer.op == "cast" and len(kinds) == 1 else layer


def _own_type(layer: Kernel | Plain | ScaledDotProductAttention | Softmax, captured: DType, wanted: DType) -> BaseLayer:
    return evolve(layer, dtype=wanted) if layer.dtype is captured else layer


def _no_parameters(layer: BaseLayer, _captured: DType, _wanted: DType) -> BaseLayer:
    return layer


def _matrix_activations(layer: Matrix, captured: DType, wanted: DType) -> BaseLayer:
    if layer.dtype is not captured:
        return layer
    return evolve(layer, dtype=wanted, weights=layer.weights or WeightFormat(dtype=captured, other_dtype=captured))


def _parameter_type(layer: Matrix) -> DType:
    return layer.dtype if layer.weights is None else layer.weights.dtype


def _matrix_parameters(layer: Matrix, captured: DType, wanted: DType) -> BaseLayer:
    if _parameter_type(layer) is not captured:
        return layer
    same = wanted is layer.dtype
    return evolve(layer, weights=None if same else WeightFormat(dtype=wanted, other_dtype=wanted))


def _table_activations(layer: Table, captured: DType, wanted: DType) -> BaseLayer:
    if layer.dtype is not captured:
        return layer
    return evolve(layer, dtype=wanted, parameter_dtype=layer.parameter_dtype or captured)


def _table_parameters(layer: Table, captured: DType, wanted: DType) -> BaseLayer:
    if (layer.parameter_dtype or layer.dtype) is not captured:
        return layer
    return evolve(layer, parameter_dtype=None if wanted is layer.dtype else wanted)


def _product_activations(layer: Matmul, captured: DType, wanted: DType) -> BaseLayer:
    if layer.dtype is not captured:
        return layer
    return evolve(
        layer,
        dtype=wanted,
        out_dtype=wanted if layer.out_dtype is captured else layer.out_dtype,
        left_dtype=layer.left_dtype or captured if layer.left_weight else layer.left_dtype,
        right_dtype=layer.right_dtype or captured if layer.right_weight else layer.right_dtype,
    )


def _product_parameters(layer: Matmul, captured: DType, wanted: DType) -> BaseLayer:
    left, right = layer.left_dtype or layer.dtype, layer.right_dtype or layer.dtype
    return evolve(
        layer,
        left_dtype=wanted if layer.left_weight and left is captured else layer.left_dtype,
        right_dtype=wanted if layer.right_weight and right is captured else layer.right_dtype,
    )


def _attention_activations(layer: ScaledDotProductAttention, captured: DType, wanted: DType) -> BaseLayer:
    mask = layer.mask and _operands((layer.mask,), captured, wanted, weight=False)[0]
    return _own_type(evolve(layer, mask=mask), captured, wanted)


def _softmax_activations(layer: Softmax, captured: DType, wanted: DType) -> BaseLayer:
    out = wanted if layer.out_dtype is captured else layer.out_dtype
    return _own_type(evolve(layer, out_dtype=out), captured, wanted)


_KERNEL = _Rules(activations=_kernel_activations, parameters=_listed_parameters)
_INDEXED = _Rules(activations=_listed_activations, parameters=_listed_parameters)
_MATRIX = _Rules(activations=_matrix_activations, parameters=_matrix_parameters)
_TABLE = _Rules(activations=_table_activations, parameters=_table_parameters)
_PLAIN = _Rules(activations=_own_type, parameters=_no_parameters)

_RULES: Mapping[type[BaseLayer], _Rules] = MappingProxyType(
    {
        **dict.fromkeys(
            (Activation, Combination, Elementwise, Factorization, FourierTransform, Reduction, Scan), _KERNEL
        ),
        **dict.fromkeys((Gather, Scatter, Unclassified), _INDEXED),
        **dict.fromkeys(MATRICES, _MATRIX),
        **dict.fromkeys((BatchNorm, Conv1d, Conv2d, ConvTranspose, Embedding, EmbeddingBag), _TABLE),
        **dict.fromkeys((GroupNorm, LayerNorm, RMSNorm, Recurrent), _TABLE),
        **dict.fromkeys((Interpolation, SearchSorted, Sort, TopK), _PLAIN),
        DataMovement: _Rules(activations=_moved_activations, parameters=_moved_parameters),
        Matmul: _Rules(activations=_product_activations, parameters=_product_parameters),
        ScaledDotProductAttention: _Rules(activations=_attention_activations, parameters=_no_parameters),
        Softmax: _Rules(activations=_softmax_activations, parameters=_no_parameters),
    }
)
