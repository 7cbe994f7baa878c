"""The family of models that read images and write text: vision, prefill, decode; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dsocr_graph.models.from_transformers.family import Family
from dsocr_graph.models.from_transformers.page_views import PREPROCESSORS, preprocessor_of
from dsocr_graph.workloads.errors import ContextTooLongError
from dsocr_graph.workloads.request import InvalidRequestError, Request, generation_runs
from modelmeter.workload import Fact, StageRun, WorkloadItem

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig

    from dsocr_graph.models.from_transformers.variant import TransformersVariant
    from dsocr_graph.models.stage_spec import StageSpec


def stages(model: nn.Module, config: PreTrainedConfig, variant: TransformersVariant) -> tuple[StageSpec, ...]:
    """Return the stages of a model on `meta`; how it takes pages decides which vision stages it has."""
    from dsocr_graph.models.from_transformers.image_text_stages import image_text_stages

    return image_text_stages(model, PREPROCESSORS.get(config.model_type))


def fit(settings: Mapping[str, Any], stage: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return random inputs with as many image tokens in each prompt as it has image features.

    Raises
    ------
    ModelInputError
        When a prompt has no room for them.
    """
    from dsocr_graph.models.from_transformers.image_places import with_image_tokens

    return with_image_tokens(settings, stage, inputs)


def runs(settings: Mapping[str, Any], request: Request) -> WorkloadItem:
    """Return what a model runs for a request: vision once per page and document, then prefill and decode.

    The pages' own image tokens, and the marks around them, are part of the prompt.

    Raises
    ------
    InvalidRequestError
        When there are no images: the prefill is captured with image features merged in.
    ModelConfigError
        For a model type whose preprocessor is not known.
    PageShapeError
        For a page that the model's preprocessor refuses.
    ContextTooLongError
        When prompt and new tokens exceed the model's positions.

    Examples
    --------
    >>> from dsocr_graph.workloads.pages import PageSize
    >>> letter = PageSize(name="letter", width=1275, height=1650)
    >>> request = Request(name="ocr", batch=2, prompt_tokens=10, images=(letter,), new_tokens=3)
    >>> for run in runs({"model_type": "deepseek_ocr2"}, request).runs:
    ...     print(run.stage, run.count, run.bindings)
    vision_local 2 {'V': 6}
    vision_global 2 {}
    prefill 1 {'B': 2, 'S': 1131, 'N': 1121}
    decode 2 {'B': 2, 'T': 1131}
    """
    if not request.images:
        raise InvalidRequestError(
            f"request {request.name!r} has no images, which a model of type {settings['model_type']!r} is captured "
            "with; give at least one"
        )
    preprocessor = preprocessor_of(settings)
    pages = [preprocessor.page(image) for image in request.images]
    image_tokens = sum(page.image_tokens for page in pages)
    context = request.prompt_tokens + image_tokens + sum(page.marks for page in pages)
    _check_length(settings, request, context)
    vision = tuple(
        StageRun(stage=stage, count=request.batch, bindings=sizes)
        for page in pages
        for stage, sizes in page.stages.items()
    )
    facts: dict[str, Fact] = {
        "images": len(pages),
        "image_tokens": image_tokens,
        "context_tokens": context,
        "new_tokens": request.new_tokens,
        "batch": request.batch,
    }
    if request.audio_seconds:
        facts["ignored"] = "audio_seconds"
    return WorkloadItem(
        name=request.name,
        documents=request.batch,
        runs=(*vision, *generation_runs(request.batch, context, request.new_tokens, N=image_tokens)),
        facts=facts,
    )


def _check_length(settings: Mapping[str, Any], request: Request, context: int) -> None:
    longest = settings.get("text_config", {}).get("max_position_embeddings")
    if isinstance(longest, int) and context + request.new_tokens > longest:
        raise ContextTooLongError(
            f"request {request.name!r} takes {context:,} tokens of context, images included, and "
            f"{request.new_tokens:,} new ones; the model has {longest:,} positions. Ask for fewer, or smaller pages"
        )


FAMILY = Family(
    name="image_text",
    description="models that read images and write text",
    mappings=("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",),
    main_input="input_ids",
    stages=stages,
    runs=runs,
    fit=fit,
)
