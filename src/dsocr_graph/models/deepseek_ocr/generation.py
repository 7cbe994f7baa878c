"""Pages in, tokens out: vision, prefill and greedy decoding with a KV cache and the no-repeat rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import field, frozen
from torch import Tensor

from dsocr_graph.errors import ModelInputError
from dsocr_graph.models.deepseek_ocr.cache import KVCache, PreallocatedKVCache
from dsocr_graph.models.deepseek_ocr.modeling import DeepseekOCRForCausalLM


@frozen(kw_only=True)
class Document:
    """One preprocessed page and its prompt.

    Examples
    --------
    >>> import torch
    >>> Document(global_pixels=torch.zeros(1, 3, 512, 512), prompt_ids=[0] + 73 * [128815] + [7]).grid
    (0, 0)
    """

    global_pixels: Tensor  # [1, 3, base, base], normalised
    local_views: Tensor | None = None  # [rows, columns, 3, 640, 640]; None when the page is not cropped
    prompt_ids: tuple[int, ...] = field(converter=tuple[int, ...])  # with one image id per image token

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of crops; (0, 0) without."""
        return (0, 0) if self.local_views is None else (self.local_views.shape[0], self.local_views.shape[1])


def encode_document(model: DeepseekOCRForCausalLM, document: Document) -> Tensor:
    """Return the image features of one document in the order of its image ids: [N, hidden]."""
    # The published code encodes the crops first. The order of two independent encoders changes no value.
    features = model.encode_global(document.global_pixels.to(model.device, model.dtype))
    if document.local_views is not None:
        features = model.encode_local(document.local_views.to(model.device, model.dtype), features)
    return features


@torch.no_grad()
def generate(
    model: DeepseekOCRForCausalLM,
    documents: Sequence[Document],
    *,
    max_new_tokens: int,
    no_repeat_ngram_size: int = 20,
    preallocate_cache: bool = False,
) -> list[list[int]]:
    """Read documents greedily.

    Parameters
    ----------
    model
        Its device and dtype are where and how it runs.
    documents
        One or more, with prompts of equal length. Vision runs page by page, as published.
    max_new_tokens
        Most tokens to write per document.
    no_repeat_ngram_size
        No sequence of this many tokens is written twice, the prompt included; 0 turns the rule off.
    preallocate_cache
        Write into a KV cache of full size instead of copying it in every step. The tokens are the same.

    Returns
    -------
    list of list of int
        The new tokens of each document, up to and with the end of sequence.

    Raises
    ------
    ModelInputError
        For no documents, prompts of unequal length, or a count of image ids that is not the count of image
        features.

    Examples
    --------
    >>> import torch
    >>> from dsocr_graph.models.deepseek_ocr import DeepseekOCRConfig, DeepseekOCRForCausalLM, initialize
    >>> model = initialize(DeepseekOCRForCausalLM(DeepseekOCRConfig.tiny())).eval()
    >>> image = [255] * 7  # 2 rows of 2 + newline, separator
    >>> page = Document(global_pixels=torch.zeros(1, 3, 128, 128), prompt_ids=[0, *image, 9])
    >>> len(generate(model, [page], max_new_tokens=3)[0])
    3
    """
    tokens = _checked_prompts(documents, max_new_tokens, no_repeat_ngram_size)
    input_ids = torch.tensor(tokens, device=model.device)
    features = _stacked_features(model, documents)
    cache = PreallocatedKVCache(len(tokens[0]) + max_new_tokens) if preallocate_cache else KVCache()
    prompt = len(tokens[0])
    finished = [False] * len(tokens)
    images_mask = input_ids == model.config.image_token_id
    chosen, cache = model.prefill(
        input_ids, features, images_mask, cache=cache, banned=_banned(tokens, no_repeat_ngram_size)
    )
    del features
    while True:
        for row, token in enumerate(chosen.tolist()):
            tokens[row].append(token)
            finished[row] = finished[row] or token == model.config.eos_token_id
        if all(finished) or len(tokens[0]) - prompt == max_new_tokens:
            break
        chosen, cache = model.decode_step(chosen[:, None], cache, banned=_banned(tokens, no_repeat_ngram_size))
    return [_until(row[prompt:], model.config.eos_token_id) for row in tokens]


def banned_tokens(tokens: Sequence[int], ngram_size: int) -> list[int]:
    """Return the tokens that would repeat an n-gram of `tokens` if they came next.

    Examples
    --------
    >>> banned_tokens([1, 2, 3, 9, 1, 2], 3)  # 1 2 3 is there already
    [3]
    >>> banned_tokens([1, 2, 3, 9, 1, 2], 0)
    []
    """
    if ngram_size < 1 or len(tokens) < ngram_size:
        return []
    prefix = list(tokens[len(tokens) - ngram_size + 1 :])
    starts = range(len(tokens) - ngram_size + 1)
    width = ngram_size - 1
    return sorted({tokens[at + width] for at in starts if list(tokens[at : at + width]) == prefix})


def _banned(rows: Sequence[Sequence[int]], ngram_size: int) -> list[list[int]]:
    return [banned_tokens(row, ngram_size) for row in rows]


def _until(tokens: list[int], last: int) -> list[int]:
    return tokens[: tokens.index(last) + 1] if last in tokens else tokens


def _checked_prompts(documents: Sequence[Document], max_new_tokens: int, no_repeat_ngram_size: int) -> list[list[int]]:
    if not documents:
        raise ModelInputError("generate needs at least one document")
    if max_new_tokens < 1 or no_repeat_ngram_size < 0:
        raise ModelInputError(
            f"max_new_tokens = {max_new_tokens} must be at least 1, "
            f"no_repeat_ngram_size = {no_repeat_ngram_size} at least 0"
        )
    lengths = [len(document.prompt_ids) for document in documents]
    if len(set(lengths)) > 1:
        raise ModelInputError(
            f"prompts of {lengths} tokens: one batch takes documents of equal length; run the others apart"
        )
    return [list(document.prompt_ids) for document in documents]


def _stacked_features(model: DeepseekOCRForCausalLM, documents: Sequence[Document]) -> Tensor:
    features: list[Tensor] = []
    image_id = model.config.image_token_id
    for index, document in enumerate(documents):
        encoded = encode_document(model, document)
        wanted = sum(token == image_id for token in document.prompt_ids)
        if encoded.shape[0] != wanted:
            raise ModelInputError(
                f"document {index} has {encoded.shape[0]} image tokens (grid {document.grid}, view of "
                f"{document.global_pixels.shape[-1]} pixels), but its prompt holds {wanted} ids {image_id}"
            )
        features.append(encoded)
    if len({one.shape[0] for one in features}) > 1:
        raise ModelInputError(
            f"documents of {[one.shape[0] for one in features]} image tokens: one batch takes equal counts"
        )
    return torch.stack(features)
