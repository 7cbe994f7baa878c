"""Spread: how far figures of one kind may be off, as seen where they could be checked, else as stated."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from attrs import frozen

from modelmeter.costs import Draws
from modelmeter.predict.draws import COUNT, log_errors, run_order

FEWEST_RESIDUALS = 8
"""Fewer residuals than these say nothing of the tenth and the ninetieth percentile."""


@frozen(kw_only=True)
class Spread:
    """How far a figure may be off.

    Residuals are resampled: each sampled run gets one of their quantiles. Their median is taken off, as an interval
    says how far a figure may be off and does not correct it.

    Attributes
    ----------
    stated : float
        Standard deviation of the logarithm of true over predicted time, for what residuals cannot show. It counts where
        there are fewer than `FEWEST_RESIDUALS`, or where they are narrower.
    residuals : tuple of float
        Logarithms of measured over predicted time of like figures.

    Examples
    --------
    >>> stated, seen = Spread(stated=0.05), Spread(stated=0.05, residuals=(-0.3, 0.3) * 8)
    >>> round(float(np.log(stated.factors("gemm")).std()), 6), round(float(np.log(seen.factors("gemm")).max()), 6)
    (0.05, 0.3)
    """

    stated: float
    residuals: tuple[float, ...] = ()

    def factors(self, group: str) -> Draws:
        """Return true over predicted time in each sampled run, equal for all figures of a group.

        The group decides which run gets which error: two figures of one group, found by different methods, err most in
        the same run.
        """
        if self._quantiles is None:
            return np.exp(self.stated * log_errors(group))
        return np.exp(self._quantiles[run_order(group)])

    @cached_property
    def _quantiles(self) -> Draws | None:
        """The errors of the sampled runs, ascending; None where the stated spread counts."""
        if len(self.residuals) < FEWEST_RESIDUALS or np.std(self.residuals) < self.stated:
            return None
        quantiles = np.quantile(self.residuals, (np.arange(COUNT) + 0.5) / COUNT)
        return quantiles - np.median(quantiles)
