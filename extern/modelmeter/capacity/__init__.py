"""Capacity questions: does it fit, how fast and at what cost, and which devices meet a target."""

from modelmeter.capacity.batching import continuous_memory, serve_continuously
from modelmeter.capacity.clocks import AtEfficiency, clock_of
from modelmeter.capacity.errors import (
    CapacityError,
    DoesNotFitError,
    MissingPriceError,
    NothingMeetsTargetsError,
)
from modelmeter.capacity.fits import MOST, Fit, LargestBatch, fit, largest_batch
from modelmeter.capacity.plan import Candidate, Miss, Plan, Targets, find_plan
from modelmeter.capacity.service import Service
from modelmeter.capacity.throughput import Performance, Prices, cost_per_thousand_pages, serve
from modelmeter.defaults import BATCHES, USABLE

__all__ = [
    "BATCHES",
    "MOST",
    "USABLE",
    "AtEfficiency",
    "Candidate",
    "CapacityError",
    "DoesNotFitError",
    "Fit",
    "LargestBatch",
    "Miss",
    "MissingPriceError",
    "NothingMeetsTargetsError",
    "Performance",
    "Plan",
    "Prices",
    "Service",
    "Targets",
    "clock_of",
    "continuous_memory",
    "cost_per_thousand_pages",
    "find_plan",
    "fit",
    "largest_batch",
    "serve",
    "serve_continuously",
]
