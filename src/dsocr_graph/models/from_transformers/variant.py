"""The variants of a transformers model: what tells two captures of one configuration apart; imports no torch."""

from __future__ import annotations

from collections.abc import Collection

from attrs import asdict, frozen

from dsocr_graph.errors import ModelConfigError

FP8 = "fp8"  # linear layers and experts as a configuration's quantization_config says, the rest in bf16
DTYPES = ("bf16", "fp16", "fp32", FP8)
ATTENTIONS = ("sdpa", "eager")
EXPERTS = ("grouped",)  # transformers' own loop over experts follows the data and cannot be captured


@frozen(kw_only=True)
class TransformersVariant:
    """How a transformers model is built for capture.

    Raises
    ------
    ModelConfigError
        For a dtype or an implementation that is not one of `DTYPES`, `ATTENTIONS` and `EXPERTS`.

    Examples
    --------
    >>> TransformersVariant(dtype="bf16", attention="sdpa").name
    'bf16-sdpa'
    """

    dtype: str = "bf16"  # of every parameter that the model does not keep in fp32
    attention: str = "sdpa"  # implementation of attention, in all parts of the model
    experts: str = "grouped"  # implementation of the experts, where there are any: one alone can be captured
    quantization: str = ""  # of the published weights, where it is left out; of no consequence for the capture
    stated_dtype: str = ""  # of the configuration, where the capture is in another; of no consequence for it either

    def __attrs_post_init__(self) -> None:
        _known("dtype", self.dtype, DTYPES)
        _known("attention", self.attention, ATTENTIONS)
        _known("experts", self.experts, EXPERTS)

    @property
    def name(self) -> str:
        """A short name, usable in file names."""
        return f"{self.dtype}-{self.attention}"

    def facts(self) -> dict[str, str]:
        """Return the variant as text, for reports; what is "" is not said."""
        return {key.replace("_", " "): str(value) for key, value in asdict(self).items() if value}


def _known(what: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise ModelConfigError(
            f"{what} {value!r} of a transformers model cannot be captured; choose one of {', '.join(known)}"
        )
