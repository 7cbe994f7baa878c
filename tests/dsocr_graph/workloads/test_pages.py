"""Sizes of pages in images and PDFs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dsocr_graph.workloads import PageSize, read_image, read_pdf
from dsocr_graph.workloads.errors import (
    CorruptPageError,
    EncryptedPdfError,
    PageFileNotFoundError,
    PageFileUnreadableError,
    PageRangeError,
    PageSizeError,
    UnsupportedPageTypeError,
    WorkloadError,
)
from dsocr_graph.workloads.pages import chosen_pages, uniquely_named

PdfMaker = Callable[..., bytes]
PngMaker = Callable[..., bytes]

ORIENTATION = 0x0112


def _noise(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 64).convert("RGB")


def _sizes(pages: tuple[PageSize, ...]) -> list[tuple[int, int]]:
    return [(page.width, page.height) for page in pages]


# Images


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".tif", ".TIFF", ".PNG"])
def test_an_image_is_one_page_of_its_size(tmp_path: Path, suffix: str) -> None:
    """PNG, JPEG and TIFF yield width and height; the page is named after the file."""
    path = tmp_path / f"scan{suffix}"
    _noise(70, 40).save(path)
    (page,) = read_image(path)
    assert (page.name, page.width, page.height) == ("scan", 70, 40)
    assert page.source is not None
    assert (page.source.path, page.source.index, page.source.dpi) == (path, 0, None)


def test_the_type_is_read_from_the_bytes(tmp_path: Path) -> None:
    """A JPEG is read as one whatever its name says."""
    path = tmp_path / "photo.png"
    _noise(70, 40).save(path, format="JPEG")
    assert _sizes(read_image(str(path))) == [(70, 40)]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff"])
@pytest.mark.parametrize(
    ("orientation", "size"), [(1, (70, 40)), (3, (70, 40)), (5, (40, 70)), (6, (40, 70)), (8, (40, 70))]
)
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int, size: tuple[int, int]) -> None:
    """Quarter turns swap width and height, as in the published loader."""
    path = tmp_path / f"phone{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    _noise(70, 40).save(path, exif=exif)
    assert _sizes(read_image(path)) == [size]


def test_exif_after_the_pixels_of_a_png_counts(tmp_path: Path, make_png: PngMaker) -> None:
    """The eXIf chunk of a PNG may follow its pixels."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = tmp_path / "late.png"
    path.write_bytes(make_png(70, 40, exif_after_pixels=exif.tobytes()[6:]))  # less "Exif\0\0"
    assert _sizes(read_image(path)) == [(40, 70)]


def test_a_tiff_is_one_page_per_image(tmp_path: Path) -> None:
    """Pages of a TIFF are numbered from 1, each with its own size, and a range chooses among them."""
    path = tmp_path / "fax.tiff"
    first, *rest = [_noise(10 * number, 20) for number in (1, 2, 3)]
    first.save(path, save_all=True, append_images=rest)
    pages = read_image(path)
    assert [page.name for page in pages] == ["fax-p1", "fax-p2", "fax-p3"]
    assert _sizes(pages) == [(10, 20), (20, 20), (30, 20)]
    (third,) = read_image(path, name="letter", page_range="3")
    assert (third.name, third.width) == ("letter-p3", 30)
    assert third.source is not None
    assert third.source.index == 2


def test_a_large_image_is_read_by_its_header(tmp_path: Path, make_png: PngMaker) -> None:
    """A page of 20,000 x 20,000 works, though Pillow by itself refuses to open it."""
    path = tmp_path / "poster.png"
    path.write_bytes(make_png(20_000, 20_000))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    started = time.perf_counter()
    assert _sizes(read_image(path)) == [(20_000, 20_000)]
    assert time.perf_counter() - started < 2


def test_an_image_wider_than_the_limit_is_refused(tmp_path: Path, make_png: PngMaker) -> None:
    """A side over 65,535 pixels is an error that states the limit and the page."""
    path = tmp_path / "tape.png"
    path.write_bytes(make_png(65_536, 1))
    with pytest.raises(PageSizeError, match=r"width in pixels of page 'tape' is 65,536; .* 1 to 65,535"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_a_truncated_image_is_an_error(tmp_path: Path, suffix: str, kept: float) -> None:
    """An image that is cut short is refused with its path, though its header may be whole."""
    path = tmp_path / f"cut{suffix}"
    _noise(200, 100).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CorruptPageError, match=f"cut{suffix}' is damaged: .* Copy or export it again"):
        read_image(path)


def test_a_changed_byte_in_a_png_is_an_error(tmp_path: Path) -> None:
    """PNG carries checksums, so damage to its pixels shows without decoding them."""
    path = tmp_path / "flip.png"
    _noise(200, 100).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CorruptPageError, match=r"the checksum of a b'IDAT' chunk is wrong"):
        read_image(path)


def test_a_jpeg_with_a_preview_behind_it_is_whole(tmp_path: Path) -> None:
    """Bytes after the end marker, as phones append them, are no damage."""
    path = tmp_path / "phone.jpg"
    _noise(70, 40).save(path)
    path.write_bytes(path.read_bytes() + b"preview" * 1000)
    assert _sizes(read_image(path)) == [(70, 40)]


def test_a_png_without_pixels_is_an_error(tmp_path: Path, make_png: PngMaker) -> None:
    """A PNG of header and end alone is no page."""
    path = tmp_path / "hollow.png"
    data = make_png(8, 8)
    path.write_bytes(data[:33] + data[-12:])  # signature 8 + IHDR 25; IEND 12
    with pytest.raises(CorruptPageError, match="no pixels"):
        read_image(path)


# Files that hold no page


@pytest.mark.parametrize("name", ["empty.png", "empty.pdf", "empty"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    """A file of zero bytes is damaged, whatever its name."""
    path = tmp_path / name
    path.touch()
    for read in (read_image, read_pdf):
        with pytest.raises(CorruptPageError, match=rf"{name}' is empty \(0 bytes\)"):
            read(path)


@pytest.mark.parametrize("name", ["no.png", "no.pdf", "deep/er/no.png", "x" * 5000, "nul\0.png"])
def test_a_missing_file_is_an_error(tmp_path: Path, name: str) -> None:
    """A path without a file is a FileNotFoundError, even a path that no file can have."""
    for read in (read_image, read_pdf):
        with pytest.raises(PageFileNotFoundError, match="no page file") as caught:
            read(str(tmp_path / name))
        assert isinstance(caught.value, FileNotFoundError)


def test_a_directory_is_an_error(tmp_path: Path) -> None:
    """A directory is not searched for pages."""
    for read in (read_image, read_pdf):
        with pytest.raises(PageFileUnreadableError, match="is a directory; name the page files"):
            read(tmp_path)


def test_a_pipe_is_an_error(tmp_path: Path) -> None:
    """A named pipe is refused at once; opening it would wait for a writer."""
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    with pytest.raises(PageFileUnreadableError, match="no regular file"):
        read_image(path)


def test_an_unknown_type_lists_the_known_ones(tmp_path: Path) -> None:
    """Another type names its first bytes and the types that work."""
    path = tmp_path / "notes.docx"
    path.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(UnsupportedPageTypeError, match=r"first bytes 50 4b 03 04 .* PNG, JPEG, TIFF, PDF"):
        read_image(path)


def test_other_bytes_under_a_known_name_are_damage(tmp_path: Path) -> None:
    """Text in a .png is reported as damage, not as an unknown type."""
    path = tmp_path / "page.png"
    path.write_text("<html>404</html>")
    with pytest.raises(CorruptPageError, match=r"is named as a PNG but does not begin as one"):
        read_image(path)


def test_images_and_pdfs_are_told_apart(tmp_path: Path, make_pdf: PdfMaker) -> None:
    """A PDF given as an image, and the reverse, say what they are."""
    pdf = tmp_path / "a.pdf"
    pdf.write_bytes(make_pdf([(612, 792)]))
    image = tmp_path / "a.png"
    _noise(8, 8).save(image)
    with pytest.raises(UnsupportedPageTypeError, match=r"is a PDF, not an image\. .* Give it as a PDF"):
        read_image(pdf)
    with pytest.raises(UnsupportedPageTypeError, match=r"is a PNG image, not a PDF\. Give it as an image"):
        read_pdf(image)


# PDFs


def test_pdf_pages_have_their_size_at_the_resolution(tmp_path: Path, make_pdf: PdfMaker) -> None:
    """Points times dpi / 72, rounded up; 144 dpi by default."""
    path = tmp_path / "doc.pdf"
    path.write_bytes(make_pdf([(612, 792), (595.276, 841.89)]))
    pages = read_pdf(path)
    assert [page.name for page in pages] == ["doc-p1", "doc-p2"]
    # 612 * 2, 792 * 2; 595.276 * 2 = 1190.552, 841.89 * 2 = 1683.78
    assert _sizes(pages) == [(1224, 1584), (1191, 1684)]
    # 612 * 150 / 72 = 1275 exactly, 792 * 150 / 72 = 1650; 595.276 * 150 / 72 = 1240.16,
    # 841.89 * 150 / 72 = 1753.9
    assert _sizes(read_pdf(path, dpi=150)) == [(1275, 1650), (1241, 1754)]


def test_page_rotation_is_applied(tmp_path: Path, make_pdf: PdfMaker) -> None:
    """A page turned by 90 degrees has width and height swapped."""
    path = tmp_path / "turned.pdf"
    path.write_bytes(make_pdf([(612, 792)], rotate=90))
    assert _sizes(read_pdf(path, dpi=72)) == [(792, 612)]


def test_a_pdf_of_300_pages_is_read_at_once(tmp_path: Path, make_pdf: PdfMaker) -> None:
    """Sizes come without rendering: 300 pages in well under two seconds."""
    path = tmp_path / "book.pdf"
    path.write_bytes(make_pdf([(600, 700 + number) for number in range(300)]))
    started = time.perf_counter()
    pages = read_pdf(path, dpi=72)
    assert time.perf_counter() - started < 2
    assert _sizes(pages) == [(600, 700 + number) for number in range(300)]
    assert [page.name for page in read_pdf(path, page_range="1,299-")] == [
        "book-p1",
        "book-p299",
        "book-p300",
    ]


def test_an_encrypted_pdf_is_an_error(tmp_path: Path, make_pdf: PdfMaker) -> None:
    """A PDF that asks for a password says so and what to do."""
    path = tmp_path / "secret.pdf"
    path.write_bytes(make_pdf([(612, 792)], encrypted="password"))
    with pytest.raises(EncryptedPdfError, match=r"secret\.pdf' is an encrypted PDF .* save a copy without one"):
        read_pdf(path)


def test_an_encrypted_pdf_without_user_password_is_read(tmp_path: Path, make_pdf: PdfMaker) -> None:
    """Encryption that only restricts editing is no obstacle."""
    path = tmp_path / "locked.pdf"
    path.write_bytes(make_pdf([(612, 792)], encrypted="open"))
    assert _sizes(read_pdf(path, dpi=72)) == [(612, 792)]


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_a_truncated_pdf_is_an_error(tmp_path: Path, make_pdf: PdfMaker, kept: float) -> None:
    """A PDF that is cut short is refused, though PDFium could rebuild some of its pages."""
    path = tmp_path / "cut.pdf"
    data = make_pdf([(612, 792)] * 20)
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CorruptPageError, match=r"cut\.pdf' is damaged"):
        read_pdf(path)


@pytest.mark.parametrize("body", [b"", b"\x00" * 500, b"1 0 obj << /Type /Catalog >> endobj\n"])
def test_a_pdf_without_pages_is_an_error(tmp_path: Path, body: bytes) -> None:
    """A PDF header with nothing to read behind it is damage."""
    path = tmp_path / "bad.pdf"
    path.write_bytes(b"%PDF-1.4\n" + body + b"\n%%EOF\n")
    with pytest.raises(CorruptPageError, match="no pages can be read"):
        read_pdf(path)


def test_a_page_too_large_at_its_resolution_is_an_error(tmp_path: Path, make_pdf: PdfMaker) -> None:
    """14,400 points at 328 dpi are 65,600 pixels, over the limit; at 100 dpi, 20,000, they work."""
    path = tmp_path / "plan.pdf"
    path.write_bytes(make_pdf([(14_400, 14_400)]))
    assert _sizes(read_pdf(path, dpi=100)) == [(20_000, 20_000)]
    with pytest.raises(PageSizeError, match=r"page 'plan-p1' is 65,600; expected .* to 65,535"):
        read_pdf(path, dpi=328)


@pytest.mark.parametrize("dpi", [0, -144, float("nan"), float("inf"), 2401, True, "144", None])
def test_a_resolution_out_of_range_is_refused(tmp_path: Path, make_pdf: PdfMaker, dpi: object) -> None:
    """The resolution is a number above 0 and up to 2,400."""
    path = tmp_path / "doc.pdf"
    path.write_bytes(make_pdf([(612, 792)]))
    with pytest.raises(PageSizeError, match=r"expected a number above 0 and up to 2,400"):
        read_pdf(path, dpi=dpi)


# Ranges and names


@pytest.mark.parametrize(
    ("text", "indices"),
    [("1", (0,)), ("2-3", (1, 2)), ("4-", (3, 4)), (" 5 , 1 - 2 ", (4, 0, 1)), (None, (0, 1, 2, 3, 4))],
)
def test_page_ranges(text: str | None, indices: tuple[int, ...]) -> None:
    """Pages are counted from 1 and kept in the order they are named."""
    assert chosen_pages(text, 5, where="doc.pdf") == indices


@pytest.mark.parametrize("text", ["0", "6", "3-2", "4-6", "6-", "99999999-"])
def test_pages_that_the_file_lacks_are_refused(text: str) -> None:
    """The error says how many pages there are."""
    with pytest.raises(PageRangeError, match=rf"doc\.pdf has pages 1 to 5; '{text}'"):
        chosen_pages(text, 5, where="doc.pdf")


@pytest.mark.parametrize("text", ["", "one", "1,,2", "-3", "1-2-3", "1.5", "²", 3, "9" * 400])
def test_other_forms_of_ranges_are_refused(text: object) -> None:
    """The error shows a form that works."""
    with pytest.raises(PageRangeError, match=r"such as '1-3,7'"):
        chosen_pages(text, 5, where="doc.pdf")


def test_a_page_named_twice_is_refused() -> None:
    """A page counts once."""
    with pytest.raises(PageRangeError, match="name a page twice"):
        chosen_pages("1-3,2", 5, where="doc.pdf")


def test_equal_names_get_a_number_that_no_page_has() -> None:
    """A name that a later page was given is not taken from it."""
    pages = [PageSize(name=name, width=9, height=9) for name in ("a", "a", "a-2", "a")]
    assert [page.name for page in uniquely_named(pages)] == ["a", "a-3", "a-2", "a-4"]


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_a_page_needs_a_name(name: object) -> None:
    """A blank name is refused."""
    with pytest.raises(PageSizeError, match="the name of a page"):
        PageSize(name=name, width=1, height=1)


# Damage of any kind


@given(
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "PDF"]),
    position=st.floats(0, 1, exclude_max=True),
    junk=st.binary(min_size=1, max_size=12),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_yields_a_size_or_one_of_our_errors(
    tmp_path: Path, make_pdf: PdfMaker, kind: str, position: float, junk: bytes
) -> None:
    """Bytes overwritten anywhere lead to a size or a WorkloadError, never to another exception."""
    if kind == "PDF":
        data = bytearray(make_pdf([(612, 792), (300, 200)]))
    else:
        buffer = BytesIO()
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        Image.linear_gradient("L").resize((40, 30)).save(buffer, format=kind, exif=exif)
        data = bytearray(buffer.getvalue())
    start = int(position * len(data))
    data[start : start + len(junk)] = junk
    path = tmp_path / "damaged"
    path.write_bytes(data)
    read = read_pdf if kind == "PDF" else read_image
    try:
        pages = read(path)
    except WorkloadError as error:
        pages = ()
        message = str(error)
    else:
        message = "damaged, but readable"
    assert "damaged" in message  # the file's name, or the verdict
    assert all(page.width > 0 and page.height > 0 for page in pages)


def test_real_pages_have_their_sizes(repo_root: Path) -> None:
    """The page images of the published repository, where a checkout has them beside it."""
    folder = repo_root.parent / "shared" / "pages"
    expected = {"show1": (1031, 1171), "show2": (942, 1188), "show3": (934, 1183), "show4": (1156, 1183)}
    if not all((folder / f"{name}.jpg").is_file() for name in expected):
        pytest.skip("the page images are not beside the checkout")
    sizes = {name: _sizes(read_image(folder / f"{name}.jpg"))[0] for name in expected}
    assert sizes == expected
