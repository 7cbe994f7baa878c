"""Shorten: a transformers configuration with fewer layers of the same widths, to run where the whole does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from dsocr_graph.errors import ModelConfigError

_DEPTHS = (
    "num_hidden_layers",
    "num_layers",
    "num_decoder_layers",
    "n_layer",
    "n_layers",
    "depth",
    "encoder_layers",
    "decoder_layers",
)
_DENSE_FIRST = "first_k_dense_replace"
"""Layers at the beginning that have no experts: one fewer than all, so that one with experts is left."""
_LAYER_NUMBERS = ("deepstack_visual_indexes", "global_attn_indexes", "mlp_only_layers")
"""Lists of layers by their number."""
_ONE_LEFT = frozenset(_LAYER_NUMBERS) - {"mlp_only_layers"}
"""Lists of the rarer kind of layer: the last layer becomes one where none is left, so that the kind is not lost."""


def shortened(settings: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Return settings in which no stack has more than so many layers; the widths stay.

    Parameters
    ----------
    settings : mapping of str to object
        A configuration file as it stands, nested configurations included.
    layers : int
        Of each stack, at most.

    Raises
    ------
    ModelConfigError
        When `layers` is below 1, or no setting says how many layers there are.

    Examples
    --------
    >>> shortened({"num_hidden_layers": 36, "layer_types": ["full"] * 36, "hidden_size": 64}, 2)
    {'num_hidden_layers': 2, 'layer_types': ['full', 'full'], 'hidden_size': 64}
    """
    if layers < 1:
        raise ModelConfigError(f"layers is {layers}; a stack keeps 1 or more")
    short = _short(settings, layers)
    if short == dict(settings) and not _has_depth(settings):
        raise ModelConfigError(f"the configuration has none of {', '.join(_DEPTHS)}; give one that is shorter itself")
    return short


def _short(settings: Mapping[str, Any], layers: int) -> dict[str, Any]:
    return {name: _shorter(name, value, layers) for name, value in settings.items()}


def _shorter(name: str, value: object, layers: int) -> object:
    if isinstance(value, Mapping):
        return _short(cast("Mapping[str, Any]", value), layers)
    if name in _DEPTHS and isinstance(value, int):
        return min(value, layers)
    if name == _DENSE_FIRST and isinstance(value, int):
        return min(value, layers - 1)
    if isinstance(value, list):
        entries = cast("list[Any]", value)
        if name in _LAYER_NUMBERS:
            left = [number for number in entries if number < layers]
            return [layers - 1] if entries and not left and name in _ONE_LEFT else left
        return entries[:layers] if name == "layer_types" else entries
    return value


def _has_depth(settings: Mapping[str, Any]) -> bool:
    return any(
        name in _DEPTHS or (isinstance(value, Mapping) and _has_depth(cast("Mapping[str, Any]", value)))
        for name, value in settings.items()
    )
