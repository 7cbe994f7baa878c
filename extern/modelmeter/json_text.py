"""JSON text for models and reports: deterministic layout, clear errors, strict scalars."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import Enum
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import attrs
import cattrs
from cattrs import transform_error
from cattrs.v import format_exception

from modelmeter.errors import ModelMeterError

Record = TypeVar("Record")

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def dump_json(document: Mapping[str, Any], *, depths: Mapping[str, int]) -> str:
    """Write a document with its containers spread over lines down to a depth, compact below; rows of numbers never.

    Parameters
    ----------
    document : mapping
        JSON's types only.
    depths : mapping of str to int
        By top-level key, how many levels (the document itself is level 0) are spread; 2 for the others.

    Examples
    --------
    >>> print(dump_json({"a": [{"b": 1}, {"b": 2.0}], "c": {}, "d": [1, 2]}, depths={}), end="")
    {
     "a": [
      {"b": 1},
      {"b": 2}
     ],
     "c": {},
     "d": [1, 2]
    }
    """
    lines = ",\n".join(
        f" {json.dumps(key)}: {_spread(whole(value), 1, depths.get(key, 2))}" for key, value in document.items()
    )
    return "{\n" + lines + "\n}\n"


def whole(value: object) -> object:
    """Return JSON values with floats that hold whole numbers as ints.

    Examples
    --------
    >>> whole({"a": [1.0, 1.5]})
    {'a': [1, 1.5]}
    """
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [whole(item) for item in value]
    return value


def _spread(value: object, level: int, depth: int) -> str:
    if level >= depth or not isinstance(value, dict | list) or not value or _is_row(value):
        return _encode(value)
    pad = "\n" + " " * (level + 1)
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_spread(item, level + 1, depth)}" for key, item in value.items()]
        return "{" + pad + f",{pad}".join(items) + "\n" + " " * level + "}"
    items = [_spread(item, level + 1, depth) for item in value]
    return "[" + pad + f",{pad}".join(items) + "\n" + " " * level + "]"


def _is_row(value: dict[str, object] | list[object]) -> bool:
    """Tell whether a container is a list of whole numbers, thousands as a rule: they stay on one line."""
    return isinstance(value, list) and all(isinstance(item, int) for item in value)


def load_document(
    text: str | bytes, *, source: str, kind: str, version: int, error: type[ModelMeterError]
) -> dict[str, Any]:
    """Read JSON text as a document of one schema version, the version taken out.

    Raises
    ------
    error
        When the text is cut off, no JSON, no object or of another version.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{source} is no JSON or cut off: {problem}; {write_again(kind)}") from problem
    if not isinstance(document, dict):
        raise error(f"{source} is no {kind}: its JSON is a {type(document).__name__}, not an object")
    found = document.pop("schema_version", None)
    if found != version or isinstance(found, bool):
        raise error(
            f"{source} has schema_version {found!r}, this release reads {version}; {write_again(kind)} of this release"
        )
    return document


def write_again(kind: str) -> str:
    """Return what to do about a damaged or outdated file of a kind.

    Examples
    --------
    >>> write_again("calibration")
    'write the calibration again with `dsocr-graph calibrate --out FILE`'
    """
    return f"write the {kind} again with `dsocr-graph {_COMMANDS[kind]}`"


_COMMANDS = {"model": "analyze", "report": "analyze", "calibration": "calibrate --out FILE", "measurement": "measure"}


def structure_text(
    text: str | bytes,
    record: type[Record],
    converter: cattrs.Converter,
    *,
    source: str,
    kind: str,
    version: int,
    error: type[ModelMeterError],
) -> Record:
    """Read JSON text as a record of one schema version.

    Raises
    ------
    error
        When the text is cut off, no JSON, of another version or no such record; the message says what is wrong.
    """
    document = load_document(text, source=source, kind=kind, version=version, error=error)
    try:
        return converter.structure(document, record)
    except Exception as problem:
        raise error(f"{source} is no {kind}: {reasons(problem)}") from problem


def read_bytes(path: str | Path, *, kind: str, error: type[ModelMeterError], advice: str = "") -> bytes:
    """Return the bytes of a file.

    Raises
    ------
    error
        When the file cannot be read; the message ends with the advice.
    """
    try:
        return Path(path).read_bytes()
    except OSError as problem:
        raise error(f"cannot read the {kind} {path}: {problem.strerror or problem}{advice}") from problem


def read_schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema that the package ships for a kind of file, "model" or "report".

    Examples
    --------
    >>> read_schema("report")["title"]
    'Report'
    """
    return json.loads((resources.files("modelmeter") / "schema" / f"{kind}.schema.json").read_text("utf-8"))


def reasons(error: Exception) -> str:
    """Return the first things that are wrong, each with its place in the document."""
    if not isinstance(error, cattrs.BaseValidationError):
        return str(error)
    found = transform_error(error, path="$", format_exception=_reason)
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _reason(error: BaseException, kind: type | None) -> str:
    """Return what is wrong; our own messages say more than the types that cattrs would name."""
    if isinstance(error, KeyError) or not str(error):
        return format_exception(error, kind)
    return str(error)


def register_plain(converter: cattrs.Converter) -> None:
    """Add what models and reports share: strict scalars, mappings sorted where their order means nothing."""
    for scalar in (int, str, bool):
        converter.register_structure_hook(scalar, _strict(scalar))
    converter.register_unstructure_hook_func(_is_plain_mapping, lambda value: dict(sorted(value.items())))


def _strict(scalar: type) -> Callable[[object, object], object]:
    def structure(value: object, kind: object) -> object:
        if type(value) is not scalar:
            raise TypeError(f"{value!r} is no {scalar.__name__}")
        # The hook of str gets its subclasses too, which are enums here.
        return kind(value) if isinstance(kind, type) and issubclass(kind, Enum) else value

    return structure


def _is_plain_mapping(kind: object) -> bool:
    """Tell whether a type maps names to scalars."""
    if get_origin(kind) is not Mapping:
        return False
    value = get_args(kind)[1]
    return value in (int, str, float) or (get_origin(value) in (Union, UnionType) and not attrs.has(value))
