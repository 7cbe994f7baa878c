"""The experts of a MoE layer: routing, two equal ways to run them, weights both stacked and named.

T is tokens, k experts per token, E experts, H the hidden size, I an expert's width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsocr_graph.models.deepseek_ocr.config import DeepseekOCRConfig, MoEImplementation
from dsocr_graph.models.deepseek_ocr.ops import grouped_linear

# Stacked buffer -> the projection of each expert that is a slice of it.
_STACKED = {"gate_weight": "gate_proj", "up_weight": "up_proj", "down_weight": "down_proj"}


class DeepseekV2MLP(nn.Module):
    """Gated MLP: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class DeepseekV2Experts(nn.ModuleList):
    """The routed experts, as a list of MLPs whose weights are slices of three stacked tensors.

    `gate_weight` [E, I, H], `up_weight` [E, I, H] and `down_weight` [E, H, I] are non-persistent buffers;
    the parameter of each expert's projection is a view of its slice, so that the published names load while
    one kernel runs all experts. Moves, casts, deep copies and state-dict loads keep the storage shared. The
    grouped kernel reads the buffers, so no gradient reaches the parameters.

    With `implementation` "grouped" nothing depends on the routing but values; "loop" runs as the published
    code does: counts copied to the host, then one MLP call for each expert that got tokens.
    """

    gate_weight: Tensor
    up_weight: Tensor
    down_weight: Tensor

    def __init__(self, config: DeepseekOCRConfig) -> None:
        super().__init__(
            DeepseekV2MLP(config.hidden_size, config.moe_intermediate_size) for _ in range(config.n_routed_experts)
        )
        self.implementation: MoEImplementation = config.moe_implementation
        for name in _STACKED:
            self.register_buffer(name, None, persistent=False)
        self._stack_experts()
        self.register_load_state_dict_post_hook(_restack_after_load)

    def forward(self, hidden_states: Tensor, topk_idx: Tensor, topk_weight: Tensor) -> Tensor:
        """hidden_states [T, H], topk_idx [T, k] and topk_weight [T, k] (float32) -> [T, H]."""
        if self.implementation == "loop":
            return self._run_loop(hidden_states, topk_idx, topk_weight)
        per_token = topk_idx.shape[1]
        order, rows, offsets = sort_by_expert(hidden_states, topk_idx, len(self))
        # One SiLU for the rows of all experts; an expert's own `act_fn` would run for its rows alone.
        rows = functional.silu(
            grouped_linear(rows, self.gate_weight, offsets, experts_per_token=per_token)
        ) * grouped_linear(rows, self.up_weight, offsets, experts_per_token=per_token)
        rows = grouped_linear(rows, self.down_weight, offsets, experts_per_token=per_token)
        return combine_expert_outputs(rows, order, topk_weight)

    def _run_loop(self, hidden_states: Tensor, topk_idx: Tensor, topk_weight: Tensor) -> Tensor:
        order, rows, counts = sort_by_expert_on_host(hidden_states, topk_idx, len(self))
        outputs: list[Tensor] = []
        begin = 0
        for expert, count in enumerate(counts):
            if count:
                outputs.append(self[expert](rows[begin : begin + count]))
                begin += count
        gathered = torch.cat(outputs, dim=0) if outputs else rows.new_empty(0, rows.shape[1])
        return combine_expert_outputs(gathered, order, topk_weight)

    def _expert(self, index: int) -> DeepseekV2MLP:
        return cast("DeepseekV2MLP", self[index])

    def _projections(self, name: str) -> list[nn.Linear]:
        return [getattr(self._expert(index), _STACKED[name]) for index in range(len(self))]

    def _stack_experts(self) -> None:
        """Copy the experts' weights into new stacked tensors and make them views of those."""
        for name in _STACKED:
            weights = [projection.weight.detach() for projection in self._projections(name)]
            setattr(self, name, torch.stack(weights))
            self._bind_experts(name)

    def _bind_experts(self, name: str) -> None:
        """Make every expert's parameter a view of its slice, the same object as before where torch can."""
        for projection, weight in zip(self._projections(name), getattr(self, name).unbind(0), strict=True):
            old = projection.weight
            if old.is_meta == weight.is_meta:
                old.data = weight
            else:
                projection.weight = nn.Parameter(weight, requires_grad=old.requires_grad)

    def _restack_if_separate(self) -> None:
        """Share the storage again when a load has replaced the parameters; leave a partial load as it is."""
        for name in _STACKED:
            stacked, weights = getattr(self, name), [one.weight for one in self._projections(name)]
            same_device = {weight.device for weight in weights} == {weights[0].device}
            shared = all(
                weight.device == stacked.device
                and weight.untyped_storage().data_ptr() == stacked.untyped_storage().data_ptr()
                for weight in weights
            )
            if same_device and not shared:
                setattr(self, name, torch.stack([weight.detach() for weight in weights]))
                self._bind_experts(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Not through the children: each would get a copy of its own slice. One stacked tensor at a time
        # exists twice.
        for name in _STACKED:
            setattr(self, name, fn(getattr(self, name)))
            self._bind_experts(name)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        for name in _STACKED:
            copied._bind_experts(name)
        return copied


def _restack_after_load(module: nn.Module, incompatible_keys: object) -> None:
    """Share the storage again after a load that replaced the parameters (`assign=True`)."""
    cast("DeepseekV2Experts", module)._restack_if_separate()  # pyright: ignore[reportPrivateUsage]


def sort_by_expert(hidden_states: Tensor, topk_idx: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bring the rows of each expert together, without a copy to the host.

    Parameters
    ----------
    hidden_states, topk_idx
        [T, H] and [T, k].
    num_experts
        E.

    Returns
    -------
    tuple of Tensor
        The order of the T * k assignments [T * k], the rows in that order [T * k, H], and where the rows of
        each expert end [E] (int32).

    Examples
    --------
    >>> import torch
    >>> order, rows, ends = sort_by_expert(torch.tensor([[1.0], [2.0]]), torch.tensor([[2, 0], [0, 1]]), 3)
    >>> rows[:, 0], ends
    (tensor([1., 2., 2., 1.]), tensor([2, 3, 4], dtype=torch.int32))
    """
    experts, order = topk_idx.view(-1).sort()
    rows = hidden_states[order // topk_idx.shape[1]]
    every = torch.arange(num_experts, device=topk_idx.device)
    ends = torch.searchsorted(experts, every, right=True, out_int32=True)
    return order, rows, ends


def sort_by_expert_on_host(
    hidden_states: Tensor, topk_idx: Tensor, num_experts: int
) -> tuple[Tensor, Tensor, list[int]]:
    """Do as `sort_by_expert`, but count on the host: the published code's one sync per layer."""
    counts = topk_idx.new_zeros(topk_idx.shape[0], num_experts).scatter_(1, topk_idx, 1).sum(dim=0)
    order = topk_idx.view(-1).argsort()
    rows = hidden_states[order // topk_idx.shape[1]]
    return order, rows, counts.cpu().tolist()


def combine_expert_outputs(outputs: Tensor, order: Tensor, topk_weight: Tensor) -> Tensor:
    """Bring the rows back to their tokens and add each k, weighted, in float32: [T * k, H] -> [T, H]."""
    restored = torch.empty_like(outputs)
    restored[order] = outputs
    weighted = restored.view(*topk_weight.shape, -1).to(topk_weight.dtype).mul_(topk_weight.unsqueeze(-1))
    return weighted.sum(dim=1).to(outputs.dtype)
