"""The family of decoder-only language models: a prefill and a decode stage; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dsocr_graph.models.from_transformers.family import Family
from dsocr_graph.models.from_transformers.text_encoder import reads_both_ways
from dsocr_graph.models.from_transformers.text_read import require_positions, tokens_read
from dsocr_graph.workloads.request import Request, generation_runs
from modelmeter.workload import Fact, WorkloadItem

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from dsocr_graph.models.from_transformers.variant import TransformersVariant
    from dsocr_graph.models.stage_spec import StageSpec


def stages(model: PreTrainedModel, config: PreTrainedConfig, variant: TransformersVariant) -> tuple[StageSpec, ...]:
    """Return the stages of a language model on `meta`; the model itself knows its configuration and dtype."""
    from dsocr_graph.models.from_transformers.causal_lm_stages import language_stages

    return language_stages(model)


def runs(settings: Mapping[str, Any], request: Request) -> WorkloadItem:
    """Return what a language model runs for a request: it reads the text of each page in place of its image.

    Raises
    ------
    InvalidRequestError
        When nothing is left to read.
    ContextTooLongError
        When prompt and new tokens exceed the model's positions.

    Examples
    --------
    >>> item = runs({"max_position_embeddings": 4096}, Request(name="chat", prompt_tokens=512, new_tokens=3))
    >>> [(run.stage, run.count, run.bindings) for run in item.runs]
    [('prefill', 1, {'B': 1, 'S': 512}), ('decode', 2, {'B': 1, 'T': 512})]
    """
    context = tokens_read(request, "a language model")
    require_positions(
        settings,
        context + request.new_tokens,
        f"request {request.name!r} takes {context:,} tokens of context and {request.new_tokens:,} new ones",
    )
    return WorkloadItem(
        name=request.name,
        documents=request.batch,
        runs=generation_runs(request.batch, context, request.new_tokens),
        facts={"context_tokens": context, "new_tokens": request.new_tokens, "batch": request.batch} | _ignored(request),
    )


def takes(config: PreTrainedConfig, class_name: str) -> bool:
    """Whether a model writes token by token: one that reads both ways keeps no keys and values to go on from."""
    return not reads_both_ways(config)


def _ignored(request: Request) -> dict[str, Fact]:
    ignored: list[str] = []
    if request.images:
        ignored.append("image pixels" if request.page_text_tokens else "images")
    if request.audio_seconds:
        ignored.append("audio_seconds")
    return {"ignored": ", ".join(ignored)} if ignored else {}


FAMILY = Family(
    name="causal_lm",
    description="decoder-only language models",
    mappings=("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",),
    main_input="input_ids",
    stages=stages,
    runs=runs,
    takes=takes,
)
