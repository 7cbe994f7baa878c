"""Operator categories: the one list that every layer, report and comparison uses."""

from __future__ import annotations

from enum import StrEnum


class Category(StrEnum):
    """What kind of work an operator does, for grouping cost.

    Examples
    --------
    >>> Category("linear") is Category.LINEAR
    True
    """

    CONVOLUTION = "convolution"
    LINEAR = "linear"
    ATTENTION = "attention"
    NORMALIZATION = "normalization"
    ACTIVATION = "activation"
    ELEMENTWISE = "elementwise"
    EMBEDDING = "embedding"
    ROUTING = "routing"  # softmax, top-k, sort, gather and scatter of a mixture of experts
    DATA_MOVEMENT = "data movement"
    POSITIONAL = "positional"  # RoPE, relative positions, interpolation of position tables
    REDUCTION = "reduction"
    HOST = "host"  # views and calls of modules: time of the host alone, neither FLOPs nor bytes
    UNCLASSIFIED = "unclassified"
