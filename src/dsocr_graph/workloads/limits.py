"""The limits of a workload, each stated once, and the one check of whole numbers against them."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dsocr_graph.workloads.errors import WorkloadError

MAX_SIDE = 65_535  # pixels; the largest side that a JPEG can have
MAX_DECODED_PIXELS = 400_000_000  # 20,000 x 20,000: 1.2 GB as RGB; sizes alone are read beyond it
MAX_CONTEXT = 8_192  # tokens; max_position_embeddings of the published model
MAX_BATCH = 4_096  # documents
MAX_DPI = 2_400  # dots per inch


def whole_number(value: object, *, what: str, high: int, error: type[WorkloadError]) -> int:
    """Return `value` if it is an int from 1 to `high`, and raise `error` otherwise.

    A bool is not taken for an int, nor a float that happens to be whole.

    Parameters
    ----------
    value
        What the user gave.
    what
        Subject of the message: what was given and where.
    high
        Largest value allowed.
    error
        Class to raise.

    Raises
    ------
    WorkloadError
        The class given as `error`.

    Examples
    --------
    >>> from dsocr_graph.workloads.errors import PageSizeError
    >>> whole_number(640, what="width of page 'figure'", high=MAX_SIDE, error=PageSizeError)
    640
    >>> whole_number(0, what="width", high=MAX_SIDE, error=PageSizeError)
    Traceback (most recent call last):
    ...
    dsocr_graph.workloads.errors.PageSizeError: width is 0; expected a whole number from 1 to 65,535
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise error(f"{what} is {value!r} ({type(value).__name__}); expected a whole number from 1 to {high:,}")
    if not 1 <= value <= high:
        # Python refuses to write out numbers of thousands of digits.
        shown = f"{value:,}" if value.bit_length() < 100 else f"a number of {value.bit_length():,} bits"
        raise error(f"{what} is {shown}; expected a whole number from 1 to {high:,}")
    return value


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the tail of a message about an unknown name: the nearest known one, then all of them.

    Examples
    --------
    >>> suggestion("bathc", ["batch", "mode"])
    "did you mean 'batch'? Known: batch, mode"
    """
    names = list(known)
    near = get_close_matches(name, names, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(names)}"
