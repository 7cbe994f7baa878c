"""Reading workload profiles from TOML: the shipped ones by name, others by path."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

from dsocr_graph.workloads.errors import (
    InvalidProfileError,
    PageFileUnreadableError,
    UnknownProfileError,
    WorkloadError,
)
from dsocr_graph.workloads.limits import suggestion
from dsocr_graph.workloads.modes import mode_named
from dsocr_graph.workloads.page_files import readable_file
from dsocr_graph.workloads.pages import DEFAULT_DPI, PageSize, read_image, read_pdf
from dsocr_graph.workloads.profile import Profile, ProfilePage, override

STANDARD = "dsocr-standard-v1"

# Taken from the standard profile when left out.
_INHERITED = ("mode", "dtype", "batch", "greedy", "new_tokens", "prompt", "prompt_tokens")
_PROFILE_KEYS = ("name", *_INHERITED, "pages")
_PAGE_KEYS: dict[str, tuple[str, ...]] = {  # by the key that says what kind of page it is
    "image": ("image", "name", "page_range", "new_tokens"),
    "pdf": ("pdf", "name", "page_range", "dpi", "new_tokens"),
    "width": ("name", "width", "height", "new_tokens"),
}


def available_profiles() -> tuple[str, ...]:
    """Return the names of the profiles that ship with the package.

    Examples
    --------
    >>> available_profiles()
    ('dsocr-standard-v1',)
    """
    files = resources.files("dsocr_graph.workloads.profiles").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_profile(
    name_or_path: str | Path,
    *,
    new_tokens: int | None = None,
    batch: int | None = None,
    mode: str | None = None,
    dtype: str | None = None,
) -> Profile:
    r"""Return a shipped profile by its name, or the one in a TOML file.

    A file states `pages`, each a table of one of three forms: ``{name, width, height}`` in pixels,
    ``{image}`` or ``{pdf}``, a path relative to the TOML file; each may state `new_tokens`, a file also
    `name` and `page_range`, a PDF also `dpi`. `name`, `mode`, `dtype`, `batch`, `greedy`, `new_tokens`,
    `prompt` and `prompt_tokens` may stand beside it; `name` is the file's by default, the others are as in
    dsocr-standard-v1. Another `prompt` needs its own `prompt_tokens`.

    Parameters
    ----------
    name_or_path
        A name of `available_profiles`, or a path. Text that ends in .toml or holds a path separator is a
        path.
    new_tokens, batch, mode, dtype
        Replace the profile's values, as in `override`.

    Raises
    ------
    UnknownProfileError
        No shipped profile of that name.
    InvalidProfileError
        A file that is no TOML, or one with unknown or missing keys or values of the wrong type or range.
    WorkloadError
        A page that cannot be read, or more tokens than the model has positions for.

    Examples
    --------
    >>> profile = load_profile("dsocr-standard-v1", new_tokens=64)
    >>> profile.mode.name, profile.dtype, {entry.new_tokens for entry in profile.pages}
    ('Gundam', 'bf16', {64})
    """
    shipped = available_profiles()
    text = str(name_or_path)
    if text in shipped:
        profile = _shipped(text)
    elif isinstance(name_or_path, Path) or _looks_like_path(text):
        profile = _read(readable_file(name_or_path, "profile"))
    else:
        raise UnknownProfileError(
            f"no workload profile {text!r}; {suggestion(text, shipped)}. Give one of them or the path of a TOML file."
        )
    return override(profile, new_tokens=new_tokens, batch=batch, mode=mode, dtype=dtype)


def _looks_like_path(text: str) -> bool:
    return text.endswith(".toml") or "/" in text or "\\" in text


@cache
def _shipped(name: str) -> Profile:
    file = resources.files("dsocr_graph.workloads.profiles") / f"{name}.toml"
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    return _profile(table, where=name, folder=Path(), fallback_name=name)


def _read(path: Path) -> Profile:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bad TOML or UTF-8, endless digits, endless nesting
        raise InvalidProfileError(f"{str(path)!r} is not valid TOML: {error}") from error
    except OSError as error:
        raise PageFileUnreadableError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    where = str(path)
    try:
        return _profile(table, where=where, folder=path.parent, fallback_name=path.stem)
    except WorkloadError as error:
        if where in str(error):
            raise
        raise type(error)(f"{where}: {error}") from error


def _profile(table: dict[str, Any], *, where: str, folder: Path, fallback_name: str) -> Profile:
    _only_known(table, _PROFILE_KEYS, "workload key", where)
    values = dict(table)
    if "pages" not in values:
        raise InvalidProfileError(f'{where}: no pages; add pages = [{{name = "...", width = ..., height = ...}}]')
    entries = values.pop("pages")
    if not isinstance(entries, list):
        raise InvalidProfileError(
            f"{where}: pages is {entries!r} ({type(entries).__name__}); expected a list of tables"
        )
    missing = [key for key in _INHERITED if key not in values]
    if missing:
        standard = _shipped(STANDARD)  # which misses nothing itself
        if "prompt_tokens" in missing and values.get("prompt", standard.prompt) != standard.prompt:
            raise InvalidProfileError(
                f"{where}: prompt without prompt_tokens; add its count of tokens, begin-of-sentence "
                "included, image tokens not"
            )
        for key in missing:
            values[key] = standard.mode.name if key == "mode" else getattr(standard, key)
    if not isinstance(values["mode"], str):
        raise InvalidProfileError(f"{where}: mode is {values['mode']!r}; expected text such as 'Gundam'")
    pages = [
        page
        for number, entry in enumerate(entries, start=1)
        for page in _pages(entry, f"{where}: page {number}", folder, values["new_tokens"])
    ]
    return Profile(
        name=values.get("name", fallback_name),
        mode=mode_named(values.pop("mode")),
        pages=tuple(pages),
        **{key: value for key, value in values.items() if key != "name"},
    )


def _pages(entry: object, where: str, folder: Path, new_tokens: int) -> list[ProfilePage]:
    if not isinstance(entry, dict):
        raise InvalidProfileError(
            f"{where} is {entry!r} ({type(entry).__name__}); expected a table with width and height, image, or pdf"
        )
    table = cast("dict[str, Any]", entry)
    form = next((key for key in _PAGE_KEYS if key in table), "width")
    _only_known(table, _PAGE_KEYS[form], f"key of a page with {form}", where)
    if form == "width":
        required = [key for key in ("name", "width", "height") if key not in table]
        if required:
            raise InvalidProfileError(
                f"{where} has no {', '.join(required)}; a page has name, width and height, or image, or pdf"
            )
        pages = (PageSize(name=table["name"], width=table["width"], height=table["height"]),)
    else:
        path = table[form]
        name = table.get("name")
        if not isinstance(path, str) or not (name is None or isinstance(name, str)):
            raise InvalidProfileError(f"{where}: {form} = {path!r} and name = {name!r}; expected text for both")
        file = folder / Path(path)
        page_range = table.get("page_range")
        if form == "image":
            pages = read_image(file, name=name, page_range=page_range)
        else:
            pages = read_pdf(file, name=name, page_range=page_range, dpi=table.get("dpi", DEFAULT_DPI))
    tokens = table.get("new_tokens", new_tokens)
    return [ProfilePage(page=page, new_tokens=tokens) for page in pages]


def _only_known(table: dict[str, Any], known: tuple[str, ...], what: str, where: str) -> None:
    unknown = [key for key in table if key not in known]
    if unknown:
        # More than one can be misspelt: the first decides the suggestion, all are named.
        names = ", ".join(repr(key) for key in unknown)
        raise InvalidProfileError(f"{where}: unknown {what} {names}; {suggestion(unknown[0], known)}")
