"""The family of image encoders: one stage from pixels to features; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dsocr_graph.models.from_transformers.family import Family
from dsocr_graph.workloads.request import InvalidRequestError, Request
from modelmeter.workload import Fact, StageRun, WorkloadItem

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

    from dsocr_graph.models.from_transformers.variant import TransformersVariant
    from dsocr_graph.models.stage_spec import StageSpec


def stages(model: nn.Module, config: PreTrainedConfig, variant: TransformersVariant) -> tuple[StageSpec, ...]:
    """Return the stage of an image encoder on `meta`."""
    from dsocr_graph.models.from_transformers.encoder_stages import image_encoder_stages

    return image_encoder_stages(model)


def runs(settings: Mapping[str, Any], request: Request) -> WorkloadItem:
    """Return what an encoder runs for a request: all images of all documents as one batch, and no text.

    Each image is resized to the one square that the model is made for.

    Raises
    ------
    InvalidRequestError
        When there are no images.

    Examples
    --------
    >>> from dsocr_graph.workloads.pages import PageSize
    >>> page = PageSize(name="page", width=1275, height=1650)
    >>> item = runs({}, Request(name="pages", batch=4, images=(page, page), prompt_tokens=10, new_tokens=3))
    >>> [(run.stage, run.count, run.bindings) for run in item.runs], item.facts["ignored"]
    ([('encode', 1, {'B': 8})], 'prompt_tokens, new_tokens')
    """
    if not request.images:
        raise InvalidRequestError(f"request {request.name!r} gives an image encoder nothing to read; give images")
    images = request.batch * len(request.images)
    facts: dict[str, Fact] = {"images": len(request.images), "batch": request.batch}
    ignored = [
        name
        for name, given in (
            ("prompt_tokens", request.prompt_tokens > 0),
            ("new_tokens", request.new_tokens > 1),
            ("audio_seconds", request.audio_seconds > 0),
        )
        if given
    ]
    if ignored:
        facts["ignored"] = ", ".join(ignored)
    return WorkloadItem(
        name=request.name,
        documents=request.batch,
        runs=(StageRun(stage="encode", count=1, bindings={"B": images}),),
        facts=facts,
    )


FAMILY = Family(
    name="image_encoder",
    description="encoders of images",
    mappings=(
        "MODEL_FOR_IMAGE_MAPPING_NAMES",
        "MODEL_MAPPING_NAMES",
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    ),
    main_input="pixel_values",
    stages=stages,
    runs=runs,
)
