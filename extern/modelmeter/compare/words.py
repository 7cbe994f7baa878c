"""Words that reasons share."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN_VALUES = 4
"""Values that a list of them names."""


def arrow(before: float, after: float) -> str:
    """Write two numbers as a change.

    Examples
    --------
    >>> arrow(1600, 2304), arrow(5.75, 4.25)
    ('1,600 → 2,304', '5.75 → 4.25')
    """
    return f"{number(before)} → {number(after)}"


def number(value: float) -> str:
    """Write a number, whole ones without decimals."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.4g}"


def listed(values: Sequence[int | str]) -> str:
    """Write some values, the first of many.

    Examples
    --------
    >>> listed([1, 2, 3, 4, 5])
    '1, 2, 3, 4, ...'
    """
    more = "" if len(values) <= SHOWN_VALUES else ", ..."
    return ", ".join(str(value) for value in values[:SHOWN_VALUES]) + more
