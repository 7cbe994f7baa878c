"""What-if steps: a model with one more of the options of another variant of it, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import frozen

from modelmeter.defaults import GROUPED_EXPERTS
from modelmeter.errors import ModelMeterError
from modelmeter.model import AnalyticModel
from modelmeter.whatif import Options, apply
from modelmeter.whatif.options import ALL, CONCATENATE

# As they depend on each other: products in another type need weights of that type.
_OPTIONS = ("weight_dtype", "activation_dtype", "kv_dtype", "kv_growth", "logits", "moe")


@frozen(kw_only=True)
class WhatIfStep:
    """A model under one more option."""

    option: str
    captured: str
    value: str
    model: AnalyticModel


def what_if_steps(plain: Mapping[str, str], asked: Mapping[str, str], model: AnalyticModel) -> Iterator[WhatIfStep]:
    """Yield a model under more and more of the options that one variant has and another has as captured.

    It ends early at an option that cannot be applied.

    Parameters
    ----------
    plain, asked : mapping of str to str
        Variants.
    model : AnalyticModel
        In the first.

    Examples
    --------
    >>> import modelmeter
    >>> model = modelmeter.load("qwen3-8b")
    >>> steps = what_if_steps(model.variant, {**model.variant, "kv_dtype": "fp8", "weight_dtype": "fp8"}, model)
    >>> [(step.option, step.captured, step.value) for step in steps]
    [('weight_dtype', 'bf16', 'fp8'), ('kv_dtype', 'bf16', 'fp8')]
    """
    asked_for: dict[str, str] = {}
    for option, (captured, value) in gained(plain, asked).items():
        asked_for[option] = value
        try:
            changed = apply(model, Options(**asked_for)).model  # pyright: ignore[reportArgumentType] - all are texts
        except ModelMeterError:
            return
        yield WhatIfStep(option=option, captured=captured, value=value, model=changed)


def gained(plain: Mapping[str, str], asked: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the options that the second variant has and the first has as captured: captured and asked for.

    Examples
    --------
    >>> gained({"dtype": "bf16", "moe": "grouped"}, {"dtype": "bf16", "moe": "loop"})
    {'moe': ('grouped', 'loop')}
    """
    dtype = plain.get("dtype", "as captured")
    captured = dict.fromkeys(_OPTIONS, dtype) | {"kv_growth": CONCATENATE, "logits": ALL, "moe": GROUPED_EXPERTS}
    found = {option: (captured[option], asked.get(option, captured[option])) for option in _OPTIONS}
    return {
        option: pair for option, pair in found.items() if pair[0] != pair[1] and plain.get(option, pair[0]) == pair[0]
    }
