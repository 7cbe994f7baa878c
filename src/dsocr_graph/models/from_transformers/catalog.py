"""Models of transformers by name and by configuration file; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from dsocr_graph.models.from_transformers import causal_lm, image_encoder, image_text, speech
from dsocr_graph.models.from_transformers.configuration import (
    positions_of,
    quantization_of,
    read_settings,
    stated_dtype,
    transformers_config,
    with_positions,
)
from dsocr_graph.models.from_transformers.family import Family
from dsocr_graph.models.from_transformers.shorten import shortened
from dsocr_graph.models.from_transformers.trusted_code import TrustedCode
from dsocr_graph.models.from_transformers.variant import FP8, TransformersVariant
from dsocr_graph.workloads.request import Request
from modelmeter.workload import WorkloadItem

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dsocr_graph.models.stage_spec import StageSpec


@frozen(kw_only=True)
class TransformersModel:
    """A model built from a transformers configuration.

    Examples
    --------
    >>> model = CATALOG["qwen3-8b"]
    >>> item = model.runs(Request(name="chat", prompt_tokens=512, new_tokens=1))
    >>> item.runs[0].bindings
    {'B': 1, 'S': 512}
    """

    name: str
    description: str
    source: str  # of the configuration
    settings: Mapping[str, Any] = field(repr=False)  # the configuration file as it stands
    family: Family
    attention: str = "sdpa"  # what is captured unless told otherwise: the best implementation that its classes have
    positions: Mapping[str, Any] = field(factory=dict)  # by the configuration class; none: as the settings state them
    quantization: str = ""  # of the published weights, for reports that leave it out; none where the source says it
    stated_dtype: str = ""  # by the configuration; none: as for quantization
    code: TrustedCode | None = None  # beside the configuration; None: transformers' own

    @property
    def bounds(self) -> Mapping[str, Any]:
        """The settings, with the positions that bound a run also where the file leaves them to the class."""
        return with_positions(self.settings, self.positions)

    def config(self, variant: TransformersVariant) -> Mapping[str, object]:
        """Return what decides the cost beside the variant; part of the cache key."""
        decisive = {"settings": dict(self.settings), "transformers": metadata.version("transformers")}
        return decisive if self.code is None else {**decisive, "code": self.code.digest}

    def variant(self, dtype: str, attention: str) -> TransformersVariant:
        """Return the variant to capture, with what the configuration says otherwise: its quantisation, its type."""
        left_out = "" if dtype == FP8 else self.quantization
        return TransformersVariant(
            dtype=dtype,
            attention=attention,
            quantization=left_out and f"{left_out} (left out)",
            stated_dtype="" if dtype in {FP8, self.stated_dtype} else self.stated_dtype,
        )

    def build(self, variant: TransformersVariant) -> tuple[nn.Module, tuple[StageSpec, ...]]:
        """Return the model on `meta` and its stages; needs torch and transformers.

        Raises
        ------
        ModelConfigError
            When the installed transformers cannot build it, or sees another family in the configuration.
        TrustedCodeError
            When code beside the configuration cannot be imported.
        CaptureError
            When its code does not run as its family does.
        """
        from dsocr_graph.models.from_transformers.families import class_of, trusted_family_of
        from dsocr_graph.models.from_transformers.load import meta_model
        from dsocr_graph.models.from_transformers.misfits import misfits_explained

        config = transformers_config(self.settings, source=self.source, code=self.code)
        built = class_of(self.family, config) if self.code is None else trusted_family_of(self.code)[1]
        model = meta_model(config, built, variant)
        with misfits_explained(model, self.family.description):
            stages = self.family.stages(model, config, variant)
        return model, tuple(evolve(stage, configured=True) for stage in stages)

    def shortened(self, layers: int) -> TransformersModel:
        """Return the model with at most so many layers in each stack, under a name of its own.

        Raises
        ------
        ModelConfigError
            When it cannot be shortened.
        """
        return evolve(self, name=f"{self.name}-{layers}-layers", settings=shortened(self.settings, layers))

    def fit(self, stage: str, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return random inputs of a stage as a real run takes them; needs torch and transformers."""
        return self.family.fit(self.settings, stage, inputs)

    def runs(self, request: Request) -> WorkloadItem:
        """Return what the model runs for a request; needs neither torch nor transformers.

        Raises
        ------
        WorkloadError
            When the model cannot do what is asked.
        """
        return self.family.runs(self.bounds, request)


def model_from_config(
    path: str | Path,
    *,
    name: str | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> TransformersModel:
    """Return the model of any transformers configuration; its family is found by transformers' mappings.

    Parameters
    ----------
    path
        A config.json, or a directory that holds one.
    name
        Its name in reports; by default that of the directory, or of a file that is not called config.json.
    trust_remote_code
        Import the code that its auto_map names, from files beside it; transformers' own is then not used. Without an
        auto_map there is nothing to trust, which is said and changes nothing.
    progress
        Told which files and classes will be imported, before they are.

    Raises
    ------
    ConfigNotFoundError
        When there is no such file.
    TrustedCodeError
        When code that is trusted is not there, or cannot be imported.
    ModelConfigError
        When it is no configuration of a model that can be captured.
    """
    from dsocr_graph.models.from_transformers.families import family_of, trusted_family_of
    from dsocr_graph.models.from_transformers.load import best_attention, model_class

    settings = read_settings(path)
    code = _trusted(settings, Path(path), progress) if trust_remote_code else None
    if code is None:
        config = transformers_config(settings, source=str(path))
        family, class_name = family_of(config)
        built, positions = model_class(class_name), positions_of(config)
        attention = best_attention(built, config)
    else:
        family, built = trusted_family_of(code)
        positions, attention = {}, best_attention(built)
    return TransformersModel(
        name=name or _default_name(Path(path)),
        description=f"{built.__name__} of a configuration file{' and the code beside it' if code else ''}",
        source=str(path),
        settings=settings,
        family=family,
        positions=positions,
        quantization=quantization_of(settings),
        stated_dtype=stated_dtype(settings),
        attention=attention,
        code=code,
    )


def _trusted(settings: Mapping[str, Any], path: Path, progress: Callable[[str], None]) -> TrustedCode | None:
    directory = (path if path.is_dir() else path.parent).resolve()
    code = TrustedCode.of(settings, directory)
    progress(f"{path} has no auto_map: there is no code to trust" if code is None else code.announcement())
    return code


def _default_name(path: Path) -> str:
    stem = path.resolve().name if path.is_dir() else path.stem
    return path.resolve().parent.name if stem == "config" else stem


def _shipped(name: str, family: Family, *, description: str, source: str, attention: str = "sdpa") -> TransformersModel:
    with as_file(files("dsocr_graph.models.from_transformers") / "configs" / f"{name}.json") as file:
        settings = read_settings(file)
    return TransformersModel(
        name=name, description=description, source=source, settings=settings, family=family, attention=attention
    )


CATALOG: Mapping[str, TransformersModel] = {
    model.name: model
    for model in (
        _shipped(
            "qwen3-8b",
            causal_lm.FAMILY,
            description="Qwen3-8B: dense decoder, 36 layers, 32 query heads on 8 of keys and values",
            source="Qwen/Qwen3-8B: config.json",
        ),
        _shipped(
            "qwen3-30b-a3b",
            causal_lm.FAMILY,
            description="Qwen3-30B-A3B: 48 layers of 128 experts, 8 for each token, 32 query heads on 4",
            source="Qwen/Qwen3-30B-A3B: config.json",
        ),
        _shipped(
            "deepseek-v3",
            causal_lm.FAMILY,
            description="DeepSeek-V3, 671B: 61 layers, 58 with 256 experts, 8 for each token; latent attention as "
            "transformers runs it: a step expands the latents of all cached tokens",
            source="deepseek-ai/DeepSeek-V3: config.json, in blocks of fp8 as published with dtype fp8 alone; without "
            "the module that predicts a second token",
        ),
        _shipped(
            "deepseek-ocr-2",
            image_text.FAMILY,
            description="DeepSeek-OCR-2: SAM and query encoders, DeepSeek-V2 decoder with 64 experts; tiles of 768",
            source="deepseek-ai/DeepSeek-OCR-2: config.json as transformers' conversion script "
            "(convert_deepseek_ocr2_weights_to_hf.py) writes it",
        ),
        _shipped(
            "qwen3-vl-8b",
            image_text.FAMILY,
            description="Qwen3-VL-8B: ViT of 27 layers at any page size, features of four depths, 36 decoder layers",
            source="Qwen/Qwen3-VL-8B-Instruct: config.json",
        ),
        _shipped(
            "got-ocr2",
            image_text.FAMILY,
            description="GOT-OCR2: SAM encoder, one view of 1024 pixels, Qwen2-0.5B decoder; eager attention only",
            source="stepfun-ai/GOT-OCR-2.0-hf: config.json, whose sizes are transformers' GotOcr2Config defaults",
            attention="eager",
        ),
        _shipped(
            "siglip-so400m-patch14-384",
            image_encoder.FAMILY,
            description="SigLIP-SO400M, the image encoder: ViT of 27 layers, 729 patches of 14 pixels, pooled",
            source="google/siglip-so400m-patch14-384: vision_config of config.json",
        ),
        _shipped(
            "whisper-large-v3",
            speech.FAMILY,
            description="Whisper large-v3: 30 s of 128 mel bins, 32 encoder and 32 decoder layers",
            source="openai/whisper-large-v3: config.json",
        ),
    )
}
"""The shipped models, by name."""
