"""The configuration record: defaults, reading, errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsocr_graph.errors import DsocrGraphError, ModelConfigError
from dsocr_graph.models.deepseek_ocr import ClipConfig, DeepseekOCRConfig, SamConfig


def test_published_config_json_is_the_default(repo_root: Path) -> None:
    """The published config.json reads as the default record."""
    assert DeepseekOCRConfig.from_json(repo_root / "tests/data/deepseek_ocr_config.json") == DeepseekOCRConfig()


def test_decoder_fields_may_stand_in_language_config_alone(repo_root: Path) -> None:
    """A config without the top-level copies reads language_config."""
    published = json.loads((repo_root / "tests/data/deepseek_ocr_config.json").read_text())
    language = published["language_config"] | {"num_hidden_layers": 5}
    assert DeepseekOCRConfig.from_dict({"language_config": language}).num_hidden_layers == 5


def test_round_trip_keeps_every_field() -> None:
    """to_dict, through JSON, gives an equal record."""
    config = DeepseekOCRConfig.tiny(rope_theta=500.0, attn_implementation="eager", moe_implementation="loop")
    assert DeepseekOCRConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_mla", True),
        ("topk_method", "group_limited_greedy"),
        ("norm_topk_prob", True),
        ("tie_word_embeddings", True),
        ("num_key_value_heads", 2),
        ("rope_scaling", {"type": "yarn"}),
    ],
)
def test_an_unsupported_value_is_named(key: str, value: object) -> None:
    """What this code does not compute is refused by name, never ignored."""
    data = DeepseekOCRConfig().to_dict() | {key: value}
    with pytest.raises(ModelConfigError, match=key):
        DeepseekOCRConfig.from_dict(data)


def test_another_model_type_is_refused() -> None:
    """A config of another model is refused with the known type."""
    with pytest.raises(ModelConfigError, match=r"'llama'.*deepseek_vl_v2"):
        DeepseekOCRConfig.from_dict({"model_type": "llama"})


@pytest.mark.parametrize("text", ["", "[1, 2]", "{"])
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    """Empty, cut or wrong JSON is one error with the path."""
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ModelConfigError, match=r"config\.json"):
        DeepseekOCRConfig.from_json(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"hidden_size": "64"}, "hidden_size = '64'"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"num_attention_heads": 7}, "even head size"),
        ({"num_experts_per_tok": 9}, "exceeds n_routed_experts 8"),
        ({"attn_implementation": "flex"}, "sdpa, eager, flash_attention_2"),
        ({"moe_implementation": "fused"}, "grouped, loop"),
        ({"clip": ClipConfig(hidden_size=96, num_heads=4)}, "clip.hidden_size 96"),
        ({"sam": SamConfig(embed_dim=30, downsample_channels=(32, 64))}, "multiples of their num_heads"),
        ({"sam": SamConfig(depth=4, downsample_channels=(32, 64))}, "below sam.depth 4"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    """A record that cannot be built says which field and what it allows."""
    with pytest.raises(ModelConfigError, match=message) as caught:
        DeepseekOCRConfig.tiny(**changes)
    assert isinstance(caught.value, ValueError | DsocrGraphError)


def test_config_does_not_import_torch() -> None:
    """Reading a config in a fresh process imports neither torch nor transformers."""
    code = (
        "import sys; from dsocr_graph.models.deepseek_ocr import DeepseekOCRConfig; DeepseekOCRConfig();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _environment() -> dict[str, str]:
    """Return this environment with this process's import path, however the packages were put on it."""
    import os

    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_an_unknown_name_of_the_package_lists_what_there_is() -> None:
    """A misspelled import names the public names."""
    import dsocr_graph.models.deepseek_ocr as package

    with pytest.raises(AttributeError, match="DeepseekOCRConfig"):
        _ = package.DeepseekOCR
