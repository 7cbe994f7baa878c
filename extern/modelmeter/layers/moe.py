"""MoEExperts: the expert block of a mixture of experts as one fused layer, for models written by hand."""

from __future__ import annotations

from typing import ClassVar, cast

import attrs
import sympy
from attrs import field, frozen

from modelmeter.categories import Category
from modelmeter.dim_binding import settle
from modelmeter.dims import Dim, product, simplify, total
from modelmeter.dtypes import DType
from modelmeter.expert_counts import distinct_experts
from modelmeter.layers.base import NOT_CAPTURED, BaseLayer, Traffic, as_dim
from modelmeter.layers.pointwise_flops import flops_per_element
from modelmeter.layers.weight_format import WeightFormat, stored_as


def _open_routing(layer: MoEExperts) -> Dim:
    return cast("sympy.Expr", distinct_experts(layer.experts, layer.experts_per_token, layer.tokens))


@frozen(kw_only=True)
class MoEExperts(BaseLayer):
    """Every token through k experts: down(silu(gate(x)) * up(x)), or down(silu(up(x))) without a gate.

    FLOPs: ``2*T*k*p*h*i`` with p = 3 products when gated, 2 otherwise; the activation costs 5 and the gating
    product 1 per element of [T*k, i]. Traffic of one fused kernel: T*k rows of h elements read and written,
    and the weights of the distinct experts that the tokens touch; [T*k, i] stays on chip. FLOPs and weight
    bytes are those of p `GroupedLinear` layers, an activation and a product. Routing and the weighted sum are
    not part of it.

    Backward: two products per product; the gradients of all experts are written.
    Source: Dai et al. 2024 (DeepSeekMoE), equations 3 to 5; Shazeer 2020 for the gated form.

    Attributes
    ----------
    tokens, experts, experts_per_token : Dim
        T, E and k.
    hidden_size, intermediate_size : Dim
        h and i of each expert.
    gated : bool
        Whether an expert has a gate projection.
    dtype : DType
        Type of the weights and the activations, and of the products.
    weights : WeightFormat or None
        How the weights are stored; in `dtype` when None.
    out_dtype : DType or None
        Type of the rows written; `dtype` when None.
    active_experts : Dim
        Distinct experts that the tokens touch; ``distinct_experts(E, k, T)`` unless given. Until `at` binds
        it under another routing, an expression without dims counts as bound under uniform routing.

    Examples
    --------
    >>> layer = MoEExperts(
    ...     tokens=8, experts=64, experts_per_token=6, hidden_size=1280, intermediate_size=896, gated=True,
    ...     dtype=DType.BF16,
    ... )
    >>> layer.matmul_flops() == 2 * 8 * 6 * 3 * 1280 * 896
    True
    >>> expert = 3 * 1280 * 896 * 2
    >>> round(layer.traffic().weights_read / expert, 1), [b // expert for b in layer.weight_read_bounds()]
    (34.9, [6, 48])
    """

    category: ClassVar[Category] = Category.LINEAR

    tokens: Dim = field(converter=as_dim)
    experts: Dim = field(converter=as_dim)
    experts_per_token: Dim = field(converter=as_dim)
    hidden_size: Dim = field(converter=as_dim)  # elements
    intermediate_size: Dim = field(converter=as_dim)  # elements
    gated: bool
    dtype: DType
    weights: WeightFormat | None = field(default=None, metadata=NOT_CAPTURED)
    out_dtype: DType | None = field(default=None, metadata=NOT_CAPTURED)
    active_experts: Dim = field(converter=as_dim, default=attrs.Factory(_open_routing, takes_self=True))

    def matmul_flops(self) -> Dim:
        """2*T*k*p*h*i. Unit: FLOPs."""
        return product((2, self._rows(), self._products(), self.hidden_size, self.intermediate_size))

    def vector_flops(self) -> Dim:
        """Activation and gating product per element of [T*k, i]. Unit: FLOPs."""
        gating = flops_per_element("mul") if self.gated else 0
        return product((flops_per_element("silu") + gating, self._rows(), self.intermediate_size))

    def weight_bytes(self) -> Dim:
        """Bytes of every expert."""
        return product((self.experts, self._expert_bytes()))

    def traffic(self) -> Traffic:
        """Rows and the touched experts' weights read once, rows written once."""
        return Traffic(
            weights_read=product((settle(self.active_experts), self._expert_bytes())),
            activations_read=self._row_bytes(self.dtype),
            written=self._row_bytes(self.out_dtype or self.dtype),
        )

    def weight_read_bounds(self) -> tuple[Dim, Dim]:
        """Return the fewest and the most bytes of weights read: min(k, E) and min(E, T*k) experts.

        Both suppose at least one token.
        """
        fewest = simplify(sympy.Min(self.experts_per_token, self.experts))
        most = simplify(sympy.Min(self.experts, self._rows()))
        return product((fewest, self._expert_bytes())), product((most, self._expert_bytes()))

    def backward_traffic(self) -> Traffic:
        """Rows, their gradients and the touched weights read; gradients of rows and all experts written."""
        forward = self.traffic()
        return Traffic(
            weights_read=forward.weights_read,
            activations_read=total((forward.activations_read, forward.written)),
            written=total((forward.activations_read, self.weight_bytes())),
        )

    def _products(self) -> int:
        return 3 if self.gated else 2

    def _rows(self) -> Dim:
        return product((self.tokens, self.experts_per_token))

    def _row_bytes(self, dtype: DType) -> Dim:
        return product((self._rows(), self.hidden_size, dtype.itemsize))

    def _expert_bytes(self) -> Dim:
        stored = stored_as(self.weights, self.dtype)
        inward = stored.matrix_bytes(rows=self.intermediate_size, width=self.hidden_size)
        outward = stored.matrix_bytes(rows=self.hidden_size, width=self.intermediate_size)
        return total((product((self._products() - 1, inward)), outward))
