"""Named models: found through entry points of the group ``modelmeter.models``, loaded when asked for.

A name is one model: where two packages register different ones under it, neither is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata, resources
from typing import TYPE_CHECKING

from attrs import frozen

from modelmeter.errors import ModelMeterError, UnknownModelError, UnknownNameError
from modelmeter.serialize import model_from_bytes

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from modelmeter.model import AnalyticModel

GROUP = "modelmeter.models"
_SUFFIXES = (".json.gz", ".json")


class UnknownVariantError(UnknownNameError):
    """A variant that a model does not have."""


class BrokenModelError(ModelMeterError, ImportError):
    """An entry point that cannot be imported, that is no `RegisteredModel`, or that has another name than its model."""


class DuplicateModelError(BrokenModelError):
    """A name under which two packages register different models."""


@frozen(kw_only=True)
class RegisteredModel:
    """A model that a package ships as data: what an entry point of the group names.

    Attributes
    ----------
    name : str
        The name that `load` takes.
    package : str
        The package whose `folder` holds one model file per variant, ``VARIANT.json.gz`` or ``VARIANT.json``.
    default : str
        The variant that is meant when none is named.
    folder : str
        Below the package; a package of several models has one for each, such as "data/qwen3-8b".
    """

    name: str
    package: str
    default: str
    folder: str = "data"

    @property
    def variants(self) -> Mapping[str, str]:
        """The data file of each variant, by the variant's name."""
        folder = self._files
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        return {name.removesuffix(suffix): name for suffix in _SUFFIXES for name in names if name.endswith(suffix)}

    def load(self, variant: str | None = None) -> AnalyticModel:
        """Read a variant from the package's data.

        Raises
        ------
        UnknownVariantError
            When there is no such variant.
        ModelFileError
            When the data file is damaged.
        """
        variants = self.variants
        wanted = self.default if variant is None else variant
        if wanted not in variants:
            raise UnknownVariantError(f"variant of {self.name}", wanted, variants)
        data = (self._files / variants[wanted]).read_bytes()
        return model_from_bytes(data, source=f"{self.package}/{self.folder}/{variants[wanted]}")

    @property
    def _files(self) -> Traversable:
        return resources.files(self.package).joinpath(*self.folder.split("/"))


def available() -> tuple[str, ...]:
    """Return the names of the models that installed packages register.

    Examples
    --------
    >>> all(isinstance(name, str) for name in available())
    True
    """
    return tuple(sorted({point.name for point in metadata.entry_points(group=GROUP)}))


def registered(name: str) -> RegisteredModel:
    """Return the entry of a model, without reading any variant.

    Raises
    ------
    UnknownModelError
        When no installed package registers the name; the message lists those that exist.
    BrokenModelError
        When the entry point cannot be imported, or is no `RegisteredModel` of that name.
    DuplicateModelError
        When two packages register different models under the name.
    """
    points = metadata.entry_points(group=GROUP)
    named = {point.value: point for point in points if point.name == name}
    if not named:
        hint = "" if points else "No installed package registers a model: install the package that ships it."
        raise UnknownModelError("model", name, {point.name for point in points}, hint)
    point, *others = named.values()
    if others:
        owners = " and ".join(f"{_package(each)} ({each.value})" for each in named.values())
        raise DuplicateModelError(
            f"model {name!r} is registered by {owners}; which one is meant cannot be told: uninstall one of the "
            "packages, or register the model under another name"
        )
    try:
        entry = point.load()
    except Exception as error:
        raise BrokenModelError(
            f"model {name!r} is registered as {point.value}, which cannot be imported: "
            f"{type(error).__name__}: {error}; mend or uninstall the package that registers it"
        ) from error
    if not isinstance(entry, RegisteredModel):
        raise BrokenModelError(
            f"model {name!r} is registered as {point.value}, which is a {type(entry).__name__}; "
            "an entry point of modelmeter.models must name a RegisteredModel"
        )
    if entry.name != name:
        raise BrokenModelError(
            f"model {name!r} is registered as {point.value}, whose name is {entry.name!r}; give both the same name in "
            "the package that registers it"
        )
    return entry


def _package(point: metadata.EntryPoint) -> str:
    """Return the name of the installed package that registers an entry point."""
    return "a package without metadata" if point.dist is None else point.dist.name


def load(name: str, variant: str | None = None) -> AnalyticModel:
    """Load a named model, without torch.

    Parameters
    ----------
    name : str
        One of `available`.
    variant : str or None
        One of ``registered(name).variants``; the model's default when left out.

    Raises
    ------
    UnknownModelError, UnknownVariantError
        When there is no such model or variant; the message lists those that exist.
    BrokenModelError
        When the entry point cannot be imported or is of another name, or two packages register the name.
    ModelFileError
        When the data file is damaged.
    """
    return registered(name).load(variant)
