"""Code beside a configuration: run once it is trusted, told before, and what each mistake says."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from dsocr_graph import analyze_model, cli_verify
from dsocr_graph.errors import CaptureError, DsocrGraphError, ModelConfigError, OptionError
from dsocr_graph.models.from_transformers import TransformersVariant, model_from_config
from dsocr_graph.models.from_transformers.trusted_code import TrustedCodeError
from dsocr_graph.subjects import subject_of

CONFIGURATION = """
from transformers import PreTrainedConfig

class GroupedConfig(PreTrainedConfig):
    model_type = "grouped"

    def __init__(self, vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        super().__init__(**kwargs)
"""
MODELING = """
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_grouped import GroupedConfig

class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.width = layer, config.hidden_size // config.num_attention_heads
        cached = config.num_key_value_heads * self.width
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.key = nn.Linear(config.hidden_size, cached, bias=False)
        self.value = nn.Linear(config.hidden_size, cached, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, cache):
        query, key, value = (
            project(x).unflatten(-1, (-1, self.width)).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        key, value = cache.update(key, value, self.layer)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=bool(x.shape[1] > 1), enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2))

class GroupedForCausalLM(PreTrainedModel):
    config_class = GroupedConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Attention(config, layer) for layer in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, past_key_values=None, use_cache=True, logits_to_keep=0):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x, past_key_values)
        return CausalLMOutputWithPast(
            logits=self.lm_head(x[:, -logits_to_keep:]), past_key_values=past_key_values
        )
"""
AUTO_MAP = {
    "AutoConfig": "configuration_grouped.GroupedConfig",
    "AutoModelForCausalLM": "modeling_grouped.GroupedForCausalLM",
    "AutoTokenizer": ["tokenization_grouped.GroupedTokenizer", None],  # needed by no analysis
}


@pytest.fixture(scope="module", autouse=True)
def _own_copies(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Let transformers keep its copies of the code in a directory of these tests."""
    from transformers import dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", [*sys.path])
        yield


@pytest.fixture(autouse=True)
def _no_traces() -> Generator[None]:
    """Switch off the traces of torch's exporter, all of which pytest would keep."""
    before = logging.root.manager.disable
    logging.disable(logging.DEBUG)
    yield
    logging.disable(before)


def written(folder: Path, *, modeling: str = MODELING, **settings: Any) -> Path:
    """Write a model's directory, with other code or settings where these are given."""
    place = folder / "grouped-toy"
    place.mkdir(exist_ok=True)
    given = {"model_type": "grouped", "num_hidden_layers": 2, "auto_map": AUTO_MAP} | settings
    (place / "config.json").write_text(json.dumps(given), encoding="utf-8")
    (place / "configuration_grouped.py").write_text(CONFIGURATION, encoding="utf-8")
    (place / "modeling_grouped.py").write_text(modeling, encoding="utf-8")
    return place


def built(place: Path) -> Any:
    """Build the model of a directory, its code trusted."""
    return model_from_config(place, trust_remote_code=True).build(TransformersVariant())


def test_trusted_code_is_analyzed(tmp_path: Path) -> None:
    """One token after four: 2 * (2 * (256 + 128 + 128 + 256 + 2 * 4 heads * 5 * 4) + 16 * 32) = 4,736 FLOPs.

    Five tokens of 2 heads of 4, keys and values, in 2 layers of bf16: 5 * 2 * 4 * 2 * 2 * 2 = 320 bytes.
    """
    said: list[str] = []
    analysis = analyze_model(
        written(tmp_path),
        points=["decode:B=1,T=4"],
        trust_remote_code=True,
        device="none",
        cache=False,
        progress=said.append,
    )
    assert analysis.report.total.total.cost.matmul_flops == 4736
    assert analysis.model.stage("decode").kv_cache_bytes_at({"B": 1, "T": 4}) == 320
    assert [line for line in said if line.startswith("trusting code")] == said[:1]
    for part in ("configuration_grouped.py", "modeling_grouped.py", "AutoModelForCausalLM from modeling_grouped"):
        assert part in said[0]
    assert "tokenization" not in said[0]


def test_trusted_code_runs_as_it_was_captured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`verify` runs the code with random weights: no unexplained difference, and the code is named before."""
    parser = argparse.ArgumentParser()
    cli_verify.add_parser(parser.add_subparsers())
    place = written(tmp_path)
    options = parser.parse_args(["verify", "--model", str(place), "--layers", "1", "--trust-remote-code"])
    assert options.run(options) == 0
    output = capsys.readouterr()
    assert output.out.startswith("grouped-toy-1-layers: 0 unexplained differences")
    assert "trusting code: importing" in output.err


def test_without_trust_nothing_is_run(tmp_path: Path) -> None:
    """The error names the option; code that would fail is not reached."""
    with pytest.raises(ModelConfigError, match=r"not run unless you trust it.*--trust-remote-code"):
        model_from_config(written(tmp_path, modeling="1 / 0"))


def test_code_is_told_before_it_is_imported(tmp_path: Path) -> None:
    """A file that fails as it is imported was named, and the error says how it failed."""
    said: list[str] = []
    place = written(tmp_path, modeling="1 / 0")
    with pytest.raises(TrustedCodeError, match="cannot be imported: ZeroDivisionError: division by zero") as caught:
        model_from_config(place, trust_remote_code=True, progress=said.append)
    assert len(said) == 1
    assert str(place / "modeling_grouped.py") in said[0]
    assert isinstance(caught.value, DsocrGraphError)
    assert isinstance(caught.value, ImportError)


def test_files_that_are_imported_by_others_are_told(tmp_path: Path) -> None:
    """The configuration's file is named though the auto_map names the model alone."""
    said: list[str] = []
    auto_map = {"AutoModelForCausalLM": AUTO_MAP["AutoModelForCausalLM"]}
    place = written(tmp_path, auto_map=auto_map)
    model_from_config(place, trust_remote_code=True, progress=said.append)
    assert f"importing {place / 'modeling_grouped.py'}, {place / 'configuration_grouped.py'};" in said[0]


@pytest.mark.parametrize(
    ("auto_map", "error", "expected"),
    [
        ("modeling", ModelConfigError, "auto_map of .* is a str"),
        ({"AutoModelForCausalLM": "a/b--m.M"}, ModelConfigError, "from another repository, a/b--m.M"),
        ({"AutoModelForCausalLM": "../m.M"}, ModelConfigError, r"names '\.\./m\.M' .* expected FILE\.CLASS"),
        ({"AutoModelForCausalLM": "absent.M"}, TrustedCodeError, r"needs .*absent\.py, which is not there"),
        ({"AutoModelForCausalLM": "modeling_grouped.Other"}, TrustedCodeError, "no attribute 'Other'"),
        ({"AutoConfig": "configuration_grouped.GroupedConfig"}, ModelConfigError, "has no class of a model; it takes"),
        # A plain AutoModel is an image encoder, whose main input are pixels.
        ({"AutoModel": "modeling_grouped.GroupedForCausalLM"}, ModelConfigError, "has AutoModel; it takes one of"),
    ],
)
def test_an_auto_map_that_cannot_be_followed_is_refused(
    tmp_path: Path, auto_map: object, error: type[Exception], expected: str
) -> None:
    """Each mistake is told before any model is built; nothing is downloaded."""
    with pytest.raises(error, match=expected):
        model_from_config(written(tmp_path, auto_map=auto_map), trust_remote_code=True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # Another signature than the family's, and a layer that fails on its input.
        (("logits_to_keep=0):", "logits_to_keep=0, *, must):"), r"as decoder-only .* in module \(root\) .*'must'"),
        (("self.out(mixed", "self.out(x[0, 0, :3] + mixed"), r"in module layers\.0 \(Attention\): RuntimeError"),
    ],
)
def test_code_that_does_not_fit_its_family_names_the_module(
    tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    """The error says in which module and why."""
    with pytest.raises(CaptureError, match=expected):
        built(written(tmp_path, modeling=MODELING.replace(*change)))


def test_edited_code_is_another_model(tmp_path: Path) -> None:
    """What is compiled is kept by the code's content as well; the edited code is what is built."""
    before = model_from_config(written(tmp_path), trust_remote_code=True).config(TransformersVariant())
    place = written(tmp_path, modeling=MODELING.replace("bias=False", "bias=True"))
    model, _ = built(place)
    after = model_from_config(place, trust_remote_code=True).config(TransformersVariant())
    assert before["settings"] == after["settings"]
    assert before["code"] != after["code"]
    assert model.lm_head.bias is not None


def test_trust_without_code_is_said(tmp_path: Path) -> None:
    """A configuration of transformers' own has nothing to trust, which is no mistake; any other model is one."""
    said: list[str] = []
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}), encoding="utf-8")
    assert subject_of(tmp_path, trust_remote_code=True, progress=said.append).name == tmp_path.name
    assert said == [f"{tmp_path} has no auto_map: there is no code to trust"]
    for model in ("qwen3-8b", "my_model:make"):
        with pytest.raises(OptionError, match=f"--trust-remote-code is for .*; {model} has none such"):
            subject_of(model, trust_remote_code=True)
