"""The stages of a speech model as modules for `torch.export`. Dims: B recordings, S prompt tokens, T cached tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from dsocr_graph.models.from_transformers.cache import cache_tensors, filled_cache, fresh_cache
from dsocr_graph.models.from_transformers.causal_lm_stages import EXAMPLE, LARGEST
from dsocr_graph.models.from_transformers.masks import masks_as_run
from dsocr_graph.models.stage_spec import StageSpec


class SpeechStage(nn.Module):
    """One stage of a speech model; the model is the attribute `root`."""

    def __init__(self, root: Any) -> None:  # noqa: ANN401 - any encoder-decoder of speech
        super().__init__()
        self.root = root
        self.layers = int(root.config.decoder_layers)
        self.empty = DynamicCache()
        self.empty.layers.extend(DynamicLayer() for _ in range(self.layers))

    def decoded(
        self, input_ids: Tensor, encoded: Tensor, cache: EncoderDecoderCache
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the decoder on tokens after those that are cached, and return logits and the caches, flat."""
        with masks_as_run():
            output = self.root(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),  # pyright: ignore[reportArgumentType] - any tensor
                decoder_input_ids=input_ids,
                past_key_values=cache,
                use_cache=True,
            )
        return output.logits, (*cache_tensors(cache.self_attention_cache), *cache_tensors(cache.cross_attention_cache))


class EncodeStage(SpeechStage):
    """One window of B recordings."""

    def forward(self, input_features: Tensor) -> Tensor:
        """[B, mel bins, frames] -> [B, positions, hidden]."""
        with masks_as_run():
            return self.root.model.encoder(input_features).last_hidden_state


class SpeechPrefillStage(SpeechStage):
    """The decoder's prompt of B recordings; keys and values of the encoded speech are computed here."""

    def forward(self, input_ids: Tensor, encoded: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B, S] and [B, positions, hidden] -> logits [B, S, vocabulary] and the cache.

        The cache is k0, v0, k1, ... of the prompt, then those of the encoded speech.
        """
        cache = EncoderDecoderCache(fresh_cache(self.empty), fresh_cache(self.empty))
        return self.decoded(input_ids, encoded, cache)


class SpeechDecodeStage(SpeechStage):
    """One decode step of B recordings with T cached tokens; the keys and values of the speech are all cached."""

    def forward(self, input_ids: Tensor, encoded: Tensor, *cache: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B, 1], [B, positions, hidden] and the cache -> logits [B, 1, vocabulary] and the cache of T + 1 tokens."""
        own, speech = cache[: 2 * self.layers], cache[2 * self.layers :]
        filled = EncoderDecoderCache(filled_cache(self.empty, own), filled_cache(self.empty, speech))
        filled.is_updated = dict.fromkeys(range(self.layers), True)
        return self.decoded(input_ids, encoded, filled)


def speech_stages(model: Any) -> tuple[StageSpec, ...]:  # noqa: ANN401 - of transformers
    """Return the stages of a model on `meta`: encode, prefill and decode.

    Examples
    --------
    >>> from dsocr_graph.models.from_transformers.configuration import transformers_config
    >>> from dsocr_graph.models.from_transformers.load import meta_model
    >>> from dsocr_graph.models.from_transformers.variant import TransformersVariant
    >>> config = transformers_config({"model_type": "whisper", "decoder_layers": 2})
    >>> model = meta_model(config, "WhisperForConditionalGeneration", TransformersVariant())
    >>> encode, _, decode = speech_stages(model)
    >>> tuple(encode.inputs[0].shape), decode.kv_inputs  # 30 s; own and speech's keys and values of two layers
    ((3, 80, 3000), (2, 3, 4, 5, 6, 7, 8, 9))
    """
    config = model.config
    batch = EXAMPLE["B"]
    B, S, T = (Dim(name, min=1, max=LARGEST[name]) for name in "BST")

    def values(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=model.dtype, device=model.device)

    def ids(length: int) -> Tensor:
        return torch.zeros(batch, length, dtype=torch.int64, device=model.device)

    def cached(tokens: int) -> tuple[Tensor, ...]:
        heads = config.decoder_attention_heads
        shape = (batch, heads, tokens, config.d_model // heads)
        return tuple(values(*shape) for _ in range(2 * config.decoder_layers))

    encoded = values(batch, config.max_source_positions, config.d_model)
    own, speech = cached(EXAMPLE["T"]), cached(config.max_source_positions)
    tensors = len(own) + len(speech)
    frames = config.max_source_positions * model.model.encoder.conv1.stride[0] * model.model.encoder.conv2.stride[0]
    return (
        StageSpec(
            name="encode",
            description="one window of B recordings: encoder",
            module=EncodeStage(model),
            inputs=(values(batch, config.num_mel_bins, frames),),
            dynamic_shapes={"input_features": {0: B}},
            root="root",
        ),
        StageSpec(
            name="prefill",
            description="B recordings with S prompt tokens each: logits, and the cache of prompt and speech",
            module=SpeechPrefillStage(model),
            inputs=(ids(EXAMPLE["S"]), encoded),
            dynamic_shapes={"input_ids": {0: B, 1: S}, "encoded": {0: B}},
            root="root",
            kv_outputs=tuple(range(1, 1 + tensors)),
        ),
        StageSpec(
            name="decode",
            description="one step of B recordings with T cached tokens each",
            module=SpeechDecodeStage(model),
            inputs=(ids(1), encoded.clone(), *own, *speech),
            dynamic_shapes={
                "input_ids": {0: B},
                "encoded": {0: B},
                "cache": (*({0: B, 2: T} for _ in own), *({0: B} for _ in speech)),
            },
            root="root",
            kv_inputs=tuple(range(2, 2 + tensors)),
            kv_outputs=tuple(range(1, 1 + tensors)),
        ),
    )
