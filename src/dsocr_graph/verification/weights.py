"""Random weights for a module on `meta`, in its place: tied weights stay tied, views stay views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsocr_graph.timing.memory_limits import require_memory

_SPREAD = 0.02  # standard deviation of random weights
_ROOM = 1.2  # what runs needs room too
_DRAWN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def fill_with_random_weights(module: nn.Module, *, seed: int) -> None:
    """Put tensors on the CPU in the place of a module's parameters and buffers on `meta`.

    Floats are random and positive where they are buffers, as a variance is; everything else is zero, which is an index
    into any table. Tensors that share a storage share it afterwards.

    Parameters
    ----------
    module : nn.Module
        Changed in place; what it has on other devices stays.
    seed : int
        Of the values.

    Raises
    ------
    MeasurementMemoryError
        When the machine has no memory for them.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    >>> tied[1].weight = tied[0].weight
    >>> fill_with_random_weights(tied, seed=0)
    >>> tied[1].weight is tied[0].weight, tied[0].weight.device.type, tuple(tied(torch.ones(1, 4)).shape)
    (True, 'cpu', (1, 4))
    """
    require_memory(
        f"{type(module).__name__} with random weights",
        round(_ROOM * sum(parameter.nbytes for parameter in module.parameters() if parameter.is_meta)),
        torch.device("cpu"),
        "choose bf16, or a smaller model: of a transformers model, fewer layers",
    )
    weights = _Weights(module, torch.Generator().manual_seed(seed))
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter.is_meta:
                owner.register_parameter(name, weights.parameter(parameter))
        plain = {name: value for name, value in vars(owner).items() if isinstance(value, Tensor)}
        buffers = dict(owner.named_buffers(recurse=False, remove_duplicate=False))
        for name, value in (plain | buffers).items():
            if value.is_meta:
                setattr(owner, name, weights.tensor(value))


class _Weights:
    """What stands for each tensor on `meta`: one storage for each of its storages."""

    def __init__(self, module: nn.Module, generator: torch.Generator) -> None:
        self._generator = generator
        self._learned = {_key(parameter) for parameter in module.parameters()}
        self._storages: dict[int, Tensor] = {}
        self._parameters: dict[int, nn.Parameter] = {}

    def parameter(self, parameter: nn.Parameter) -> nn.Parameter:
        key = id(parameter)
        if key not in self._parameters:
            self._parameters[key] = nn.Parameter(self.tensor(parameter), requires_grad=False)
        return self._parameters[key]

    def tensor(self, tensor: Tensor) -> Tensor:
        key = _key(tensor)
        if key not in self._storages:
            self._storages[key] = self._values(tensor, learned=key in self._learned)
        storage = self._storages[key].untyped_storage()
        made = torch.empty(0, dtype=tensor.dtype)
        return made.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())

    def _values(self, tensor: Tensor, *, learned: bool) -> Tensor:
        elements = tensor.untyped_storage().nbytes() // tensor.itemsize
        if tensor.dtype not in _DRAWN:
            return torch.zeros(elements, dtype=tensor.dtype)
        values = torch.empty(elements, dtype=tensor.dtype)
        if learned:
            return values.normal_(std=_SPREAD, generator=self._generator)
        return values.uniform_(generator=self._generator)


def _key(tensor: Tensor) -> int:
    storage: Any = tensor.untyped_storage()
    return storage._cdata  # the only identity of a storage that holds no data
