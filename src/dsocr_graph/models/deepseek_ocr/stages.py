"""The four stages of DeepSeek-OCR as modules for `torch.export`, with example inputs and symbolic dims.

Dims: H and W rows and columns of the crop grid, G global features, B documents, S prompt tokens, N image
tokens, T cached tokens.
"""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.export import Dim

from dsocr_graph.errors import ModelInputError
from dsocr_graph.models.deepseek_ocr.cache import KVCache
from dsocr_graph.models.deepseek_ocr.config import DeepseekOCRConfig
from dsocr_graph.models.deepseek_ocr.modeling import DeepseekOCRForCausalLM

STAGES = ("vision_global", "vision_local", "prefill", "decode")
"""Names of the stages, in the order they run."""

# The largest value each symbolic dim is captured for; bounds keep the exporter's arithmetic in 64 bits. Every
# dim begins at 1: the exporter reasons about sizes of 2 and more, and its graphs hold for 1 as well (tested).
_LARGEST = {"H": 64, "W": 64, "G": 65536, "B": 1024, "S": 131072, "N": 131072, "T": 131072}


class StageModule(nn.Module):
    """One stage of a model, with tensors for inputs and outputs: `StageModule(model, stage)`.

    The model is the attribute `root`. The work is done by the same methods that `generate` calls.

    Parameters
    ----------
    root
        The model.
    stage
        One of `STAGES`.

    Raises
    ------
    ModelInputError
        For an unknown stage, with the known ones.

    Examples
    --------
    >>> import torch
    >>> from dsocr_graph.models.deepseek_ocr import DeepseekOCRConfig, DeepseekOCRForCausalLM, stage_inputs
    >>> config = DeepseekOCRConfig.tiny()
    >>> with torch.device("meta"):
    ...     stage = StageModule(DeepseekOCRForCausalLM(config), "vision_global")
    >>> inputs = stage_inputs(config, "vision_global", dtype=torch.float32, base=512)
    >>> stage(*inputs).shape  # 8 rows of 8 and a newline each, then the separator
    torch.Size([73, 64])
    """

    def __new__(cls, *inputs: Any, **named: Any) -> Self:  # noqa: ANN401 - those of __init__, or none when copied
        """Make an instance of the stage's own class, whose `forward` has the stage's signature."""
        stage = named.get("stage", inputs[1] if len(inputs) > 1 else None)
        return cast("Self", object.__new__(cls if stage is None else _stage_class(stage)))

    def __init__(self, root: DeepseekOCRForCausalLM, stage: str) -> None:
        super().__init__()
        self.root = root
        self.stage = stage


class VisionGlobalStage(StageModule):
    """The global view of one page."""

    def forward(self, pixels: Tensor) -> Tensor:
        """[1, 3, base, base] -> [h * (h + 1) + 1, hidden], h = base / 64."""
        return self.root.encode_global(pixels)


class VisionLocalStage(StageModule):
    """The crops of one page, merged with its global features."""

    def forward(self, views: Tensor, global_features: Tensor) -> Tensor:
        """[H, W, 3, view, view] and [G, hidden] -> [h H * (h W + 1) + G, hidden], h = view / 64."""
        return self.root.encode_local(views, global_features)


class PrefillStage(StageModule):
    """The prompt of B documents of equal length."""

    def forward(
        self, input_ids: Tensor, image_features: Tensor, images_mask: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B, S], [B, N, hidden] and [B, S] -> next token [B] and k0, v0, k1, ... [B, heads, S, head_dim]."""
        token, cache = self.root.prefill(input_ids, image_features, images_mask)
        return token, cache.tensors()


class DecodeStage(StageModule):
    """One decode step of B documents with T cached tokens."""

    def forward(self, input_ids: Tensor, *cache: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B, 1] and k0, v0, ... [B, heads, T, head_dim] -> next token [B] and the cache of T + 1 tokens."""
        token, grown = self.root.decode_step(input_ids, KVCache.from_tensors(cache))
        return token, grown.tensors()


_STAGE_CLASSES: dict[str, type[StageModule]] = {
    "vision_global": VisionGlobalStage,
    "vision_local": VisionLocalStage,
    "prefill": PrefillStage,
    "decode": DecodeStage,
}


def _stage_class(stage: str) -> type[StageModule]:
    if stage not in _STAGE_CLASSES:
        raise ModelInputError(f"unknown stage {stage!r}; the stages are {', '.join(STAGES)}")
    return _STAGE_CLASSES[stage]


def stage_inputs(
    config: DeepseekOCRConfig,
    stage: str,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.bfloat16,
    *,
    seed: int = 0,
    **dims: int,
) -> tuple[Tensor, ...]:
    """Return example inputs of a stage.

    Parameters
    ----------
    config, stage
        The model and one of `STAGES`.
    device, dtype
        Of the inputs; ids are int64 and masks bool.
    seed
        For the values on a real device.
    **dims
        Sizes by name, the rest by default: `base` and `view` in pixels, H, W, G, B, S, N, T.

    Raises
    ------
    ModelInputError
        For an unknown stage or dim, a size below 1, or N above S - 1 (the first token is the begin of the
        sequence).

    Examples
    --------
    >>> from dsocr_graph.models.deepseek_ocr import DeepseekOCRConfig
    >>> [tuple(x.shape) for x in stage_inputs(DeepseekOCRConfig(), "prefill", B=3, S=913, N=903)]
    [(3, 913), (3, 903, 1280), (3, 913)]
    """
    _stage_class(stage)
    default = _default_dims(config)
    sizes = default | dims
    unknown = set(dims) - set(default)
    if unknown:
        raise ModelInputError(f"unknown dims {sorted(unknown)}; known are {', '.join(default)}")
    if any(size < 1 for size in sizes.values()):
        raise ModelInputError(f"dims must be at least 1: {dims}")
    generator = None if torch.device(device).type == "meta" else torch.Generator(device).manual_seed(seed)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    def ids(*shape: int) -> Tensor:
        return torch.randint(config.vocab_size, shape, device=device, generator=generator)

    B, S, N, T = sizes["B"], sizes["S"], sizes["N"], sizes["T"]
    if stage == "vision_global":
        return (values(1, 3, sizes["base"], sizes["base"]),)
    if stage == "vision_local":
        views = values(sizes["H"], sizes["W"], 3, sizes["view"], sizes["view"])
        return views, values(sizes["G"], config.hidden_size)
    if stage == "decode":
        shape = (B, config.num_attention_heads, T, config.head_dim)
        return ids(B, 1), *(values(*shape) for _ in range(2 * config.num_hidden_layers))
    if N >= S:
        raise ModelInputError(f"N = {N} image tokens do not fit into S = {S} tokens after the first one")
    positions = torch.arange(S, device=device)
    mask = ((positions >= 1) & (positions <= N)).expand(B, S).clone()
    return ids(B, S), values(B, N, config.hidden_size), mask


def _default_dims(config: DeepseekOCRConfig) -> dict[str, int]:
    base = config.sam.image_size
    cells = base // config.vision_cell
    # A page of 2x3 crops in Gundam mode, ten tokens of text.
    tokens = {"G": cells * (cells + 1) + 1, "B": 2, "S": 913, "N": 903, "T": 913}
    return {"base": base, "view": 640, "H": 2, "W": 3, **tokens}


def dynamic_shapes(stage: str, config: DeepseekOCRConfig | None = None) -> dict[str, Any]:
    """Return the symbolic dims of a stage's inputs, as `torch.export.export` takes them.

    Parameters
    ----------
    stage
        One of `STAGES`. Sizes in pixels are never symbolic.
    config
        The model, for its number of layers; the published one by default.

    Examples
    --------
    >>> sorted(dynamic_shapes("prefill"))
    ['image_features', 'images_mask', 'input_ids']
    """
    _stage_class(stage)

    def dim(name: str) -> Dim:
        return Dim(name, min=1, max=_LARGEST[name])

    if stage == "vision_global":
        return {"pixels": None}
    if stage == "vision_local":
        return {"views": {0: dim("H"), 1: dim("W")}, "global_features": {0: dim("G")}}
    B = dim("B")
    if stage == "prefill":
        S = dim("S")
        return {
            "input_ids": {0: B, 1: S},
            "image_features": {0: B, 1: dim("N")},
            "images_mask": {0: B, 1: S},
        }
    T = dim("T")
    layers = (config or DeepseekOCRConfig()).num_hidden_layers
    return {"input_ids": {0: B}, "cache": tuple({0: B, 2: T} for _ in range(2 * layers))}
