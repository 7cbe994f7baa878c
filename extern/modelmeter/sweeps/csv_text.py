"""CSV lines of arrays: the bytes that Python's csv module writes, several times as fast."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

import numpy as np

from modelmeter.sweeps.sizes import Numbers, runs_of

_Cells = np.ndarray[Any, np.dtype[np.uint8]]
"""Characters of a column, [row, character]; 0 is no character."""

_GROUP = 10_000  # four digits at a time, which are one number of 32 bits


def _fours(texts: Iterable[str]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.frombuffer("".join(texts).encode(), np.uint32)


_DIGITS = _fours(f"{number:04}" for number in range(_GROUP))
_LEADING = _fours(str(number or "").rjust(4, "\0") for number in range(_GROUP))  # without zeros in front
_ZERO = _fours(["0".rjust(4, "\0")])[0]
_AS_INTEGER = 1e15  # whole floats below it are written as an integer and ".0"; from 1e16 on, repr has an exponent


def csv_lines(columns: Iterable[Numbers]) -> bytes:
    r"""Return a line per row: integers in full, floats with the digits that read back to them, NaN empty.

    Examples
    --------
    >>> csv_lines([np.array([1, -20]), np.array([3.0, np.nan]), np.array(["a", "b,c"], dtype=object)])
    b'1,3.0,a\n-20,,"b,c"\n'
    """
    cells = [part for values in columns for part in (_column(values), _same(",", len(values)))]
    cells[-1] = _same("\n", len(cells[-1]))
    characters = np.concatenate(cells, axis=1)
    return characters[characters != 0].tobytes()


def _column(values: Numbers) -> _Cells:
    # Neighbours of a grid are often equal; floats by their bits, as -0.0 and 0.0 are written otherwise.
    starts, lengths = runs_of(len(values), values.view(np.int64) if values.dtype == np.float64 else values)
    write = {"O": _labels, "f": _floats}.get(values.dtype.kind, _integers)
    cells = write(values[starts])
    return cells if len(starts) == len(values) else np.repeat(cells, lengths, axis=0)


def _integers(values: Numbers) -> _Cells:
    size = np.abs(values).astype(np.uint64)
    groups = -(-len(str(size.max())) // 4)
    cells = np.empty((len(values), groups), np.uint32)
    left = size
    for group in reversed(range(groups)):
        above = left // np.uint64(_GROUP)
        four = (left - above * np.uint64(_GROUP)).astype(np.intp)
        cells[:, group] = np.where(above == 0, _LEADING[four], _DIGITS[four])
        left = above
    cells[size == 0, -1] = _ZERO
    digits = cells.view(np.uint8)
    if (values >= 0).all():
        return digits
    sign = np.where(values < 0, ord("-"), 0).astype(np.uint8)
    return np.column_stack((sign, digits))


def _floats(values: Numbers) -> _Cells:
    whole = (np.abs(values) < _AS_INTEGER) & (values == np.rint(values)) & ((values != 0) | ~np.signbit(values))
    if whole.all():
        return np.concatenate((_integers(values.astype(np.int64)), _same(".0", len(values))), axis=1)
    cells = _cells(np.array(list(map(repr, values.tolist())), dtype="S"))
    cells[np.isnan(values)] = 0
    return cells


def _labels(values: Numbers) -> _Cells:
    known: dict[str, int] = {}
    places = [known.setdefault(label, len(known)) for label in values.tolist()]
    return _cells(np.array([_quoted(label).encode() for label in known], dtype="S"))[places]


def _quoted(label: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([label, 0])  # a lone empty field would be quoted
    return text.getvalue().removesuffix(",0\n")


def _cells(texts: np.ndarray[Any, np.dtype[np.bytes_]]) -> _Cells:
    return texts.view(np.uint8).reshape(len(texts), -1)


def _same(text: str, rows: int) -> _Cells:
    return np.broadcast_to(np.frombuffer(text.encode(), np.uint8), (rows, len(text)))
