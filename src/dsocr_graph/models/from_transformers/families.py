"""The families, and which one a configuration belongs to by transformers' own mappings; imports no torch by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsocr_graph.errors import ModelConfigError
from dsocr_graph.models.from_transformers import (
    causal_lm,
    image_encoder,
    image_text,
    speech,
    text_encoder,
    text_to_text,
    two_towers,
)
from dsocr_graph.models.from_transformers.family import Family
from dsocr_graph.models.from_transformers.trusted_code import TrustedCode

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

FAMILIES: tuple[Family, ...] = (
    # The first that fits wins: the narrower mapping comes first.
    image_text.FAMILY,
    speech.FAMILY,
    text_to_text.FAMILY,
    two_towers.FAMILY,
    text_encoder.FAMILY,
    causal_lm.FAMILY,
    image_encoder.FAMILY,
)


def family_of(config: PreTrainedConfig) -> tuple[Family, str]:
    """Return the family of a configuration and the name of the class to build.

    A family takes a configuration when transformers maps its model_type to a class of the family that the
    configuration's `architectures` name; without `architectures`, the mappings alone decide.

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

    mapping = getattr(modeling_auto, family.mappings[0].removesuffix("_NAMES"))
    classes = {name: each for name, each in vars(modeling_auto).items() if name.startswith("AutoModel")}
    return next((name for name, each in classes.items() if each._model_mapping is mapping), "AutoModel")


def _refusal(config: PreTrainedConfig, tried: tuple[Family, ...]) -> str:
    known = "; ".join(f"{family.name} ({family.description})" for family in tried)
    offered = "; ".join(
        f"{family.name} by {', '.join(names)}" for family in tried if (names := tuple(_classes(family, config)))
    )
    remedy = (
        f"Its model_type does: {offered}. Name one of these classes in architectures, or give"
        if offered
        else "No class of its model_type does; give"
    )
    return (
        f"a configuration of model_type {config.model_type!r} with architectures {config.architectures or []} belongs "
        f"to none of these families: {known}. {remedy} a factory of your own, as package.module:function"
    )


def _class_in(family: Family, config: PreTrainedConfig) -> str | None:
    named = config.architectures
    return next((name for name in _classes(family, config) if not named or name in named), None)


def _classes(family: Family, config: PreTrainedConfig) -> Iterator[str]:
    """Yield the classes of a configuration's model_type that a family runs, each once."""
    from transformers.models.auto import modeling_auto

    from dsocr_graph.models.from_transformers.load import model_class

    mapped = [getattr(modeling_auto, mapping).get(config.model_type, ()) for mapping in family.mappings]
    names = [name for entry in mapped for name in ((entry,) if isinstance(entry, str) else entry)]
    for name in dict.fromkeys(names):
        fits = getattr(model_class(name), "main_input_name", None) == family.main_input
        if fits and family.takes(config, name):
            yield name
