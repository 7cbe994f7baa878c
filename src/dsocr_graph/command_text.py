"""The command that an analysis stands for, as its artefacts name it: words of options, none of them a place."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from attrs import fields

from modelmeter.whatif import AS_CAPTURED, Options


def command_line(options: Mapping[str, object]) -> str:
    """Return the command that an analysis with these options stands for; options that are None are left out.

    Examples
    --------
    >>> command_line({"mode": "Base", "image": ["a b.png"], "batch": None, "allow_unclassified": True})
    "python -m dsocr_graph.analyze --mode Base --image 'a b.png' --allow-unclassified"
    """
    words = ["python", "-m", "dsocr_graph.analyze"]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif isinstance(value, list | tuple):
            words += [word for item in value for word in (flag, str(item))]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        elif value is not None:
            words += [flag, str(value)]
    return shlex.join(words)


def by(size: tuple[int, int]) -> str:
    """Return a width and height as options have them.

    Examples
    --------
    >>> by((1700, 2200))
    '1700x2200'
    """
    return f"{size[0]}x{size[1]}"


def without_folder(lengths: int | str | None) -> int | str | None:
    """Return lengths as options have them, a file by its name alone: artefacts hold no places of this machine.

    Examples
    --------
    >>> without_folder("histogram:/home/a/lengths.json"), without_folder(500)
    ('histogram:lengths.json', 500)
    """
    kind, _, file = str(lengths).partition(":")
    return f"{kind}:{Path(file).name}" if kind == "histogram" else lengths


def what_if_words(what_if: Options) -> dict[str, object]:
    """Return the what-ifs as options have them; None for those that are as captured.

    Examples
    --------
    >>> {name: word for name, word in what_if_words(Options(kv_dtype="fp8")).items() if word is not None}
    {'kv_dtype': 'fp8'}
    """
    words = {field.name: getattr(what_if, field.name) for field in fields(Options)}
    words = {name: None if value == getattr(AS_CAPTURED, name) else value for name, value in words.items()}
    return {**words, "routing": None if what_if.routing == AS_CAPTURED.routing else what_if.routing.name}
