"""DeepSeek-OCR with weights, stage by stage at given dims: what a measurement runs."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from attrs import frozen
from torch import Tensor, nn

from dsocr_graph.errors import ModelConfigError, ModelInputError
from dsocr_graph.models.deepseek_ocr.cache import KVCache
from dsocr_graph.models.deepseek_ocr.checkpoint import load_model
from dsocr_graph.models.deepseek_ocr.config import DeepseekOCRConfig
from dsocr_graph.models.deepseek_ocr.experts import DeepseekV2Experts
from dsocr_graph.models.deepseek_ocr.modeling import DeepseekOCRForCausalLM, initialize
from dsocr_graph.models.deepseek_ocr.stages import STAGES, StageModule, stage_inputs

# Dims of each stage in the compiled model; a grid may name its columns W as well, as workloads do.
_DIMS: Mapping[str, tuple[str, ...]] = {
    "vision_global": (),
    "vision_local": ("V", "H"),
    "prefill": ("B", "S", "N"),
    "decode": ("B", "T"),
}


@frozen(kw_only=True)
class RunnableModel:
    """How a variant of the model is made with weights and run at the dims of its compiled form.

    Examples
    --------
    >>> runnable = RunnableModel(config=DeepseekOCRConfig.tiny(), base_size=512, view_size=640, dtype=torch.float32)
    >>> model = runnable.load(device="cpu", seed=0)
    >>> inputs = runnable.inputs("decode", {"B": 2, "T": 5}, device="cpu", seed=0)
    >>> with torch.no_grad():
    ...     tokens, *cache = runnable.run(model, "decode", inputs)
    >>> tuple(tokens.shape), tuple(cache[0].shape), inputs
    ((2,), (2, 4, 6, 16), [])
    """

    config: DeepseekOCRConfig
    base_size: int  # pixels per side of the global view
    view_size: int  # pixels per side of a crop
    dtype: torch.dtype

    def weight_bytes(self) -> int:
        """Bytes of the parameters."""
        return sum(parameter.nbytes for parameter in self._on_meta().parameters())

    def load(
        self, *, device: torch.device | str, seed: int, checkpoint: str | Path | None = None
    ) -> DeepseekOCRForCausalLM:
        """Return the model with a checkpoint's weights, or with random ones; nothing exists twice meanwhile.

        Raises
        ------
        CheckpointNotFoundError, CheckpointError
            When the checkpoint is not there or does not fit.
        ModelConfigError
            When the checkpoint is of another model.
        """
        if checkpoint is None:
            return initialize(self._on_meta().to_empty(device=device), seed=seed)
        model = load_model(
            checkpoint,
            dtype=self.dtype,
            device=device,
            attn_implementation=self.config.attn_implementation,
            moe_implementation=self.config.moe_implementation,
        )
        if model.config != self.config:
            raise ModelConfigError(
                f"the checkpoint {checkpoint} is of another model: its config.json differs from the sizes that were "
                "asked for; name the model that it belongs to, or give that model's checkpoint"
            )
        return model

    def inputs(self, stage: str, bindings: Mapping[str, int], *, device: torch.device | str, seed: int) -> list[Tensor]:
        """Return random inputs of a stage, in the order in which its graph takes them.

        Raises
        ------
        ModelInputError
            For an unknown stage, a missing or unknown dim, or sizes that do not fit together.
        """
        return list(
            stage_inputs(self.config, stage, device, self.dtype, seed=seed, **self._sizes(stage, dict(bindings)))
        )

    def run(self, model: DeepseekOCRForCausalLM, stage: str, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """Run a stage as `generate` does and return its results, flat; `inputs` is left empty.

        The caller keeps no input: the KV cache of a decode step belongs to the cache alone, which frees what it
        replaces.
        """
        if stage == "decode":
            ids = inputs.pop(0)
            cache = KVCache.from_tensors(inputs)
            inputs.clear()
            token, grown = model.decode_step(ids, cache)
            return token, *grown.tensors()
        if stage == "prefill":
            input_ids, features, mask = inputs
            inputs.clear()
            token, cache = model.prefill(input_ids, features, mask)
            return token, *cache.tensors()
        given = tuple(inputs)
        inputs.clear()
        return (model.encode_global(*given) if stage == "vision_global" else model.encode_local(*given),)

    def stage_module(self, model: DeepseekOCRForCausalLM, stage: str) -> nn.Module:
        """Return the module whose graph is captured for a stage, with this model's weights in it."""
        return StageModule(model, stage)

    def _on_meta(self) -> DeepseekOCRForCausalLM:
        with torch.device("meta"):
            return DeepseekOCRForCausalLM(self.config).to(self.dtype).eval()

    def _sizes(self, stage: str, bindings: dict[str, int]) -> dict[str, int]:
        """Return the sizes that `stage_inputs` takes."""
        if stage not in _DIMS:
            raise ModelInputError(f"unknown stage {stage!r}; the stages are {', '.join(STAGES)}")
        columns = bindings.pop("W", None) if stage == "vision_local" else None
        if bindings.keys() != set(_DIMS[stage]):
            given = ", ".join(sorted(bindings)) or "none"
            raise ModelInputError(
                f"stage {stage} takes the dims {', '.join(_DIMS[stage]) or 'none'}; given are {given}"
            )
        wrong = {name: size for name, size in bindings.items() if size < 1}
        if wrong:
            raise ModelInputError(
                f"stage {stage} cannot run at {', '.join(f'{name}={size}' for name, size in wrong.items())}: every dim "
                "is at least 1"
            )
        sizes = {"base": self.base_size, "view": self.view_size}
        if stage != "vision_local":
            return sizes | bindings
        views, rows = bindings["V"], bindings["H"]
        if views % rows or columns not in (None, views // rows):
            raise ModelInputError(
                f"stage vision_local cannot run at V={views}, H={rows}"
                + (f", W={columns}" if columns else "")
                + ": the views fill a grid of H rows and W = V / H columns"
            )
        cells = self.base_size // self.config.vision_cell
        return sizes | {"H": rows, "W": views // rows, "G": cells * (cells + 1) + 1}


@contextmanager
def active_experts(model: nn.Module) -> Generator[dict[str, float]]:
    """Record how many distinct experts each layer's tokens choose, by the path of the module with the experts.

    On a GPU it makes the host wait once per layer: not for runs that are timed.

    Examples
    --------
    >>> config = DeepseekOCRConfig.tiny()
    >>> runnable = RunnableModel(config=config, base_size=512, view_size=640, dtype=torch.float32)
    >>> model = runnable.load(device="cpu", seed=0)
    >>> with torch.no_grad(), active_experts(model) as chosen:
    ...     _ = model(torch.tensor([[7]]))
    >>> chosen  # one token chooses two of eight
    {'model.layers.1.mlp.experts': 2.0, 'model.layers.2.mlp.experts': 2.0}
    """
    chosen: dict[str, float] = {}

    def record(path: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        topk_idx = inputs[1]
        chosen[path] = float(topk_idx.unique().numel())

    hooks = [
        module.register_forward_pre_hook(partial(record, path))
        for path, module in model.named_modules()
        if isinstance(module, DeepseekV2Experts)
    ]
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()
