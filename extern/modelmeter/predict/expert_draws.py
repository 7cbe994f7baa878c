"""Which experts get rows: drawn under uniform routing, as counts of distinct experts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from modelmeter.expert_counts import uniform_routing
from modelmeter.predict.draws import COUNT

SEED = 20261125


@lru_cache(maxsize=512)
def active_expert_draws(experts: int, per_token: int, tokens: int, *, layers: int) -> Sequence[int]:
    """Return distinct experts touched by some tokens: the expectation, then one figure per sampled run.

    Every token picks `per_token` different experts, all equally likely. A sampled figure is the mean over `layers`
    layers that route independently, since layers of one shape are one leaf.

    Parameters
    ----------
    experts, per_token, tokens : int
        E, k and T.
    layers : int
        Layers with a router of their own that one figure stands for.

    Examples
    --------
    >>> counts = active_expert_draws(64, 6, 8, layers=11)
    >>> counts[0], 28 < min(counts) <= max(counts) < 42  # 64 (1 - (1 - 6/64)**8) = 34.9
    (35, True)
    """
    expected = round(uniform_routing(experts, per_token, tokens))
    random = np.random.default_rng((SEED, experts, per_token, tokens))
    return (expected, *(round(_mean_distinct(random, experts, per_token, tokens, layers)) for _ in range(COUNT)))


def _mean_distinct(random: np.random.Generator, experts: int, per_token: int, tokens: int, layers: int) -> float:
    """Count experts that any token picks; a token's picks are the places of its smallest random numbers."""
    if tokens * per_token > 20 * experts:  # the chance that an expert is left out is below exp(-20)
        return experts
    numbers = random.random((layers, tokens, experts))
    picks = np.argpartition(numbers, per_token - 1, axis=-1)[..., :per_token]
    return float(np.mean([len(np.unique(layer)) for layer in picks]))
