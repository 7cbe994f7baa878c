"""Configurations, variants, families and requests: what is read, and what each mistake says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsocr_graph.errors import DsocrGraphError, ModelConfigError, ModelInputError
from dsocr_graph.models.from_transformers import CATALOG, TransformersVariant, model_from_config
from dsocr_graph.models.from_transformers.configuration import (
    LARGEST_FILE,
    ConfigNotFoundError,
    positions_of,
    read_settings,
    transformers_config,
    with_positions,
)
from dsocr_graph.models.from_transformers.families import family_of
from dsocr_graph.models.registry import transformers_model
from dsocr_graph.workloads import PageSize
from dsocr_graph.workloads.errors import ContextTooLongError, WorkloadError
from dsocr_graph.workloads.request import InvalidRequestError, Request


def _written(folder: Path, text: str) -> Path:
    file = folder / "config.json"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_directory_and_its_file_are_one_model(tmp_path: Path) -> None:
    """The name is the directory's; the family is found by transformers' mappings."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    _written(folder, json.dumps({"model_type": "llama", "num_hidden_layers": 2}))
    for path in (folder, folder / "config.json"):
        model = model_from_config(path)
        assert (model.name, model.family.name) == ("my-model", "causal_lm")
        assert model.settings["num_hidden_layers"] == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is no JSON"),
        ("[1]", "holds a JSON list"),
        ("{}", "has no model_type"),
        ('{"model_type": "qwen4"}', "transformers .* does not have; did you mean 'qwen3"),
        ('{"model_type": "mine", "auto_map": {"AutoConfig": "c.C"}}', "not run unless you trust it"),
        ('{"model_type": "qwen3", "hidden_size": "wide"}', "is no qwen3 that transformers"),
        ('{"model_type": "vits"}', "none of these families: .*causal_lm.* No class of its model_type does"),
        ('{"model_type": "wav2vec2"}', "none of these families: .*speech .*text_encoder .*No class of its model_type"),
        ('{"model_type": "bert", "architectures": ["BertForMultipleChoice"]}', "text_encoder by BertModel, BertForMas"),
        ('{"model_type": "bert", "architectures": ["BertLMHeadModel"]}', "text_encoder by BertModel"),
        ('{"model_type": "t5", "architectures": ["T5Model"]}', "text_to_text by T5ForConditionalGeneration"),
        ('{"model_type": "qwen3", "architectures": ["Qwen3ForTokenClassification"]}', "none of these families"),
    ],
)
def test_a_file_that_is_no_known_configuration_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    """Each mistake is a ValueError of ours that says what is wrong."""
    with pytest.raises(ModelConfigError, match=expected):
        model_from_config(_written(tmp_path, text))


def test_a_missing_or_endless_file_is_refused(tmp_path: Path) -> None:
    """No file is a FileNotFoundError of ours; a file of weights is not read."""
    with pytest.raises(ConfigNotFoundError, match=r"no transformers configuration at .*config\.json"):
        read_settings(tmp_path)
    weights = tmp_path / "model.bin"
    with weights.open("wb") as stream:
        stream.truncate(LARGEST_FILE + 1)
    with pytest.raises(ModelConfigError, match="not its weights"):
        read_settings(weights)
    assert issubclass(ConfigNotFoundError, DsocrGraphError)


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("settings", "dtype", "expected"),
    [
        ({"model_type": "llama", "quantization_config": AWQ}, "bf16", "awq of 4 bits (left out)"),
        ({"model_type": "qwen3", "quantization_config": BLOCKS}, "bf16", "fp8 (left out)"),
        ({"model_type": "qwen3", "quantization_config": BLOCKS}, "fp8", None),
        ({"model_type": "qwen3"}, "bf16", None),
        ({"model_type": "got_ocr2", "text_config": {"quantization_config": AWQ}}, "bf16", "awq of 4 bits (left out)"),
    ],
)
def test_a_quantization_that_is_left_out_is_a_fact_of_the_variant(
    tmp_path: Path, settings: dict[str, Any], dtype: str, expected: str | None
) -> None:
    """The heading of a report has the variant's facts; with dtype fp8 the configuration's own is captured."""
    model = model_from_config(_written(tmp_path, json.dumps(settings)))
    assert model.variant(dtype, "sdpa").facts().get("quantization") == expected


def test_shipped_models_note_no_quantization() -> None:
    """DeepSeek-V3's source says in which type it is published; its shipped variants stay as they are."""
    assert CATALOG["deepseek-v3"].variant("bf16", "sdpa") == TransformersVariant()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dtype": "int4"}, "dtype 'int4' .* choose one of bf16, fp16, fp32"),
        ({"attention": "paged"}, "attention 'paged' .* choose one of sdpa, eager"),
        ({"experts": "eager"}, "experts 'eager' .* choose one of grouped"),
    ],
)
def test_a_variant_that_cannot_be_captured_is_refused(options: dict[str, str], expected: str) -> None:
    """The message names the option and what there is."""
    with pytest.raises(ModelConfigError, match=expected):
        TransformersVariant(**options)


def test_a_variant_is_named_by_its_facts() -> None:
    """The name joins the options that can be chosen."""
    variant = TransformersVariant(dtype="fp32", attention="eager")
    assert variant.name == "fp32-eager"
    assert variant.facts() == {"dtype": "fp32", "attention": "eager", "experts": "grouped"}


@pytest.mark.parametrize(("dtype", "stated"), [("bf16", "fp16"), ("fp16", None)])
def test_a_capture_in_another_type_than_the_configuration_states_says_so(
    tmp_path: Path, dtype: str, stated: str | None
) -> None:
    """Nothing is dropped in silence; what agrees is said once."""
    (tmp_path / "config.json").write_text('{"model_type": "llama", "torch_dtype": "float16"}', encoding="utf-8")
    facts = model_from_config(tmp_path).variant(dtype, "sdpa").facts()
    assert (facts["dtype"], facts.get("stated dtype")) == (dtype, stated)


@pytest.mark.parametrize(
    ("settings", "family", "built"),
    [
        ({"model_type": "bert"}, "text_encoder", "BertModel"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "text_encoder", "BertForMaskedLM"),
        ({"model_type": "bert", "is_decoder": True}, "causal_lm", "BertLMHeadModel"),
        ({"model_type": "modernbert"}, "text_encoder", "ModernBertModel"),
        ({"model_type": "roberta", "architectures": ["RobertaForSequenceClassification"]}, "text_encoder", None),
        ({"model_type": "t5"}, "text_to_text", "T5ForConditionalGeneration"),
        ({"model_type": "t5", "architectures": ["T5EncoderModel"]}, "text_encoder", "T5EncoderModel"),
        ({"model_type": "bart"}, "text_to_text", "BartForConditionalGeneration"),
        ({"model_type": "bart", "architectures": ["BartForCausalLM"]}, "causal_lm", "BartForCausalLM"),
        ({"model_type": "whisper"}, "speech", "WhisperForConditionalGeneration"),
        ({"model_type": "gpt2"}, "causal_lm", "GPT2LMHeadModel"),
        ({"model_type": "llama"}, "causal_lm", "LlamaForCausalLM"),
        ({"model_type": "mistral", "sliding_window": 64}, "causal_lm", "MistralForCausalLM"),
        ({"model_type": "mixtral"}, "causal_lm", "MixtralForCausalLM"),
        ({"model_type": "gemma3_text"}, "causal_lm", "Gemma3ForCausalLM"),
        ({"model_type": "clip_vision_model"}, "image_encoder", "CLIPVisionModel"),
        ({"model_type": "clip"}, "two_towers", "CLIPModel"),
        ({"model_type": "siglip", "architectures": ["SiglipModel"]}, "two_towers", "SiglipModel"),
        ({"model_type": "siglip", "architectures": ["SiglipForImageClassification"]}, "image_encoder", None),
        ({"model_type": "vit"}, "image_encoder", "ViTModel"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "image_encoder", None),
        ({"model_type": "dinov2"}, "image_encoder", "Dinov2Model"),
    ],
)
def test_a_configuration_belongs_to_the_family_that_runs_it(
    settings: dict[str, Any], family: str, built: str | None
) -> None:
    """By its model_type, and by the class that it names; where none is named, by the plainest."""
    found, class_name = family_of(transformers_config(settings))
    assert (found.name, class_name) == (family, built or settings["architectures"][0])


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({"model_type": "llama"}, {"S": 2048, "T": 2047}),  # LlamaConfig's default
        ({"model_type": "gpt2"}, {"S": 1024, "T": 1023}),  # under the name n_positions
        ({"model_type": "gpt2", "n_positions": 64}, {"S": 64, "T": 63}),
        ({"model_type": "bert", "max_position_embeddings": 40}, {"S": 40, "T": 39}),
        ({"model_type": "whisper"}, {"S": 448, "T": 447}),
        ({"model_type": "t5"}, {}),  # relative positions have no end
        ({"model_type": "qwen3_vl", "text_config": {"vocab_size": 151936}}, {"S": 128_000, "T": 127_999}),
    ],
)
def test_positions_that_a_file_leaves_out_are_those_of_its_class(
    tmp_path: Path, settings: dict[str, Any], limits: dict[str, int]
) -> None:
    """The largest prompt, and the largest cache that still takes a token, as the built configuration has them."""
    model = model_from_config(_written(tmp_path, json.dumps(settings)))
    assert transformers_model(model).limits == limits
    assert model.settings == settings  # what is built stays what the file says


def test_a_request_beyond_a_default_is_refused(tmp_path: Path) -> None:
    """1,000 tokens and 25 new ones exceed the 1,024 positions that GPT2Config has, and the file does not name."""
    model = model_from_config(_written(tmp_path, '{"model_type": "gpt2"}'))
    with pytest.raises(ContextTooLongError, match="1,024 positions"):
        model.runs(Request(name="long", prompt_tokens=1_000, new_tokens=25))
    assert len(model.runs(Request(name="fits", prompt_tokens=1_000, new_tokens=24)).runs) == 2


@pytest.mark.parametrize("name", list(CATALOG))
def test_the_catalogue_states_its_positions(name: str) -> None:
    """A shipped file leaves none to its class, since its limits are found without transformers."""
    model = CATALOG[name]
    assert with_positions(model.settings, positions_of(transformers_config(model.settings))) == model.settings


@pytest.mark.parametrize("name", list(CATALOG))
def test_the_catalogue_agrees_with_transformers(name: str) -> None:
    """The family that is stated for a shipped file is the one that transformers' mappings lead to."""
    model = CATALOG[name]
    assert family_of(transformers_config(model.settings))[0] is model.family


def test_the_catalogue_loads_without_torch() -> None:
    """What a named model runs is found without torch and transformers."""
    code = (
        "import sys\n"
        "from dsocr_graph.models.from_transformers import CATALOG\n"
        "from dsocr_graph.workloads.request import Request\n"
        "CATALOG['qwen3-8b'].runs(Request(name='chat', prompt_tokens=5, new_tokens=2))\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_what_keeps_full_precision_keeps_it() -> None:
    """The routers' corrections of DeepSeek-V3 stay in fp32 in a bf16 model, as when its weights are loaded."""
    settings = dict(CATALOG["deepseek-v3"].settings) | {"num_hidden_layers": 4, "n_routed_experts": 8}
    from dsocr_graph.models.from_transformers.load import meta_model

    model: Any = meta_model(transformers_config(settings), "DeepseekV3ForCausalLM", TransformersVariant())
    assert str(model.model.layers[3].mlp.gate.e_score_correction_bias.dtype) == "torch.float32"
    assert str(model.model.layers[3].mlp.gate.weight.dtype) == "torch.bfloat16"


def test_a_layer_without_keys_and_values_is_refused() -> None:
    """A state-space layer is named with its number and class."""
    from dsocr_graph.models.from_transformers.cache import CacheLayout, empty_cache, filled_cache

    layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    hybrid = transformers_config({"model_type": "qwen3_next", **layers})
    with pytest.raises(ModelConfigError, match="layer 0 caches by a LinearAttentionLayer"):
        CacheLayout.of(empty_cache(hybrid))
    dense = transformers_config({"model_type": "qwen3", "num_hidden_layers": 2})
    with pytest.raises(ModelInputError, match="2 layers cache 4 tensors, keys and values; got 1"):
        filled_cache(empty_cache(dense), [None])  # pyright: ignore[reportArgumentType]


def test_pages_become_their_text() -> None:
    """A language model reads 2 * 300 + 20 = 620 tokens for two pages, and says what it leaves out."""
    pages = (PageSize(name="a", width=640, height=640), PageSize(name="b", width=640, height=640))
    request = Request(
        name="pages", prompt_tokens=20, images=pages, page_text_tokens=300, new_tokens=1, audio_seconds=2.0
    )
    item = CATALOG["qwen3-8b"].runs(request)
    assert [(run.stage, run.bindings) for run in item.runs] == [("prefill", {"B": 1, "S": 620})]
    assert item.facts["ignored"] == "image pixels, audio_seconds"


def test_a_request_beyond_the_model_is_refused() -> None:
    """Too long a context and nothing to read are errors of ours that are ValueErrors."""
    model = CATALOG["qwen3-8b"]
    with pytest.raises(ContextTooLongError, match="40,960 positions"):
        model.runs(Request(name="long", prompt_tokens=40_960, new_tokens=1))
    with pytest.raises(InvalidRequestError, match="nothing to read"):
        model.runs(Request(name="empty", new_tokens=1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", " "),
        ("batch", 0),
        ("new_tokens", 0),
        ("prompt_tokens", -1),
        ("page_text_tokens", 1.5),
        ("audio_seconds", float("nan")),
    ],
)
def test_a_request_out_of_range_is_refused(field: str, value: Any) -> None:
    """The message names the field and the value."""
    with pytest.raises(InvalidRequestError, match="expected") as caught:
        Request(**({"name": "request"} | {field: value}))
    assert repr(value) in str(caught.value)
    assert isinstance(caught.value, WorkloadError)
