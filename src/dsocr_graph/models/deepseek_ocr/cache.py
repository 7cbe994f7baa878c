"""The KV cache: grown by concatenation as published, or written into buffers allocated once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dsocr_graph.errors import ModelInputError


class KVCache:
    """Keys and values of every decoder layer, [B, heads, T, head_dim] each.

    `update` concatenates: every step copies the whole cache of a layer, as the published code does.

    Examples
    --------
    >>> import torch
    >>> cache = KVCache()
    >>> k, v = cache.update(0, torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4))
    >>> k, v = cache.update(0, torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4))
    >>> k.shape, cache.length
    (torch.Size([1, 2, 6, 4]), 6)
    """

    def __init__(self, layers: Iterable[tuple[Tensor, Tensor]] = ()) -> None:
        self._layers: list[tuple[Tensor, Tensor]] = list(layers)

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor]) -> KVCache:
        """Make a cache of the flat list k0, v0, k1, v1, ... that `tensors` returns."""
        if len(tensors) % 2:
            raise ModelInputError(f"a KV cache is pairs of keys and values; got {len(tensors)} tensors")
        return cls(zip(tensors[::2], tensors[1::2], strict=True))

    @property
    def is_empty(self) -> bool:
        """Whether no layer holds anything."""
        return not self._layers

    @property
    def length(self) -> int:
        """Cached tokens: what layer 0 holds, 0 when empty. Symbolic while a graph is captured."""
        return self._layers[0][0].shape[2] if self._layers else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the cached tokens."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> tuple[Tensor, ...]:
        """Return k0, v0, k1, v1, ..."""
        return tuple(tensor for layer in self._layers for tensor in layer)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append `k` and `v`, [B, heads, new, head_dim], to a layer; return its keys and values."""
        if layer == len(self._layers):
            self._layers.append((k, v))
        elif layer < len(self._layers):
            old_k, old_v = self._layers[layer]
            self._layers[layer] = (torch.cat([old_k, k], dim=-2), torch.cat([old_v, v], dim=-2))
        else:
            raise ModelInputError(f"layer {layer} of the KV cache before layer {len(self._layers)}")
        return self._layers[layer]


class PreallocatedKVCache(KVCache):
    """A cache of fixed capacity: a step writes its token and copies nothing else. Equal in result.

    Parameters
    ----------
    capacity
        The most tokens it can hold.

    Examples
    --------
    >>> import torch
    >>> cache = PreallocatedKVCache(8)
    >>> _ = cache.update(0, torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4))
    >>> k, v = cache.update(0, torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4))
    >>> k.shape, k.sum().item()
    (torch.Size([1, 2, 6, 4]), 8.0)
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write `k` and `v` behind the tokens of a layer; errors when the capacity is exceeded."""
        begin = self._layers[layer][0].shape[2] if layer < len(self._layers) else 0
        end = begin + k.shape[2]
        if end > self._capacity:
            raise ModelInputError(f"KV cache of {self._capacity} tokens cannot hold {end}; give a larger capacity")
        if layer == len(self._buffers):
            shape = (k.shape[0], k.shape[1], self._capacity, k.shape[3])
            self._buffers.append((k.new_empty(shape), v.new_empty(shape)))
            self._layers.append((k, v))
        for buffer, new in zip(self._buffers[layer], (k, v), strict=True):
            buffer[:, :, begin:end] = new
        key_buffer, value_buffer = self._buffers[layer]
        self._layers[layer] = (key_buffer[:, :, :end], value_buffer[:, :, :end])
        return self._layers[layer]
