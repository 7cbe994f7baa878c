"""Spreads: how far the figures of a table may be off, from what was left out of it and predicted from the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

from attrs import field, frozen

from modelmeter.predict.kernel_time import Method
from modelmeter.predict.spread import FEWEST_RESIDUALS, Spread


@frozen(kw_only=True)
class Spreads:
    """The spread of every figure of a table.

    Attributes
    ----------
    stated : mapping of Method to float
        As in `Spread`, by how a figure is found.
    residuals : mapping of (str, Method) to tuple of float
        As in `Spread`, by family of operators and method.

    Examples
    --------
    Too few of a family: those of all families count.

    >>> seen = [("gemm", Method.EXACT, 0.1), ("memory", Method.EXACT, -0.1)]
    >>> Spreads.from_residuals(seen, stated={Method.EXACT: 0.04}).of("gemm", Method.EXACT).residuals
    (0.1, -0.1)
    """

    stated: Mapping[Method, float]
    residuals: Mapping[tuple[str, Method], tuple[float, ...]]
    _made: dict[tuple[str, Method], Spread] = field(factory=dict, init=False, eq=False, repr=False)

    @classmethod
    def from_residuals(cls, residuals: Iterable[tuple[str, Method, float]], *, stated: Mapping[Method, float]) -> Self:
        """Return the spreads by what was seen: family, method, logarithm of measured over predicted time."""
        found: dict[tuple[str, Method], list[float]] = {}
        for family, method, residual in residuals:
            found.setdefault((family, method), []).append(residual)
        return cls(stated=stated, residuals={key: tuple(each) for key, each in found.items()})

    def of(self, family: str, method: Method) -> Spread:
        """Return the spread of a family's figures by a method, seen on other families where there is too little."""
        key = (family, method)
        if key not in self._made:
            seen = self.residuals.get(key, ())
            if len(seen) < FEWEST_RESIDUALS:
                seen = tuple(each for (_, how), some in self.residuals.items() if how is method for each in some)
            self._made[key] = Spread(stated=self.stated[method], residuals=seen)
        return self._made[key]
