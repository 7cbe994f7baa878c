"""Metric: the figures that sides are compared by, each with its unit."""

from __future__ import annotations

from enum import StrEnum


class Metric(StrEnum):
    """A figure of a side; the value is its name in tables and files.

    Examples
    --------
    >>> Metric.TIME.unit, Metric("FLOPs") is Metric.FLOPS
    ('s', True)
    """

    PARAMETERS = "parameters"
    WEIGHT_BYTES = "weights"
    DOCUMENTS = "documents"
    CONTEXT_TOKENS = "context tokens"  # of all prefills
    OUTPUT_TOKENS = "output tokens"  # of all documents
    FLOPS = "FLOPs"
    BYTES = "bytes"  # moved, every kernel on its own
    FUSED_BYTES = "fused bytes"  # moved, chains of pointwise kernels on chip
    MEMORY = "peak memory"  # parameters and the largest peak of a stage
    LOAD_MEMORY = "load memory"
    KV_PER_TOKEN = "KV cache per token"  # of one document: what one more token in the context adds
    TIME = "time"
    TTFT = "TTFT"
    TPOT = "TPOT"

    @property
    def unit(self) -> str:
        """The unit, as files name it."""
        return _UNITS[self]


_UNITS = {
    Metric.PARAMETERS: "elements",
    Metric.WEIGHT_BYTES: "bytes",
    Metric.DOCUMENTS: "documents",
    Metric.CONTEXT_TOKENS: "tokens",
    Metric.OUTPUT_TOKENS: "tokens",
    Metric.FLOPS: "FLOPs",
    Metric.BYTES: "bytes",
    Metric.FUSED_BYTES: "bytes",
    Metric.MEMORY: "bytes",
    Metric.LOAD_MEMORY: "bytes",
    Metric.KV_PER_TOKEN: "bytes",
    Metric.TIME: "s",
    Metric.TTFT: "s",
    Metric.TPOT: "s",
}

ADDITIVE = (
    Metric.TIME,
    Metric.FLOPS,
    Metric.BYTES,
    Metric.FUSED_BYTES,
    Metric.PARAMETERS,
    Metric.WEIGHT_BYTES,
)
"""Metrics that parts of a model have as well; parts add up to the total."""

HELD_METRICS = (Metric.MEMORY, Metric.LOAD_MEMORY)
"""Metrics of memory, whose parts are weights and what is alive beside them."""

GATES = {
    "flops": Metric.FLOPS,
    "bytes": Metric.BYTES,
    "time": Metric.TIME,
    "memory": Metric.MEMORY,
    "parameters": Metric.PARAMETERS,
}
"""Totals that a threshold can be set on, by the word a caller writes."""

RANKS = {
    **GATES,
    "fused-bytes": Metric.FUSED_BYTES,
    "weights": Metric.WEIGHT_BYTES,
    "load-memory": Metric.LOAD_MEMORY,
}
"""Totals whose change can be explained, by the word a caller writes."""
