"""Flat tensors to transformers' cache objects and back: a graph takes tensors, a model takes a cache."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from attrs import frozen
from torch import Tensor
from torch.export import Dim
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from dsocr_graph.errors import ModelConfigError, ModelInputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class WindowLayer(DynamicSlidingWindowLayer):
    """A windowed layer whose cached length is min(tokens, window - 1) for any number of tokens, in one graph.

    As transformers' own, it keeps views: the tensors they are cut from stay in memory until the next step.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - transformers' signature
        """Append new keys and values, return all, and keep what the next token sees."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        held: Any = self  # its tensors are optional until it is initialized
        keys = torch.cat([held.keys, key_states], dim=-2)
        values = torch.cat([held.values, value_states], dim=-2)
        kept: Any = torch.sym_min(keys.shape[-2], self.sliding_window - 1)
        begin = keys.shape[-2] - kept
        self.keys, self.values = keys.narrow(-2, begin, kept), values.narrow(-2, begin, kept)
        return keys, values


@frozen(kw_only=True)
class CachedTensor:
    """One tensor of a cache: [B, heads, tokens, width]."""

    layer: int
    heads: int  # 1 for MLA's latents
    width: int  # elements per head and token
    window: int | None  # most tokens that attention sees; None: all

    @property
    def dim(self) -> str:
        """Name of the dim of its tokens: "T", or "W4096" in a window of 4,096."""
        return "T" if self.window is None else f"W{self.window}"

    def tokens(self, seen: int) -> int:
        """Return the tokens that are cached after so many: a window keeps one less than it sees."""
        return seen if self.window is None else min(seen, self.window - 1)


@frozen(kw_only=True)
class CacheLayout:
    """What a model caches: k0, v0, k1, v1, ... in the order of its layers, whatever these are.

    Examples
    --------
    >>> layout = CacheLayout(tensors=tuple(CachedTensor(layer=0, heads=2, width=8, window=None) for _ in "kv"))
    >>> [tuple(tensor.shape) for tensor in layout.example(batch=3, seen=7, dtype=torch.bfloat16)]
    [(3, 2, 7, 8), (3, 2, 7, 8)]
    """

    tensors: tuple[CachedTensor, ...]

    @classmethod
    def of(cls, cache: Cache) -> Self:
        """Read the layout of a cache that a model has filled.

        Raises
        ------
        ModelConfigError
            For a layer that does not hold keys and values, such as a state-space one.
        """
        found: list[CachedTensor] = []
        for number, layer in enumerate(cache.layers):
            window = layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None
            if type(layer) not in {DynamicLayer, DynamicSlidingWindowLayer, WindowLayer}:
                raise ModelConfigError(
                    f"layer {number} caches by a {type(layer).__name__}, which cannot be captured; layers of keys and "
                    "values over all tokens or over a window can"
                )
            found += [
                CachedTensor(layer=number, heads=tensor.shape[1], width=tensor.shape[3], window=window)
                for tensor in _held(layer)
            ]
        return cls(tensors=tuple(found))

    def example(
        self, *, batch: int, seen: int, dtype: torch.dtype, device: torch.device | str = "meta"
    ) -> tuple[Tensor, ...]:
        """Return tensors of a cache after `seen` tokens; their values are arbitrary."""
        return tuple(
            torch.zeros(batch, tensor.heads, tensor.tokens(seen), tensor.width, dtype=dtype, device=device)
            for tensor in self.tensors
        )

    def dynamic_shapes(self, batch: Any, tokens: Any) -> tuple[dict[int, Any], ...]:  # noqa: ANN401 - torch's Dim is no type
        """Return the symbolic dims of each tensor, given those of the batch and of the cached tokens."""
        dims: dict[str, Any] = {"T": tokens}
        for tensor in self.tensors:
            if tensor.window is not None and tensor.dim not in dims:
                dims[tensor.dim] = Dim(tensor.dim, min=1, max=tensor.window - 1)
        return tuple({0: batch, 2: dims[tensor.dim]} for tensor in self.tensors)

    @property
    def longest_window(self) -> int:
        """Most tokens that a windowed layer sees; 0 without such layers."""
        return max((tensor.window for tensor in self.tensors if tensor.window is not None), default=0)

    def aliases(self) -> Mapping[str, str]:
        """Return the dims of windows in terms of T, as `StageSpec` takes them."""
        return {tensor.dim: f"Min(T, {tensor.window - 1})" for tensor in self.tensors if tensor.window is not None}


def empty_cache(config: PreTrainedConfig) -> Cache:
    """Return the cache that a model starts with, its windowed layers fit for capture."""
    cache = DynamicCache(config=config)
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            cache.layers[number] = WindowLayer(layer.sliding_window)
    return cache


def cache_tensors(cache: Cache) -> tuple[Tensor, ...]:
    """Return k0, v0, k1, v1, ... of a filled cache."""
    return tuple(tensor for layer in cache.layers for tensor in _held(layer))


def _held(layer: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - a layer of keys and values, of any of transformers' kinds
    return layer.keys, layer.values


def fresh_cache(empty: Cache) -> Cache:
    """Return an empty cache like another, which stays empty; while a graph is captured, it adds nothing to it."""
    cache = copy.copy(empty)
    cache.layers = [copy.copy(layer) for layer in empty.layers]
    return cache


def filled_cache(empty: Cache, tensors: Sequence[Tensor]) -> Cache:
    """Return a cache like an empty one that holds k0, v0, k1, v1, ...

    A windowed layer counts the tokens that it holds, not those before its window: what follows has the sizes of a
    run, and its values as long as no window is full.

    Raises
    ------
    ModelInputError
        When there are not two tensors for each layer.
    """
    if len(tensors) != 2 * len(empty.layers):
        raise ModelInputError(
            f"{len(empty.layers)} layers cache {2 * len(empty.layers)} tensors, keys and values; got {len(tensors)}"
        )
    cache = fresh_cache(empty)
    for layer, keys, values in zip(cache.layers, tensors[::2], tensors[1::2], strict=True):
        filled: Any = layer
        filled.keys, filled.values, filled.is_initialized = keys, values, True
        filled.dtype, filled.device = keys.dtype, keys.device
        if isinstance(filled, DynamicSlidingWindowLayer):
            filled.cumulative_length = keys.shape[-2]
    return cache
