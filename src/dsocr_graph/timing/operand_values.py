"""Values that operators need to run at all, or to do the work that they do in a model: indices, masks, offsets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from dsocr_graph.errors import OperandError
from dsocr_graph.timing.plan import PlannedCall
from modelmeter.predict.expert_loop import GROUPED
from modelmeter.predict.host import host_class
from modelmeter.signature import TensorArgument

Place = tuple[str, int | None]
"""Where a tensor is among the arguments: a name, and a position within a list of tensors."""

_BLOCK = 2**22  # random elements before they repeat: drawing them takes longer than copying, and times do not tell
_FEW = 64  # values of whole numbers whose meaning a signature does not tell, such as ranks of experts


class Random:
    """Random tensors on one device, the same in every run."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._generator = torch.Generator(device).manual_seed(0)

    def normal(self, elements: int, dtype: torch.dtype) -> Tensor:
        """Return numbers around 0, of a deviation of 1."""
        block = torch.randn(min(elements, _BLOCK), device=self.device, generator=self._generator).to(dtype)
        result = torch.empty(elements, dtype=dtype, device=self.device)
        for part in result.split(_BLOCK):
            part.copy_(block[: len(part)])
        return result

    def whole(self, elements: int, dtype: torch.dtype) -> Tensor:
        """Return a few different whole numbers from 1 up, or truth values."""
        if dtype == torch.bool:
            return self.below(2, (elements,)).to(dtype)
        return (self.below(_FEW - 1, (elements,)) + 1).to(dtype)

    def below(self, limit: int, shape: tuple[int, ...]) -> Tensor:
        """Return whole numbers from 0 up to a limit, the limit left out."""
        return torch.randint(limit, shape, device=self.device, generator=self._generator)

    def permuted(self, limit: int, shape: tuple[int, ...]) -> Tensor:
        """Return whole numbers below a limit in random order, each as often as any other."""
        order = torch.randperm(math.prod(shape), device=self.device, generator=self._generator)
        return (order % limit).view(shape)


def valid_values(call: PlannedCall, variant: int, random: Random) -> dict[Place, Tensor]:
    """Return the operands of a call whose values matter, contiguous; the others may be anything.

    Parameters
    ----------
    call : PlannedCall
        The call, with numbers.
    variant : int
        The how manieth execution; those of one call may read different parts of a weight.
    random : Random
        Where random values come from.

    Raises
    ------
    OperandError
        When the operator takes indices and no rule knows their range.

    Examples
    --------
    Two of four experts have the three rows; every execution finds other experts.

    >>> from modelmeter.dtypes import DType
    >>> from modelmeter.signature import Signature
    >>> def tensor(*shape: int) -> TensorArgument:
    ...     return TensorArgument(dtype=DType.FP32, shape=shape, strides=(1,) * len(shape))
    >>> given = {"input": tensor(3, 8), "weight": tensor(4, 8, 8), "offsets": tensor(4), "experts_per_token": 1}
    >>> signature = Signature(op="dsocr_graph::grouped_linear", overload="default", arguments=given)
    >>> call = PlannedCall(signature=signature, conditions={"active_experts": 2}, flops=0, bytes=0, origin="")
    >>> random = Random(torch.device("cpu"))
    >>> [valid_values(call, variant, random)["offsets", None].tolist() for variant in (0, 1)]
    [[2, 2, 3, 3], [0, 2, 2, 3]]
    """
    signature = call.signature
    if signature.op == GROUPED:
        return _offsets(call, variant, random)
    name = signature.op.rpartition("::")[2].removesuffix("_")
    rule = _RULES.get(name)
    if rule is not None:
        return rule(call, random)
    if name in _ANY_VALUES or host_class(signature.op) != "indexing":
        return {}
    raise OperandError(
        f"{signature.text} takes indices whose range no rule knows; add one to dsocr_graph/timing/operand_values.py "
        f"(there are rules for {', '.join(sorted(_RULES))}), or leave out what calls it: {call.origin}"
    )


_ANY_VALUES = frozenset({"argsort", "bincount", "histc", "isin", "one_hot", "sort", "topk"})


def _offsets(call: PlannedCall, variant: int, random: Random) -> dict[Place, Tensor]:
    """Where each expert's rows end: rows spread evenly over active experts, and these over all experts."""
    experts = _sizes(call, "weight")[0]
    active = call.conditions["active_experts"]
    each, more = divmod(_sizes(call, "input")[0], active)
    rows = [0] * experts
    for index in range(active):
        rows[(index * experts // active + variant) % experts] = each + (index < more)
    offsets = torch.tensor(rows).cumsum(0).to(torch.int32)
    return {("offsets", None): offsets.to(random.device)}


def _embedding(call: PlannedCall, random: Random) -> dict[Place, Tensor]:
    return {("indices", None): random.below(_sizes(call, "weight")[0], _sizes(call, "indices"))}


def _index(call: PlannedCall, random: Random) -> dict[Place, Tensor]:
    """Indices of the leading axes: each element as often as any other, as tokens are sent to experts and back."""
    indices = cast("tuple[TensorArgument | None, ...]", call.signature.arguments["indices"])
    sizes = _sizes(call, "self")
    return {
        ("indices", axis): random.permuted(sizes[axis], cast("tuple[int, ...]", index.shape))
        for axis, index in enumerate(indices)
        if index is not None
    }


def _along_dim(call: PlannedCall, random: Random) -> dict[Place, Tensor]:
    """Indices along one axis."""
    dim = cast("int", call.signature.arguments["dim"])
    return {("index", None): random.permuted(_sizes(call, "self")[dim], _sizes(call, "index"))}


def _masked_scatter(call: PlannedCall, random: Random) -> dict[Place, Tensor]:
    """As many places as the source has rows, from the second on in every row of the mask: after the first token."""
    self, source, mask = (math.prod(_sizes(call, name)) for name in ("self", "source", "mask"))
    rows = _sizes(call, "mask")[0]
    taken = source // (self // mask) // rows
    values = torch.zeros((rows, mask // rows), dtype=torch.bool, device=random.device)
    first = 1 if taken < mask // rows else 0
    values[:, first : first + taken] = True
    return {("mask", None): values.view(_sizes(call, "mask"))}


def _searchsorted(call: PlannedCall, random: Random) -> dict[Place, Tensor]:
    """Sorted ranks of experts, and every expert in turn."""
    experts = math.prod(_sizes(call, "self"))
    ranks = random.below(experts, _sizes(call, "sorted_sequence")).sort().values
    return {
        ("sorted_sequence", None): ranks,
        ("self", None): torch.arange(experts, device=random.device).view(_sizes(call, "self")),
    }


_RULES: Mapping[str, Callable[[PlannedCall, Random], dict[Place, Tensor]]] = {
    "embedding": _embedding,
    "index": _index,
    "index_put": _index,
    "masked_scatter": _masked_scatter,
    "searchsorted": _searchsorted,
    **dict.fromkeys(
        ("gather", "index_add", "index_copy", "index_select", "scatter", "scatter_add", "take_along_dim"), _along_dim
    ),
}


def _sizes(call: PlannedCall, name: str) -> tuple[int, ...]:
    return cast("tuple[int, ...]", call.signature.tensor(name).shape)
