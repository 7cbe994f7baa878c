"""The stage of an encoder, as a module for `torch.export`. Dims: B images or documents, S tokens of each."""

from __future__ import annotations

from typing import Any

import torch
from attrs import evolve
from torch import Tensor, nn
from torch.export import Dim

from dsocr_graph.errors import ModelConfigError
from dsocr_graph.models.from_transformers.causal_lm_stages import EXAMPLE, LARGEST
from dsocr_graph.models.from_transformers.masks import masks_as_run
from dsocr_graph.models.stage_spec import StageSpec


class EncoderStage(nn.Module):
    """The model, as the attribute `root`, run once."""

    def __init__(self, root: Any) -> None:  # noqa: ANN401 - any encoder
        super().__init__()
        self.root = root

    def features(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the model makes of its main input: features, and what it pools of them, or its head's logits."""
        with masks_as_run():
            output = self.root(inputs)
        return tuple(value for value in output.values() if isinstance(value, Tensor))


class ImageEncoderStage(EncoderStage):
    """B images."""

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """[B, channels, height, width] -> features [B, patches, hidden], and pooled ones [B, hidden] where it pools."""
        return self.features(pixel_values)


class TextEncoderStage(EncoderStage):
    """B documents of equal length, without padding."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """[B, S] -> features [B, S, hidden], and pooled ones [B, hidden] where it pools."""
        return self.features(input_ids)


class ImageTowerStage(EncoderStage):
    """B images, by the encoder of images of a model that has one of texts too."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, channels, height, width] -> features [B, width of what is compared]."""
        with masks_as_run():
            return self.root.get_image_features(pixel_values).pooler_output


class TextTowerStage(EncoderStage):
    """B texts of equal length, without padding."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, S] -> features [B, width of what is compared]."""
        with masks_as_run():
            return self.root.get_text_features(input_ids).pooler_output


def two_tower_stages(model: Any) -> tuple[StageSpec, ...]:  # noqa: ANN401 - of transformers
    """Return the stages of a model on `meta` that has an encoder of images and one of texts.

    Examples
    --------
    >>> from dsocr_graph.models.from_transformers.configuration import transformers_config
    >>> from dsocr_graph.models.from_transformers.load import meta_model
    >>> from dsocr_graph.models.from_transformers.variant import TransformersVariant
    >>> layers = {"num_hidden_layers": 1}
    >>> config = transformers_config({"model_type": "clip", "text_config": layers, "vision_config": layers})
    >>> stages = two_tower_stages(meta_model(config, "CLIPModel", TransformersVariant()))
    >>> [(stage.name, tuple(stage.inputs[0].shape)) for stage in stages]
    [('encode_images', (3, 3, 224, 224)), ('encode_texts', (3, 39))]
    """
    (images,), (texts,) = image_encoder_stages(model), text_encoder_stages(model)
    return (
        evolve(
            images,
            name="encode_images",
            description="B images: the features that are compared with those of texts",
            module=ImageTowerStage(model),
        ),
        evolve(
            texts,
            name="encode_texts",
            description="B texts of S tokens: the features that are compared with those of images; the comparison, one "
            "product of both, is in no stage",
            module=TextTowerStage(model),
        ),
    )


def image_encoder_stages(model: Any) -> tuple[StageSpec, ...]:  # noqa: ANN401 - of transformers
    """Return the stage of an encoder on `meta`, at the size that its configuration names.

    Raises
    ------
    ModelConfigError
        When it names none.

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
    vision = getattr(model.config, "vision_config", model.config)  # of a model that is made of several
    shape = (EXAMPLE["B"], vision.num_channels, *_image_size(vision))
    return (
        StageSpec(
            name="encode",
            description="B images: features of all patches, pooled where the model pools",
            module=ImageEncoderStage(model),
            inputs=(torch.zeros(shape, dtype=model.dtype, device=model.device),),
            dynamic_shapes={"pixel_values": {0: Dim("B", min=1, max=LARGEST["B"])}},
            root="root",
        ),
    )


def text_encoder_stages(model: Any) -> tuple[StageSpec, ...]:  # noqa: ANN401 - of transformers
    """Return the stage of a text encoder on `meta`.

    Examples
    --------
    >>> from dsocr_graph.models.from_transformers.configuration import transformers_config
    >>> from dsocr_graph.models.from_transformers.load import meta_model
    >>> from dsocr_graph.models.from_transformers.variant import TransformersVariant
    >>> config = transformers_config({"model_type": "bert", "num_hidden_layers": 1})
    >>> (stage,) = text_encoder_stages(meta_model(config, "BertModel", TransformersVariant()))
    >>> stage.dynamic_shapes
    {'input_ids': {0: Dim('B', min=1, max=4096), 1: Dim('S', min=1, max=512)}}
    """
    text = getattr(model.config, "text_config", model.config)
    longest = getattr(text, "max_position_embeddings", None) or LARGEST["S"]
    ids = torch.zeros(EXAMPLE["B"], min(EXAMPLE["S"], longest), dtype=torch.int64, device=model.device)
    B, S = Dim("B", min=1, max=LARGEST["B"]), Dim("S", min=1, max=longest)
    return (
        StageSpec(
            name="encode",
            description="B documents of S tokens: features of all tokens, pooled where the model pools",
            module=TextEncoderStage(model),
            inputs=(ids,),
            dynamic_shapes={"input_ids": {0: B, 1: S}},
            root="root",
        ),
    )


def _image_size(config: Any) -> tuple[int, int]:  # noqa: ANN401 - of transformers
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return size[0], size[1]
    raise ModelConfigError(
        f"a configuration of model_type {config.model_type!r} has image_size {size!r}; write the pixels of a side, or "
        "of height and width, into it: the stage is captured at that size"
    )
