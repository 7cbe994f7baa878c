"""The stages of models that take all patches of a page in one row, as modules for `torch.export`.

Dims: N image tokens of one document, of four patches each where 2 x 2 are merged; B documents, S prompt tokens,
T cached tokens. What follows from the data - positions of patches and tokens - is computed outside and given as
input; transformers offers the same for vision (`transformers.vision_utils`).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Self

import attrs
import torch
from attrs import frozen
from torch import Tensor, nn
from torch.export import Dim
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dsocr_graph.models.from_transformers.cache import cache_tensors, filled_cache, fresh_cache
from dsocr_graph.models.from_transformers.causal_lm_stages import EXAMPLE, LARGEST, LanguageStage, language_stages
from dsocr_graph.models.from_transformers.masks import masks_as_run
from dsocr_graph.models.stage_spec import StageSpec

IMAGE_TOKENS = 7  # of the example inputs: unlike B, S and T
AXES = 4  # of a token's position: in the text, in time, in height, in width
NEIGHBOURS = 4  # entries of the position table that a patch's position is interpolated from


@frozen
class OneSegment:
    """The bounds (0, patches) of a single image, as far as attention asks for them; the number may be symbolic.

    A tensor of them would have to be read back, which a graph for all sizes cannot.

    Examples
    --------
    >>> bounds = OneSegment(52)
    >>> (bounds[1:] - bounds[:-1]).tolist()
    [52]
    """

    patches: int

    def __getitem__(self, part: slice) -> Self:
        """Return the bounds without the first or the last one."""
        return self

    def __sub__(self, other: OneSegment) -> Self:
        """Return the lengths between bounds: one, of all patches."""
        return self

    def tolist(self) -> list[int]:
        """Return the length of the segment."""
        return [self.patches]


class PackedVisionStage(nn.Module):
    """The patches of one page."""

    def __init__(self, root: Any) -> None:  # noqa: ANN401 - any model with `visual`
        super().__init__()
        self.root = root

    def forward(
        self, patches: Tensor, table_rows: Tensor, table_weights: Tensor, positions: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode N groups of merged patches.

        Shapes: patches [N, merged, pixels of a patch]; table_rows and table_weights [N, merged, 4], from which the
        learned positions are interpolated; positions [N, merged, 2], row and column -> features [N, hidden], and as
        many again for each deeper layer that they are added in.
        """
        pixels = patches.flatten(0, 1)
        output = self.root.model.visual(
            pixels,
            grid_thw=None,  # all that follows from it is given
            interp_indices=table_rows.flatten(0, 1),
            interp_weights=table_weights.flatten(0, 1),
            position_ids=positions.flatten(0, 1),
            cu_seqlens=OneSegment(pixels.shape[0]),
            return_dict=True,
        )
        return output.pooler_output, tuple(output.deepstack_features)


class PackedPrefillStage(LanguageStage):
    """The prompt of B documents of equal length, N image tokens in each."""

    def forward(
        self, input_ids: Tensor, positions: Tensor, image_places: Tensor, image_features: Tensor, *deeper: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Merge the features in, and add those of deeper layers where they belong.

        Shapes: input_ids [B, S]; positions [4, B, S]; image_places [B, N], the image tokens' places in each prompt;
        image_features and each of deeper [B, N, hidden] -> logits of the last position [B, 1, vocabulary] and the
        cache k0, v0, ...
        """
        features: Any = BaseModelOutputWithPooling(pooler_output=[image_features.flatten(0, 1)])  # pyright: ignore[reportArgumentType] - what the model itself makes
        features.deepstack_features = [[layer] for layer in deeper]
        with masks_as_run(), added_at(self.root, image_places):
            output: Any = self.root(
                input_ids=input_ids,
                position_ids=positions,
                mm_encoder_outputs={"image": features},
                past_key_values=fresh_cache(self.empty),
                **self.options,
            )
        return output.logits, cache_tensors(output.past_key_values)


class PackedDecodeStage(LanguageStage):
    """One decode step of B documents with T cached tokens."""

    def forward(self, input_ids: Tensor, positions: Tensor, *cache: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B, 1], [4, B, 1] and k0, v0, ... -> logits [B, 1, vocabulary] and the cache of T + 1 tokens."""
        with masks_as_run():
            output: Any = self.root(
                input_ids=input_ids,
                position_ids=positions,
                past_key_values=filled_cache(self.empty, cache),
                **self.options,
            )
        return output.logits, cache_tensors(output.past_key_values)


@contextmanager
def added_at(root: Any, places: Tensor) -> Generator[None]:  # noqa: ANN401 - any model with `language_model`
    """Let the decoder add deeper image features at places that are known, instead of searching a mask for them.

    The same rows are read, added to and written back; the search alone, one byte per token, is left out.
    """
    decoder = root.model.language_model
    documents = torch.arange(places.shape[0], device=places.device)[:, None]

    def add(hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
        hidden_states = hidden_states.clone()
        hidden_states[documents, places] = hidden_states[documents, places] + visual_embeds
        return hidden_states

    decoder._deepstack_process = add  # hides the class's method
    try:
        yield
    finally:
        del decoder._deepstack_process


def packed_stages(model: Any) -> tuple[StageSpec, ...]:  # noqa: ANN401 - of transformers
    """Return the stages of a model on `meta`: vision, prefill and decode."""
    return _vision(model), _prefill(model), _decode(model)


def _vision(model: Any) -> StageSpec:  # noqa: ANN401 - of transformers
    vision = model.config.vision_config
    merged = vision.spatial_merge_size**2
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    N = Dim("N", min=1, max=LARGEST["S"])

    def per_patch(width: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(IMAGE_TOKENS, merged, width, dtype=dtype, device=model.device)

    return StageSpec(
        name="vision",
        description="one page of N groups of merged patches: encoder, merger, and mergers of deeper layers",
        module=PackedVisionStage(model),
        inputs=(
            per_patch(pixels, model.dtype),
            per_patch(NEIGHBOURS, torch.int64),
            per_patch(NEIGHBOURS, torch.float32),
            per_patch(2, torch.int64),
        ),
        dynamic_shapes={name: {0: N} for name in ("patches", "table_rows", "table_weights", "positions")},
        root="root",
    )


def _prefill(model: Any) -> StageSpec:  # noqa: ANN401 - of transformers
    text, vision = model.config.text_config, model.config.vision_config
    layers = 1 + len(vision.deepstack_visual_indexes)  # of image features
    batch, prompt = EXAMPLE["B"], EXAMPLE["S"]
    B, S, N = (Dim(name, min=1, max=LARGEST[bound]) for name, bound in (("B", "B"), ("S", "S"), ("N", "S")))

    def numbers(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=model.device)

    features = torch.zeros(batch, IMAGE_TOKENS, text.hidden_size, dtype=model.dtype, device=model.device)
    return StageSpec(
        name="prefill",
        description="B documents of S tokens, N image features of each merged in: logits of the last position, cache",
        module=PackedPrefillStage(model),
        inputs=(
            numbers(batch, prompt),
            numbers(AXES, batch, prompt),
            numbers(batch, IMAGE_TOKENS),
            *(features.clone() for _ in range(layers)),
        ),
        dynamic_shapes={
            "input_ids": {0: B, 1: S},
            "positions": {1: B, 2: S},
            "image_places": {0: B, 1: N},
            "image_features": {0: B, 1: N},
            "deeper": tuple({0: B, 1: N} for _ in range(layers - 1)),
        },
        root="root",
        kv_outputs=tuple(range(1, 1 + 2 * text.num_hidden_layers)),
    )


def _decode(model: Any) -> StageSpec:  # noqa: ANN401 - of transformers
    _, plain = language_stages(model)
    ids, *cache = plain.inputs
    positions = torch.zeros(AXES, *ids.shape, dtype=torch.int64, device=model.device)
    shapes = plain.dynamic_shapes
    return attrs.evolve(
        plain,
        module=PackedDecodeStage(model),
        inputs=(ids, positions, *cache),
        dynamic_shapes={
            "input_ids": shapes["input_ids"],
            "positions": {1: shapes["input_ids"][0]},
            "cache": shapes["cache"],
        },
        kv_inputs=tuple(position + 1 for position in plain.kv_inputs),
    )
