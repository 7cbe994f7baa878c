"""What DeepSeek-OCR is made of: sizes, counts and the choice between equal implementations. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

from attrs import asdict, evolve, field, fields, frozen

from dsocr_graph.errors import ModelConfigError

AttentionImplementation = Literal["sdpa", "eager", "flash_attention_2"]
MoEImplementation = Literal["grouped", "loop"]

# What the published code does and this implementation takes for granted. Any other value is another model.
_FIXED: Mapping[str, tuple[object, ...]] = {
    "attention_bias": (False,),
    "hidden_act": ("silu",),
    "moe_layer_freq": (1,),
    "n_group": (1, None),
    "norm_topk_prob": (False,),
    "q_lora_rank": (None,),
    "kv_lora_rank": (None,),
    "rope_scaling": (None,),
    "scoring_func": ("softmax",),
    "tie_word_embeddings": (False,),
    "topk_group": (1, None),
    "topk_method": ("greedy",),
    "use_mla": (False,),
}


@frozen(kw_only=True)
class SamConfig:
    """The SAM image encoder: a windowed ViT, a neck and two convolutions that downsample.

    Examples
    --------
    >>> SamConfig().grid
    64
    """

    image_size: int = 1024  # pixels per side the position tables are made for
    patch_size: int = 16  # pixels
    embed_dim: int = 768
    depth: int = 12  # blocks
    num_heads: int = 12
    mlp_dim: int = 3072
    neck_channels: int = 256
    window_size: int = 14  # patches per side; blocks outside global_attn_indexes
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    downsample_channels: tuple[int, int] = (512, 1024)

    @property
    def grid(self) -> int:
        """Patches per side of a picture of `image_size`."""
        return self.image_size // self.patch_size


@frozen(kw_only=True)
class ClipConfig:
    """The CLIP ViT whose patch embeddings are SAM's features.

    Examples
    --------
    >>> ClipConfig().num_positions
    257
    """

    image_size: int = 224  # pixels per side the position table is made for
    patch_size: int = 14  # pixels
    hidden_size: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    ffn_hidden_size: int = 4096

    @property
    def num_positions(self) -> int:
        """Rows of the position table: the patches of `image_size` and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@frozen(kw_only=True)
class DeepseekOCRConfig:
    """DeepSeek-OCR; the defaults are the published model.

    Raises
    ------
    ModelConfigError
        When the parts do not fit together, with every reason.

    Examples
    --------
    >>> config = DeepseekOCRConfig()
    >>> config.head_dim, config.kv_cache_elements_per_token
    (128, 30720)
    >>> DeepseekOCRConfig.tiny().num_hidden_layers
    3
    """

    hidden_size: int = 1280
    vocab_size: int = 129280
    num_hidden_layers: int = 12
    num_attention_heads: int = 10
    intermediate_size: int = 6848  # of the dense layers
    moe_intermediate_size: int = 896  # of one expert
    first_k_dense_replace: int = 1  # layers before the first MoE layer
    n_routed_experts: int = 64
    n_shared_experts: int = 2  # fused into one MLP of n_shared_experts * moe_intermediate_size
    num_experts_per_tok: int = 6
    routed_scaling_factor: float = 1.0
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 8192  # tokens
    initializer_range: float = 0.02
    bos_token_id: int = 0
    eos_token_id: int = 1
    image_token_id: int = 128815
    sam: SamConfig = field(factory=SamConfig)
    clip: ClipConfig = field(factory=ClipConfig)
    attn_implementation: AttentionImplementation = "sdpa"
    moe_implementation: MoEImplementation = "grouped"

    def __attrs_post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            message = "DeepseekOCRConfig does not fit together:\n" + "\n".join(f"  {line}" for line in problems)
            raise ModelConfigError(message)

    @property
    def head_dim(self) -> int:
        """Channels per attention head of the decoder."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_cache_elements_per_token(self) -> int:
        """Elements one token adds to the KV cache, over all layers."""
        return 2 * self.num_hidden_layers * self.num_attention_heads * self.head_dim

    @property
    def vision_cell(self) -> int:
        """Pixels per side of one vision token: the patch, then two convolutions of stride 2."""
        return self.sam.patch_size * 4

    def with_implementations(
        self,
        *,
        attn_implementation: AttentionImplementation | None = None,
        moe_implementation: MoEImplementation | None = None,
    ) -> Self:
        """Return the same model computed by other kernels.

        Examples
        --------
        >>> DeepseekOCRConfig().with_implementations(attn_implementation="eager").attn_implementation
        'eager'
        """
        return evolve(
            self,
            attn_implementation=attn_implementation or self.attn_implementation,
            moe_implementation=moe_implementation or self.moe_implementation,
        )

    @classmethod
    def tiny(cls, **changes: Any) -> Self:  # noqa: ANN401 - any field of the record
        """Return a model of the same structure, small enough for tests (about 0.3 M parameters).

        Its position tables are made for pictures of 256 pixels; every multiple of 64 works.

        Parameters
        ----------
        **changes
            Fields to set otherwise.
        """
        fields: dict[str, Any] = {
            "hidden_size": 64,
            "vocab_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 1024,
            "image_token_id": 255,
            "sam": SamConfig(
                image_size=256,
                embed_dim=32,
                depth=4,
                num_heads=2,
                mlp_dim=128,
                neck_channels=16,
                global_attn_indexes=(1, 3),
                downsample_channels=(32, 64),
            ),
            "clip": ClipConfig(image_size=56, hidden_size=64, num_layers=2, num_heads=4, ffn_hidden_size=128),
        }
        return cls(**(fields | changes))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a published `config.json`, or one written by `to_dict`.

        Parameters
        ----------
        data
            The parsed file. Decoder fields stand at the top level or under `language_config`; what the
            published file leaves out has the published code's default.

        Raises
        ------
        ModelConfigError
            For another model type, a value this implementation does not compute, or a wrong type.
        """
        model_type = data.get("model_type", "deepseek_vl_v2")
        if model_type != "deepseek_vl_v2":
            raise ModelConfigError(
                f"config has model_type {model_type!r}; this model reads 'deepseek_vl_v2' (DeepSeek-OCR)"
            )
        decoder = dict(data.get("language_config") or {}) | dict(data)
        unsupported = [
            f"{key} = {decoder[key]!r} (computed: {' or '.join(map(repr, allowed))})"
            for key, allowed in _FIXED.items()
            if key in decoder and decoder[key] not in allowed
        ]
        if decoder.get("num_key_value_heads", decoder.get("num_attention_heads")) != decoder.get("num_attention_heads"):
            unsupported.append("num_key_value_heads differs from num_attention_heads (computed: equal)")
        projector = data.get("projector_config") or {}
        if projector.get("projector_type", "linear") != "linear":
            unsupported.append(f"projector_type = {projector['projector_type']!r} (computed: 'linear')")
        if unsupported:
            raise ModelConfigError(
                "config asks for what DeepSeek-OCR does not do:\n" + "\n".join(f"  {line}" for line in unsupported)
            )
        given: dict[str, Any] = {name: decoder[name] for name in _DECODER_FIELDS if name in decoder}
        return cls(**given, **_vision_from_dict(data.get("vision_config") or {}))

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read a `config.json` file; errors as in `from_dict`, and FileNotFoundError."""
        text = Path(path).read_text(encoding="utf-8")
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ModelConfigError(f"{path} is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ModelConfigError(f"{path} holds a {type(data).__name__}, not an object")
        return cls.from_dict(cast("dict[str, Any]", data))

    def to_dict(self) -> dict[str, Any]:
        """Return a `config.json` from which `from_dict` makes an equal record.

        Examples
        --------
        >>> DeepseekOCRConfig.from_dict(DeepseekOCRConfig.tiny().to_dict()) == DeepseekOCRConfig.tiny()
        True
        """
        record = asdict(self)
        sam, clip = record.pop("sam"), record.pop("clip")
        return {
            "architectures": ["DeepseekOCRForCausalLM"],
            "model_type": "deepseek_vl_v2",
            **record,
            "num_key_value_heads": self.num_attention_heads,
            "projector_config": {
                "input_dim": 2 * self.clip.hidden_size,
                "model_type": "mlp_projector",
                "n_embed": self.hidden_size,
                "projector_type": "linear",
            },
            "vision_config": {
                "image_size": sam.pop("image_size"),
                "model_type": "vision",
                "width": {
                    "clip-l-14-224": {key: clip[name] for key, name in _CLIP_KEYS.items()},
                    "sam_vit_b": {key: sam[name] for key, name in _SAM_KEYS.items()},
                },
            },
        }


_NOT_DECODER = ("sam", "clip")
_DECODER_FIELDS = tuple(attribute.name for attribute in fields(DeepseekOCRConfig) if attribute.name not in _NOT_DECODER)
# Key in vision_config.width -> field. The published file has the first few; its code holds the rest.
_SAM_KEYS = {
    "downsample_channels": "downsample_channels",
    "global_attn_indexes": "global_attn_indexes",
    "heads": "num_heads",
    "layers": "depth",
    "width": "embed_dim",
    "mlp_dim": "mlp_dim",
    "neck_channels": "neck_channels",
    "patch_size": "patch_size",
    "window_size": "window_size",
}
_CLIP_KEYS = {
    "heads": "num_heads",
    "image_size": "image_size",
    "layers": "num_layers",
    "patch_size": "patch_size",
    "width": "hidden_size",
    "ffn_hidden_size": "ffn_hidden_size",
}


def _vision_from_dict(vision: Mapping[str, Any]) -> dict[str, Any]:
    width = vision.get("width") or {}
    sam = width.get("sam_vit_b") or {}
    clip = width.get("clip-l-14-224") or {}
    sam_fields = {name: sam[key] for key, name in _SAM_KEYS.items() if key in sam}
    for name in ("downsample_channels", "global_attn_indexes"):
        if name in sam_fields:
            sam_fields[name] = tuple(sam_fields[name])
    if "image_size" in vision:
        sam_fields["image_size"] = vision["image_size"]
    return {
        "sam": SamConfig(**sam_fields),
        "clip": ClipConfig(**{name: clip[key] for key, name in _CLIP_KEYS.items() if key in clip}),
    }


def _problems(config: DeepseekOCRConfig) -> list[str]:
    """Say in one line each what is wrong with `config`; an empty list when nothing is."""
    wrong: list[str] = []
    for owner, record in (("", config), ("sam.", config.sam), ("clip.", config.clip)):
        for attribute in fields(type(record)):
            value = getattr(record, attribute.name)
            may_be_zero = attribute.name == "first_k_dense_replace" or attribute.name.endswith("_id")
            if attribute.type in ("int", int) and (type(value) is not int or value < (not may_be_zero)):
                wrong.append(f"{owner}{attribute.name} = {value!r}: give an integer of at least {int(not may_be_zero)}")
            if attribute.type in ("float", float) and not (isinstance(value, float | int) and value > 0):
                wrong.append(f"{owner}{attribute.name} = {value!r}: give a positive number")
    for name, allowed in (
        ("attn_implementation", get_args(AttentionImplementation)),
        ("moe_implementation", get_args(MoEImplementation)),
    ):
        if getattr(config, name) not in allowed:
            wrong.append(f"{name} = {getattr(config, name)!r}: known are {', '.join(allowed)}")
    if wrong:
        return wrong
    sam, clip = config.sam, config.clip
    if config.hidden_size % config.num_attention_heads or config.head_dim % 2:
        wrong.append(
            f"hidden_size {config.hidden_size} over num_attention_heads {config.num_attention_heads} "
            "must give an even head size"
        )
    if config.num_experts_per_tok > config.n_routed_experts:
        wrong.append(
            f"num_experts_per_tok {config.num_experts_per_tok} exceeds n_routed_experts {config.n_routed_experts}"
        )
    if sam.embed_dim % sam.num_heads or clip.hidden_size % clip.num_heads:
        wrong.append("sam.embed_dim and clip.hidden_size must be multiples of their num_heads")
    if len(sam.downsample_channels) != 2 or sam.downsample_channels[-1] != clip.hidden_size:
        wrong.append(
            f"sam.downsample_channels {sam.downsample_channels} must be two numbers and end in "
            f"clip.hidden_size {clip.hidden_size}: CLIP takes SAM's features as patch embeddings"
        )
    if any(not 0 <= index < sam.depth for index in sam.global_attn_indexes):
        wrong.append(f"sam.global_attn_indexes {sam.global_attn_indexes} must lie below sam.depth {sam.depth}")
    return wrong
