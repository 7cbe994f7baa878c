"""Progress of a long command, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def progress_lines() -> Callable[[str], None]:
    """Return a function that prints what it is told, after the seconds since now.

    Examples
    --------
    >>> callable(progress_lines())
    True
    """
    start = time.monotonic()

    def show(message: str) -> None:
        print(f"[{time.monotonic() - start:5.1f} s] {message}", file=sys.stderr, flush=True)

    return show
