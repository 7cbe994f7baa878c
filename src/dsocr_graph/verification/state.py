"""The state of a model between runs: buffers and plain attributes, which a run may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn


@frozen(kw_only=True)
class ModelState:
    """What `restore` gives back to a model: buffers with their values, persistent or not, and attributes as they were.

    What an attribute such as a list holds is not looked into. Buffers in the storage of a parameter are weights, which
    no run changes.
    """

    _module: nn.Module = field(alias="module", repr=False)
    _tensors: Mapping[int, tuple[Tensor, Tensor]] = field(alias="tensors", repr=False)  # a tensor and its values
    _buffers: Mapping[str, Mapping[str, Tensor | None]] = field(alias="buffers", repr=False)
    _attributes: Mapping[str, Mapping[str, Any]] = field(alias="attributes", repr=False)

    @classmethod
    def of(cls, module: nn.Module) -> ModelState:
        """Return the state of a module.

        Examples
        --------
        >>> norm = nn.BatchNorm1d(2)
        >>> state = ModelState.of(norm)
        >>> _ = norm(torch.ones(3, 2))
        >>> norm.num_batches_tracked.item(), state.restore() or norm.num_batches_tracked.item()
        (1, 0)
        """
        learned = {_storage(parameter) for parameter in module.parameters()}
        buffers = {path: dict(_buffers(each)) for path, each in module.named_modules()}
        attributes = {path: _attributes(each) for path, each in module.named_modules()}
        held = [value for values in (*buffers.values(), *attributes.values()) for value in values.values()]
        tensors = [each for each in held if isinstance(each, Tensor) and _storage(each) not in learned]
        return cls(
            module=module,
            tensors={id(each): (each, each.detach().clone()) for each in tensors},
            buffers=buffers,
            attributes=attributes,
        )

    def restore(self) -> None:
        """Give the model its state back."""
        for path, module in self._module.named_modules():
            if path not in self._attributes:
                continue  # made by the run, and reached by an attribute that is given back
            for name in _attributes(module).keys() - self._attributes[path].keys():
                vars(module).pop(name)
            vars(module).update(self._attributes[path])
            _buffers(module).clear()
            _buffers(module).update(self._buffers[path])
        with torch.no_grad():
            for tensor, values in self._tensors.values():
                if not tensor.is_meta:
                    tensor.copy_(values)


def buffer_values(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of each buffer that is no weight, by path.

    Examples
    --------
    >>> sorted(buffer_values(nn.BatchNorm1d(2)))
    ['num_batches_tracked', 'running_mean', 'running_var']
    """
    learned = {_storage(parameter) for parameter in module.parameters()}
    return {name: buffer.detach().clone() for name, buffer in module.named_buffers() if _storage(buffer) not in learned}


def _buffers(module: nn.Module) -> dict[str, Tensor | None]:
    return module._buffers  # pyright: ignore[reportPrivateUsage] - holds None too, which its iterators leave out


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module other than those that nn.Module keeps its own in."""
    own = vars(nn.Module()).keys()
    return {name: value for name, value in vars(module).items() if name not in own or name == "training"}


def _storage(tensor: Tensor) -> int:
    storage: Any = tensor.untyped_storage()
    return storage._cdata  # the only identity of a storage that holds no data
