"""Checkpoints: round trips, and one clear error for each way they do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsocr_graph.errors import CheckpointError, CheckpointNotFoundError
from dsocr_graph.models.deepseek_ocr.checkpoint import load_checkpoint, load_model, save_checkpoint
from dsocr_graph.models.deepseek_ocr.modeling import DeepseekOCRForCausalLM

IDS = torch.tensor([[0, 3, 5, 7]])


@pytest.mark.parametrize("shard_bytes", [None, 200_000])
def test_round_trip_gives_the_same_model(tiny: DeepseekOCRForCausalLM, tmp_path: Path, shard_bytes: int | None) -> None:
    """Saved in one file or in shards, a model loads with equal config, weights and logits."""
    save_checkpoint(tiny, tmp_path, shard_bytes=shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) is (shard_bytes is not None)
    loaded = load_model(tmp_path, dtype=torch.float32)
    assert loaded.config == tiny.config
    assert torch.equal(loaded(IDS), tiny(IDS))
    assert not list(tmp_path.glob("*.partial"))


def test_index_covers_every_tensor(tiny: DeepseekOCRForCausalLM, tmp_path: Path) -> None:
    """The index names each tensor's file and the total size; no shard is larger than asked for."""
    save_checkpoint(tiny, tmp_path, shard_bytes=200_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tiny.state_dict())
    assert index["metadata"]["total_size"] == 4 * sum(value.numel() for value in tiny.parameters())
    for file in tmp_path.glob("*.safetensors"):
        tensors = load_file(file)
        assert {index["weight_map"][name] for name in tensors} == {file.name}
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 200_000


def test_loading_casts_and_chooses_implementations(tiny: DeepseekOCRForCausalLM, tmp_path: Path) -> None:
    """A float32 checkpoint loads in bfloat16 with the loop and eager attention, equal to a cast model."""
    save_checkpoint(tiny, tmp_path)
    loaded = load_model(tmp_path, attn_implementation="eager", moe_implementation="loop")
    assert loaded.dtype is torch.bfloat16
    layer: Any = loaded.model.layers[1]
    assert type(layer.self_attn).__name__ == "LlamaAttention"
    assert layer.mlp.experts.implementation == "loop"
    expected = tiny.to(torch.bfloat16).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_experts_share_their_storage_after_loading(tiny: DeepseekOCRForCausalLM, tmp_path: Path) -> None:
    """What the grouped kernel reads is what the file holds."""
    save_checkpoint(tiny, tmp_path)
    loaded = load_model(tmp_path, dtype=torch.float32)
    expected = tiny.state_dict()["model.layers.2.mlp.experts.7.up_proj.weight"]
    layer: Any = loaded.model.layers[2]
    assert torch.equal(layer.mlp.experts.up_weight[7], expected)


def test_wrong_names_and_shapes_are_all_listed(tiny: DeepseekOCRForCausalLM, tmp_path: Path) -> None:
    """Missing, unexpected and mis-shaped tensors come in one error, and nothing is loaded."""
    save_checkpoint(tiny, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.weight"]
    tensors["model.extra"] = torch.zeros(2)
    tensors["model.norm.weight"] = torch.zeros(63)
    save_file(tensors, path)
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tiny, tmp_path)
    message = str(caught.value)
    assert "1 missing: lm_head.weight" in message
    assert "1 unexpected: model.extra" in message
    assert "1 mis-shaped: model.norm.weight [63] (the model has [64])" in message
    assert isinstance(caught.value, ValueError)
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


def test_long_lists_are_cut(tiny: DeepseekOCRForCausalLM, tmp_path: Path) -> None:
    """An error names eight tensors and counts the rest."""
    save_file({"model.norm.weight": torch.ones(64)}, tmp_path / "model.safetensors")
    missing = len(tiny.state_dict()) - 1
    with pytest.raises(CheckpointError, match=rf"{missing} missing: .*, and {missing - 8} more"):
        load_checkpoint(tiny, tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused(tiny: DeepseekOCRForCausalLM, tmp_path: Path, name: str) -> None:
    """A directory with pickled weights only is refused by name; the file is never opened."""
    (tmp_path / name).write_bytes(b"not even a pickle")
    with pytest.raises(CheckpointError, match=rf"{name}.*can run code"):
        load_checkpoint(tiny, tmp_path)


def test_missing_things_are_named(tiny: DeepseekOCRForCausalLM, tmp_path: Path) -> None:
    """No directory, no config, no weights and no shard are FileNotFoundErrors that say which."""
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json"):
        load_model(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"neither .*index\.json nor model\.safetensors"):
        load_checkpoint(tiny, tmp_path)
    save_checkpoint(tiny, tmp_path, shard_bytes=200_000)
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=gone.name):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_cut_file_is_an_error_with_its_path(tiny: DeepseekOCRForCausalLM, tmp_path: Path, content: bytes) -> None:
    """An empty or cut safetensors file is named."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole"):
        load_checkpoint(tiny, tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_a_broken_index_is_an_error_with_its_path(tiny: DeepseekOCRForCausalLM, tmp_path: Path, text: str) -> None:
    """An index that is no index is named."""
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is no index"):
        load_checkpoint(tiny, tmp_path)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "weights.bin"])
def test_an_index_may_not_lead_elsewhere(tiny: DeepseekOCRForCausalLM, tmp_path: Path, name: str) -> None:
    """Shards are safetensors files beside the index: another folder or format is refused."""
    index = {"weight_map": {"lm_head.weight": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="beside the index"):
        load_checkpoint(tiny, tmp_path)


def test_a_tensor_in_two_shards_is_refused(tiny: DeepseekOCRForCausalLM, tmp_path: Path) -> None:
    """Two values for one name are never chosen from silently."""
    save_checkpoint(tiny, tmp_path, shard_bytes=200_000)
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    double = next(iter(load_file(first).items()))
    save_file(load_file(second) | {double[0]: double[1]}, second)
    with pytest.raises(CheckpointError, match=f"1 in two files: {double[0]}"):
        load_checkpoint(tiny, tmp_path)
