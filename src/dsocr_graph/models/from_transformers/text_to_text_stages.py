"""The stages of an encoder-decoder of text as modules for `torch.export`.

Dims: B documents, S tokens that are read, P tokens that the decoder starts with, T cached tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from dsocr_graph.models.from_transformers.causal_lm_stages import EXAMPLE, LARGEST
from dsocr_graph.models.from_transformers.encoder_decoder_stages import decoder_stages
from dsocr_graph.models.from_transformers.masks import masks_as_run
from dsocr_graph.models.stage_spec import StageSpec


class TextEncodeStage(nn.Module):
    """What B documents of equal length say; the model is the attribute `root`."""

    def __init__(self, root: Any) -> None:  # noqa: ANN401 - any encoder-decoder of text
        super().__init__()
        self.root = root

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, S] -> [B, S, hidden]."""
        with masks_as_run():
            return self.root.get_encoder()(input_ids=input_ids).last_hidden_state


def text_to_text_stages(model: Any) -> tuple[StageSpec, ...]:  # noqa: ANN401 - of transformers
    """Return the stages of a model on `meta`: encode, prefill and decode.

    Examples
    --------
    >>> from dsocr_graph.models.from_transformers.configuration import transformers_config
    >>> from dsocr_graph.models.from_transformers.load import meta_model
    >>> from dsocr_graph.models.from_transformers.variant import TransformersVariant
    >>> config = transformers_config({"model_type": "t5", "num_layers": 1, "vocab_size": 64})
    >>> model = meta_model(config, "T5ForConditionalGeneration", TransformersVariant())
    >>> [(stage.name, len(stage.inputs)) for stage in text_to_text_stages(model)]
    [('encode', 1), ('prefill', 2), ('decode', 6)]
    """
    B, S = (Dim(name, min=1, max=LARGEST[name]) for name in "BS")
    ids = torch.zeros(EXAMPLE["B"], EXAMPLE["S"], dtype=torch.int64, device=model.device)
    return (
        StageSpec(
            name="encode",
            description="B documents of S tokens: encoder",
            module=TextEncodeStage(model),
            inputs=(ids,),
            dynamic_shapes={"input_ids": {0: B, 1: S}},
            root="root",
        ),
        *decoder_stages(
            model, prompt="P", positions=EXAMPLE["S"], source=S, documents="documents", read="what was read"
        ),
    )
