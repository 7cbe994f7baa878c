"""Reason: one cause of a change, and how much of the change it makes."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from modelmeter.costs import Number


@frozen(kw_only=True)
class Reason:
    """One cause of a change.

    Attributes
    ----------
    text : str
        In words.
    effect : number or None
        What it adds to the change, in the change's unit; None where that is not known.
    raises : bool or None
        Whether it makes more work, where only that is known; None where not even that is.
    parts : tuple of Reason
        What it consists of; their effects add up to its own.
    of_all : bool
        Whether it is a cause of changes in all parts of a total, such as what runs; the words are then the same in all.

    Examples
    --------
    >>> Reason(text="decode mean T 6 → 5", raises=False).way, Reason(text="heads 8 → 16", effect=2.0).way
    (-1, 1)
    """

    text: str
    effect: Number | None = None
    raises: bool | None = None
    parts: tuple[Reason, ...] = ()
    of_all: bool = False

    @property
    def way(self) -> int:
        """1 where it makes more work, -1 where it makes less, 0 where that is not known."""
        if self.effect is not None:
            return (self.effect > 0) - (self.effect < 0)
        return 0 if self.raises is None else 1 if self.raises else -1


def ranked(reasons: Iterable[Reason], difference: Number) -> tuple[Reason, ...]:
    """Return reasons so that those come first that explain a change, the largest before, then what works against it.

    Parameters
    ----------
    reasons : iterable of Reason
        Those of which no more is known keep their order, between the two.
    difference : number
        The whole change.

    Examples
    --------
    >>> made = [Reason(text="a", effect=-1), Reason(text="b", effect=3), Reason(text="c", effect=5)]
    >>> [reason.text for reason in ranked(made, 7)], [reason.text for reason in ranked(made, -1)]
    (['c', 'b', 'a'], ['a', 'c', 'b'])
    """
    sign = (difference > 0) - (difference < 0)
    return tuple(sorted(reasons, key=lambda reason: (-reason.way * sign, -abs(reason.effect or 0))))
