"""Read a transformers configuration from its JSON file, without the network and without running code of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dsocr_graph.errors import DsocrGraphError, ModelConfigError
from dsocr_graph.models.from_transformers.trusted_code import CONFIG_CLASS, FLAG, TrustedCode
from dsocr_graph.workloads.limits import suggestion

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONFIG_FILE = "config.json"
_TEXT = "text_config"  # of a model of several parts, the one that writes
_QUANTIZATION = "quantization_config"
_POSITIONS = ("max_position_embeddings", "max_source_positions", "max_target_positions")
LARGEST_FILE = 16 << 20  # bytes; published configurations take a few kilobytes


class ConfigNotFoundError(DsocrGraphError, FileNotFoundError):
    """No configuration at the path that was given."""


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings of a configuration file as they stand there; imports neither torch nor transformers.

    Parameters
    ----------
    path
        A JSON file, or a directory that holds a config.json.

    Raises
    ------
    ConfigNotFoundError
        When there is no such file.
    ModelConfigError
        When it is no JSON object with a model_type, or needs code that it does not bring along.

    Examples
    --------
    >>> read_settings("no/such/config.json")
    Traceback (most recent call last):
    dsocr_graph.models.from_transformers.configuration.ConfigNotFoundError: no transformers configuration at \
no/such/config.json; give a config.json, or a directory that holds one
    """
    file = Path(path)
    if file.is_dir():
        file = file / CONFIG_FILE
    if not file.is_file():
        raise ConfigNotFoundError(
            f"no transformers configuration at {file}; give a {CONFIG_FILE}, or a directory that holds one"
        )
    if file.stat().st_size > LARGEST_FILE:
        raise ModelConfigError(
            f"{file} holds {file.stat().st_size:,} bytes; a transformers configuration takes at most "
            f"{LARGEST_FILE:,}. Give the model's {CONFIG_FILE}, not its weights"
        )
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of the encoding as well
        raise ModelConfigError(f"{file} is no JSON: {error}; give the {CONFIG_FILE} of a transformers model") from error
    return _checked(settings, str(file))


def _checked(settings: object, source: str) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise ModelConfigError(
            f"{source} holds a JSON {type(settings).__name__}; expected an object with the key model_type"
        )
    known = cast("dict[str, Any]", settings)
    if not isinstance(known.get("model_type"), str):
        raise ModelConfigError(
            f"{source} has no model_type; expected the {CONFIG_FILE} of a transformers model, which names one"
        )
    return known


def transformers_config(
    settings: Mapping[str, Any], *, source: str = "the configuration", code: TrustedCode | None = None
) -> PreTrainedConfig:
    """Return the transformers configuration that settings stand for.

    Parameters
    ----------
    settings
        What `read_settings` returned.
    source
        Where they are from, for messages.
    code
        Code that the user trusts; its configuration class, where it has one, is taken before transformers' own.

    Raises
    ------
    TrustedCodeError
        When the configuration class cannot be imported.
    ModelConfigError
        When the installed transformers has no such model_type, or refuses the settings.

    Examples
    --------
    >>> config = transformers_config({"model_type": "qwen3", "num_hidden_layers": 2})
    >>> type(config).__name__, config.num_hidden_layers
    ('Qwen3Config', 2)
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = str(settings["model_type"])
    config_class: Any
    if code is not None and CONFIG_CLASS in code.classes:
        config_class = code.load(CONFIG_CLASS)
    elif model_type in CONFIG_MAPPING:
        config_class = CONFIG_MAPPING[model_type]
    else:
        raise ModelConfigError(_unknown_type(settings, model_type, source, tuple(CONFIG_MAPPING.keys())))
    try:
        return config_class.from_dict(dict(settings))
    except Exception as error:  # the checks of a configuration class raise what they like
        raise ModelConfigError(
            f"{source} is no {model_type} that transformers {metadata.version('transformers')} can read: "
            f"{type(error).__name__}: {' '.join(str(error).split())}; correct that setting"
        ) from error


def positions_of(config: PreTrainedConfig) -> dict[str, Any]:
    """Return how many positions the parts of a model have, under the names that settings have them by.

    A configuration class fills in what a file leaves out, and knows other names, such as `n_positions`.

    Examples
    --------
    >>> positions_of(transformers_config({"model_type": "gpt2"}))
    {'max_position_embeddings': 1024}
    """
    found = {name: value for name in _POSITIONS if isinstance(value := getattr(config, name, None), int)}
    text: Any = getattr(config, _TEXT, None)
    return found if text is None else {**found, _TEXT: positions_of(text)}


def quantization_of(settings: Mapping[str, Any]) -> str:
    """Return how the published weights are quantised, in a few words; "" where they are not.

    Examples
    --------
    >>> quantization_of({"quantization_config": {"quant_method": "awq", "bits": 4}})
    'awq of 4 bits'
    """
    parts = (settings, settings.get(_TEXT) or {})
    scheme: Any = next((part[_QUANTIZATION] for part in parts if part.get(_QUANTIZATION)), None)
    if not isinstance(scheme, dict):
        return ""
    known = cast("dict[str, object]", scheme)
    method = str(known.get("quant_method", _QUANTIZATION))
    return f"{method} of {known['bits']} bits" if "bits" in known else method


_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}


def stated_dtype(settings: Mapping[str, Any]) -> str:
    """Return the type that a configuration states for its weights; "" where it states none.

    Examples
    --------
    >>> stated_dtype({"torch_dtype": "float16"}), stated_dtype({"text_config": {"dtype": "bfloat16"}}), stated_dtype({})
    ('fp16', 'bf16', '')
    """
    parts = (settings, settings.get(_TEXT) or {})
    stated = next((str(part[name]) for part in parts for name in ("dtype", "torch_dtype") if part.get(name)), "")
    return _DTYPES.get(stated.removeprefix("torch."), stated)


def with_positions(settings: Mapping[str, Any], positions: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that state the positions of `positions_of`.

    Examples
    --------
    >>> with_positions({"text_config": {"hidden_size": 64}}, {"text_config": {"max_position_embeddings": 512}})
    {'text_config': {'hidden_size': 64, 'max_position_embeddings': 512}}
    """
    inner = {
        name: with_positions(settings.get(name) or {}, cast("Mapping[str, Any]", value))
        for name, value in positions.items()
        if isinstance(value, Mapping)
    }
    return {**settings, **positions, **inner}


def _unknown_type(settings: Mapping[str, Any], model_type: str, source: str, known: tuple[str, ...]) -> str:
    version = metadata.version("transformers")
    if "auto_map" in settings:
        return (
            f"{source} is of model_type {model_type!r}, whose code is not in transformers {version} but in files "
            f"beside it (auto_map); such code is not run unless you trust it. Read it and give {FLAG}, install a "
            "transformers that has the model, or give a factory of your own"
        )
    near = suggestion(model_type, known).partition(" Known:")[0]
    return (
        f"{source} is of model_type {model_type!r}, which transformers {version} does not have; "
        f"{near + ' ' if near.startswith('did') else ''}It knows {len(known)} types. Install a newer transformers, or "
        "correct model_type"
    )
