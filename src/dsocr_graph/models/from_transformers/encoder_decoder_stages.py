"""The decoder's stages of models with an encoder, as modules for `torch.export`; what is encoded is an input.

Dims: B documents, S or P tokens that the decoder starts with, T cached tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from dsocr_graph.models.from_transformers.cache import CacheLayout, cache_tensors, filled_cache, fresh_cache
from dsocr_graph.models.from_transformers.causal_lm_stages import EXAMPLE, LARGEST
from dsocr_graph.models.from_transformers.masks import masks_as_run
from dsocr_graph.models.stage_spec import StageSpec


class DecoderStage(nn.Module):
    """One stage of the decoder; the model is the attribute `root`."""

    def __init__(self, root: Any, layers: int) -> None:  # noqa: ANN401 - any encoder-decoder
        super().__init__()
        self.root = root
        self.layers = layers
        self.empty = DynamicCache()
        self.empty.layers.extend(DynamicLayer() for _ in range(layers))

    def decoded(
        self, input_ids: Tensor, encoded: Tensor, cache: EncoderDecoderCache
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the decoder on tokens after those that are cached, and return logits and the caches, flat."""
        output = _run(self.root, input_ids, encoded, cache)
        return output.logits, (*cache_tensors(cache.self_attention_cache), *cache_tensors(cache.cross_attention_cache))


class DecoderPrefillStage(DecoderStage):
    """What the decoder starts with, of B documents; keys and values of what is encoded are computed here."""

    def forward(self, input_ids: Tensor, encoded: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B, tokens] and [B, positions, hidden] -> logits [B, tokens, vocabulary] and the cache.

        The cache is k0, v0, k1, ... of the decoder's tokens, then those of what is encoded.
        """
        cache = EncoderDecoderCache(fresh_cache(self.empty), fresh_cache(self.empty))
        return self.decoded(input_ids, encoded, cache)


class DecoderStepStage(DecoderStage):
    """One decode step of B documents with T cached tokens; the keys and values of what is encoded are all cached."""

    def forward(self, input_ids: Tensor, encoded: Tensor, *cache: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B, 1], [B, positions, hidden] and the cache -> logits [B, 1, vocabulary] and the cache of T + 1 tokens."""
        own, crossed = cache[: 2 * self.layers], cache[2 * self.layers :]
        filled = EncoderDecoderCache(filled_cache(self.empty, own), filled_cache(self.empty, crossed))
        filled.is_updated = dict.fromkeys(range(self.layers), True)
        return self.decoded(input_ids, encoded, filled)


def decoder_stages(
    model: Any,  # noqa: ANN401 - of transformers
    *,
    prompt: str,
    positions: int,
    source: Dim | None,
    documents: str,
    read: str,
) -> tuple[StageSpec, StageSpec]:
    """Return the prefill and the decode stage of a model on `meta`.

    Parameters
    ----------
    prompt : str
        Name of the dim of the tokens that the decoder starts with.
    positions : int
        Encoded positions of the example.
    source : Dim or None
        Their dim; None: the model has so many always.
    documents, read : str
        What a batch holds, and what of it is encoded, for the descriptions.
    """
    own, crossed = _layouts(model)
    layers = len(own.tensors) // 2
    B, P, T = (Dim(name, min=1, max=LARGEST.get(name, LARGEST["S"])) for name in ("B", prompt, "T"))
    batch = EXAMPLE["B"]
    encoded = torch.zeros(batch, positions, model.config.hidden_size, dtype=model.dtype, device=model.device)
    caches = (
        *own.example(batch=batch, seen=EXAMPLE["T"], dtype=model.dtype, device=model.device),
        *crossed.example(batch=batch, seen=positions, dtype=model.dtype, device=model.device),
    )
    seen = {0: B} if source is None else {0: B, 1: source}
    kept = tuple({0: B} if source is None else {0: B, 2: source} for _ in crossed.tensors)

    def ids(length: int) -> Tensor:
        return torch.zeros(batch, length, dtype=torch.int64, device=model.device)

    return (
        StageSpec(
            name="prefill",
            description=f"B {documents} with {prompt} prompt tokens each: logits, and the cache of prompt and {read}",
            module=DecoderPrefillStage(model, layers),
            inputs=(ids(EXAMPLE.get(prompt, EXAMPLE["T"])), encoded),
            dynamic_shapes={"input_ids": {0: B, 1: P}, "encoded": seen},
            root="root",
            kv_outputs=tuple(range(1, 1 + len(caches))),
        ),
        StageSpec(
            name="decode",
            description=f"one step of B {documents} with T cached tokens each",
            module=DecoderStepStage(model, layers),
            inputs=(ids(1), encoded.clone(), *caches),
            dynamic_shapes={
                "input_ids": {0: B},
                "encoded": seen,
                "cache": (*own.dynamic_shapes(B, T), *kept),
            },
            root="root",
            kv_inputs=tuple(range(2, 2 + len(caches))),
            kv_outputs=tuple(range(1, 1 + len(caches))),
        ),
    )


def _layouts(model: Any) -> tuple[CacheLayout, CacheLayout]:  # noqa: ANN401 - of transformers
    """Return what a decoder caches of its own tokens and of what is encoded, found by running it on two of each."""
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    encoded = torch.zeros(1, 2, model.config.hidden_size, dtype=model.dtype, device=model.device)
    with torch.no_grad():
        _run(model, ids, encoded, cache)
    return CacheLayout.of(cache.self_attention_cache), CacheLayout.of(cache.cross_attention_cache)


def _run(model: Any, input_ids: Tensor, encoded: Tensor, cache: EncoderDecoderCache) -> Any:  # noqa: ANN401 - of transformers
    with masks_as_run():
        return model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),  # pyright: ignore[reportArgumentType] - any tensor
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
        )
