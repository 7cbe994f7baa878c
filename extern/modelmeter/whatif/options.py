"""Options: what to ask of a model, as captured unless said otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs
from attrs import field, frozen

from modelmeter.defaults import GROUP_SIZE, GROUPED_EXPERTS, MOE_FORMS
from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.routing import UNIFORM, NamedRouting
from modelmeter.whatif.errors import UnknownChoiceError, WhatIfError

DTYPES: Mapping[str, DType] = MappingProxyType(
    {
        "bf16": DType.BF16,
        "fp32": DType.FP32,
        "fp8": DType.FP8_E4M3,
        "int8": DType.INT8,
        "int4": DType.INT4,
    }
)
"""Element types by the name that an option takes."""

WIDE = frozenset({DType.BF16, DType.FP32})
"""Types that every tensor may have; the others are for matrices of weights, inputs of products and the KV cache."""

GROUPED = frozenset({DType.INT8, DType.INT4})
"""Types of weights that carry scales by groups."""

ALL, LAST = "all", "last"
CONCATENATE, PREALLOCATED = "concatenate", "preallocated"


def _known_dtype(_owner: object, attribute: attrs.Attribute[str | None], name: str | None) -> None:
    if name is not None and name not in DTYPES:
        raise UnknownChoiceError(attribute.name, name, DTYPES)


def _one_of(*known: str) -> attrs._ValidatorType[str]:  # pyright: ignore[reportPrivateUsage]
    def check(_owner: object, attribute: attrs.Attribute[str], name: str) -> None:
        if name not in known:
            raise UnknownChoiceError(attribute.name, name, known)

    return check


def _positive(_owner: object, attribute: attrs.Attribute[int], size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise DimError(f"{attribute.name} is {size!r}; it must be a whole number of elements from 1 up")


def _named_routing(_owner: object, _attribute: object, routing: object) -> None:
    if not isinstance(routing, NamedRouting):
        raise WhatIfError(
            f"routing is {routing!r}, which is no routing model; give one of modelmeter.routing, such as "
            "parse_routing('zipf:1.1')"
        )


@frozen(kw_only=True)
class Options:
    """What-ifs; each is as captured unless it is given.

    Attributes
    ----------
    weight_dtype : str or None
        "bf16" or "fp32": every parameter. "fp8", "int8", "int4": the matrices of linear layers and experts.
    activation_dtype : str or None
        "bf16" or "fp32": every tensor of the captured type. "fp8", "int8": the inputs of linear layers and experts,
        which then multiply in that type; the weights must have it too.
    kv_dtype : str or None
        Type in which the KV cache is kept.
    logits : str
        "all" or "last": the positions of a prefill for which logits are computed.
    kv_growth : str
        "concatenate", which copies the cache at each step, or "preallocated", which writes the new tokens alone.
    moe : str
        "grouped": the experts' products in one call, as captured; "loop": expert by expert, as published.
    group_size : int
        Elements of a row of int8 and int4 weights that share a bf16 scale; other weights have none.
    routing : NamedRouting
        How many distinct experts some tokens touch; an evaluation takes it as its `routing`.

    Raises
    ------
    UnknownChoiceError
        On a type or a way that does not exist.
    WhatIfError
        When products would multiply two types that no unit multiplies, a group size is given for weights without
        groups, or the routing is no routing model.

    Examples
    --------
    >>> Options(weight_dtype="int4").group_size
    128
    >>> Options(kv_dtype="int7")
    Traceback (most recent call last):
    modelmeter.whatif.errors.UnknownChoiceError: unknown kv_dtype 'int7'; did you mean int8 or int4? Known: bf16, fp32, fp8, int4, int8
    """  # noqa: E501 - the message is one line

    weight_dtype: str | None = field(default=None, validator=_known_dtype)
    activation_dtype: str | None = field(default=None, validator=_known_dtype)
    kv_dtype: str | None = field(default=None, validator=_known_dtype)
    logits: str = field(default=ALL, validator=_one_of(ALL, LAST))
    kv_growth: str = field(default=CONCATENATE, validator=_one_of(CONCATENATE, PREALLOCATED))
    moe: str = field(default=GROUPED_EXPERTS, validator=_one_of(*MOE_FORMS))
    group_size: int = field(default=GROUP_SIZE, validator=_positive)  # elements
    routing: NamedRouting = field(default=UNIFORM, validator=_named_routing)

    def changing(self, captured: str) -> Mapping[str, str]:
        """Return the options, with their values, that change calls of a model captured in a type.

        Routing changes no call, only how many experts it reads.

        Examples
        --------
        >>> dict(Options(weight_dtype="bf16", kv_dtype="fp8", routing=UNIFORM).changing("bf16"))
        {'kv_dtype': 'fp8'}
        """
        as_captured = {
            "activation_dtype": captured,
            "weight_dtype": captured,
            "kv_dtype": captured,
            "kv_growth": CONCATENATE,
            "logits": ALL,
            "moe": GROUPED_EXPERTS,
        }
        given = {name: getattr(self, name) for name in as_captured}
        return {name: value for name, value in given.items() if value not in (None, as_captured[name])}

    def __attrs_post_init__(self) -> None:
        if self.activation_dtype == "int4":
            raise WhatIfError("activation_dtype int4 has no unit to multiply it; use bf16, fp32, fp8 or int8")
        if self.activation_dtype in {"fp8", "int8"} and self.weight_dtype != self.activation_dtype:
            weights = self.weight_dtype or "the captured type"
            raise WhatIfError(
                f"activation_dtype {self.activation_dtype} multiplies weights of its own type, not of {weights}; give "
                f"weight_dtype {self.activation_dtype} as well, or leave activation_dtype out for weight-only "
                "quantisation"
            )
        if self.group_size != GROUP_SIZE and not self.groups_weights:
            raise WhatIfError(
                f"group_size {self.group_size} is of int8 and int4 weights, not of {self.weight_dtype or 'captured'} "
                "ones; give weight_dtype int8 or int4 as well, or leave group_size out"
            )

    @property
    def groups_weights(self) -> bool:
        """Whether the weights carry scales by groups."""
        return self.weight_dtype is not None and DTYPES[self.weight_dtype] in GROUPED


AS_CAPTURED = Options()
"""No what-if at all."""
