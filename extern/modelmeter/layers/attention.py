"""ScaledDotProductAttention: one fused attention kernel."""

from __future__ import annotations

from typing import ClassVar

import attrs
import sympy
from attrs import field, frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim, product, simplify, total
from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.layers.base import NOT_CAPTURED, BaseLayer, Operand, Traffic, as_dim
from modelmeter.layers.pointwise_flops import flops_per_element


def _divides_heads(layer: ScaledDotProductAttention, attribute: attrs.Attribute[Dim], kv_heads: Dim) -> None:
    if isinstance(layer.heads, int) and isinstance(kv_heads, int) and (kv_heads < 1 or layer.heads % kv_heads):
        raise DimError(
            f"ScaledDotProductAttention: {attribute.name}={kv_heads} does not divide heads={layer.heads}; "
            "each key head serves a whole group of query heads"
        )


@frozen(kw_only=True)
class ScaledDotProductAttention(BaseLayer):
    """o = softmax(q k^T / sqrt(D) + mask) v, with scores kept on chip.

    FLOPs: two full matrix products, ``2*B*H*Sq*Sk*(D + Dv)``; what a causal kernel may skip is apart, in
    `causal_saved_flops`. Scale and softmax cost 6 per score, a mask 1 more. Traffic of one fused kernel: q,
    k, v and the mask read, o written; scores never leave the chip.

    Backward: five products, as the scores are computed again: q k^T, dV, dP, dQ, dK, which is
    ``2*B*H*Sq*Sk*(3*D + 2*Dv)``, 2.5 times the forward pass when D = Dv. The mask has no gradient.

    Sources: ``aten::scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, ...)``;
    Vaswani et al. 2017, section 3.2.1; Dao 2023 (FlashAttention-2), sections 2.3 and 4.1 for the backward
    pass.

    Attributes
    ----------
    batch, heads, kv_heads : Dim
        B, H and the heads of keys and values; kv_heads divides heads.
    query_length, key_length : Dim
        Sq and Sk.
    head_dim, value_head_dim : Dim
        D and Dv.
    causal : bool
        Whether query i sees keys 0..i only (``is_causal``: aligned at the top left).
    mask : Operand or None
        The mask as stored.
    dtype : DType
        Type of q, k, v and o, and of the products.
    kv_dtype : DType or None
        Type in which k and v are read; `dtype` when None.

    Examples
    --------
    >>> layer = ScaledDotProductAttention(
    ...     batch=1, heads=2, kv_heads=2, query_length=3, key_length=3, head_dim=4, value_head_dim=4,
    ...     causal=True, dtype=DType.BF16,
    ... )
    >>> layer.matmul_flops(), layer.causal_saved_flops(), layer.traffic().bytes
    (288, 96, 192)
    """

    category: ClassVar[Category] = Category.ATTENTION

    batch: Dim = field(converter=as_dim)
    heads: Dim = field(converter=as_dim)
    kv_heads: Dim = field(converter=as_dim, validator=_divides_heads)
    query_length: Dim = field(converter=as_dim)
    key_length: Dim = field(converter=as_dim)
    head_dim: Dim = field(converter=as_dim)  # elements
    value_head_dim: Dim = field(converter=as_dim)  # elements
    causal: bool
    mask: Operand | None = None
    dtype: DType
    kv_dtype: DType | None = field(default=None, metadata=NOT_CAPTURED)

    def matmul_flops(self) -> Dim:
        """2*B*H*Sq*Sk*(D + Dv), causal or not. Unit: FLOPs."""
        return product((2, self._scores(), total((self.head_dim, self.value_head_dim))))

    def causal_saved_flops(self) -> Dim:
        """FLOPs of the products above the diagonal, which a causal kernel may skip; 0 without a causal mask.

        Query i sees min(i + 1, Sk) keys, so with m = min(Sq, Sk) the hidden scores are m*Sk - m*(m + 1)/2.
        """
        if not self.causal:
            return 0
        rows = _smaller(self.query_length, self.key_length)
        hidden_twice = simplify(2 * rows * self.key_length - rows * (rows + 1))
        return product((self.batch, self.heads, total((self.head_dim, self.value_head_dim)), hidden_twice))

    def vector_flops(self) -> Dim:
        """Scale, softmax and mask, per score. Unit: FLOPs."""
        masked = flops_per_element("attention_mask") if self.mask else 0
        return product((flops_per_element("attention_score") + masked, self._scores()))

    def traffic(self) -> Traffic:
        """q, k, v and the mask read once, o written once."""
        return Traffic.from_operands(self._inputs() + ((self.mask,) if self.mask else ()), (self._result(),))

    def backward_matmul_flops(self) -> Dim:
        """2*B*H*Sq*Sk*(3*D + 2*Dv): the scores again, dQ and dK over D; dV and dP over Dv. Unit: FLOPs."""
        width = total((product((3, self.head_dim)), product((2, self.value_head_dim))))
        return product((2, self._scores(), width))

    def backward_vector_flops(self) -> Dim:
        """The probabilities again and the scores' gradient, per score; sum(dO * O) per row. Unit: FLOPs."""
        masked = flops_per_element("attention_mask") if self.mask else 0
        scores = product((flops_per_element("attention_score_backward") + masked, self._scores()))
        return total((scores, product((flops_per_element("attention_delta"), self._result().elements))))

    def backward_traffic(self) -> Traffic:
        """q, k, v, mask, o and dO read once; dQ, dK and dV written once."""
        forward = self.traffic()
        return Traffic(
            weights_read=forward.weights_read,
            activations_read=total((forward.activations_read, product((2, forward.written)))),
            written=total(operand.bytes for operand in self._inputs()),
        )

    def backward_activation_bytes(self) -> Dim:
        """Bytes of q, k, v, the mask and o, kept for the backward pass; the scores are computed again."""
        forward = self.traffic()
        return total((forward.activations_read, forward.written))

    def _scores(self) -> Dim:
        return product((self.batch, self.heads, self.query_length, self.key_length))

    def _inputs(self) -> tuple[Operand, Operand, Operand]:
        query = product((self.batch, self.heads, self.query_length, self.head_dim))
        key = product((self.batch, self.kv_heads, self.key_length, self.head_dim))
        value = product((self.batch, self.kv_heads, self.key_length, self.value_head_dim))
        cached = self.kv_dtype or self.dtype
        return (
            Operand(elements=query, dtype=self.dtype),
            Operand(elements=key, dtype=cached),
            Operand(elements=value, dtype=cached),
        )

    def kv_operands(self) -> tuple[Operand, Operand]:
        """Return the keys and the values that are read."""
        _, key, value = self._inputs()
        return key, value

    def _result(self) -> Operand:
        elements = product((self.batch, self.heads, self.query_length, self.value_head_dim))
        return Operand(elements=elements, dtype=self.dtype)


def _smaller(left: Dim, right: Dim) -> Dim:
    if isinstance(left, sympy.Expr) or isinstance(right, sympy.Expr):
        return simplify(sympy.Min(left, right))
    return min(left, right)
