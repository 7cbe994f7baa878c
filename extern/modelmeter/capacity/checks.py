"""Guards of capacity questions, each with the message that a user reads."""

from __future__ import annotations

import math

from modelmeter.capacity.errors import CapacityError


def require_count(value: object, what: str) -> int:
    """Return a whole number from 1 up.

    Examples
    --------
    >>> require_count(0, "batch")
    Traceback (most recent call last):
    modelmeter.capacity.errors.CapacityError: batch is 0; expected a whole number from 1 up
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CapacityError(f"{what} is {value!r}; expected a whole number from 1 up")
    return value


def require_positive(value: object, what: str) -> float:
    """Return a finite number above 0.

    Examples
    --------
    >>> require_positive(-1, "target ttft in seconds")
    Traceback (most recent call last):
    modelmeter.capacity.errors.CapacityError: target ttft in seconds is -1; expected a finite number above 0
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise CapacityError(f"{what} is {value!r}; expected a finite number above 0")
    return value


def require_fraction(value: object, what: str) -> float:
    """Return a number above 0 and up to 1.

    Examples
    --------
    >>> require_fraction(90, "usable")
    Traceback (most recent call last):
    modelmeter.capacity.errors.CapacityError: usable is 90; expected a fraction above 0 and up to 1, such as 0.9
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise CapacityError(f"{what} is {value!r}; expected a fraction above 0 and up to 1, such as 0.9")
    return value
