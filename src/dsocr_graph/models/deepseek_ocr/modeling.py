"""DeepSeek-OCR itself: vision encoders, decoder and output head under their published names.

V is views, h tokens per side of a view (pixels / 64), B documents, S new tokens, N image tokens, T cached
tokens, H the hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dsocr_graph.errors import ModelInputError
from dsocr_graph.models.deepseek_ocr.cache import KVCache
from dsocr_graph.models.deepseek_ocr.config import DeepseekOCRConfig
from dsocr_graph.models.deepseek_ocr.decoder import DeepseekV2DecoderLayer, additive_mask
from dsocr_graph.models.deepseek_ocr.normalization import DeepseekV2RMSNorm, LayerNorm, LayerNorm2d
from dsocr_graph.models.deepseek_ocr.vision_clip import MlpProjector, VitModel
from dsocr_graph.models.deepseek_ocr.vision_sam import ImageEncoderViT


class DeepseekOCRModel(nn.Module):
    """Embeddings, decoder layers, vision encoders and projector: everything but the output head.

    All entry points go through `forward`, so that hooks, profilers and graph capture see each call under
    this module.
    """

    def __init__(self, config: DeepseekOCRConfig) -> None:
        super().__init__()
        self.config = config
        self.image_newline = nn.Parameter(torch.empty(config.hidden_size))
        # Spelled as in the checkpoint.
        self.view_seperator = nn.Parameter(torch.empty(config.hidden_size))
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DeepseekV2DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = DeepseekV2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.sam_model = ImageEncoderViT(config.sam)
        self.vision_model = VitModel(config.clip)
        self.projector = MlpProjector(2 * config.clip.hidden_size, config.hidden_size)

    def forward(self, *inputs: Tensor | KVCache | None, entry: Literal["decode", "global", "local"]) -> Tensor:
        """Run `decode_tokens`, `encode_global` or `encode_local`; call those."""
        if entry == "global":
            return self._encode_global(*inputs)  # pyright: ignore[reportArgumentType, reportCallIssue]
        if entry == "local":
            return self._encode_local(*inputs)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return self._decode_tokens(*inputs)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def encode_global(self, pixels: Tensor) -> Tensor:
        """Encode the global view of a page: rows, a newline embedding after each, then the view separator.

        Shapes: [1, 3, base, base] -> [h * (h + 1) + 1, H].

        Raises
        ------
        ModelInputError
            When the view is not square or not a multiple of 64 pixels.
        """
        return self(pixels, entry="global")

    def encode_local(self, views: Tensor, global_features: Tensor) -> Tensor:
        """Encode a grid of crops as one map, a newline after each row, and put it before the global features.

        Shapes: views [rows, columns, 3, crop, crop] and global_features [G, H] ->
        [rows * h * (columns * h + 1) + G, H].

        Raises
        ------
        ModelInputError
            When a view is not square or not a multiple of 64 pixels.
        """
        return self(views, global_features, entry="local")

    def decode_tokens(
        self, input_ids: Tensor, image_features: Tensor | None, images_mask: Tensor | None, cache: KVCache
    ) -> Tensor:
        """Run the decoder over the ids, image features where the mask says: [B, S] -> [B, S, H]."""
        return self(input_ids, image_features, images_mask, cache, entry="decode")

    def _encode_global(self, pixels: Tensor) -> Tensor:
        features = self._encode_views(pixels)
        side = self._cells(pixels)
        rows = features.view(side, side, -1)
        rows = torch.cat([rows, self._newlines(side)], dim=1).view(-1, rows.shape[-1])
        return torch.cat([rows, self.view_seperator[None, :]], dim=0)

    def _encode_local(self, views: Tensor, global_features: Tensor) -> Tensor:
        grid_rows, grid_columns = views.shape[:2]
        features = self._encode_views(views.flatten(0, 1))
        side = self._cells(views)
        rows = features.view(grid_rows, grid_columns, side, side, -1).permute(0, 2, 1, 3, 4)
        rows = rows.reshape(grid_rows * side, grid_columns * side, -1)
        rows = torch.cat([rows, self._newlines(grid_rows * side)], dim=1).view(-1, features.shape[-1])
        return torch.cat([rows, global_features], dim=0)

    def _encode_views(self, pixels: Tensor) -> Tensor:
        """[V, 3, pixels, pixels] -> [V, h * h, H]."""
        self._cells(pixels)
        sam = self.sam_model(pixels)
        clip = self.vision_model(pixels, sam)
        return self.projector(torch.cat((clip[:, 1:], sam.flatten(2).permute(0, 2, 1).to(clip.dtype)), dim=-1))

    def _cells(self, pixels: Tensor) -> int:
        """Vision tokens per side of a view."""
        height, width = pixels.shape[-2:]
        if height != width or height % self.config.vision_cell:
            raise ModelInputError(
                f"a view of {height}x{width} pixels: views are square and a multiple of "
                f"{self.config.vision_cell} pixels"
            )
        return height // self.config.vision_cell

    def _newlines(self, rows: int) -> Tensor:
        return self.image_newline[None, None, :].expand(rows, 1, -1)

    def _decode_tokens(
        self, input_ids: Tensor, image_features: Tensor | None, images_mask: Tensor | None, cache: KVCache
    ) -> Tensor:
        batch, new = input_ids.shape
        first = cache.is_empty
        past = 0 if first else cache.length
        hidden_states = self.embed_tokens(input_ids)
        if image_features is not None and images_mask is not None:
            hidden_states.masked_scatter_(images_mask.unsqueeze(-1), image_features)
        position_ids = torch.arange(past, past + new, device=input_ids.device).unsqueeze(0)
        # One new token sees everything; several are causal, by the kernel's own flag where it has the right
        # one.
        several = first or new != 1
        mask: Tensor | None = None
        if self.config.attn_implementation == "eager" or (
            self.config.attn_implementation == "sdpa" and several and not first
        ):
            mask = additive_mask(batch, new, past, hidden_states.dtype, hidden_states.device)
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_ids, mask, cache, causal=several)
        return self.norm(hidden_states)


class DeepseekOCRForCausalLM(nn.Module):
    """DeepSeek-OCR with its output head.

    Parameters are made on the default device and are **not initialised**: load a checkpoint, or call
    `initialize`.

    Parameters
    ----------
    config
        The model; the default is the published one.

    Examples
    --------
    >>> import torch
    >>> from dsocr_graph.models.deepseek_ocr import DeepseekOCRConfig
    >>> model = initialize(DeepseekOCRForCausalLM(DeepseekOCRConfig.tiny()), seed=0).eval()
    >>> with torch.no_grad():
    ...     next_token, cache = model.prefill(torch.tensor([[0, 5, 7]]))
    >>> next_token.shape, cache.length
    (torch.Size([1]), 3)
    """

    def __init__(self, config: DeepseekOCRConfig | None = None) -> None:
        super().__init__()
        self.config = config or DeepseekOCRConfig()
        device = torch.get_default_device()
        # Not by torch's own initialisation: 3.3 billion random numbers that a checkpoint then overwrites.
        with torch.device("meta"):
            self.model = DeepseekOCRModel(self.config)
            self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        if device.type != "meta":
            self.to_empty(device=device)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.lm_head.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.lm_head.weight.device

    def forward(
        self,
        input_ids: Tensor,
        image_features: Tensor | None = None,
        images_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits in float32 at every position: [B, S] -> [B, S, vocabulary].

        Parameters
        ----------
        input_ids
            [B, S].
        image_features, images_mask
            [B, N, H], and [B, S] with N true values per document; both or neither.
        cache
            The tokens before, extended in place; None for a cache of its own.
        """
        hidden_states = self.model.decode_tokens(
            input_ids, image_features, images_mask, KVCache() if cache is None else cache
        )
        return self.lm_head(hidden_states).float()

    def encode_global(self, pixels: Tensor) -> Tensor:
        """As `DeepseekOCRModel.encode_global`."""
        return self.model.encode_global(pixels)

    def encode_local(self, views: Tensor, global_features: Tensor) -> Tensor:
        """As `DeepseekOCRModel.encode_local`."""
        return self.model.encode_local(views, global_features)

    def prefill(
        self,
        input_ids: Tensor,
        image_features: Tensor | None = None,
        images_mask: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        banned: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Tensor, KVCache]:
        """Read the prompt: the first new token [B] and the cache of S tokens.

        Parameters
        ----------
        input_ids, image_features, images_mask
            As in `forward`.
        cache
            An empty cache to fill; None for a new one that grows by concatenation.
        banned
            For each document the tokens that must not come next.

        Raises
        ------
        ModelInputError
            When only one of features and mask is given, or the sizes differ.
        """
        _check_prompt(input_ids, image_features, images_mask, self.config.hidden_size)
        cache = KVCache() if cache is None else cache
        return select_next_token(self(input_ids, image_features, images_mask, cache), banned), cache

    def decode_step(
        self, input_ids: Tensor, cache: KVCache, *, banned: Sequence[Sequence[int]] | None = None
    ) -> tuple[Tensor, KVCache]:
        """Read one token per document [B, 1]: the next token [B] and the cache, one token longer."""
        return select_next_token(self(input_ids, cache=cache), banned), cache


def select_next_token(logits: Tensor, banned: Sequence[Sequence[int]] | None = None) -> Tensor:
    """Pick the likeliest token at the last position, except banned ones: [B, S, vocabulary] -> [B].

    All logits are cloned before the last position is taken, as transformers 4.46 does in `generate`.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[[0.0, 9.0, 5.0]]])
    >>> select_next_token(logits), select_next_token(logits, [[1]])
    (tensor([1]), tensor([2]))
    """
    scores = logits.clone()[:, -1, :].float()
    for row, tokens in enumerate(banned or ()):
        if tokens:
            scores[row, list(tokens)] = -torch.inf
    return torch.argmax(scores, dim=-1)


def initialize(model: DeepseekOCRForCausalLM, seed: int = 0) -> DeepseekOCRForCausalLM:
    """Fill a model with random weights, in place, and return it.

    Normal with the config's `initializer_range`; biases 0, weights of norms 1. The values depend on the
    seed, the device and the dtype.

    Examples
    --------
    >>> from dsocr_graph.models.deepseek_ocr import DeepseekOCRConfig
    >>> model = initialize(DeepseekOCRForCausalLM(DeepseekOCRConfig.tiny()), seed=1)
    >>> model.model.norm.weight.unique().tolist()
    [1.0]
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    norms = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, LayerNorm | LayerNorm2d | DeepseekV2RMSNorm)
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) in norms:
                parameter.fill_(1.0)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, model.config.initializer_range, generator=generator)
    return model


def _check_prompt(
    input_ids: Tensor, image_features: Tensor | None, images_mask: Tensor | None, hidden_size: int
) -> None:
    if input_ids.dim() != 2:
        raise ModelInputError(f"input_ids must be [documents, tokens]; got {list(input_ids.shape)}")
    if (image_features is None) != (images_mask is None):
        raise ModelInputError("give both image_features and images_mask, or neither")
    if image_features is None or images_mask is None:
        return
    if images_mask.shape != input_ids.shape:
        raise ModelInputError(
            f"images_mask {list(images_mask.shape)} must have the shape of input_ids {list(input_ids.shape)}"
        )
    if image_features.dim() != 3 or image_features.shape[-1] != hidden_size:
        raise ModelInputError(
            f"image_features must be [documents, image tokens, {hidden_size}]; got {list(image_features.shape)}"
        )
