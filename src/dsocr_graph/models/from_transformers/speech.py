"""The family of models that read speech and write text: encode, prefill, decode; importing this imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dsocr_graph.models.from_transformers.family import Family
from dsocr_graph.workloads.errors import ContextTooLongError
from dsocr_graph.workloads.request import InvalidRequestError, Request, generation_runs
from modelmeter.workload import Fact, StageRun, WorkloadItem

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

    from dsocr_graph.models.from_transformers.variant import TransformersVariant
    from dsocr_graph.models.stage_spec import StageSpec

# WhisperFeatureExtractor: 160 samples from one frame to the next, 16,000 a second; the encoder halves the frames.
POSITIONS_PER_SECOND = 50
# <|startoftranscript|>, language, task, <|notimestamps|>: what generation starts a window with.
START_TOKENS = 4


def stages(model: nn.Module, config: PreTrainedConfig, variant: TransformersVariant) -> tuple[StageSpec, ...]:
    """Return the stages of a speech model on `meta`."""
    from dsocr_graph.models.from_transformers.speech_stages import speech_stages

    return speech_stages(model)


def runs(settings: Mapping[str, Any], request: Request) -> WorkloadItem:
    """Return what a model runs for a request: per window of audio, encode, prefill and decode.

    A window is as long as the encoder's positions, 30 seconds; windows follow each other, and the last is padded. New
    tokens are spread evenly, at least one a window. The text prompt, and a token that marks it, precede the first
    window alone, as generation does by default.

    Raises
    ------
    InvalidRequestError
        When there is no audio.
    ContextTooLongError
        When a window's prompt and new tokens exceed the decoder's positions.

    Examples
    --------
    >>> request = Request(name="talk", batch=2, audio_seconds=45, new_tokens=5)
    >>> for run in runs({"max_source_positions": 1500, "max_target_positions": 448}, request).runs:
    ...     print(run.stage, run.count, run.bindings)
    encode 2 {'B': 2}
    prefill 1 {'B': 2, 'S': 4}
    decode 2 {'B': 2, 'T': 4}
    prefill 1 {'B': 2, 'S': 4}
    decode 1 {'B': 2, 'T': 4}
    """
    if request.audio_seconds == 0:
        raise InvalidRequestError(
            f"request {request.name!r} gives a speech model nothing to hear; give audio_seconds above 0"
        )
    windows = math.ceil(request.audio_seconds * POSITIONS_PER_SECOND / settings["max_source_positions"])
    facts: dict[str, Fact] = {
        "audio_seconds": request.audio_seconds,
        "windows": windows,
        "new_tokens": max(request.new_tokens, windows),
        "batch": request.batch,
    }
    if request.images:
        facts["ignored"] = "images"
    encode = StageRun(stage="encode", count=windows, bindings={"B": request.batch})
    return WorkloadItem(
        name=request.name,
        documents=request.batch,
        runs=(encode, *_decoder_runs(request, windows, settings["max_target_positions"])),
        facts=facts,
    )


def _decoder_runs(request: Request, windows: int, positions: int) -> Iterator[StageRun]:
    each, left = divmod(request.new_tokens, windows)
    for window in range(windows):
        prompted = window == 0 and request.prompt_tokens > 0
        context = START_TOKENS + (1 + request.prompt_tokens if prompted else 0)
        new_tokens = max(1, each + (window < left))
        if context + new_tokens > positions:
            raise ContextTooLongError(
                f"request {request.name!r} takes {context:,} tokens of context and {new_tokens:,} new ones in window "
                f"{window + 1} of {windows}; the decoder has {positions:,} positions. Ask for fewer, or for more audio"
            )
        yield from generation_runs(request.batch, context, new_tokens)


FAMILY = Family(
    name="speech",
    description="models that read speech and write text",
    mappings=("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",),
    main_input="input_features",
    stages=stages,
    runs=runs,
)
