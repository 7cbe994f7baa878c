"""The stages of a decoder-only language model as modules for `torch.export`, with example inputs and symbolic dims.

Dims: B documents, S prompt tokens, T cached tokens.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from dsocr_graph.errors import ModelConfigError
from dsocr_graph.models.from_transformers.cache import (
    CacheLayout,
    cache_tensors,
    empty_cache,
    filled_cache,
    fresh_cache,
)
from dsocr_graph.models.from_transformers.masks import masks_as_run
from dsocr_graph.models.stage_spec import StageSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The largest value each symbolic dim is captured for; bounds keep the exporter's arithmetic in 64 bits.
LARGEST = {"B": 4096, "S": 1 << 20, "T": 1 << 20}
# Sizes of the example inputs. The exporter treats 0 and 1 by themselves, and takes equal sizes for one dim.
EXAMPLE = {"B": 3, "S": 39, "T": 41}


class LanguageStage(nn.Module):
    """One stage of a language model, with tensors for inputs and outputs; the model is the attribute `root`.

    The model's own forward runs as `generate` calls it: with a cache, for the logits of the last position only, and
    without a padding mask, as for prompts of equal length.
    """

    def __init__(self, root: PreTrainedModel) -> None:
        super().__init__()
        self.root = root
        self.empty = empty_cache(root.config)
        self.options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in inspect.signature(root.forward).parameters:
            self.options["logits_to_keep"] = 1


class PrefillStage(LanguageStage):
    """The prompt of B documents of equal length."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B, S] -> logits of the last position [B, 1, vocabulary] and the cache k0, v0, k1, ..."""
        with masks_as_run():
            output = self.root(input_ids=input_ids, past_key_values=fresh_cache(self.empty), **self.options)
        return output.logits, cache_tensors(output.past_key_values)


class DecodeStage(LanguageStage):
    """One decode step of B documents with T cached tokens."""

    def forward(self, input_ids: Tensor, *cache: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B, 1] and k0, v0, ... -> logits [B, 1, vocabulary] and the cache of T + 1 tokens."""
        with masks_as_run():
            output = self.root(input_ids=input_ids, past_key_values=filled_cache(self.empty, cache), **self.options)
        return output.logits, cache_tensors(output.past_key_values)


def language_stages(model: PreTrainedModel) -> tuple[StageSpec, ...]:
    """Return the prefill and the decode stage of a model on `meta`.

    Raises
    ------
    ModelConfigError
        When a layer caches something else than keys and values.

    Examples
    --------
    >>> from dsocr_graph.models.from_transformers.configuration import transformers_config
    >>> from dsocr_graph.models.from_transformers.load import meta_model
    >>> from dsocr_graph.models.from_transformers.variant import TransformersVariant
    >>> config = transformers_config({"model_type": "qwen3", "num_hidden_layers": 2})
    >>> prefill, decode = language_stages(meta_model(config, "Qwen3ForCausalLM", TransformersVariant()))
    >>> prefill.dynamic_shapes, decode.kv_inputs
    ({'input_ids': {0: Dim('B', min=1, max=4096), 1: Dim('S', min=1, max=1048576)}}, (1, 2, 3, 4))
    """
    scaled = fixed_frequencies(model)
    prefill, decode = PrefillStage(model), DecodeStage(model)
    layout = cache_layout(model)
    longest = numbered_positions(model)
    B = Dim("B", min=1, max=LARGEST["B"])
    S, T = Dim("S", min=1, max=longest or LARGEST["S"]), Dim("T", min=1, max=longest - 1 if longest else LARGEST["T"])
    cached = tuple(range(1, 1 + len(layout.tensors)))
    example = example_sizes(layout)
    if longest:
        example |= {"S": min(example["S"], longest), "T": min(example["T"], longest - 1)}
    return (
        StageSpec(
            name="prefill",
            description=f"B documents of S tokens: logits of the last position and the cache{scaled}",
            module=prefill,
            inputs=language_inputs(model, layout, "prefill", **example),
            dynamic_shapes={"input_ids": {0: B, 1: S}},
            root="root",
            kv_outputs=cached,
        ),
        StageSpec(
            name="decode",
            description=f"one step of B documents with T cached tokens each{scaled}",
            module=decode,
            inputs=language_inputs(model, layout, "decode", **example),
            dynamic_shapes={"input_ids": {0: B}, "cache": layout.dynamic_shapes(B, T)},
            root="root",
            aliases=layout.aliases(),
            kv_inputs=cached,
            kv_outputs=cached,
        ),
    )


def fixed_frequencies(model: nn.Module) -> str:
    """Let rotary embeddings whose frequencies grow with the text keep those that they start with.

    transformers computes "dynamic" ones anew, a vector for all layers, when a text outgrows the length that the model
    was made for; it asks for the values of positions to find out. Returns what to say of that, "" where nothing grows.
    """
    found = ""
    module: Any  # whose rope_type is no tensor
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, str) and "dynamic" in kind:
            module.rope_type = "default"
            found = "; the frequencies of dynamic RoPE as within the length that the model was made for"
    return found


def numbered_positions(model: nn.Module) -> int | None:
    """Return how many positions a model numbers in a buffer, from which it cuts those of a text; None without one.

    Examples
    --------
    >>> module = nn.Module()
    >>> module.register_buffer("position_ids", torch.arange(512)[None])
    >>> numbered_positions(module), numbered_positions(nn.Linear(4, 2))
    (512, None)
    """
    sizes = [buffer.shape[-1] for name, buffer in model.named_buffers() if name.rpartition(".")[2] == "position_ids"]
    return min(sizes, default=None)


def example_sizes(layout: CacheLayout) -> dict[str, int]:
    """Return the sizes of the example inputs, in which every window of a model is full.

    From an example in which one is not, the exporter concludes that it never is: a step's tokens are then bounded by
    the window.

    Examples
    --------
    >>> from dsocr_graph.models.from_transformers.cache import CachedTensor
    >>> example_sizes(CacheLayout(tensors=(CachedTensor(layer=0, heads=2, width=8, window=4096),)))
    {'B': 3, 'S': 39, 'T': 4097}
    """
    return {**EXAMPLE, "T": max(EXAMPLE["T"], layout.longest_window + 1)}


def language_inputs(
    model: PreTrainedModel,
    layout: CacheLayout,
    stage: str,
    *,
    B: int,
    S: int = 1,
    T: int = 0,
) -> tuple[Tensor, ...]:
    """Return inputs of a stage at some sizes, zeros on the model's device; `stage` is "prefill" or "decode"."""
    ids = torch.zeros(B, S if stage == "prefill" else 1, dtype=torch.int64, device=model.device)
    if stage == "prefill":
        return (ids,)
    return ids, *layout.example(batch=B, seen=T, dtype=model.dtype, device=model.device)


def cache_layout(model: PreTrainedModel) -> CacheLayout:
    """Return what a model caches, found by running it on two tokens; on `meta` that computes nothing.

    Raises
    ------
    ModelConfigError
        When it caches nothing, or something else than keys and values.
    """
    cache = empty_cache(model.config)
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    with torch.no_grad(), masks_as_run():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    layout = CacheLayout.of(cache)
    if not layout.tensors:
        raise ModelConfigError(
            f"{type(model).__name__} caches no keys and values, so that it has no decode step; give the configuration "
            "of a model that does, such as one with is_decoder, or a factory of your own"
        )
    return layout
