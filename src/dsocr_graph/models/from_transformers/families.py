"""The families, and which one a configuration belongs to by transformers' own mappings; imports no torch by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsocr_graph.errors import ModelConfigError
from dsocr_graph.models.from_transformers import causal_lm, image_encoder, image_text, speech
from dsocr_graph.models.from_transformers.family import Family
from dsocr_graph.models.from_transformers.trusted_code import TrustedCode

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

FAMILIES: tuple[Family, ...] = (
    # The first that fits wins: the narrower mapping comes first.
    image_text.FAMILY,
    speech.FAMILY,
    causal_lm.FAMILY,
    image_encoder.FAMILY,
)


def family_of(config: PreTrainedConfig) -> tuple[Family, str]:
    """Return the family of a configuration and the name of the class to build.

    A family takes a configuration when transformers maps its model_type to a class of the family that the
    configuration's `architectures` name; without `architectures`, the mapping alone decides.

    Raises
    ------
    ModelConfigError
        When no family takes it.

    Examples
    --------
    >>> from dsocr_graph.models.from_transformers.configuration import transformers_config
    >>> family, class_name = family_of(transformers_config({"model_type": "qwen3"}))
    >>> family.name, class_name
    ('causal_lm', 'Qwen3ForCausalLM')
    """
    for family in FAMILIES:
        class_name = _class_in(family, config)
        if class_name is not None:
            return family, class_name
    raise ModelConfigError(_refusal(config, FAMILIES))


def class_of(family: Family, config: PreTrainedConfig) -> str:
    """Return the class to build for a configuration of a family that is known.

    Raises
    ------
    ModelConfigError
        When the family does not take it.
    """
    class_name = _class_in(family, config)
    if class_name is None:
        raise ModelConfigError(_refusal(config, (family,)))
    return class_name


def trusted_family_of(code: TrustedCode) -> tuple[Family, type[nn.Module]]:
    """Return the family of code that the user trusts, and its class to build; imports that class alone.

    A class of transformers that the auto_map names, such as AutoModelForCausalLM, has the mapping of a family. Image
    encoders have none: they are an AutoModel whose main input are pixels.

    Raises
    ------
    TrustedCodeError
        When the class cannot be imported.
    ModelConfigError
        When no family takes any of its classes.
    """
    for family in FAMILIES:
        for auto_class in code.model_classes:
            if auto_class == _auto_class(family):
                model = code.load(auto_class)
                if getattr(model, "main_input_name", None) == family.main_input:
                    return family, model
    known = ", ".join(f"{_auto_class(family)} ({family.description})" for family in FAMILIES)
    raise ModelConfigError(
        f"the auto_map of {code.directory} has {', '.join(code.model_classes) or 'no class of a model'}; it takes one "
        f"of {known}, with the main_input_name of its kind. Name one in the auto_map, or give a factory of your own"
    )


def _auto_class(family: Family) -> str:
    """Return the class of transformers that builds models of a family; AutoModel where there is none for it alone."""
    from transformers.models.auto import modeling_auto

    mapping = getattr(modeling_auto, family.mapping.removesuffix("_NAMES"))
    classes = {name: each for name, each in vars(modeling_auto).items() if name.startswith("AutoModel")}
    return next((name for name, each in classes.items() if each._model_mapping is mapping), "AutoModel")


def _refusal(config: PreTrainedConfig, tried: tuple[Family, ...]) -> str:
    known = "; ".join(f"{family.name} ({family.description})" for family in tried)
    return (
        f"a configuration of model_type {config.model_type!r} with architectures {config.architectures or []} belongs "
        f"to none of these families: {known}. Name one of transformers' classes for such a task in architectures, or "
        "give a factory of your own"
    )


def _class_in(family: Family, config: PreTrainedConfig) -> str | None:
    from transformers.models.auto import modeling_auto

    from dsocr_graph.models.from_transformers.load import model_class

    mappings: Any = modeling_auto
    mapped = getattr(mappings, family.mapping).get(config.model_type, ())
    candidates = (mapped,) if isinstance(mapped, str) else tuple(mapped)
    for name in candidates:
        named = not config.architectures or name in config.architectures
        if named and getattr(model_class(name), "main_input_name", None) == family.main_input:
            return name
    return None
