"""Real inputs for prompts with images: as many image tokens as features, where the features are merged in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dsocr_graph.errors import ModelInputError
from dsocr_graph.models.from_transformers.configuration import transformers_config


def with_image_tokens(settings: Mapping[str, Any], stage: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return random inputs of a stage with the image tokens of each prompt at its beginning, and nowhere else.

    Parameters
    ----------
    settings : mapping of str to object
        The configuration file as it stands.
    stage : str
        Other stages than "prefill" read no image tokens.
    inputs : sequence of Tensor
        In the order of the stage's inputs: ids [B, S] first, image features [B, N, hidden] among the others.

    Raises
    ------
    ModelInputError
        When a prompt has no room for its image tokens.

    Examples
    --------
    >>> ids, features = torch.tensor([[5, 6, 7]]), torch.zeros(1, 2, 8)
    >>> with_image_tokens({"model_type": "got_ocr2", "image_token_id": 9}, "prefill", [ids, features])[0]
    tensor([[9, 9, 7]])
    """
    if stage != "prefill":
        return list(inputs)
    ids, *others = inputs
    tokens = next(each.shape[1] for each in others if each.is_floating_point())
    if tokens > ids.shape[1]:
        raise ModelInputError(f"a prompt of S={ids.shape[1]} tokens has no room for N={tokens} of images; give N <= S")
    image: int = transformers_config(settings).image_token_id
    text = torch.where(ids == image, image - 1 if image else 1, ids)
    text[:, :tokens] = image
    return [text, *others]
