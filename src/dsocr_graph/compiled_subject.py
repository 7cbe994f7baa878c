"""Compiled subjects: the analytic model of whatever a text names, read where a file or a package has it."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve

from dsocr_graph.compiling import analytic_user_model, shipped_or_compiled
from dsocr_graph.errors import OptionError
from dsocr_graph.models.named_model import NamedModel
from dsocr_graph.subjects import compiled_only, subject_of
from dsocr_graph.unused_options import flags, refuse_views
from dsocr_graph.workloads import choose_profile
from modelmeter.model import AnalyticModel
from modelmeter.registry import available, registered


def compiled_subject(
    text: str,
    *,
    shipped: str | None = None,
    mode: str | None = None,
    dtype: str | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> AnalyticModel:
    """Return the compiled model of a name, a file, a configuration or a factory.

    Parameters
    ----------
    text : str
        A registered model as ``NAME`` or ``NAME:VARIANT``, a named model, a ``model.json`` or a directory of
        `dsocr-graph analyze`, the path of a transformers configuration, or a factory as ``package.module:function``.
    shipped : str, optional
        A variant that a package ships, by name.
    mode, dtype, attention : str, optional
        Of the variant to capture; without, a registered model is the one that its package ships by default.
    trust_remote_code, progress
        Of a configuration, as `dsocr_graph.subjects.named_or_configured` takes them.

    Raises
    ------
    UnknownModelError, ConfigNotFoundError, ModelConfigError, FactoryError
        When the text names no model.
    UnknownVariantError
        When a registered model has no such variant.
    ModelFileError, BrokenModelError
        When a file is damaged, or the package that registers the model.
    CaptureError, MissingLoweringError
        When the model cannot be compiled.
    OptionError
        When what is asked says nothing of the model.

    Examples
    --------
    >>> compiled_subject("qwen3-8b").name, compiled_subject("deepseek-ocr", shipped="tiny").variant["base_size"]
    ('qwen3-8b', '512')
    """
    given = {
        name: value
        for name, value in {"mode": mode, "dtype": dtype, "attention": attention}.items()
        if value is not None
    }
    name, colon, named_variant = text.partition(":")
    if colon and name in available():  # as `compare` has it; else a factory
        if shipped is not None:
            raise OptionError(f"{text} names a variant, and --variant {shipped} does; leave one of them out")
        text, shipped = name, named_variant
    compiled = compiled_only(text, shipped)
    if compiled is not None:
        _refuse(text, given)
        return compiled
    if text in available() and not given:
        return evolve(registered(text).load(shipped), name=text)
    if shipped is not None:
        raise OptionError(
            f"--variant is of a model that a package ships, and {text} is captured as asked; "
            "leave it out, or name a registered model without --dtype and --attention"
        )
    subject = subject_of(text, trust_remote_code=trust_remote_code, progress=progress)
    if not isinstance(subject, NamedModel):
        _refuse(subject.name, given)
        return analytic_user_model(subject, progress=progress)
    variant = subject.variant(choose_profile(mode=mode, dtype=dtype), attention or subject.attention)
    refuse_views(subject.name, variant.facts(), given)
    return shipped_or_compiled(subject, variant, progress=progress)


def _refuse(name: str, given: dict[str, str]) -> None:
    if given:
        raise OptionError(f"{name} comes as it is, so that {flags(given)} would say nothing; leave that out")
