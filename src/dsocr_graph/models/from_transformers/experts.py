"""The experts of any transformers MoE model by grouped products, as one of transformers' own implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dsocr_graph.models.deepseek_ocr.experts import combine_expert_outputs, sort_by_expert
from dsocr_graph.models.deepseek_ocr.ops import grouped_linear

IMPLEMENTATION = "dsocr_graph_grouped"
"""The name under which transformers finds `grouped_experts`, as `experts_implementation`."""


def register_experts() -> None:
    """Offer `grouped_experts` to transformers; a second call changes nothing."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(IMPLEMENTATION, grouped_experts)


ProductOf = Callable[[Any, str], Callable[..., Tensor]]
"""``(module, name of its weight) -> what multiplies rows by it``, called as `grouped_linear` is."""


def _plain_product(module: object, name: str) -> Callable[..., Tensor]:
    return grouped_linear


def grouped_experts(
    self: Any,  # noqa: ANN401 - transformers has no class for it
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    *,
    product_of: ProductOf = _plain_product,
) -> Tensor:
    """Run the experts of a transformers module in two grouped products; equal in result to its own loop.

    The custom operator tells an analysis how many experts each token has, which transformers' "grouped_mm" does not.

    Shapes: hidden_states [tokens, hidden], top_k_index and top_k_weights [tokens, k] -> [tokens, hidden]. `self` is
    a module that transformers' `use_experts_implementation` decorates; it says by attributes whether it has a gate,
    biases, a norm after each expert, and in which order its weights lie.
    """
    per_token = top_k_index.shape[-1]
    order, rows, offsets = sort_by_expert(hidden_states, top_k_index, self.num_experts)
    experts = top_k_index.reshape(-1)[order] if self.has_bias else None

    def product(rows: Tensor, name: str) -> Tensor:
        weight = getattr(self, name)
        weight = weight.transpose(1, 2) if self.is_transposed else weight
        result = product_of(self, name)(rows, weight, offsets, experts_per_token=per_token)
        return result if experts is None else result + getattr(self, f"{name}_bias")[experts]

    inner = self._apply_gate(product(rows, "gate_up_proj")) if self.has_gate else self.act_fn(product(rows, "up_proj"))
    rows = product(inner, "down_proj")
    if self.has_post_expert_norm:
        rows = self.post_expert_norm(rows)
    return combine_expert_outputs(rows, order, top_k_weights)
