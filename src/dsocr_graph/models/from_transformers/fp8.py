"""Models in blocks of fp8, as published checkpoints have them: transformers' own modules, with products to capture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.integrations import finegrained_fp8
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
from transformers.utils.quantization_config import FineGrainedFP8Config

from dsocr_graph.errors import ModelConfigError
from dsocr_graph.models.from_transformers.experts import IMPLEMENTATION, grouped_experts
from dsocr_graph.models.from_transformers.fp8_ops import (
    block_scaled_grouped_linear,
    block_scaled_linear,
    quantize_rows,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_ALTERNATIVES = "choose bf16 or fp32"


class FP8Linear(finegrained_fp8.FP8Linear):
    """transformers' module, whose forward needs a kernel for a GPU; here it calls operators that can be captured.

    As there, the input is quantised in runs of a row, as wide as the weight's blocks, and a bias is added in place.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[..., K] -> [..., N] in the type of the input."""
        block = cast("tuple[int, int]", self.block_size)
        rows, scales = quantize_rows(input, block=block[1])
        result = block_scaled_linear(rows, scales, self.weight, self.weight_scale_inv, block=block, dtype=input.dtype)
        return result if self.bias is None else result.add_(self.bias)


def fp8_scheme(config: PreTrainedConfig) -> FineGrainedFP8Config:
    """Return how the checkpoint of a configuration is quantised.

    Raises
    ------
    ModelConfigError
        When it is not, or otherwise than in blocks of fp8 with scales in fp32 and activations quantised as they come.

    Examples
    --------
    >>> from dsocr_graph.models.from_transformers.configuration import transformers_config
    >>> fp8_scheme(transformers_config({"model_type": "qwen3"}))
    Traceback (most recent call last):
    dsocr_graph.errors.ModelConfigError: dtype fp8 is of checkpoints that are published in it, and this configuration \
(qwen3) has no quantization_config with quant_method fp8; choose bf16 or fp32, or give the config.json of such a \
checkpoint. How weights in fp8 would change the cost of this one, the what-if weight_dtype fp8 says
    """
    settings: Any = getattr(config, "quantization_config", None)
    settings = settings if isinstance(settings, dict) else getattr(settings, "to_dict", dict)()
    if settings.get("quant_method") != "fp8":
        method = f"quant_method {settings['quant_method']!r}, not fp8" if settings else None
        found = f"a quantization_config with {method}" if method else "no quantization_config with quant_method fp8"
        raise ModelConfigError(
            f"dtype fp8 is of checkpoints that are published in it, and this configuration ({config.model_type}) has "
            f"{found}; {_ALTERNATIVES}, or give the config.json of such a checkpoint. How weights in fp8 would change "
            "the cost of this one, the what-if weight_dtype fp8 says"
        )
    try:
        scheme = FineGrainedFP8Config(**settings)
    except Exception as error:  # it checks its settings in its own way
        raise ModelConfigError(
            f"transformers cannot read the quantization_config of {config.model_type}: {type(error).__name__}: "
            f"{error}; correct it, or {_ALTERNATIVES}"
        ) from error
    _check(scheme, settings)
    return scheme


def _check(scheme: FineGrainedFP8Config, settings: dict[str, Any]) -> None:
    """Refuse what the operators do not compute."""
    expected = {
        "fmt": (settings.get("fmt", "e4m3"), "e4m3"),
        "activation_scheme": (scheme.activation_scheme, "dynamic"),
        "scale_fmt": (scheme.scale_fmt, "float"),
        "expert_dtype": (scheme.expert_dtype, "fp8"),
        "modules_to_convert": (scheme.modules_to_convert, None),
    }
    wrong = [f"{name} {found!r}, not {wanted!r}" for name, (found, wanted) in expected.items() if found != wanted]
    if scheme.weight_block_size is None:
        wrong.append("no weight_block_size, such as [128, 128]")
    if wrong:
        raise ModelConfigError(
            f"the quantization_config of this checkpoint has {'; '.join(wrong)}; only weights in blocks of fp8 with "
            f"scales in fp32 can be captured. For its cost in another type, {_ALTERNATIVES}"
        )


def quantize(model: PreTrainedModel, scheme: FineGrainedFP8Config) -> None:
    """Put transformers' quantised modules into a model, in place of the linear layers and experts that they replace.

    transformers' own quantizer decides which ones: not the head, and not what the configuration leaves out. New weights
    are on the model's device, without values.

    Raises
    ------
    ModelConfigError
        When nothing is left to quantise, or a module that it makes cannot be captured.
    """
    finegrained_fp8.FP8ExpertsInterface.register(
        IMPLEMENTATION, partial(grouped_experts, product_of=_product_in_blocks)
    )
    device, dtype = model.device, model.dtype
    quantizer: Any = FineGrainedFP8HfQuantizer(scheme, pre_quantized=True)
    quantizer.preprocess_model(model)
    made = {name: each for name, each in model.named_modules() if isinstance(each, _MODULES)}
    if not made:
        raise ModelConfigError(
            f"the quantization_config of {model.config.model_type} leaves every linear layer of "
            f"{type(model).__name__} as it is (modules_to_not_convert {scheme.modules_to_not_convert}); {_ALTERNATIVES}"
        )
    for name, module in made.items():
        _make_capturable(name, module, dtype)
        module.to_empty(device=device)


_MODULES = (finegrained_fp8.FP8Linear, finegrained_fp8.FP8Experts)


def _make_capturable(name: str, module: nn.Module, dtype: torch.dtype) -> None:
    if isinstance(module, finegrained_fp8.FP8Experts):
        return  # it runs the implementation that is registered
    if type(module) is not finegrained_fp8.FP8Linear:
        raise ModelConfigError(
            f"module {name} is a {type(module).__name__} in fp8, which cannot be captured; linear layers and experts "
            f"can. For its cost in another type, {_ALTERNATIVES}"
        )
    module.__class__ = FP8Linear
    if module.bias is not None:
        module.bias.data = module.bias.data.to(dtype)  # as a checkpoint is loaded; made alone it is fp32


def _product_in_blocks(module: Any, name: str) -> Callable[..., Tensor]:  # noqa: ANN401 - transformers has no class for it
    """Return what multiplies each expert's rows by its weight, both in blocks of fp8."""
    height, width = module.block_size
    if name == "gate_up_proj":
        height = min(height, module.intermediate_dim)  # gate and up have scales of their own
    weight_scale = getattr(module, f"{name}_scale_inv")

    def product(rows: Tensor, weight: Tensor, offsets: Tensor, *, experts_per_token: int) -> Tensor:
        quantized, scales = quantize_rows(rows, block=width)
        return block_scaled_grouped_linear(
            quantized,
            scales,
            weight,
            weight_scale,
            offsets,
            block=(height, width),
            experts_per_token=experts_per_token,
            dtype=rows.dtype,
        )

    return product
