"""Generation: greedy, batched, with the no-repeat rule and the end of sequence."""

from collections.abc import Callable

import pytest
import torch

from dsocr_graph.errors import ModelInputError
from dsocr_graph.models.deepseek_ocr.generation import Document, banned_tokens, encode_document, generate
from dsocr_graph.models.deepseek_ocr.modeling import DeepseekOCRForCausalLM

MakeModel = Callable[..., DeepseekOCRForCausalLM]


def _page(seed: int = 0, *, crops: bool = False) -> Document:
    """Return a page of 128 pixels (2 * 3 + 1 = 7 tokens), with crops 1x2 of 128 pixels (2 * (4 + 1) = 10 more)."""
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(1, 2, 3, 128, 128, generator=generator) if crops else None
    image = [255] * (17 if crops else 7)
    return Document(
        global_pixels=torch.randn(1, 3, 128, 128, generator=generator),
        local_views=views,
        prompt_ids=[0, *image, 5 + seed, 9],
    )


def _recomputed(model: DeepseekOCRForCausalLM, page: Document, new_tokens: int, ngram: int) -> list[int]:
    """Choose every token by a full forward without a cache, the n-gram rule written differently."""
    features = encode_document(model, page)[None]
    tokens = list(page.prompt_ids)
    for _ in range(new_tokens):
        ids = torch.tensor([tokens])
        scores = model(ids, features, ids == 255)[0, -1]
        for token in range(256):
            grams = [tuple((*tokens, token)[at : at + ngram]) for at in range(len(tokens) + 2 - ngram)]
            if ngram and grams.count(grams[-1]) > 1:
                scores[token] = -torch.inf
        tokens.append(int(scores.argmax()))
    return tokens[len(page.prompt_ids) :]


@pytest.mark.parametrize("ngram", [0, 1, 2])
@pytest.mark.parametrize("crops", [False, True])
def test_generation_is_the_argmax_of_full_recomputation(make_model: MakeModel, ngram: int, crops: bool) -> None:
    """With a KV cache the tokens are those chosen by reading everything anew for each."""
    model = make_model(eos_token_id=254)
    page = _page(crops=crops)
    tokens = generate(model, [page], max_new_tokens=6, no_repeat_ngram_size=ngram)[0]
    expected = _recomputed(model, page, 6, ngram)
    assert tokens == (expected[: expected.index(254) + 1] if 254 in expected else expected)


def test_a_batch_writes_what_its_documents_write_alone(make_model: MakeModel) -> None:
    """Two documents of equal length give the tokens of two single runs."""
    model = make_model(eos_token_id=254)
    pages = [_page(1), _page(2)]
    alone = [generate(model, [page], max_new_tokens=4)[0] for page in pages]
    assert generate(model, pages, max_new_tokens=4) == alone


def test_a_preallocated_cache_changes_no_token(make_model: MakeModel) -> None:
    """Writing into a cache of full size gives the same tokens."""
    model = make_model(eos_token_id=254)
    plain = generate(model, [_page()], max_new_tokens=5)
    assert generate(model, [_page()], max_new_tokens=5, preallocate_cache=True) == plain


def test_both_moe_implementations_write_the_same(make_model: MakeModel) -> None:
    """The loop of the published code and the grouped kernel choose the same tokens."""
    runs = [
        generate(make_model(eos_token_id=254, moe_implementation=name), [_page()], max_new_tokens=4)
        for name in ("grouped", "loop")
    ]
    assert runs[0] == runs[1]


def test_generation_ends_with_the_end_of_sequence(make_model: MakeModel) -> None:
    """When the third token is made the end of sequence, three tokens or fewer come back, the last of them it."""
    free = generate(make_model(eos_token_id=254), [_page()], max_new_tokens=5, no_repeat_ngram_size=1)[0]
    # without repeats of any token, the third one occurs first as the third
    ended = generate(make_model(eos_token_id=free[2]), [_page()], max_new_tokens=5, no_repeat_ngram_size=1)[0]
    assert ended == free[:3]


def test_a_document_that_ends_does_not_stop_the_others(make_model: MakeModel) -> None:
    """A batch runs on until every document has ended; the ended one keeps its own tokens."""
    pages = [_page(1), _page(2)]
    free = generate(make_model(eos_token_id=254), pages, max_new_tokens=5, no_repeat_ngram_size=1)
    last = next(token for token in free[0] if token not in free[1])
    ended = generate(make_model(eos_token_id=last), pages, max_new_tokens=5, no_repeat_ngram_size=1)
    assert ended == [free[0][: free[0].index(last) + 1], free[1]]


def test_bfloat16_generates(make_model: MakeModel) -> None:
    """A model in bfloat16 takes float32 pixels and writes as many tokens as asked for."""
    model = make_model(dtype=torch.bfloat16, eos_token_id=254)
    tokens = generate(model, [_page(crops=True)], max_new_tokens=3)[0]
    assert len(tokens) == 3
    assert all(0 <= token < 256 for token in tokens)


@pytest.mark.parametrize(
    ("tokens", "size", "banned"),
    [
        ([4, 5, 6, 4, 5], 3, [6]),
        ([4, 5, 6, 4, 5, 7, 4, 5], 3, [6, 7]),
        ([4, 4, 4], 2, [4]),
        ([4, 5], 1, [4, 5]),  # n-grams of one: no token twice
        ([4, 5], 3, []),  # shorter than the n-gram
        ([1, 2, 3], 2, []),
    ],
)
def test_banned_tokens_complete_a_known_ngram(tokens: list[int], size: int, banned: list[int]) -> None:
    """Exactly the tokens that would repeat an n-gram are banned."""
    assert banned_tokens(tokens, size) == banned


@pytest.mark.parametrize(
    ("documents", "changes", "message"),
    [
        ([], {}, "at least one document"),
        ([_page()], {"max_new_tokens": 0}, "max_new_tokens = 0"),
        ([_page()], {"no_repeat_ngram_size": -1}, "no_repeat_ngram_size = -1"),
        ([_page(), _page(crops=True)], {}, "equal length"),
        (
            [Document(global_pixels=torch.zeros(1, 3, 128, 128), prompt_ids=[0, 255, 9])],
            {},
            "document 0 has 7 image tokens.*1 ids 255",
        ),
    ],
)
def test_documents_that_do_not_fit_are_refused(
    tiny: DeepseekOCRForCausalLM, documents: list[Document], changes: dict[str, int], message: str
) -> None:
    """Wrong counts are one error with the numbers."""
    with pytest.raises(ModelInputError, match=message):
        generate(tiny, documents, **({"max_new_tokens": 2} | changes))
