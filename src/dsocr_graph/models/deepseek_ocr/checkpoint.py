"""Checkpoints: safetensors in a local directory, one tensor at a time. Never pickle, never code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dsocr_graph.errors import CheckpointError, CheckpointNotFoundError
from dsocr_graph.models.deepseek_ocr.config import (
    AttentionImplementation,
    DeepseekOCRConfig,
    MoEImplementation,
)
from dsocr_graph.models.deepseek_ocr.modeling import DeepseekOCRForCausalLM

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_NAMES_SHOWN = 8


def load_model(
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    attn_implementation: AttentionImplementation | None = None,
    moe_implementation: MoEImplementation | None = None,
) -> DeepseekOCRForCausalLM:
    """Return the model of a local checkpoint directory, ready to run.

    Parameters
    ----------
    directory
        Holds `config.json` and the weights: `model.safetensors.index.json` with its shards, or
        `model.safetensors`.
    dtype, device
        Of the model; each tensor is converted as it is read, so that nothing but one tensor exists twice.
    attn_implementation, moe_implementation
        Instead of the config's.

    Raises
    ------
    CheckpointNotFoundError
        When the directory or a file is not there.
    CheckpointError
        When the tensors do not fit the model, or the weights are in a format that can run code.
    ModelConfigError
        When `config.json` describes another model.
    """
    folder = _existing(Path(directory))
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointNotFoundError(f"{config_path} is not there: a checkpoint directory holds its config.json")
    config = DeepseekOCRConfig.from_json(config_path).with_implementations(
        attn_implementation=attn_implementation, moe_implementation=moe_implementation
    )
    with torch.device("meta"):
        model = DeepseekOCRForCausalLM(config).to(dtype)
    model.to_empty(device=device)
    load_checkpoint(model, folder)
    return model.eval()


def load_checkpoint(model: DeepseekOCRForCausalLM, directory: str | Path) -> None:
    """Read the weights of a directory into a model, in place; the values are cast to the model's dtype.

    Every name and shape is checked before the first value is read.

    Raises
    ------
    CheckpointNotFoundError, CheckpointError
        As in `load_model`; the error lists missing, unexpected and mis-shaped names.
    """
    folder = _existing(Path(directory))
    files = _weight_files(folder)
    parameters = dict(model.named_parameters())
    where, problems = _locate(files, {name: tuple(value.shape) for name, value in parameters.items()})
    if problems:
        raise CheckpointError(f"{folder} does not fit the model:\n" + "\n".join(f"  {line}" for line in problems))
    with torch.no_grad():
        for file, names in where.items():
            with safe_open(file, framework="pt") as tensors:
                for name in names:
                    parameters[name].copy_(tensors.get_tensor(name))


def save_checkpoint(model: DeepseekOCRForCausalLM, directory: str | Path, *, shard_bytes: int | None = None) -> None:
    """Write `config.json` and the weights of a model in the published layout.

    Parameters
    ----------
    model
        On any real device.
    directory
        Made if it is not there; files of the same names are replaced.
    shard_bytes
        Begin a new file before one grows beyond this; None for a single file.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", model.config.to_dict())
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, parameter in model.named_parameters():
        if shard_bytes is not None and shards[-1] and filled + parameter.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        # The experts' weights share storage, which the format refuses: each is copied out.
        shards[-1][name] = parameter.detach().cpu().clone()
        filled += parameter.nbytes
    if len(shards) == 1:
        _write_tensors(shards[0], folder / SINGLE_NAME)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        _write_tensors(shard, folder / file_name)
        weight_map |= dict.fromkeys(shard, file_name)
    total = sum(parameter.nbytes for parameter in model.parameters())
    _write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise CheckpointNotFoundError(
            f"{folder} is not a directory: give a local directory with config.json and safetensors files"
        )
    return folder


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a directory, each there."""
    index = folder / INDEX_NAME
    if index.is_file():
        try:
            content: Any = json.loads(index.read_text(encoding="utf-8"))
            names = sorted(set(content["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is no index of safetensors shards: {error!r}") from error
        outside = [name for name in names if Path(name).name != name or Path(name).suffix != ".safetensors"]
        if outside:
            raise CheckpointError(f"{index} names {outside[0]!r}; shards are .safetensors files beside the index")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointNotFoundError(f"{index} names files that are not there: {_some(missing)}")
        return [folder / name for name in names]
    if (folder / SINGLE_NAME).is_file():
        return [folder / SINGLE_NAME]
    unsafe = sorted(path.name for path in folder.iterdir() if path.suffix in _UNSAFE_SUFFIXES)
    if unsafe:
        raise CheckpointError(
            f"{folder} holds {_some(unsafe)} and no safetensors: such files can run code when opened "
            f"and are never read; convert them to {SINGLE_NAME} first"
        )
    raise CheckpointNotFoundError(f"{folder} holds neither {INDEX_NAME} nor {SINGLE_NAME}")


def _locate(files: list[Path], wanted: dict[str, tuple[int, ...]]) -> tuple[dict[Path, list[str]], list[str]]:
    """Return the names each file holds, and what is wrong with names and shapes."""
    where: dict[Path, list[str]] = {}
    found: dict[str, tuple[int, ...]] = {}
    twice: list[str] = []
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                where[file] = list(tensors.keys())
                shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in where[file]}
        except SafetensorError as error:
            raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from error
        twice += [name for name in shapes if name in found]
        found |= shapes
    lists = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "in two files": twice,
        "mis-shaped": [
            f"{name} {list(found[name])} (the model has {list(shape)})"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ],
    }
    return where, [f"{len(names)} {kind}: {_some(names)}" for kind, names in lists.items() if names]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown}, and {len(names) - _NAMES_SHOWN} more"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(path)
