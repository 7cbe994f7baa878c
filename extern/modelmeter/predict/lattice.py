"""Lattice: measured points on a grid with gaps, and which of them surround any sizes."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from attrs import field, frozen

Sizes = tuple[float, ...]
"""One number per axis, none negative; in logarithms 0 counts as 1."""


@frozen(kw_only=True)
class Neighbour:
    """A measured point with its share in an answer."""

    sizes: Sizes
    seconds: float
    weight: float  # the weights of an answer add up to 1


@frozen(kw_only=True)
class Surrounding:
    """The measured points around some sizes.

    Attributes
    ----------
    neighbours : tuple of Neighbour
    between : frozenset of int
        Axes along which the sizes lie between measured ones.
    beyond : frozenset of int
        Axes along which they lie outside what was measured; the nearest measured size stands for them.
    """

    neighbours: tuple[Neighbour, ...]
    between: frozenset[int] = frozenset()
    beyond: frozenset[int] = frozenset()

    @property
    def seconds(self) -> float:
        """The mean of the neighbours by their weights, in the logarithm."""
        return math.exp(sum(neighbour.weight * math.log(neighbour.seconds) for neighbour in self.neighbours))


@frozen(kw_only=True)
class _Branch:
    """The points of equal sizes along the axes before; children are branches, or seconds behind the last axis."""

    sizes: tuple[float, ...]  # ascending
    children: tuple[_Branch | float, ...]


@frozen(kw_only=True)
class Lattice:
    """Measured seconds by sizes.

    Attributes
    ----------
    axes : tuple of str
        Names of the axes, the ones that are looked up first in front.
    points : mapping of Sizes to float
        Seconds.

    Examples
    --------
    >>> lattice = Lattice(axes=("n", "m"), points={(8, 1): 2.0, (8, 4): 4.0, (32, 4): 16.0})
    >>> [(neighbour.sizes, neighbour.weight) for neighbour in lattice.around((8, 2)).neighbours]
    [((8, 1), 0.5), ((8, 4), 0.5)]
    """

    axes: tuple[str, ...]
    points: Mapping[Sizes, float] = field(repr=False)

    @classmethod
    def from_columns(cls, columns: Mapping[str, Sequence[float]], seconds: Sequence[float]) -> Lattice:
        """Return the lattice of a table's columns; of equal points the fastest counts, as an engine picks it."""
        points: dict[Sizes, float] = {}
        for sizes, time in zip(zip(*columns.values(), strict=True), seconds, strict=True):
            points[sizes] = min(time, points.get(sizes, math.inf))
        return cls(axes=tuple(columns), points=points)

    def around(self, sizes: Sizes) -> Surrounding:
        """Return the measured points on both sides of each axis, with weights that are linear in the logarithms.

        Axes are looked up one after the other: the sizes that were measured along the second are those at the first
        axis's size, so a grid may have gaps. Outside of what was measured the nearest size stands.
        """
        found = _around(self._root, sizes, axis=0, hold=True)
        assert found is not None  # a lattice has a point, and it stands for all that is outside
        return found

    def between(self, sizes: Sizes) -> Surrounding | None:
        """Return the same without anything that is outside, or None: rows that would have to hold are passed over.

        Examples
        --------
        At n = 2 only m = 1 was measured, so m = 4 comes from n = 1 and n = 4, which have both.

        >>> points = {(1, 1): 1.0, (1, 4): 4.0, (2, 1): 2.0, (4, 1): 4.0, (4, 4): 16.0}
        >>> lattice = Lattice(axes=("n", "m"), points=points)
        >>> [(neighbour.sizes, neighbour.weight) for neighbour in lattice.between((2, 4)).neighbours]
        [((1, 4), 0.5), ((4, 4), 0.5)]
        >>> lattice.between((5, 1)) is None
        True
        """
        return _around(self._root, sizes, axis=0, hold=False)

    @cached_property
    def fastest(self) -> float:
        """The least seconds of any point."""
        return min(self.points.values())

    @cached_property
    def _root(self) -> _Branch | float:
        return _branch(sorted(self.points.items()), depth=0)


def _around(node: _Branch | float, sizes: Sizes, *, axis: int, hold: bool) -> Surrounding | None:
    """Return what surrounds the sizes from an axis on; the neighbours' sizes begin at this axis."""
    if not isinstance(node, _Branch):
        return Surrounding(neighbours=(Neighbour(sizes=(), seconds=node, weight=1.0),))

    def first(positions: Iterable[int]) -> tuple[float, Surrounding] | None:
        for position in positions:
            found = _around(node.children[position], sizes, axis=axis + 1, hold=hold)
            if found is not None:
                return node.sizes[position], found
        return None

    below, above = bisect_left(node.sizes, sizes[axis]), bisect_right(node.sizes, sizes[axis])
    equal = first(range(below, above))
    if equal is not None:
        return _joined([(1.0, *equal)])
    low, high = first(reversed(range(below))), first(range(above, len(node.sizes)))
    if low is not None and high is not None:
        share = log_ratio(sizes[axis], low[0]) / log_ratio(high[0], low[0])
        return _joined([(1.0 - share, *low), (share, *high)], between=axis)
    edge = low or high
    return _joined([(1.0, *edge)], beyond=axis) if hold and edge is not None else None


def _joined(
    parts: Sequence[tuple[float, float, Surrounding]], *, between: int | None = None, beyond: int | None = None
) -> Surrounding:
    """Return surroundings at some sizes of an axis, with shares, as one."""
    return Surrounding(
        neighbours=tuple(
            Neighbour(sizes=(size, *found.sizes), seconds=found.seconds, weight=share * found.weight)
            for share, size, part in parts
            for found in part.neighbours
        ),
        between=frozenset(() if between is None else {between}).union(*(part.between for _, _, part in parts)),
        beyond=frozenset(() if beyond is None else {beyond}).union(*(part.beyond for _, _, part in parts)),
    )


def _branch(points: Sequence[tuple[Sizes, float]], depth: int) -> _Branch | float:
    if depth == len(points[0][0]):
        return points[0][1]
    groups: dict[float, list[tuple[Sizes, float]]] = {}
    for point in points:
        groups.setdefault(point[0][depth], []).append(point)
    return _Branch(sizes=tuple(groups), children=tuple(_branch(group, depth=depth + 1) for group in groups.values()))


def log_ratio(size: float, other: float) -> float:
    """Return the logarithm of a size over another, of which 0 counts as 1."""
    return math.log(max(size, 1) / max(other, 1))
