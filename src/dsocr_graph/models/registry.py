"""Named models and their variants, and how to build each for capture; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from attrs import asdict, frozen

from dsocr_graph.errors import ModelConfigError, UnknownModelError
from dsocr_graph.models.deepseek_ocr.config import DeepseekOCRConfig
from dsocr_graph.models.from_transformers import CATALOG, TransformersModel
from dsocr_graph.models.named_model import NamedModel
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.workloads.bind import bind_profile
from dsocr_graph.workloads.limits import MAX_CONTEXT
from dsocr_graph.workloads.modes import MODES
from dsocr_graph.workloads.request import requests_of
from modelmeter.dtypes import DType
from modelmeter.workload import Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dsocr_graph.models.deepseek_ocr.running import RunnableModel
    from dsocr_graph.workloads.profile import Profile

Attention = Literal["sdpa", "eager", "flash_attention_2"]
ATTENTIONS: tuple[str, ...] = get_args(Attention)
DTYPES = ("bf16", "fp32")
SHIPPED_DTYPE = "bf16"  # of every compiled model that the package ships
CROP_SIZE = 640  # pixels; the published code crops to 640 whatever the mode


@frozen(kw_only=True)
class Variant:
    """What tells captures of one model apart.

    Examples
    --------
    >>> Variant(base_size=1024, dtype="bf16", attention="sdpa").name
    'base1024-bf16-sdpa-grouped'
    """

    base_size: int  # pixels per side of the global view
    dtype: str  # "bf16" or "fp32"
    attention: str  # implementation of attention in the decoder
    moe: str = "grouped"  # the loop over experts follows the data and cannot be captured

    def __attrs_post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ModelConfigError(f"dtype {self.dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
        if self.attention not in ATTENTIONS:
            raise ModelConfigError(
                f"attention {self.attention!r} is not supported; choose one of {', '.join(ATTENTIONS)}"
            )
        if self.moe != "grouped":
            raise ModelConfigError(
                f"moe {self.moe!r} cannot be captured: its loop over experts depends on the routing; choose grouped"
            )

    @property
    def name(self) -> str:
        """A short name, usable in file names."""
        return f"base{self.base_size}-{self.dtype}-{self.attention}-{self.moe}"

    def facts(self) -> dict[str, str]:
        """Return the variant as text, for reports."""
        return {key: str(value) for key, value in asdict(self).items()}


def model_named(name: str) -> NamedModel:
    """Return a model by name.

    Raises
    ------
    UnknownModelError
        When there is none; the error lists the known ones.

    Examples
    --------
    >>> model_named("deepseek-ocr").name
    'deepseek-ocr'
    """
    if name not in MODELS:
        raise UnknownModelError(
            f"unknown model {name!r}; known models: {', '.join(sorted(MODELS))}. Any other one has no name here: "
            "`analyze`, `verify`, `figures`, `formulas`, `sweep` and `parallel` take it by the path of its config.json,"
            " or by a factory as package.module:function"
        )
    return MODELS[name]


STAGE_DESCRIPTIONS: Mapping[str, str] = {
    "vision_global": "one global view: SAM, CLIP, projector, newlines and separator",
    "vision_local": "all crops of one document as one batch, stitched to one map and joined with the global features",
    "prefill": "B documents of S tokens: image features merged in, logits of all positions, first token chosen",
    "decode": "one step of B documents with T cached tokens each",
}


def deepseek_ocr_model(name: str, size: DeepseekOCRConfig, *, description: str, source: str) -> NamedModel:
    """Return a model of DeepSeek-OCR's code at some sizes, to be captured and measured under a name.

    Examples
    --------
    >>> model = deepseek_ocr_model("toy", DeepseekOCRConfig.tiny(), description="a toy", source="an example")
    >>> model.config(Variant(base_size=512, dtype="fp32", attention="sdpa"))["num_hidden_layers"]
    3
    """

    def config(variant: Variant) -> DeepseekOCRConfig:
        return size.with_implementations(
            attn_implementation=cast("Attention", variant.attention), moe_implementation="grouped"
        )

    return NamedModel(
        name=name,
        description=description,
        source=source,
        variant=lambda profile, attention: Variant(
            base_size=profile.mode.base_size, dtype=profile.dtype, attention=attention
        ),
        workload=bind_profile,
        load_dtype=DType.FP32,  # as the published script loads
        limits=_position_limits(MAX_CONTEXT),
        shipped=_shipped_name,
        config=lambda variant: config(variant).to_dict(),
        build=lambda variant: _build(config(variant), variant),
        runnable=lambda variant, moe: _runnable(config(variant).with_implementations(moe_implementation=moe), variant),
    )


def _shipped_name(variant: Variant) -> str:
    """Return the mode whose pages the variant takes, as modelmeter's data files are called, and its attention."""
    modes = [mode.name.lower() for mode in MODES.values() if mode.base_size == variant.base_size]
    named = [*modes[:1], *([] if variant.attention == "sdpa" else [variant.attention])]
    return "-".join(named) if variant.dtype == SHIPPED_DTYPE else variant.name


def _build(config: DeepseekOCRConfig, variant: Variant) -> tuple[nn.Module, tuple[StageSpec, ...]]:
    import torch

    from dsocr_graph.models.deepseek_ocr import (
        DeepseekOCRForCausalLM,
        StageModule,
        dynamic_shapes,
        stage_inputs,
    )

    dtype = _torch_dtype(variant)
    with torch.device("meta"):
        model = DeepseekOCRForCausalLM(config).eval().to(dtype)
    cells = variant.base_size // config.vision_cell
    sizes = {"base": variant.base_size, "view": CROP_SIZE, "G": cells * (cells + 1) + 1}
    cache = tuple(range(1, 1 + 2 * config.num_hidden_layers))
    stages: list[StageSpec] = []
    for stage, description in STAGE_DESCRIPTIONS.items():
        shapes = dynamic_shapes(stage, config)
        if stage == "vision_local":
            shapes["global_features"] = None  # fixed by the variant's base size
        stages.append(
            StageSpec(
                name=stage,
                description=description,
                module=StageModule(model, stage),
                inputs=stage_inputs(config, stage, device="meta", dtype=dtype, **sizes),
                dynamic_shapes=shapes,
                root="root",
                aliases={"W": "V/H"},
                kv_inputs=cache if stage == "decode" else (),
                kv_outputs=cache if stage in {"prefill", "decode"} else (),
            )
        )
    return model, tuple(stages)


def _runnable(config: DeepseekOCRConfig, variant: Variant) -> RunnableModel:
    from dsocr_graph.models.deepseek_ocr.running import RunnableModel

    return RunnableModel(config=config, base_size=variant.base_size, view_size=CROP_SIZE, dtype=_torch_dtype(variant))


def _torch_dtype(variant: Variant) -> torch.dtype:
    import torch

    return {"bf16": torch.bfloat16, "fp32": torch.float32}[variant.dtype]


def transformers_model(model: TransformersModel) -> NamedModel:
    """Return a model built from a transformers configuration, to be captured under its name.

    Examples
    --------
    >>> from dsocr_graph.workloads import load_profile
    >>> named = transformers_model(CATALOG["qwen3-8b"])
    >>> named.workload(load_profile("dsocr-standard-v1")).items[0].runs[0].bindings  # the letter's text and the prompt
    {'B': 1, 'S': 1110}
    """
    return NamedModel(
        name=model.name,
        description=model.description,
        source=model.source,
        variant=lambda profile, attention: model.variant(profile.dtype, attention),
        workload=lambda profile: _requests_workload(model, profile),
        limits=_position_limits(_positions(model.bounds)),
        attention=model.attention,
        config=model.config,
        build=model.build,
        packages=("transformers",),
        fit=model.fit,
    )


_POSITIONS = ("max_position_embeddings", "max_target_positions")


def _positions(settings: Mapping[str, Any]) -> int | None:
    """Return the positions of a configuration's decoder, if it says how many there are."""
    text = settings.get("text_config", settings)
    return next((text[name] for name in _POSITIONS if isinstance(text.get(name), int)), None)


def _position_limits(positions: int | None) -> dict[str, int]:
    """Return the largest prompt, and the largest cache that still takes a token."""
    return {} if positions is None else {"S": positions, "T": positions - 1}


def _requests_workload(model: TransformersModel, profile: Profile) -> Workload:
    return Workload(
        name=profile.name,
        items=tuple(model.runs(request) for request in requests_of(profile)),
        facts={"dtype": profile.dtype, "batch": profile.batch, "pages": len(profile.pages), **profile.lengths},
    )


MODELS: Mapping[str, NamedModel] = {
    model.name: model
    for model in (
        deepseek_ocr_model(
            "deepseek-ocr",
            DeepseekOCRConfig(),
            description="DeepSeek-OCR: SAM and CLIP encoders, projector, DeepSeek-V2 decoder with 64 experts",
            source="deepseek-ai/DeepSeek-OCR: config.json and the published modeling code",
        ),
        deepseek_ocr_model(
            "deepseek-ocr-tiny",
            DeepseekOCRConfig.tiny(),
            description="the same code at toy size, to try things out: 3 decoder layers, 8 experts, 0.3 M parameters",
            source="DeepseekOCRConfig.tiny()",
        ),
        *map(transformers_model, CATALOG.values()),
    )
}
