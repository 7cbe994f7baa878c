"""Workload profiles: pages, prompt, new tokens, batch, mode and dtype, as a record that checks itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen
from attrs.validators import optional

from dsocr_graph.workloads.errors import ContextTooLongError, InvalidProfileError
from dsocr_graph.workloads.limits import MAX_BATCH, MAX_CONTEXT, suggestion, whole_number
from dsocr_graph.workloads.modes import Mode, mode_named
from dsocr_graph.workloads.pages import DEFAULT_DPI, PageSize, read_image, read_pdf, uniquely_named
from dsocr_graph.workloads.tiling import Tiling, tile, tile_crops

if TYPE_CHECKING:
    from attrs import Attribute

DTYPES = ("bf16", "fp16", "fp32", "fp8")  # a model need not have all
IMAGE_PLACEHOLDER = "<image>"


def _checked_text(owner: object, attribute: Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise InvalidProfileError(
            f"{attribute.name} is {value!r} ({type(value).__name__}); expected text that is not blank"
        )


def _checked_dtype(owner: object, attribute: object, value: object) -> None:
    if value not in DTYPES:
        raise InvalidProfileError(f"dtype is {value!r}; {suggestion(str(value), DTYPES)}")


def _checked_batch(owner: object, attribute: object, value: object) -> None:
    whole_number(value, what="batch", high=MAX_BATCH, error=InvalidProfileError)


def _checked_prompt(owner: object, attribute: object, value: str) -> None:
    images = value.count(IMAGE_PLACEHOLDER)
    if images != 1:
        raise InvalidProfileError(
            f"prompt is {value!r} with {images} of {IMAGE_PLACEHOLDER}; put it in once, where the page goes"
        )


def _checked_tokens(owner: Profile | ProfilePage, attribute: Attribute[int], value: object) -> None:
    whose = f" of page {owner.page.name!r}" if isinstance(owner, ProfilePage) else ""
    whole_number(value, what=f"{attribute.name}{whose}", high=MAX_CONTEXT, error=InvalidProfileError)


def _checked_greedy(owner: object, attribute: object, value: object) -> None:
    if value is not True:
        raise InvalidProfileError(f"greedy is {value!r}; only greedy decoding is analysed, so it has to be true")


def _checked_pages(owner: Profile, attribute: object, value: tuple[ProfilePage, ...]) -> None:
    if not value:
        raise InvalidProfileError(f"profile {owner.name!r} has no pages; give at least one")
    seen: set[str] = set()
    for entry in value:
        if entry.page.name in seen:
            raise InvalidProfileError(
                f"profile {owner.name!r} has two pages called {entry.page.name!r}; give one another name"
            )
        seen.add(entry.page.name)
        _check_context(owner, entry)


def _check_context(profile: Profile, entry: ProfilePage) -> None:
    image, prompt = profile.tiling(entry).image_tokens, profile.prompt_of(entry)
    needed = image + prompt + entry.new_tokens
    if needed > MAX_CONTEXT:
        room = MAX_CONTEXT - image - prompt
        advice = f"ask for at most {room:,} new tokens" if room > 0 else "shorten the prompt"
        raise ContextTooLongError(
            f"page {entry.page.name!r} needs {needed:,} tokens ({image:,} of the image, "
            f"{prompt:,} of the prompt, {entry.new_tokens:,} new), over the model's "
            f"{MAX_CONTEXT:,} positions; {advice}"
        )


@frozen(kw_only=True)
class ProfilePage:
    """A page of a profile and the tokens that are generated for it."""

    page: PageSize
    new_tokens: int = field(validator=_checked_tokens)
    prompt_tokens: int | None = field(default=None, validator=optional(_checked_tokens))  # None: the profile's
    crops: tuple[int, int] | None = None  # columns and rows; None: those that the page's size makes


@frozen(kw_only=True)
class Profile:
    """What the model is run on.

    Raises
    ------
    InvalidProfileError
        No pages, two pages of one name, an unknown dtype, a count out of range, a prompt without its image.
    ContextTooLongError
        A page whose image, prompt and new tokens exceed 8,192.

    Examples
    --------
    >>> from dsocr_graph.workloads import load_profile
    >>> profile = load_profile("dsocr-standard-v1")
    >>> [entry.page.name for entry in profile.pages]
    ['letter', 'a4', 'slide', 'receipt', 'figure']
    """

    name: str = field(validator=_checked_text)
    mode: Mode
    dtype: str = field(validator=_checked_dtype)  # bf16, fp16, fp32 or fp8
    batch: int = field(validator=_checked_batch)  # equal pages processed together
    prompt: str = field(validator=[_checked_text, _checked_prompt])  # text with one <image>
    prompt_tokens: int = field(validator=_checked_tokens)  # tokens of the context that are not image tokens
    greedy: bool = field(validator=_checked_greedy)  # greedy decoding; nothing else is analysed
    new_tokens: int = field(validator=_checked_tokens)  # for pages that state none
    pages: tuple[ProfilePage, ...] = field(converter=tuple[ProfilePage, ...], validator=_checked_pages)
    lengths: Mapping[str, str] = field(factory=dict[str, str])  # what stands for a distribution of tokens, in words

    def tiling(self, entry: ProfilePage) -> Tiling:
        """Return how one of the pages is cut into views."""
        if entry.crops is not None:
            return tile_crops(*entry.crops, self.mode)
        return tile(entry.page.width, entry.page.height, self.mode)

    def prompt_of(self, entry: ProfilePage) -> int:
        """Return the tokens of the prompt of one of the pages, image tokens not counted."""
        return self.prompt_tokens if entry.prompt_tokens is None else entry.prompt_tokens


def override(
    profile: Profile,
    *,
    new_tokens: int | None = None,
    prompt_tokens: int | None = None,
    crops: tuple[int, int] | None = None,
    batch: int | None = None,
    mode: str | None = None,
    dtype: str | None = None,
) -> Profile:
    """Return the profile with some of its values replaced; None leaves a value as it is.

    Parameters
    ----------
    profile
        The profile to start from.
    new_tokens
        New tokens of every page.
    prompt_tokens
        Tokens of every page's context that are not image tokens; the text of the prompt stays.
    crops
        Columns and rows that every page is cut into, whatever its size.
    batch
        Equal pages processed together.
    mode
        Tiny, Small, Base, Large or Gundam.
    dtype
        bf16, fp16, fp32 or fp8.

    Raises
    ------
    WorkloadError
        A value out of range, an unknown mode or dtype, or more tokens than the model has positions for.

    Examples
    --------
    >>> from dsocr_graph.workloads import load_profile
    >>> override(load_profile("dsocr-standard-v1"), batch=4, mode="Base").mode.base_size
    1024
    """
    of_pages: dict[str, Any] = {}
    if new_tokens is not None:
        of_pages["new_tokens"] = new_tokens
    if prompt_tokens is not None:
        of_pages["prompt_tokens"] = None  # the profile's, from now on
    if crops is not None:
        of_pages["crops"] = crops
    return evolve(
        profile,
        new_tokens=profile.new_tokens if new_tokens is None else new_tokens,
        prompt_tokens=profile.prompt_tokens if prompt_tokens is None else prompt_tokens,
        pages=tuple(evolve(entry, **of_pages) for entry in profile.pages),
        batch=profile.batch if batch is None else batch,
        mode=profile.mode if mode is None else mode_named(mode),
        dtype=profile.dtype if dtype is None else dtype,
    )


def profile_from_pages(
    pages: Iterable[PageSize],
    *,
    name: str,
    new_tokens: int | None = None,
    batch: int | None = None,
    mode: str | None = None,
    dtype: str | None = None,
) -> Profile:
    """Return a profile of these pages; what is not given is as in dsocr-standard-v1.

    Pages that share a name get a number behind it.

    Parameters
    ----------
    pages
        At least one.
    name
        Name of the profile in reports.
    new_tokens, batch, mode, dtype
        As in `override`; new_tokens is 1,100 by default.

    Raises
    ------
    WorkloadError
        No pages, a value out of range, or more tokens than the model has positions for.

    Examples
    --------
    >>> page = PageSize(name="ticket", width=600, height=1800)
    >>> profile_from_pages([page], name="tickets", new_tokens=80).pages[0].new_tokens
    80
    """
    from dsocr_graph.workloads.profile_files import STANDARD, load_profile

    standard = load_profile(STANDARD)
    tokens = standard.new_tokens if new_tokens is None else new_tokens
    return evolve(
        standard,
        name=name,
        mode=standard.mode if mode is None else mode_named(mode),
        dtype=standard.dtype if dtype is None else dtype,
        batch=standard.batch if batch is None else batch,
        new_tokens=tokens,
        pages=tuple(ProfilePage(page=page, new_tokens=tokens) for page in uniquely_named(pages)),
    )


def profile_from_images(
    paths: Sequence[str | Path],
    *,
    name: str | None = None,
    new_tokens: int | None = None,
    batch: int | None = None,
    mode: str | None = None,
    dtype: str | None = None,
) -> Profile:
    """Return a profile of the pages of image files: PNG, JPEG, or TIFF with one or more pages.

    Parameters
    ----------
    paths
        At least one file.
    name
        Name of the profile; by default that of the only file, or "images".
    new_tokens, batch, mode, dtype
        As in `profile_from_pages`.

    Raises
    ------
    WorkloadError
        A file that cannot be read, or a value out of range.
    """
    if isinstance(paths, str | Path):
        raise InvalidProfileError(f"paths is {str(paths)!r}; expected a list of files, such as [{str(paths)!r}]")
    pages = [page for path in paths for page in read_image(path)]
    return profile_from_pages(
        pages,
        name=name or (Path(paths[0]).stem if len(paths) == 1 else "images"),
        new_tokens=new_tokens,
        batch=batch,
        mode=mode,
        dtype=dtype,
    )


def profile_from_pdf(
    path: str | Path,
    *,
    name: str | None = None,
    page_range: str | None = None,
    dpi: float = DEFAULT_DPI,
    new_tokens: int | None = None,
    batch: int | None = None,
    mode: str | None = None,
    dtype: str | None = None,
) -> Profile:
    """Return a profile of the pages of a PDF.

    Parameters
    ----------
    path
        The file.
    name
        Name of the profile; by default that of the file.
    page_range, dpi
        As in `read_pdf`.
    new_tokens, batch, mode, dtype
        As in `profile_from_pages`.

    Raises
    ------
    WorkloadError
        A file that cannot be read, or a value out of range.
    """
    return profile_from_pages(
        read_pdf(path, page_range=page_range, dpi=dpi),
        name=name or Path(path).stem,
        new_tokens=new_tokens,
        batch=batch,
        mode=mode,
        dtype=dtype,
    )
