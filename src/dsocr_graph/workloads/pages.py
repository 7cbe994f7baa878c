"""Pages with their sizes in pixels, from numbers, image files and PDFs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from dsocr_graph.workloads.errors import (
    CorruptPageError,
    EncryptedPdfError,
    PageRangeError,
    PageSizeError,
    UnsupportedPageTypeError,
)
from dsocr_graph.workloads.image_files import image_sizes
from dsocr_graph.workloads.limits import MAX_DPI, MAX_SIDE, whole_number
from dsocr_graph.workloads.page_files import FileType, file_type

if TYPE_CHECKING:
    from attrs import Attribute
    from pypdfium2 import PdfDocument

DEFAULT_DPI = 144.0  # dots per inch; the published PDF script renders pages at this resolution
POINTS_PER_INCH = 72.0
_PDF_TAIL = 1 << 16  # bytes at the end of a PDF in which its end marker has to be


@frozen(kw_only=True)
class PageSource:
    """Where a page's pixels come from."""

    path: Path
    index: int  # page of the file, from 0
    dpi: float | None = None  # dots per inch for a PDF page; None for an image


def _checked_name(owner: object, attribute: object, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise PageSizeError(f"the name of a page is {value!r}; expected text that is not blank")


def _checked_side(owner: PageSize, attribute: Attribute[int], value: object) -> None:
    what = f"{attribute.name} in pixels of page {owner.name!r}"
    whole_number(value, what=what, high=MAX_SIDE, error=PageSizeError)


@frozen(kw_only=True)
class PageSize:
    """A page by its size alone; `source` names the file when there is one.

    Raises
    ------
    PageSizeError
        A blank name, or a side that is no whole number from 1 to 65,535.

    Examples
    --------
    >>> page = PageSize(name="letter", width=1275, height=1650)
    >>> page.width * page.height
    2103750
    """

    name: str = field(validator=_checked_name)
    width: int = field(validator=_checked_side)  # pixels, orientation applied
    height: int = field(validator=_checked_side)  # pixels, orientation applied
    source: PageSource | None = None


def read_image(path: str | Path, *, name: str | None = None, page_range: str | None = None) -> tuple[PageSize, ...]:
    """Return the pages of a PNG, JPEG or TIFF file, sizes from its header.

    Parameters
    ----------
    path
        The file. A TIFF may hold several pages.
    name
        Name of the page; by default the file's name without its ending. Several pages get "-p1", "-p2" and so
        on.
    page_range
        Pages to take, from 1, such as "1-3,7" or "5-"; all by default.

    Raises
    ------
    WorkloadError
        No such file, a damaged or unsupported one, a page that the file does not have, or a page too large.
    """
    file = Path(path)
    sizes = image_sizes(file)
    stem = name or file.stem
    return tuple(
        PageSize(
            name=stem if len(sizes) == 1 else f"{stem}-p{index + 1}",
            width=sizes[index][0],
            height=sizes[index][1],
            source=PageSource(path=file, index=index),
        )
        for index in chosen_pages(page_range, len(sizes), where=str(path))
    )


def read_pdf(
    path: str | Path, *, name: str | None = None, page_range: str | None = None, dpi: float = DEFAULT_DPI
) -> tuple[PageSize, ...]:
    """Return the pages of a PDF at a resolution, without rendering them.

    A side is its length in points times `dpi` / 72, rounded up, page rotation applied.

    Parameters
    ----------
    path
        The file. It may be encrypted as long as it opens without a password.
    name
        First part of the pages' names; by default the file's name without its ending. "-p1", "-p2" follow.
    page_range
        Pages to take, from 1, such as "1-3,7" or "5-"; all by default.
    dpi
        Dots per inch, above 0 and up to 2,400. The default is that of the published PDF script.

    Raises
    ------
    WorkloadError
        No such file, a damaged or encrypted one, a page that the file does not have, or a page too large.
    """
    file = Path(path)
    scale = checked_dpi(dpi, where=str(path)) / POINTS_PER_INCH
    stem = name or file.stem
    document = open_pdf(file)
    try:
        pages: list[PageSize] = []
        for index in chosen_pages(page_range, len(document), where=str(path)):
            width, height = _page_points(document, index, file)
            pages.append(
                PageSize(
                    name=f"{stem}-p{index + 1}",
                    width=_pixels(width, scale),
                    height=_pixels(height, scale),
                    source=PageSource(path=file, index=index, dpi=float(dpi)),
                )
            )
        return tuple(pages)
    finally:
        document.close()


def open_pdf(path: Path) -> PdfDocument:
    """Open a PDF with pypdfium2; the caller closes it.

    Returns
    -------
    pypdfium2.PdfDocument
        The document, with at least one page.

    Raises
    ------
    WorkloadError
        No such file, another type, a damaged file, or one that asks for a password.
    """
    kind = file_type(path)
    if kind is not FileType.PDF:
        raise UnsupportedPageTypeError(f"{str(path)!r} is a {kind} image, not a PDF. Give it as an image.")
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _PDF_TAIL))
        # PDFium rebuilds a cut file from the pages it still finds: better no answer than one about fewer
        # pages.
        if b"%%EOF" not in file.read():
            raise CorruptPageError(
                f"{str(path)!r} is damaged: the PDF is cut short, its end marker is missing. Copy or export it again."
            )
    import pypdfium2
    from pypdfium2 import raw

    try:
        return pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
            raise EncryptedPdfError(
                f"{str(path)!r} is an encrypted PDF that asks for a password; save a copy without one"
            ) from error
        raise CorruptPageError(
            f"{str(path)!r} is damaged: no pages can be read from the PDF. Copy or export it again."
        ) from error


def _page_points(document: PdfDocument, index: int, path: Path) -> tuple[float, float]:
    import pypdfium2

    try:
        return document.get_page_size(index)
    except pypdfium2.PdfiumError as error:
        raise CorruptPageError(
            f"{str(path)!r} is damaged: page {index + 1} has no readable size. Export it again or leave the page out."
        ) from error


def _pixels(points: float, scale: float) -> int:
    # A thousandth of a pixel is forgiven: 612 points at 150 dpi are 1275 pixels, not 1276 by float noise.
    return math.ceil(points * scale - 1e-3)


def checked_dpi(dpi: object, *, where: str) -> float:
    """Return a resolution if it is a number above 0 and up to 2,400.

    Raises
    ------
    PageSizeError
        Anything else, NaN and bool included.
    """
    # NaN fails the comparison.
    if isinstance(dpi, int | float) and not isinstance(dpi, bool) and 0 < dpi <= MAX_DPI:
        return float(dpi)
    raise PageSizeError(f"dpi of {where} is {dpi!r}; expected a number above 0 and up to {MAX_DPI:,}")


def chosen_pages(page_range: str | None, count: int, *, where: str) -> tuple[int, ...]:
    """Return the indices, from 0, of the pages that a range names.

    Parameters
    ----------
    page_range
        Pages from 1, such as "1-3,7" or "5-", in any order, each once; None for all.
    count
        Pages of the file.
    where
        The file, for the message.

    Raises
    ------
    PageRangeError
        A range of another form, a page that the file does not have, or one named twice.

    Examples
    --------
    >>> chosen_pages("1-2,5-", 6, where="a.pdf")
    (0, 1, 4, 5)
    """
    if page_range is None:
        return tuple(range(count))
    if not isinstance(page_range, str):
        raise PageRangeError(f"the pages of {where} are {page_range!r}; expected text such as '1-3,7' or '5-'")
    chosen: list[int] = []
    for part in page_range.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(-\s*(\d{1,9})?)?\s*", part, re.ASCII)
        if match is None:
            raise PageRangeError(f"the pages of {where} are {page_range!r}; expected a form such as '1-3,7' or '5-'")
        first = int(match[1])
        last = first if match[2] is None else int(match[3] or max(count, first))
        if not 1 <= first <= last <= count:
            raise PageRangeError(
                f"{where} has pages 1 to {count}; {part.strip()!r} of {page_range!r} is not among them"
            )
        chosen += range(first - 1, last)
    if len(set(chosen)) < len(chosen):
        raise PageRangeError(f"the pages {page_range!r} of {where} name a page twice; name each once")
    return tuple(chosen)


def uniquely_named(pages: Iterable[PageSize]) -> tuple[PageSize, ...]:
    """Return the pages with a number behind every name that an earlier page has.

    Examples
    --------
    >>> page = PageSize(name="scan", width=10, height=10)
    >>> [p.name for p in uniquely_named([page, page])]
    ['scan', 'scan-2']
    """
    pages = tuple(pages)
    taken: set[str] = set()
    # Names as they were given are kept for the pages that have them first.
    given = {page.name for page in pages}
    renamed: list[PageSize] = []
    for page in pages:
        name, number = page.name, 2
        while name in taken or (name != page.name and name in given):
            name, number = f"{page.name}-{number}", number + 1
        taken.add(name)
        renamed.append(page if name == page.name else evolve(page, name=name))
    return tuple(renamed)
