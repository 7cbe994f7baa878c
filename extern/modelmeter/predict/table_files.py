"""The installed package aiconfigurator-core (NVIDIA, Apache-2.0) as files: where its tables and records lie.

Only its parquet and YAML files are read: none of its code runs, and nothing of it is kept here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, cast

import numpy as np

from modelmeter.errors import ModelMeterError

PACKAGE = "aiconfigurator-core"

Columns = dict[str, np.ndarray[Any, Any]]
"""Columns of a table by name, all of one length."""


class MissingTablesPackageError(ModelMeterError, ImportError):
    """The package with the measured tables is not installed."""

    def __init__(self) -> None:
        super().__init__(
            f"measured tables of GPUs are read from the package {PACKAGE}, which is not installed (or not all of what "
            "it needs): pip install 'dsocr-graph[tables]'; without it, devices have a roofline only, or are predicted "
            "from a calibration of your own"
        )


class TablesFormatError(ModelMeterError, ValueError):
    """A file of the installed package is not in the form of the versions that this program knows."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; this program reads {PACKAGE} 0.12: pip install '{PACKAGE}==0.12.*'")


def package_version() -> str:
    """Return the installed package's version.

    Raises
    ------
    MissingTablesPackageError
        When the package is not installed.
    """
    try:
        return distribution(PACKAGE).version
    except PackageNotFoundError:
        raise MissingTablesPackageError from None


def systems_folder() -> Path:
    """Return where the installed package keeps its records and tables.

    Raises
    ------
    MissingTablesPackageError
        When the package is not installed.
    TablesFormatError
        When it has no such folder.
    """
    try:
        folder = Path(str(distribution(PACKAGE).locate_file("aiconfigurator_core/systems")))
    except PackageNotFoundError:
        raise MissingTablesPackageError from None
    if not folder.is_dir():
        raise TablesFormatError(f"{PACKAGE} has no folder {folder}")
    return folder


def current_version(system: str, framework: str) -> str:
    """Return the version of a framework that the package declares current for a system.

    Raises
    ------
    TablesFormatError
        When it declares none.
    """
    path = systems_folder() / "query_versions.yaml"
    document = read_yaml(path)
    overrides = document.get("overrides", {}).get(system, {})
    slots = overrides.get(framework) or document.get("defaults", {}).get(framework)
    if not isinstance(slots, dict) or "current" not in slots:
        raise TablesFormatError(f"{path} names no current version of {framework}")
    return str(slots["current"])


@lru_cache(maxsize=32)
def read_yaml(path: Path) -> Mapping[str, Any]:
    """Read a record.

    Raises
    ------
    TablesFormatError
        When the file cannot be read or holds no mapping.
    """
    try:
        document = _optional("yaml").safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TablesFormatError(f"cannot read {path}: {error.strerror or error}") from error
    if not isinstance(document, dict):
        raise TablesFormatError(f"{path} holds no mapping")
    return cast("dict[str, Any]", document)


def read_rows(path: Path, names: Sequence[str], wanted: Mapping[str, str | int]) -> Columns:
    """Return columns of the rows whose other columns have the wanted values.

    Tables of older systems lack some of the columns that tell rows apart, such as the window of an attention; all
    their rows are of one kind, so a column that is not there filters nothing.

    Raises
    ------
    TablesFormatError
        When the file is broken, or a column that is asked for is not there.
    """
    parquet = _optional("pyarrow.parquet")
    try:
        present = set(parquet.read_schema(path).names)
        missing = sorted(set(names) - present)
        if missing:
            raise TablesFormatError(f"{path} has no column {', '.join(missing)}")
        filters = [(name, "==", value) for name, value in wanted.items() if name in present]
        table = parquet.read_table(path, columns=list(names), filters=filters or None)
    except (OSError, ValueError) as error:  # pyarrow's errors of broken files are both or one of them
        if isinstance(error, TablesFormatError):
            raise
        raise TablesFormatError(f"cannot read {path}: {error}") from error
    return {name: table.column(name).to_numpy() for name in names}


def _optional(module: str) -> Any:  # noqa: ANN401 - a module that may not be there has no type
    try:
        return import_module(module)
    except ImportError:
        raise MissingTablesPackageError from None
