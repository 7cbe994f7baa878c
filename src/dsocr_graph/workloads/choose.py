"""The pages that a command or a call is about: a profile's, or those of files and sizes, with some values replaced."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from attrs import evolve

from dsocr_graph.errors import OptionError
from dsocr_graph.workloads.pages import PageSize, read_image, read_pdf, uniquely_named
from dsocr_graph.workloads.profile import Profile, ProfilePage, override, profile_from_pages
from dsocr_graph.workloads.profile_files import STANDARD, load_profile
from modelmeter.lengths import Lengths, parse_lengths


def choose_profile(
    *,
    workload: str | Path | None = None,
    image: Sequence[str | Path] = (),
    pdf: Sequence[str | Path] = (),
    page: Sequence[tuple[int, int]] = (),
    crops: tuple[int, int] | None = None,
    mode: str | None = None,
    batch: int | None = None,
    prompt_tokens: int | str | None = None,
    new_tokens: int | str | None = None,
    dtype: str | None = None,
) -> Profile:
    """Return the profile of a workload, or of pages from files and by size; what is None stays as there.

    A distribution of lengths makes of each page as many as there are equally likely lengths
    (`modelmeter.lengths.Lengths.equally_likely`), one of each: the workload's mean page has the mean of every cost.

    Parameters
    ----------
    workload
        A shipped profile by name, or a TOML file. Default: dsocr-standard-v1.
    image, pdf
        Files of pages.
    page
        Pages by width and height in pixels.
    crops
        Columns and rows that every page is cut into, whatever its size.
    mode, batch, dtype
        As in `override`.
    prompt_tokens, new_tokens
        A number, or a text that `modelmeter.lengths.parse_lengths` takes, such as "uniform:100:900".

    Raises
    ------
    OptionError
        A workload together with other pages.
    WorkloadError
        A file that cannot be read, a value out of range, or more tokens than the model has positions for.
    LengthsError, UnknownLengthsError
        Lengths that cannot be.

    Examples
    --------
    >>> profile = choose_profile(page=[(1275, 1650)], new_tokens="300,500")
    >>> [(entry.page.name, entry.new_tokens) for entry in profile.pages]
    [('1275x1650-new300', 300), ('1275x1650-new500', 500)]
    """
    profile = _with_pages(workload, image, pdf, page)
    prompts, answers = _lengths(prompt_tokens), _lengths(new_tokens)
    profile = override(
        profile,
        mode=mode,
        batch=batch,
        dtype=dtype,
        crops=crops,
        prompt_tokens=prompts if isinstance(prompts, int) else None,
        new_tokens=answers if isinstance(answers, int) else None,
    )
    return _each_length(
        profile,
        prompts=prompts if isinstance(prompts, Lengths) else None,
        answers=answers if isinstance(answers, Lengths) else None,
    )


def _with_pages(
    workload: str | Path | None,
    image: Sequence[str | Path],
    pdf: Sequence[str | Path],
    page: Sequence[tuple[int, int]],
) -> Profile:
    if not image and not pdf and not page:
        return load_profile(STANDARD if workload is None else workload)
    if workload is not None:
        raise OptionError("pages come from --workload or from --image, --pdf and --page, not from both; leave one out")
    pages = [found for path in image for found in read_image(path)]
    pages += [found for path in pdf for found in read_pdf(path)]
    pages += [PageSize(name=f"{width}x{height}", width=width, height=height) for width, height in page]
    files = [*image, *pdf]
    named = [*(Path(file).stem for file in files), *(f"{width}x{height}" for width, height in page)]
    return profile_from_pages(pages, name=named[0] if len(named) == 1 else "pages")


def _lengths(asked: int | str | None) -> int | Lengths | None:
    if not isinstance(asked, str):
        return asked
    try:
        return int(asked)
    except ValueError:
        return parse_lengths(asked)


def _each_length(profile: Profile, *, prompts: Lengths | None, answers: Lengths | None) -> Profile:
    """Return a profile that has each page once for every combination of equally likely lengths."""
    asked = {"prompt_tokens": prompts, "new_tokens": answers}
    given = {name: lengths for name, lengths in asked.items() if lengths is not None}
    if not given:
        return profile
    combinations = [
        dict(zip(given, tokens, strict=True)) for tokens in product(*(each.equally_likely for each in given.values()))
    ]
    entries = [(entry, tokens) for entry in profile.pages for tokens in combinations]
    pages = uniquely_named(evolve(entry.page, name=_named(entry, tokens)) for entry, tokens in entries)
    return evolve(
        profile,
        pages=tuple(evolve(entry, page=page, **tokens) for (entry, tokens), page in zip(entries, pages, strict=True)),
        lengths={name: lengths.statement for name, lengths in given.items()},
    )


def _named(entry: ProfilePage, tokens: dict[str, int]) -> str:
    return "-".join([entry.page.name, *(f"{name.removesuffix('_tokens')}{count}" for name, count in tokens.items())])
