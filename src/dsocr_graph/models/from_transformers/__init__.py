"""Models built from a transformers configuration on `meta`: any that its families take, some by name."""

from __future__ import annotations

from dsocr_graph.models.from_transformers.catalog import CATALOG, TransformersModel, model_from_config
from dsocr_graph.models.from_transformers.variant import TransformersVariant

__all__ = ["CATALOG", "TransformersModel", "TransformersVariant", "model_from_config"]
