"""The stages of a speech model as modules for `torch.export`. Dims: B recordings, S prompt tokens, T cached tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from dsocr_graph.models.from_transformers.causal_lm_stages import EXAMPLE, LARGEST
from dsocr_graph.models.from_transformers.encoder_decoder_stages import decoder_stages
from dsocr_graph.models.from_transformers.masks import masks_as_run
from dsocr_graph.models.stage_spec import StageSpec


class SpeechEncodeStage(nn.Module):
    """One window of B recordings; the model is the attribute `root`."""

    def __init__(self, root: Any) -> None:  # noqa: ANN401 - any encoder-decoder of speech
        super().__init__()
        self.root = root

    def forward(self, input_features: Tensor) -> Tensor:
        """[B, mel bins, frames] -> [B, positions, hidden]."""
        with masks_as_run():
            return self.root.model.encoder(input_features).last_hidden_state


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
    encoder = model.model.encoder
    frames = config.max_source_positions * encoder.conv1.stride[0] * encoder.conv2.stride[0]
    features = torch.zeros(EXAMPLE["B"], config.num_mel_bins, frames, dtype=model.dtype, device=model.device)
    return (
        StageSpec(
            name="encode",
            description="one window of B recordings: encoder",
            module=SpeechEncodeStage(model),
            inputs=(features,),
            dynamic_shapes={"input_features": {0: Dim("B", min=1, max=LARGEST["B"])}},
            root="root",
        ),
        *decoder_stages(
            model,
            prompt="S",
            positions=config.max_source_positions,
            source=None,
            documents="recordings",
            read="speech",
        ),
    )
