"""Lattice: measured points on a grid with gaps, and which of them surround any sizes."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from attrs import field, frozen

Sizes = tuple[float, ...]
"""One number per axis; all above 0."""


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
        axis's size, so a grid may have gaps.
        """
        return _around(self._root, sizes, axis=0)

    @cached_property
    def fastest(self) -> float:
        """The least seconds of any point."""
        return min(self.points.values())

    @cached_property
    def _root(self) -> _Branch | float:
        return _branch(sorted(self.points.items()), depth=0)


def _around(node: _Branch | float, sizes: Sizes, *, axis: int) -> Surrounding:
    """Return what surrounds the sizes from an axis on; the neighbours' sizes begin at this axis."""
    if not isinstance(node, _Branch):
        return Surrounding(neighbours=(Neighbour(sizes=(), seconds=node, weight=1.0),))
    chosen = _beside(node.sizes, sizes[axis])
    parts = [(index, share, _around(node.children[index], sizes, axis=axis + 1)) for index, share in chosen]
    outside = len(chosen) == 1 and node.sizes[chosen[0][0]] != sizes[axis]
    return Surrounding(
        neighbours=tuple(
            Neighbour(sizes=(node.sizes[index], *found.sizes), seconds=found.seconds, weight=share * found.weight)
            for index, share, part in parts
            for found in part.neighbours
        ),
        between=frozenset({axis} if len(chosen) > 1 else ()).union(*(part.between for _, _, part in parts)),
        beyond=frozenset({axis} if outside else ()).union(*(part.beyond for _, _, part in parts)),
    )


def _branch(points: Sequence[tuple[Sizes, float]], depth: int) -> _Branch | float:
    if depth == len(points[0][0]):
        return points[0][1]
    groups = _groups(points, depth)
    return _Branch(sizes=tuple(groups), children=tuple(_branch(group, depth=depth + 1) for group in groups.values()))


def _groups(points: Iterable[tuple[Sizes, float]], depth: int) -> dict[float, list[tuple[Sizes, float]]]:
    groups: dict[float, list[tuple[Sizes, float]]] = {}
    for point in points:
        groups.setdefault(point[0][depth], []).append(point)
    return groups


def _beside(sizes: Sequence[float], size: float) -> tuple[tuple[int, float], ...]:
    """Return the positions of the sizes on both sides with their shares; one where it was measured or is outside."""
    position = bisect_left(sizes, size)
    if position == len(sizes):
        return ((position - 1, 1.0),)
    if position == 0 or sizes[position] == size:
        return ((position, 1.0),)
    low, high = sizes[position - 1], sizes[position]
    share = math.log(size / low) / math.log(high / low)
    return ((position - 1, 1.0 - share), (position, share))
