"""Errors of page and profile reading: each says what is wrong, where, what is known and what to do."""

from __future__ import annotations

from dsocr_graph.errors import DsocrGraphError


class WorkloadError(DsocrGraphError):
    """A page, a profile or a combination of both that cannot be used."""


class PageFileNotFoundError(WorkloadError, FileNotFoundError):
    """No file at the path that was given."""


class PageFileUnreadableError(WorkloadError, OSError):
    """Something at the path, but no file that can be read: a directory, a device, a lack of permission."""


class UnsupportedPageTypeError(WorkloadError, ValueError):
    """A file of a type that holds no page for this package."""


class CorruptPageError(WorkloadError, ValueError):
    """An image or PDF that is empty, cut short or damaged."""


class EncryptedPdfError(WorkloadError, ValueError):
    """A PDF that only opens with a password."""


class PageSizeError(WorkloadError, ValueError):
    """A page width, height or resolution out of range."""


class CropGridError(WorkloadError, ValueError):
    """A grid of crops that no page is cut into."""


class PageRangeError(WorkloadError, ValueError):
    """A choice of pages that is not written as one, or that the file does not have."""


class ContextTooLongError(WorkloadError, ValueError):
    """Image, prompt and new tokens together exceed the positions of the model."""


class InvalidProfileError(WorkloadError, ValueError):
    """A profile with an unknown key, a missing key or a value of the wrong type or range."""


class _UnknownNameError(WorkloadError, KeyError):
    def __str__(self) -> str:
        # KeyError shows the repr of its message, quotes and all.
        return str(self.args[0])


class UnknownModeError(_UnknownNameError):
    """No resolution mode of that name."""


class UnknownProfileError(_UnknownNameError):
    """No shipped profile of that name."""
