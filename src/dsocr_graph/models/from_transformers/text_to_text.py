"""The family of models that read text and write text by a decoder of its own; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dsocr_graph.models.from_transformers.family import Family
from dsocr_graph.models.from_transformers.text_read import require_positions, tokens_read
from dsocr_graph.workloads.request import Request
from modelmeter.workload import StageRun, WorkloadItem

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

    from dsocr_graph.models.from_transformers.variant import TransformersVariant
    from dsocr_graph.models.stage_spec import StageSpec

START_TOKENS = 1
"""What the decoder starts with: one token, as generation has it by default."""


def stages(model: nn.Module, config: PreTrainedConfig, variant: TransformersVariant) -> tuple[StageSpec, ...]:
    """Return the stages of an encoder-decoder of text on `meta`."""
    from dsocr_graph.models.from_transformers.text_to_text_stages import text_to_text_stages

    return text_to_text_stages(model)


def runs(settings: Mapping[str, Any], request: Request) -> WorkloadItem:
    """Return what a model runs for a request: encode, prefill of the start token, a decode step for each further one.

    Raises
    ------
    InvalidRequestError
        When nothing is left to read.
    ContextTooLongError
        When the text, or what is written, exceeds the model's positions.

    Examples
    --------
    >>> request = Request(name="translation", batch=2, prompt_tokens=40, new_tokens=3)
    >>> for run in runs({}, request).runs:
    ...     print(run.stage, run.count, run.bindings)
    encode 1 {'B': 2, 'S': 40}
    prefill 1 {'B': 2, 'S': 40, 'P': 1}
    decode 2 {'B': 2, 'S': 40, 'T': 1}
    """
    tokens = tokens_read(request, "an encoder of text")
    require_positions(
        settings,
        max(tokens, START_TOKENS + request.new_tokens),
        f"request {request.name!r} reads {tokens:,} tokens and writes {request.new_tokens:,}",
    )
    read = {"B": request.batch, "S": tokens}
    steps = StageRun(
        stage="decode", count=max(1, request.new_tokens - 1), bindings={**read, "T": START_TOKENS}, sweep="T"
    )
    return WorkloadItem(
        name=request.name,
        documents=request.batch,
        runs=(
            StageRun(stage="encode", count=1, bindings=read),
            StageRun(stage="prefill", count=1, bindings={**read, "P": START_TOKENS}),
            *((steps,) if request.new_tokens > 1 else ()),
        ),
        facts={"context_tokens": tokens, "new_tokens": request.new_tokens, "batch": request.batch},
    )


def takes(config: PreTrainedConfig, class_name: str) -> bool:
    """Whether a configuration is of an encoder and a decoder; models of speech are mapped among these as well."""
    return config.is_encoder_decoder


FAMILY = Family(
    name="text_to_text",
    description="models with an encoder of text and a decoder",
    mappings=("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",),
    main_input="input_ids",
    stages=stages,
    runs=runs,
    takes=takes,
)
