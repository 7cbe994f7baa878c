"""DeepSeek-OCR as exportable nn.Modules with the published class names, module paths and parameter names.

Importing this package, or `config` alone, does not import torch: everything else is loaded on first use.

Examples
--------
>>> from dsocr_graph.models.deepseek_ocr import DeepseekOCRConfig, DeepseekOCRForCausalLM
>>> import torch
>>> with torch.device("meta"):
...     model = DeepseekOCRForCausalLM(DeepseekOCRConfig())
>>> sum(parameter.numel() for parameter in model.parameters())
3336106240
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsocr_graph.models.deepseek_ocr.cache import KVCache, PreallocatedKVCache
    from dsocr_graph.models.deepseek_ocr.checkpoint import load_checkpoint, load_model, save_checkpoint
    from dsocr_graph.models.deepseek_ocr.config import ClipConfig, DeepseekOCRConfig, SamConfig
    from dsocr_graph.models.deepseek_ocr.generation import Document, generate
    from dsocr_graph.models.deepseek_ocr.modeling import (
        DeepseekOCRForCausalLM,
        DeepseekOCRModel,
        initialize,
    )
    from dsocr_graph.models.deepseek_ocr.stages import STAGES, StageModule, dynamic_shapes, stage_inputs

_HOME = {
    "KVCache": "cache",
    "PreallocatedKVCache": "cache",
    "load_checkpoint": "checkpoint",
    "load_model": "checkpoint",
    "save_checkpoint": "checkpoint",
    "ClipConfig": "config",
    "DeepseekOCRConfig": "config",
    "SamConfig": "config",
    "Document": "generation",
    "generate": "generation",
    "DeepseekOCRForCausalLM": "modeling",
    "DeepseekOCRModel": "modeling",
    "initialize": "modeling",
    "STAGES": "stages",
    "StageModule": "stages",
    "dynamic_shapes": "stages",
    "stage_inputs": "stages",
}

__all__ = [
    "STAGES",
    "ClipConfig",
    "DeepseekOCRConfig",
    "DeepseekOCRForCausalLM",
    "DeepseekOCRModel",
    "Document",
    "KVCache",
    "PreallocatedKVCache",
    "SamConfig",
    "StageModule",
    "dynamic_shapes",
    "generate",
    "initialize",
    "load_checkpoint",
    "load_model",
    "save_checkpoint",
    "stage_inputs",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        message = f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}"
        raise AttributeError(message)
    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    # The next access finds it without this function.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
