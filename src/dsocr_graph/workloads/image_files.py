"""Sizes of image files from their headers, with the checks for damage that need no decoding."""

from __future__ import annotations

import mmap
import struct
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dsocr_graph.workloads.errors import (
    CorruptPageError,
    PageFileUnreadableError,
    UnsupportedPageTypeError,
    WorkloadError,
)
from dsocr_graph.workloads.page_files import FileType, file_type

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile
    from PIL.TiffImagePlugin import TiffImageFile

# What Pillow's header parsers raise on damaged bytes.
DECODER_ERRORS = (
    SyntaxError, OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
    ArithmeticError, RuntimeError, MemoryError, struct.error, zlib.error,
)  # fmt: skip

EXIF_ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_PIECE = 1 << 20  # bytes read at once when checking


def image_sizes(path: Path) -> tuple[tuple[int, int], ...]:
    """Return width and height in pixels of each page of an image file, its EXIF orientation applied.

    The pixels are not decoded, so a page of 20,000 x 20,000 costs no more than a small one. PNG chunks are
    checked against their checksums; a JPEG has to have its end marker; the strips and tiles of a TIFF have to
    lie in the file. Damage inside the compressed pixels of a JPEG or TIFF shows only when they are decoded. A
    PNG or JPEG is one page; a TIFF is one page per full-resolution image.

    Raises
    ------
    PageFileNotFoundError, PageFileUnreadableError
        No readable file at the path.
    CorruptPageError
        An empty, cut or damaged file.
    UnsupportedPageTypeError
        A file that is no PNG, JPEG or TIFF.
    """
    from PIL.PngImagePlugin import PngImageFile
    from PIL.TiffImagePlugin import TiffImageFile

    with opened_image(path) as (image, file), _damage_reported(path):
        if isinstance(image, TiffImageFile):
            return tuple(_tiff_sizes(image, path))
        if isinstance(image, PngImageFile):
            _check_png(file, path, image)
        else:
            _check_jpeg(file, path)
        width, height = image.size
        return ((height, width) if _orientation(image) in QUARTER_TURNS else (width, height),)


@contextmanager
def opened_image(path: Path) -> Generator[tuple[ImageFile, BinaryIO]]:
    """Open an image lazily with the reader of its type, whatever its size.

    Yields
    ------
    tuple of ImageFile and file object
        The image with its header read, and the file behind it.

    Raises
    ------
    WorkloadError
        As `image_sizes`.
    """
    from PIL import JpegImagePlugin, PngImagePlugin, TiffImagePlugin

    kind = file_type(path)
    # The readers themselves, not Image.open: that refuses large pages by a limit that is global to the
    # process.
    readers: dict[FileType, Callable[[BinaryIO], ImageFile]] = {
        FileType.PNG: PngImagePlugin.PngImageFile,
        FileType.JPEG: JpegImagePlugin.JpegImageFile,
        FileType.TIFF: TiffImagePlugin.TiffImageFile,
    }
    if kind not in readers:
        raise UnsupportedPageTypeError(
            f"{str(path)!r} is a {kind}, not an image. Known image types: {', '.join(readers)}. Give it as a {kind}."
        )
    with _opened(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata on its way to an error or past it
        with _damage_reported(path):
            image = readers[kind](file)
        with image:
            yield image, file


@contextmanager
def _opened(path: Path) -> Generator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise PageFileUnreadableError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    with file:
        yield file


@contextmanager
def _damage_reported(path: Path) -> Generator[None]:
    try:
        yield
    except WorkloadError:
        raise
    except DECODER_ERRORS as error:
        raise _corrupt(path, str(error) or type(error).__name__) from error


def _corrupt(path: Path, reason: str) -> CorruptPageError:
    return CorruptPageError(f"{str(path)!r} is damaged: {reason}. Copy or export it again.")


def _orientation(image: ImageFile) -> int:
    from PIL import Image

    try:
        # The base method: the PNG one decodes the whole image to look for EXIF data after the pixels.
        return int(Image.Image.getexif(image).get(EXIF_ORIENTATION, 1))
    except DECODER_ERRORS:
        return 1  # the published loader takes a page with unreadable EXIF data as it is


def _check_png(file: BinaryIO, path: Path, image: ImageFile) -> None:
    """Check every chunk's checksum up to IEND; take EXIF data that follows the pixels."""
    file.seek(8)
    end = False
    pixels = False
    while not end:
        head = file.read(8)
        if len(head) < 8:
            raise _corrupt(path, "the PNG is cut short, its end chunk is missing")
        length, name = struct.unpack(">I4s", head)
        checksum = zlib.crc32(name)
        kept = bytearray()
        left = length
        while left:
            piece = file.read(min(left, _PIECE))
            if not piece:
                raise _corrupt(path, f"the PNG is cut short, {left:,} bytes of a {name!r} chunk are missing")
            checksum = zlib.crc32(piece, checksum)
            left -= len(piece)
            if name == b"eXIf":
                kept += piece
        if file.read(4) != checksum.to_bytes(4, "big"):
            raise _corrupt(path, f"the checksum of a {name!r} chunk is wrong")
        if name == b"eXIf":
            image.info.setdefault("exif", b"Exif\x00\x00" + bytes(kept))
        pixels |= name == b"IDAT"
        end = name == b"IEND"
    if not pixels:
        raise _corrupt(path, "the PNG has no pixels (no IDAT chunk)")


def _check_jpeg(file: BinaryIO, path: Path) -> None:
    """Look for the end marker after the header, where Pillow has stopped reading."""
    start = file.tell()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # Compressed data never holds the marker. The search runs from the end: cameras append previews after
        # it.
        if data.rfind(b"\xff\xd9", start) < 0:
            raise _corrupt(path, "the JPEG is cut short, its end marker is missing")


def _tiff_sizes(image: TiffImageFile, path: Path) -> Iterator[tuple[int, int]]:
    length = path.stat().st_size
    for frame in range(image.n_frames):
        image.seek(frame)
        tags = image.tag_v2
        reduced_or_mask = int(tags.get(254, 0)) & 0b101
        if frame and reduced_or_mask:
            continue
        offsets = _numbers(tags.get(273, tags.get(324)))
        counts = _numbers(tags.get(279, tags.get(325)))
        if not offsets:
            raise _corrupt(path, f"image {frame + 1} of the TIFF has no pixels (no strips or tiles)")
        # Old writers leave the byte counts out; then only the offsets can be checked.
        ends = [offset + count for offset, count in zip(offsets, counts, strict=False)] or offsets
        if max(ends) > length:
            raise _corrupt(path, f"the TIFF is cut short, image {frame + 1} needs {max(ends):,} bytes of {length:,}")
        # From the tags: whether `size` has the orientation applied depends on Pillow's version.
        width, height = int(tags[256]), int(tags[257])
        yield (height, width) if tags.get(274, 1) in QUARTER_TURNS else (width, height)


def _numbers(value: int | tuple[int, ...] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)
