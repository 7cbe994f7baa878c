"""Facts of variants under one name each: packages name the same choice, and the same value of it, differently."""

from __future__ import annotations

from collections.abc import Mapping

# By the name that modelmeter's own options have. Source of the others: the arguments of transformers' configurations.
_NAMES = {
    "experts": "moe",
    "experts_implementation": "moe",
    "moe_implementation": "moe",
    "attn_implementation": "attention",
    "torch_dtype": "dtype",
}
_VALUES = {
    "moe": {"grouped_mm": "grouped"},
    "dtype": {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"},
}


def comparable(variant: Mapping[str, str]) -> dict[str, str]:
    """Return a variant with the names and values that other variants have for the same, sorted by name.

    A fact keeps its own name where the variant has the common one as well, such as a what-if beside the capture.

    Examples
    --------
    >>> comparable({"experts": "grouped_mm", "dtype": "bf16"}), comparable({"moe": "loop", "experts": "grouped"})
    ({'dtype': 'bf16', 'moe': 'grouped'}, {'experts': 'grouped', 'moe': 'loop'})
    """
    found: dict[str, str] = {}
    for fact, value in variant.items():
        name = _NAMES.get(fact, fact)
        if name != fact and (name in variant or name in found):
            name = fact
        found[name] = _VALUES.get(name, {}).get(value, value)
    return dict(sorted(found.items()))
