"""Build a transformers model on `meta`, without weights: in a dtype, with the implementations of a variant."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dsocr_graph.errors import ModelConfigError
from dsocr_graph.models.from_transformers.experts import IMPLEMENTATION, register_experts
from dsocr_graph.models.from_transformers.variant import FP8

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from dsocr_graph.models.from_transformers.variant import TransformersVariant

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, FP8: torch.bfloat16}
"""By the dtype of a variant, the type of what is not quantised."""
_EXPERTS = {"grouped": IMPLEMENTATION}


def model_class(name: str) -> type[nn.Module]:
    """Return a model class of transformers by name.

    Raises
    ------
    ModelConfigError
        When transformers has none of that name, or it needs a package that is not installed.

    Examples
    --------
    >>> model_class("Qwen3ForCausalLM").main_input_name
    'input_ids'
    """
    transformers: Any = importlib.import_module("transformers")
    try:
        return getattr(transformers, name)
    except (AttributeError, ImportError) as error:
        raise ModelConfigError(
            f"transformers {metadata.version('transformers')} has no class {name}: {error}; correct the "
            "architectures of the configuration, or install a transformers that has it"
        ) from error


def best_attention(built: type[nn.Module], config: PreTrainedConfig | None = None) -> str:
    """Return "sdpa" where a class has it, and so have the classes that it takes for its backbones; "eager" elsewhere.

    Examples
    --------
    >>> best_attention(model_class("Qwen3ForCausalLM")), best_attention(model_class("GotOcr2ForConditionalGeneration"))
    ('sdpa', 'eager')
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

    backbone = getattr(getattr(config, "backbone_config", None), "model_type", None)
    names = [MODEL_FOR_BACKBONE_MAPPING_NAMES[backbone]] if backbone in MODEL_FOR_BACKBONE_MAPPING_NAMES else []
    classes = [built, *map(model_class, names)]
    return "sdpa" if all(getattr(each, "_supports_sdpa", False) for each in classes) else "eager"


def meta_model(
    config: PreTrainedConfig,
    built: str | type[nn.Module],
    variant: TransformersVariant,
    *,
    device: str = "meta",
) -> PreTrainedModel:
    """Return a model in evaluation mode, on `meta` unless told otherwise.

    Parameters
    ----------
    config
        Its configuration; it is copied.
    built
        The class to build, or the name of one of transformers, such as "Qwen3ForCausalLM".
    variant
        Dtype and implementations. What a model keeps in fp32 stays in fp32.

    Raises
    ------
    ModelConfigError
        When transformers has no such class, or cannot build it from this configuration; when the dtype is "fp8" and
        the configuration is of no checkpoint in blocks of fp8.

    Examples
    --------
    >>> from dsocr_graph.models.from_transformers.configuration import transformers_config
    >>> from dsocr_graph.models.from_transformers.variant import TransformersVariant
    >>> config = transformers_config({"model_type": "qwen3", "num_hidden_layers": 2})
    >>> model = meta_model(config, "Qwen3ForCausalLM", TransformersVariant())
    >>> model.lm_head.weight.shape, model.dtype, model.device.type
    (torch.Size([151936, 4096]), torch.bfloat16, 'meta')
    """
    model_type: Any = model_class(built) if isinstance(built, str) else built
    quantize = _quantization(config) if variant.dtype == FP8 else None
    register_experts()
    dtype = TORCH_DTYPES[variant.dtype]
    try:
        with torch.device(device):
            model = model_type._from_config(
                copy.deepcopy(config),
                dtype=dtype,
                attn_implementation=variant.attention,
                experts_implementation=_EXPERTS[variant.experts],
            )
    except Exception as error:  # each class checks its configuration in its own way
        of_attention = variant.attention != "eager" and "attention implementation" in str(error)
        remedy = "; a part of it has no such attention: give --attention eager" if of_attention else ""
        raise ModelConfigError(
            f"transformers {metadata.version('transformers')} cannot build {model_type.__name__} from this "
            f"configuration with {variant.attention} attention: {type(error).__name__}: {error}{remedy}"
        ) from error
    _keep_in_fp32(model, dtype)
    if quantize is not None:
        quantize(model)
    return model.eval()


def _quantization(config: PreTrainedConfig) -> Callable[[PreTrainedModel], None]:
    """Return what puts the quantised modules of a configuration into its model."""
    from dsocr_graph.models.from_transformers.fp8 import fp8_scheme, quantize

    return partial(quantize, scheme=fp8_scheme(config))


def _keep_in_fp32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Widen the tensors that transformers keeps in fp32 when it loads weights; building alone does not."""
    loading: Any = model  # the plan is transformers' own, and no public part of it
    kept = [re.compile(pattern) for pattern in loading._get_dtype_plan(dtype)]
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and any(pattern.search(name) for pattern in kept):
            tensor.data = tensor.data.float()
