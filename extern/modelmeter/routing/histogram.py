"""Routing as measured: a histogram of picks per layer from a file, checked against the layers of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import sympy
from attrs import field, frozen

from modelmeter.expert_counts import distinct_experts
from modelmeter.folded import unfolded
from modelmeter.layers import GroupedLinear, MoEExperts
from modelmeter.model import AnalyticModel
from modelmeter.routing.models import MissingHistogramError, RoutingError, expected_distinct

Counts = Mapping[str, tuple[int, ...]]
"""Picks of each expert, by layer."""


def _as_pairs(counts: Counts) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return what tells histograms apart, which unlike a mapping has a hash."""
    return tuple(sorted(counts.items()))


def _checked_counts(histogram: Histogram, _attribute: object, counts: Counts) -> None:
    if not counts:
        raise RoutingError(f"the histogram {histogram.source} has no layer; give the counts of each, as {{{_EXAMPLE}}}")
    for layer, row in counts.items():
        wrong = [count for count in row if type(count) is not int or count < 0]
        if wrong or not any(row):
            found = f"{wrong[0]!r}" if wrong else "no pick at all"
            raise RoutingError(
                f"the histogram {histogram.source}: layer {layer!r} has {found}; counts are whole numbers from 0 up, "
                "at least one of them above 0"
            )


@frozen(kw_only=True)
class Histogram:
    """Experts as often picked as was counted, layer by layer; the distinct experts are averaged over the layers.

    A leaf of a model stands for all layers that are folded into it, so it gets their mean.

    Raises
    ------
    RoutingError
        Without a layer, or where a count is no whole number from 0 up or a layer has no pick at all.

    Examples
    --------
    >>> counts = {"layers.0": (3, 3, 3, 3), "layers.1": (6, 6, 0, 0)}
    >>> Histogram(source="counts.json", counts=counts)(4, 2, 1), Histogram(source="c", counts=counts)(4, 2, 100)
    (2.0, 3.0)
    """

    source: str  # the file, as it was named
    counts: Counts = field(eq=_as_pairs, validator=_checked_counts)

    @property
    def name(self) -> str:
        """The text that `parse_routing` takes."""
        return f"histogram:{self.source}"

    @property
    def __name__(self) -> str:
        """The name, as functions have it: what a report calls the routing."""
        return self.name

    @property
    def statement(self) -> str:
        """What it assumes."""
        return (
            f"experts are picked as often as counted in {self.source}, tokens independent: sum of 1 - (1 - p_i)**T "
            f"expected, the mean of {len(self.counts)} layers"
        )

    def __call__(self, experts: int, top_k: int, tokens: int) -> float:
        """Return the expected number of distinct experts that some tokens touch.

        Raises
        ------
        RoutingError
            When a layer counts another number of experts, or one that is picked more often than once a token.
        """
        chances = [self._chances(layer, experts, top_k) for layer in self.counts]
        return sum(expected_distinct(each, tokens) for each in chances) / len(chances)

    def require_layers_of(self, model: AnalyticModel) -> None:
        """Do nothing where every layer of a model that routes is counted, expert by expert, and no other.

        Raises
        ------
        RoutingError
            When layers are missing or too many, or count another number of experts.
        """
        routed = routed_layers(model)
        unknown = [layer for layer in self.counts if layer not in routed]
        missing = [layer for layer in routed if layer not in self.counts]
        if unknown or missing:
            raise RoutingError(
                f"the histogram {self.source} is of other layers than {model.name}: it has "
                f"{', '.join(unknown) or 'none'} too many and lacks {', '.join(missing) or 'none'}; name each of "
                f"{', '.join(routed) or 'none'}"
            )
        for experts, top_k in set(routed.values()):
            self(experts, top_k, 1)

    def _chances(self, layer: str, experts: int, top_k: int) -> tuple[float, ...]:
        counts = self.counts[layer]
        if len(counts) != experts:
            raise RoutingError(
                f"{self.source}: layer {layer!r} counts {len(counts)} experts, the model has {experts}; "
                "give one count per expert, 0 for one that was never picked"
            )
        counted = sum(counts) / top_k
        if max(counts) > counted:
            raise RoutingError(
                f"{self.source}: an expert of layer {layer!r} was picked {max(counts)} times by {counted:g} tokens of "
                f"{top_k} experts each; a token picks an expert at most once, so count picks, not probabilities"
            )
        return tuple(count / counted for count in counts)


def read_histogram(path: str | Path, model: AnalyticModel | None = None) -> Histogram:
    """Read how often each expert was picked: JSON, ``{"model.layers.1.mlp.experts": [12, 0, ...], ...}``.

    Every layer of the model that routes must be there, with one count per expert; without a model that is left to
    `Histogram.require_layers_of`.

    Raises
    ------
    MissingHistogramError
        When the file cannot be read.
    RoutingError
        When it is no such document, or of other layers or numbers of experts than the model's.
    """
    try:
        document: object = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise MissingHistogramError(f"cannot read the histogram {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RoutingError(f"the histogram {path} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise RoutingError(f"the histogram {path} must map layers to counts, such as {{{_EXAMPLE}}}")
    given = cast("dict[str, object]", document)
    histogram = Histogram(source=str(path), counts={layer: _counts(path, layer, row) for layer, row in given.items()})
    if model is not None:
        histogram.require_layers_of(model)
    return histogram


_EXAMPLE = '"model.layers.1.mlp.experts": [12, 0, 7]'


def _counts(path: str | Path, layer: str, row: object) -> tuple[int, ...]:
    if not isinstance(row, list):
        raise RoutingError(f"the histogram {path}: layer {layer!r} must have a list of counts, as in {{{_EXAMPLE}}}")
    return tuple(cast("list[Any]", row))


def routed_layers(model: AnalyticModel) -> Mapping[str, tuple[int, int]]:
    """Return experts and experts per token of each layer that routes, by module id, folded layers one by one.

    Examples
    --------
    >>> import modelmeter
    >>> layers = routed_layers(modelmeter.load("deepseek-ocr"))
    >>> len(layers), layers["model.layers.11.mlp.experts"]
    (11, (64, 6))
    """
    found: dict[str, tuple[int, int]] = {}
    for leaf in model.leaves:
        layer = leaf.layer
        if not isinstance(layer, GroupedLinear | MoEExperts):
            continue
        for choice in sympy.sympify(layer.active_experts).atoms(distinct_experts):
            experts, top_k, _ = cast("tuple[Any, Any, Any]", choice.args)
            found |= dict.fromkeys(unfolded(leaf.module), (int(experts), int(top_k)))
    return found
