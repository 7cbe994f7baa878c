"""Code that a configuration brings along (auto_map), imported from local files once the user trusts it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from attrs import frozen

from dsocr_graph.errors import DsocrGraphError, ModelConfigError

if TYPE_CHECKING:
    from torch import nn

FLAG = "--trust-remote-code"
CONFIG_CLASS = "AutoConfig"
_MODEL_CLASSES = re.compile(r"AutoModel\w*")
_REFERENCE = re.compile(r"(?P<file>\w+)\.(?P<name>\w+)")


class TrustedCodeError(DsocrGraphError, ImportError):
    """Code beside a configuration that is not there, or that fails when it is imported."""


@frozen(kw_only=True)
class TrustedCode:
    """The classes of an auto_map that are imported, and the files that this runs. Making one imports nothing.

    Examples
    --------
    >>> TrustedCode.of({"model_type": "qwen3"}, Path("no/such/directory")) is None
    True
    """

    directory: Path
    classes: Mapping[str, str]  # class of transformers -> "file.Class" of the directory, such as "modeling_x.XModel"
    files: tuple[Path, ...]  # those of the classes first, then those that they import by a relative name

    @classmethod
    def of(cls, settings: Mapping[str, Any], directory: Path) -> TrustedCode | None:
        """Return the code of a configuration in a directory; None where it brings none along.

        Only the configuration class and model classes count: tokenizers and processors are not needed.

        Raises
        ------
        ModelConfigError
            When the auto_map is none, or names code of another repository, which would have to be downloaded.
        TrustedCodeError
            When a file is missing.
        """
        if "auto_map" not in settings:
            return None
        classes = _references(settings["auto_map"], directory)
        files = dict.fromkeys(directory / f"{reference.partition('.')[0]}.py" for reference in classes.values())
        return cls(directory=directory, classes=classes, files=_with_imported(tuple(files)))

    @property
    def model_classes(self) -> tuple[str, ...]:
        """The classes of transformers that a model class is given for, such as "AutoModelForCausalLM"."""
        return tuple(name for name in self.classes if name != CONFIG_CLASS)

    @property
    def digest(self) -> str:
        """A digest of the files' contents; part of the key that compiled models are kept under."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def announcement(self) -> str:
        """Return what will be imported, as one line for the user."""
        files = ", ".join(str(file) for file in self.files)
        classes = ", ".join(f"{name} from {reference}" for name, reference in self.classes.items())
        return f"trusting code: importing {files}; classes: {classes}"

    def load(self, auto_class: str) -> type[nn.Module]:
        """Import a class, by transformers' own loader of such code; nothing is downloaded.

        Raises
        ------
        TrustedCodeError
            When the file fails, or has no such class.
        """
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        reference = self.classes[auto_class]
        try:
            return get_class_from_dynamic_module(reference, str(self.directory), local_files_only=True)
        except Exception as error:  # the code may raise anything
            raise TrustedCodeError(
                f"{reference} in {self.directory} cannot be imported: {type(error).__name__}: "
                f"{' '.join(str(error).split())}; correct the file, or install what it needs"
            ) from error


def _references(auto_map: object, directory: Path) -> dict[str, str]:
    if not isinstance(auto_map, Mapping):
        raise ModelConfigError(
            f"the auto_map of {directory} is a {type(auto_map).__name__}; expected an object such as "
            '{"AutoModelForCausalLM": "modeling_x.XForCausalLM"}'
        )
    found: dict[str, str] = {}
    for name, reference in cast("Mapping[str, object]", auto_map).items():
        if name != CONFIG_CLASS and not _MODEL_CLASSES.fullmatch(name):
            continue
        if "--" in str(reference):
            raise ModelConfigError(
                f"the auto_map of {directory} takes {name} from another repository, {reference}; code is imported "
                "from local files only. Put the file beside the configuration and name it without the repository"
            )
        if not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
            raise ModelConfigError(
                f"the auto_map of {directory} names {reference!r} for {name}; expected FILE.CLASS, a file beside the "
                "configuration without its .py and a class in it"
            )
        found[name] = reference
    return found


def _with_imported(files: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return files and those that they import by a relative name, as transformers finds them."""
    from transformers.dynamic_module_utils import get_relative_imports

    found: list[Path] = []
    waiting = list(files)
    while waiting:
        file = waiting.pop(0)
        if not file.is_file():
            raise TrustedCodeError(
                f"the auto_map needs {file}, which is not there; put it beside the configuration, where it is "
                "published with the weights"
            )
        found.append(file)
        imported = [file.parent / f"{name}.py" for name in sorted(get_relative_imports(file))]
        waiting += [each for each in imported if each not in found and each not in waiting]
    return tuple(found)
