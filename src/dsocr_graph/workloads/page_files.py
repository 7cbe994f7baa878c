"""Opening a page's file: what is no file, what is empty, and the type by the first bytes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from dsocr_graph.workloads.errors import (
    CorruptPageError,
    PageFileNotFoundError,
    PageFileUnreadableError,
    UnsupportedPageTypeError,
)

PDF_HEADER_WITHIN = 1024  # bytes; readers look for %PDF- this far in


class FileType(StrEnum):
    """Types of files that hold pages."""

    PNG = "PNG"
    JPEG = "JPEG"
    TIFF = "TIFF"
    PDF = "PDF"


_SIGNATURES: dict[bytes, FileType] = {
    b"\x89PNG\r\n\x1a\n": FileType.PNG,
    b"\xff\xd8\xff": FileType.JPEG,
    b"II*\x00": FileType.TIFF,
    b"MM\x00*": FileType.TIFF,
    b"II+\x00": FileType.TIFF,  # BigTIFF
    b"MM\x00+": FileType.TIFF,
}
_SUFFIXES: dict[str, FileType] = {
    ".png": FileType.PNG,
    ".jpg": FileType.JPEG,
    ".jpeg": FileType.JPEG,
    ".tif": FileType.TIFF,
    ".tiff": FileType.TIFF,
    ".pdf": FileType.PDF,
}


def readable_file(path: str | Path, what: str) -> Path:
    """Return the path of a file that exists and is a file.

    Parameters
    ----------
    path
        Path as the user gave it.
    what
        What the file is for, for the message: "page", "profile".

    Raises
    ------
    PageFileNotFoundError
        Nothing at the path, or a name that no file can have.
    PageFileUnreadableError
        A directory or something else that is no regular file.
    """
    file = Path(path)
    try:
        exists, regular, directory = file.exists(), file.is_file(), file.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or one with a NUL
        raise PageFileNotFoundError(f"no {what} file {str(path)!r}: {error}") from error
    if not exists:
        raise PageFileNotFoundError(
            f"no {what} file {str(path)!r}; check the path (looked in {file.absolute().parent})"
        )
    if directory:
        raise PageFileUnreadableError(f"{str(path)!r} is a directory; name the {what} files in it one by one")
    if not regular:
        raise PageFileUnreadableError(f"{str(path)!r} is no regular file; copy it to one first")
    return file


def file_type(path: Path) -> FileType:
    """Return the type of a file by its first bytes; its name does not count.

    Raises
    ------
    PageFileNotFoundError, PageFileUnreadableError
        No readable file at the path.
    CorruptPageError
        An empty file, or one whose name says a known type that its bytes are not.
    UnsupportedPageTypeError
        A file of another type.
    """
    readable_file(path, "page")
    try:
        with path.open("rb") as file:
            head = file.read(PDF_HEADER_WITHIN)
    except OSError as error:
        raise PageFileUnreadableError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    if not head:
        raise CorruptPageError(f"{str(path)!r} is empty (0 bytes); copy or export it again")
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    if b"%PDF-" in head:
        return FileType.PDF
    known = ", ".join(FileType)
    named = _SUFFIXES.get(path.suffix.lower())
    if named is not None:
        raise CorruptPageError(
            f"{str(path)!r} is named as a {named} but does not begin as one (first bytes "
            f"{head[:8].hex(' ')}): it is damaged or of another type. Known types: {known}. Export it again."
        )
    raise UnsupportedPageTypeError(
        f"{str(path)!r} is of no known type (first bytes {head[:8].hex(' ')}). Known types: {known}. "
        "Convert it to one of them."
    )
