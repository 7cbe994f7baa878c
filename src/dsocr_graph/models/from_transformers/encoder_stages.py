"""The stage of an image encoder, as a module for `torch.export`. Dims: B images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from dsocr_graph.models.from_transformers.causal_lm_stages import EXAMPLE, LARGEST
from dsocr_graph.models.from_transformers.masks import masks_as_run
from dsocr_graph.models.stage_spec import StageSpec


class ImageEncoderStage(nn.Module):
    """B images; the model is the attribute `root`."""

    def __init__(self, root: Any) -> None:  # noqa: ANN401 - any image encoder
        super().__init__()
        self.root = root

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """[B, channels, side, side] -> features [B, patches, hidden], and pooled ones [B, hidden] where it has them."""
        with masks_as_run():
            output = self.root(pixel_values)
        pooled = output.pooler_output
        return (output.last_hidden_state,) if pooled is None else (output.last_hidden_state, pooled)


def image_encoder_stages(model: Any) -> tuple[StageSpec, ...]:  # noqa: ANN401 - of transformers
    """Return the stage of an encoder on `meta`, at the square that its configuration names.

    Examples
    --------
    >>> from dsocr_graph.models.from_transformers.configuration import transformers_config
    >>> from dsocr_graph.models.from_transformers.load import meta_model
    >>> from dsocr_graph.models.from_transformers.variant import TransformersVariant
    >>> config = transformers_config({"model_type": "siglip_vision_model", "num_hidden_layers": 1})
    >>> (stage,) = image_encoder_stages(meta_model(config, "SiglipVisionModel", TransformersVariant()))
    >>> stage.name, tuple(stage.inputs[0].shape)
    ('encode', (3, 3, 224, 224))
    """
    config = model.config
    pixels = torch.zeros(
        EXAMPLE["B"],
        config.num_channels,
        config.image_size,
        config.image_size,
        dtype=model.dtype,
        device=model.device,
    )
    return (
        StageSpec(
            name="encode",
            description="B images: features of all patches, pooled where the model pools",
            module=ImageEncoderStage(model),
            inputs=(pixels,),
            dynamic_shapes={"pixel_values": {0: Dim("B", min=1, max=LARGEST["B"])}},
            root="root",
        ),
    )
