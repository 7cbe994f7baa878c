"""The family of text encoders: one stage from tokens to features; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dsocr_graph.models.from_transformers.family import Family
from dsocr_graph.models.from_transformers.text_read import require_positions, tokens_read
from dsocr_graph.workloads.request import Request
from modelmeter.workload import Fact, StageRun, WorkloadItem

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

    from dsocr_graph.models.from_transformers.variant import TransformersVariant
    from dsocr_graph.models.stage_spec import StageSpec


def stages(model: nn.Module, config: PreTrainedConfig, variant: TransformersVariant) -> tuple[StageSpec, ...]:
    """Return the stage of a text encoder on `meta`."""
    from dsocr_graph.models.from_transformers.encoder_stages import text_encoder_stages

    return text_encoder_stages(model)


def runs(settings: Mapping[str, Any], request: Request) -> WorkloadItem:
    """Return what an encoder runs for a request: the documents of a batch at once, pages as their text.

    Raises
    ------
    InvalidRequestError
        When nothing is left to read.
    ContextTooLongError
        When a document exceeds the model's positions.

    Examples
    --------
    >>> item = runs({"max_position_embeddings": 512}, Request(name="query", batch=8, prompt_tokens=40, new_tokens=3))
    >>> [(run.stage, run.count, run.bindings) for run in item.runs], item.facts["ignored"]
    ([('encode', 1, {'B': 8, 'S': 40})], 'new_tokens')
    """
    tokens = tokens_read(request, "a text encoder")
    require_positions(settings, tokens, f"request {request.name!r} takes {tokens:,} tokens")
    facts: dict[str, Fact] = {"context_tokens": tokens, "batch": request.batch}
    if request.new_tokens > 1 and not request.page_text_tokens:  # the text of a page is as long as its answer
        facts["ignored"] = "new_tokens"
    return WorkloadItem(
        name=request.name,
        documents=request.batch,
        runs=(StageRun(stage="encode", count=1, bindings={"B": request.batch, "S": tokens}),),
        facts=facts,
    )


def reads_both_ways(config: PreTrainedConfig) -> bool:
    """Whether a configuration is of an encoder's kind, and does not say that it is used as a decoder."""
    from transformers.models.auto import modeling_auto

    types = {*modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, *modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES}
    decoders = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES  # the text part of some is listed as an encoder
    return (
        config.model_type in types - set(decoders)
        and not config.is_encoder_decoder
        and not getattr(config, "is_decoder", False)
    )


def takes(config: PreTrainedConfig, class_name: str) -> bool:
    """Whether a class runs as an encoder: any of an encoder's kind, and the encoder alone of one with a decoder."""
    from transformers.models.auto import modeling_auto

    mappings: Any = modeling_auto
    alone = mappings.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(config.model_type)
    return reads_both_ways(config) or (config.is_encoder_decoder and class_name == alone)


FAMILY = Family(
    name="text_encoder",
    description="encoders of text",
    mappings=(
        "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
        "MODEL_MAPPING_NAMES",
        "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    ),
    main_input="input_ids",
    stages=stages,
    runs=runs,
    takes=takes,
)
