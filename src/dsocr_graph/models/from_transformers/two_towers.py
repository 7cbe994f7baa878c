"""The family of models that compare images with texts: an encoder of each; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dsocr_graph.models.from_transformers.family import Family
from dsocr_graph.models.from_transformers.text_read import require_positions
from dsocr_graph.workloads.request import InvalidRequestError, Request
from modelmeter.workload import Fact, StageRun, WorkloadItem

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

    from dsocr_graph.models.from_transformers.variant import TransformersVariant
    from dsocr_graph.models.stage_spec import StageSpec


def stages(model: nn.Module, config: PreTrainedConfig, variant: TransformersVariant) -> tuple[StageSpec, ...]:
    """Return the stage of each encoder on `meta`."""
    from dsocr_graph.models.from_transformers.encoder_stages import two_tower_stages

    return two_tower_stages(model)


def runs(settings: Mapping[str, Any], request: Request) -> WorkloadItem:
    """Return what the encoders run for a request: all images of all documents as one batch, and each prompt once.

    An image is resized to the one square that the model is made for; its text is not read beside it.

    Raises
    ------
    InvalidRequestError
        When there is nothing to encode.
    ContextTooLongError
        When a prompt exceeds the positions of the encoder of text.

    Examples
    --------
    >>> from dsocr_graph.workloads.pages import PageSize
    >>> page = PageSize(name="page", width=1275, height=1650)
    >>> item = runs({}, Request(name="pages", batch=4, images=(page, page), prompt_tokens=10))
    >>> [(run.stage, run.count, run.bindings) for run in item.runs]
    [('encode_images', 1, {'B': 8}), ('encode_texts', 1, {'B': 4, 'S': 10})]
    """
    found: list[StageRun] = []
    facts: dict[str, Fact] = {"batch": request.batch}
    if request.images:
        images = request.batch * len(request.images)
        found.append(StageRun(stage="encode_images", count=1, bindings={"B": images}))
        facts["images"] = len(request.images)
    if request.prompt_tokens:
        tokens = request.prompt_tokens
        require_positions(
            settings.get("text_config") or {}, tokens, f"request {request.name!r} has a prompt of {tokens:,} tokens"
        )
        found.append(StageRun(stage="encode_texts", count=1, bindings={"B": request.batch, "S": tokens}))
        facts["context_tokens"] = tokens
    if not found:
        raise InvalidRequestError(
            f"request {request.name!r} gives encoders of images and of texts nothing to read; give images or "
            "prompt_tokens"
        )
    ignored = [
        name
        for name, given in (("new_tokens", request.new_tokens > 1), ("audio_seconds", request.audio_seconds > 0))
        if given
    ]
    if ignored:
        facts["ignored"] = ", ".join(ignored)
    return WorkloadItem(name=request.name, documents=request.batch, runs=tuple(found), facts=facts)


def takes(config: PreTrainedConfig, class_name: str) -> bool:
    """Whether a class has an encoder of each kind, and the one of images takes squares of one size."""
    from dsocr_graph.models.from_transformers.load import model_class

    built = model_class(class_name)
    encoders = all(hasattr(built, f"get_{what}_features") for what in ("image", "text"))
    return encoders and isinstance(getattr(getattr(config, "vision_config", None), "image_size", None), int)


FAMILY = Family(
    name="two_towers",
    description="models that compare images with texts",
    mappings=("MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",),
    main_input="input_ids",
    stages=stages,
    runs=runs,
    takes=takes,
)
