"""Every what-if of an element type or of the cache, over every shipped model: bytes by hand, sums, and refusals."""

from __future__ import annotations

import pytest

import modelmeter
from modelmeter.dim_text import to_text
from modelmeter.layers import Embedding
from modelmeter.model import AnalyticModel
from modelmeter.whatif import Options, UnsupportedWhatIfError, apply

WHAT_IFS = (
    *({"weight_dtype": dtype} for dtype in ("fp32", "fp8", "int8", "int4")),
    *({"weight_dtype": dtype, "activation_dtype": dtype} for dtype in ("fp8", "int8")),
    {"activation_dtype": "fp32"},
    *({"kv_dtype": dtype} for dtype in ("fp32", "fp8", "int8", "int4")),
    {"kv_growth": "preallocated"},
    {"weight_dtype": "int4", "kv_dtype": "int8", "kv_growth": "preallocated"},
)
LATENTS = {"deepseek-v3"}  # caches latents, which linear layers expand
WITHOUT_CACHE = {"siglip-so400m-patch14-384"}

WHISPER_MATRICES = (
    32 * (4 * 1280 * 1280 + 2 * 1280 * 5120)  # encoder: 629,145,600
    + 32 * (8 * 1280 * 1280 + 2 * 1280 * 5120)  # decoder, attention to itself and to the audio: 838,860,800
    + 51_866 * 1280  # the table that the head and the embedding share: 66,388,480
)  # elements: 1,534,394,880
GOT_MATRICES = (
    24 * (4 * 1024 * 1024 + 3 * 1024 * 2816)  # decoder: 308,281,344
    + 12 * 12 * 768 * 768  # vision: 84,934,656
    + 1024 * 1024  # projector
    + 151_860 * 1024  # the shared table: 155,504,640
)  # elements: 549,769,216


def refused(name: str, what_if: dict[str, str]) -> bool:
    """Return whether a model has no part that a what-if is of."""
    of_cache = "kv_dtype" in what_if or "kv_growth" in what_if
    latent = name in LATENTS and (of_cache or what_if == {"activation_dtype": "fp32"})
    return latent or (name in WITHOUT_CACHE and of_cache)


@pytest.mark.parametrize("what_if", WHAT_IFS, ids=lambda what_if: "-".join(f"{k}={v}" for k, v in what_if.items()))
@pytest.mark.parametrize("name", modelmeter.available())
def test_a_what_if_applies_or_says_why_not(name: str, what_if: dict[str, str]) -> None:
    """Modules own what the model owns, every stage reads some of it, and the costs of all leaves can be stated."""
    model = modelmeter.load(name)
    options = Options(**what_if)  # pyright: ignore[reportArgumentType] - texts alone
    if refused(name, what_if):
        with pytest.raises(UnsupportedWhatIfError, match=f"{name}.* as captured"):
            apply(model, options)
        return
    changed = apply(model, options).model
    assert changed is not model
    assert sum(node.parameter_bytes for node in changed.modules) == changed.parameter_bytes
    assert all(0 < stage.weight_bytes <= changed.parameter_bytes for stage in changed.stages)
    assert all(node.parameter_bytes >= 0 for node in changed.modules)
    assert all(leaf.cost.bytes.text for leaf in changed.leaves)


# --- tied weights


@pytest.mark.parametrize(("name", "matrices"), [("whisper-large-v3", WHISPER_MATRICES), ("got-ocr2", GOT_MATRICES)])
def test_a_tied_table_is_stored_once_in_the_new_type(name: str, matrices: int) -> None:
    """In fp8 each element of a matrix takes a byte less, in int8 as well, but for a scale of 2 bytes each 128 elements.

    All widths are multiples of 128. What else there is stays bf16.
    """
    model = modelmeter.load(name)
    fp8, int8 = (apply(model, Options(weight_dtype=dtype)).model for dtype in ("fp8", "int8"))
    assert model.parameter_bytes - fp8.parameter_bytes == matrices
    assert int8.parameter_bytes - fp8.parameter_bytes == matrices // 128 * 2


def test_every_reader_of_a_tied_table_reads_the_new_type() -> None:
    """A row of 1,280 int8 elements and 10 scales: 1,300 bytes a token in the embedding, 51,866 of them in the head."""
    model = modelmeter.load("whisper-large-v3")
    changed = apply(model, Options(weight_dtype="int8")).model
    for stage, rows in (("prefill", "B*S"), ("decode", "B")):
        read = {leaf.module: to_text(leaf.layer.traffic().weights_read) for leaf in changed.leaves_by_stage[stage]}
        assert read["model.decoder.embed_tokens"] == f"1300*{rows}"
        assert read["proj_out"] == str(1300 * 51_866)


def test_a_stage_that_reads_a_tied_table_twice_holds_it_once() -> None:
    """A decode step of Whisper reads 32 layers but for the keys of the audio, and the table: one byte less for each."""
    model = modelmeter.load("whisper-large-v3")
    changed = apply(model, Options(weight_dtype="fp8")).model
    read = 32 * (6 * 1280 * 1280 + 2 * 1280 * 5120) + 51_866 * 1280
    assert model.stage("decode").weight_bytes - changed.stage("decode").weight_bytes == read


def test_a_tied_embedding_is_named_among_the_assumptions() -> None:
    """Embeddings keep their type but for one whose table is a matrix that does not; the change says which."""
    (change,) = apply(modelmeter.load("got-ocr2"), Options(weight_dtype="int4")).changes
    assert change.assumes[0].endswith("reads its stored rows: model.language_model.embed_tokens")
    (change,) = apply(modelmeter.load("qwen3-8b"), Options(weight_dtype="int4")).changes
    assert not any("tied" in each for each in change.assumes)


def test_an_embedding_of_its_own_keeps_the_captured_type() -> None:
    """Qwen3-8B has a head and an embedding of one shape, each with weights of its own."""
    changed = apply(modelmeter.load("qwen3-8b"), Options(weight_dtype="fp8")).model
    tables = [leaf.layer for leaf in changed.leaves if isinstance(leaf.layer, Embedding)]
    assert tables
    assert all(table.weights is None for table in tables)


# --- the cache of an encoder-decoder


@pytest.mark.parametrize(("dtype", "bits"), [("fp32", 32), ("int8", 8), ("int4", 4)])
def test_a_cache_of_audio_is_of_the_new_type_too(dtype: str, bits: int) -> None:
    """Whisper keeps 32 layers * (key + value) * 1,280 elements a token, and as many for each of 1,500 frames."""
    token = 32 * 2 * 1280 * bits // 8
    changed = apply(modelmeter.load("whisper-large-v3"), Options(kv_dtype=dtype)).model
    assert to_text(changed.stage("prefill").kv_cache_bytes) == f"{token}*B*S + {1500 * token}*B"
    assert to_text(changed.stage("decode").kv_cache_bytes) == f"{token}*B*T + {1501 * token}*B"


def test_a_cache_of_audio_is_not_copied_in_a_step_anyhow() -> None:
    """Written in place, a step of Whisper moves 2 * T * 163,840 * 2 bytes a document less: the text's keys alone."""
    model: AnalyticModel = modelmeter.load("whisper-large-v3")
    (change,) = apply(model, Options(kv_growth="preallocated")).changes
    (shift,) = change.shifts
    assert (shift.stage, shift.bytes.text) == ("decode", f"-{2 * 32 * 2 * 1280 * 2}*B*T")
