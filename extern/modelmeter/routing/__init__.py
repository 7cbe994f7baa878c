"""How tokens choose experts: routing models by name, each with the sentence that it rests on."""

from modelmeter.routing.histogram import Histogram, read_histogram, routed_layers
from modelmeter.routing.models import (
    FEWEST,
    LARGEST_EXPONENT,
    MOST,
    UNIFORM,
    MissingHistogramError,
    NamedRouting,
    RoutingError,
    Ruled,
    UnknownRoutingError,
    Zipf,
    expected_distinct,
    inclusion_probabilities,
)
from modelmeter.routing.parse import parse_routing

__all__ = [
    "FEWEST",
    "LARGEST_EXPONENT",
    "MOST",
    "UNIFORM",
    "Histogram",
    "MissingHistogramError",
    "NamedRouting",
    "RoutingError",
    "Ruled",
    "UnknownRoutingError",
    "Zipf",
    "expected_distinct",
    "inclusion_probabilities",
    "parse_routing",
    "read_histogram",
    "routed_layers",
]
