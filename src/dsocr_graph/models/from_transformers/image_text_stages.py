"""The stages of models that read images and write text, as modules for `torch.export`, by how they take pages.

Dims: V views or tiles, N image tokens of one document, B documents, S prompt tokens, T cached tokens.
"""

from __future__ import annotations

from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dsocr_graph.models.from_transformers.cache import cache_tensors, fresh_cache
from dsocr_graph.models.from_transformers.causal_lm_stages import EXAMPLE, LARGEST, LanguageStage, language_stages
from dsocr_graph.models.from_transformers.masks import masks_as_run
from dsocr_graph.models.from_transformers.packed_stages import packed_stages
from dsocr_graph.models.from_transformers.page_views import PackedPages, Preprocessor, TiledPages, WholePages
from dsocr_graph.models.stage_spec import StageSpec

IMAGE_TOKENS = 7  # of the example inputs: unlike B, S and T
VIEWS = 5
MOST_VIEWS = 4096


def image_text_stages(model: Any, preprocessor: Preprocessor | None) -> tuple[StageSpec, ...]:  # noqa: ANN401 - of transformers
    """Return the stages of a model on `meta`: those of vision, then prefill and decode.

    Without a preprocessor that is known, vision is one view of the size that the configuration names, where the model
    takes one; else it is left out, with the reason.
    """
    if preprocessor is None:
        _, decode = language_stages(model)
        return (_one_view(model), _accepted_prefill(model), decode)
    if isinstance(preprocessor, PackedPages):
        return packed_stages(model)
    _, decode = language_stages(model)
    if isinstance(preprocessor, TiledPages):
        return (*_tiled_stages(model, preprocessor), _prefill(model, by_document=True), decode)
    if isinstance(preprocessor, WholePages):
        return (_view_stage(model), _prefill(model, by_document=False), decode)
    assert_never(preprocessor)


class ViewStage(nn.Module):
    """V square views."""

    def __init__(self, root: Any) -> None:  # noqa: ANN401 - any model with `get_image_features`
        super().__init__()
        self.root = root

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[V, 3, side, side] -> image features [V, tokens, hidden]."""
        with masks_as_run():
            return self.root.model.get_image_features(pixel_values).pooler_output


class GlobalViewStage(nn.Module):
    """The global view of one page."""

    def __init__(self, root: Any) -> None:  # noqa: ANN401 - any model with tiles
        super().__init__()
        self.root = root

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[1, 3, side, side] -> image features and the separator [tokens + 1, hidden]."""
        with masks_as_run():
            (features,) = self.root.model.get_image_features(pixel_values).pooler_output
        return features


class TileStage(nn.Module):
    """The tiles of one page, put before the features of its global view.

    The model's own method encodes both in one call and joins them once; here each is a stage, since a small page has
    no tiles.
    """

    def __init__(self, root: Any) -> None:  # noqa: ANN401 - any model with tiles
        super().__init__()
        self.root = root

    def forward(self, pixel_values: Tensor, global_features: Tensor) -> Tensor:
        """[V, 3, side, side] and [G, hidden] -> image features [V * tokens + G, hidden]."""
        model = self.root.model
        with masks_as_run():
            features = model.multi_modal_projector(model.vision_tower(pixel_values).last_hidden_state)
        return torch.cat([features.reshape(-1, features.shape[-1]), global_features], dim=0)


class OneViewStage(nn.Module):
    """One view, alone."""

    def __init__(self, root: Any) -> None:  # noqa: ANN401 - any model with `get_image_features`
        super().__init__()
        self.root = root

    def forward(self, pixel_values: Tensor) -> Tensor | list[Tensor]:
        """[1, channels, height, width] -> image features, as the model has them."""
        with masks_as_run():
            return self.root.model.get_image_features(pixel_values).pooler_output


class ImagePrefillStage(LanguageStage):
    """The prompt of B documents of equal length, N image tokens in each."""

    def __init__(self, root: Any, *, by_document: bool) -> None:  # noqa: ANN401 - any model of the family
        super().__init__(root)
        self.by_document = by_document  # whether the model joins a list of features before it merges them

    def forward(self, input_ids: Tensor, image_features: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B, S] and [B, N, hidden] -> logits of the last position [B, 1, vocabulary] and the cache k0, v0, ..."""
        features: Any = [image_features.flatten(0, 1)] if self.by_document else image_features
        with masks_as_run():
            output: Any = self.root(
                input_ids=input_ids,
                mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
                past_key_values=fresh_cache(self.empty),
                **self.options,
            )
        return output.logits, cache_tensors(output.past_key_values)


def _tiled_stages(model: Any, pages: TiledPages) -> tuple[StageSpec, ...]:  # noqa: ANN401 - of transformers
    hidden = model.config.text_config.hidden_size
    return (
        StageSpec(
            name="vision_global",
            description="the global view of one page: encoders, projector and separator",
            module=GlobalViewStage(model),
            inputs=(_empty(model, 1, 3, pages.view, pages.view),),
            root="root",
        ),
        StageSpec(
            name="vision_local",
            description="the V tiles of one page as one batch, joined with its global features",
            module=TileStage(model),
            inputs=(
                _empty(model, VIEWS, 3, pages.tile, pages.tile),
                _empty(model, (pages.view // pages.cell) ** 2 + 1, hidden),
            ),
            dynamic_shapes={"pixel_values": {0: Dim("V", min=1, max=MOST_VIEWS)}, "global_features": None},
            root="root",
        ),
    )


def _view_stage(model: Any) -> StageSpec:  # noqa: ANN401 - of transformers
    side = model.config.vision_config.image_size
    return StageSpec(
        name="vision",
        description="V views as one batch: encoder and projector",
        module=ViewStage(model),
        inputs=(_empty(model, VIEWS, 3, side, side),),
        dynamic_shapes={"pixel_values": {0: Dim("V", min=1, max=MOST_VIEWS)}},
        root="root",
    )


def _one_view(model: Any) -> StageSpec:  # noqa: ANN401 - of transformers
    """Return the stage of one view; left out where the model does not run on pixels alone, which on `meta` is free."""
    name, stage = type(model).__name__, OneViewStage(model)
    vision = getattr(model.config, "vision_config", None)
    side = getattr(vision, "image_size", None)
    if not isinstance(side, int):
        return StageSpec(
            name="vision",
            description="",
            module=stage,
            inputs=(),
            left_out=f"how a {name} takes a page is not known, and its configuration names no image_size of a view",
        )
    pixels = _empty(model, 1, getattr(vision, "num_channels", 3), side, side)
    left_out = ""
    try:
        with torch.no_grad():
            stage(pixels)
    except Exception as error:  # any code of transformers
        left_out = f"a {name} does not take a view of {side} x {side} pixels alone: {type(error).__name__}: {error}"
    return StageSpec(
        name="vision",
        description=f"one view of {side} x {side} pixels: encoder and projector",
        module=stage,
        inputs=(pixels,),
        root="root",
        left_out=left_out,
    )


def _accepted_prefill(model: Any) -> StageSpec:  # noqa: ANN401 - of transformers
    """Return the prefill with image features as a list or as a tensor, whichever the model takes; lists come first.

    On `meta` a trial is free, and a model refuses the wrong kind before it asks for values that are not there.
    """
    for by_document in (True, False):
        stage = _prefill(model, by_document=by_document)
        try:
            with torch.no_grad():
                stage.module(*stage.inputs)
        except (AttributeError, TypeError):  # of a list that is to be a tensor, or the other way around
            continue
        except Exception:  # any code of transformers: merged, and stopped where it counts image tokens
            return stage
        return stage
    return _prefill(model, by_document=True)  # whose export says what the model refuses


def _prefill(model: Any, *, by_document: bool) -> StageSpec:  # noqa: ANN401 - of transformers
    B, S, N = (Dim(name, min=1, max=LARGEST[bound]) for name, bound in (("B", "B"), ("S", "S"), ("N", "S")))
    ids = torch.zeros(EXAMPLE["B"], EXAMPLE["S"], dtype=torch.int64, device=model.device)
    text = model.config.get_text_config(decoder=True)
    return StageSpec(
        name="prefill",
        description="B documents of S tokens, N image features of each merged in: logits of the last position, cache",
        module=ImagePrefillStage(model, by_document=by_document),
        inputs=(ids, _empty(model, EXAMPLE["B"], IMAGE_TOKENS, text.hidden_size)),
        dynamic_shapes={"input_ids": {0: B, 1: S}, "image_features": {0: B, 1: N}},
        root="root",
        kv_outputs=tuple(range(1, 1 + 2 * text.num_hidden_layers)),
    )


def _empty(model: Any, *shape: int) -> Tensor:  # noqa: ANN401 - of transformers
    return torch.zeros(shape, dtype=model.dtype, device=model.device)
