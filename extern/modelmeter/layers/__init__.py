"""Layers: closed-form costs of the operations that models are made of.

>>> from modelmeter.dtypes import DType
>>> from modelmeter.layers import LAYERS, Linear
>>> LAYERS["Linear"] is Linear
True
>>> Linear(rows=1, in_features=2, out_features=3, bias=False, dtype=DType.BF16).matmul_flops()
12
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from modelmeter.layers.attention import ScaledDotProductAttention
from modelmeter.layers.base import BaseLayer, Operand, Traffic
from modelmeter.layers.combination import Combination
from modelmeter.layers.composite import Child, Module
from modelmeter.layers.convolution import Conv1d, Conv2d, ConvTranspose
from modelmeter.layers.embedding_bag import EmbeddingBag
from modelmeter.layers.factorization import Factorization
from modelmeter.layers.fourier import FourierTransform
from modelmeter.layers.indexing import Embedding, Gather, Scatter, SearchSorted, Sort, TopK
from modelmeter.layers.interpolation import Interpolation
from modelmeter.layers.linear import GroupedLinear, Linear
from modelmeter.layers.matmul import Matmul
from modelmeter.layers.moe import MoEExperts
from modelmeter.layers.movement import DataMovement
from modelmeter.layers.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm, Softmax
from modelmeter.layers.pointwise import Activation, Elementwise, Reduction, Scan
from modelmeter.layers.pointwise_flops import POINTWISE_FLOPS, PointwiseFlops, flops_per_element
from modelmeter.layers.recurrent import Recurrent
from modelmeter.layers.unclassified import Unclassified

__all__ = [
    "LAYERS",
    "POINTWISE_FLOPS",
    "Activation",
    "BaseLayer",
    "BatchNorm",
    "Child",
    "Combination",
    "Conv1d",
    "Conv2d",
    "ConvTranspose",
    "DataMovement",
    "Elementwise",
    "Embedding",
    "EmbeddingBag",
    "Factorization",
    "FourierTransform",
    "Gather",
    "GroupNorm",
    "GroupedLinear",
    "Interpolation",
    "LayerNorm",
    "Linear",
    "Matmul",
    "MoEExperts",
    "Module",
    "Operand",
    "PointwiseFlops",
    "RMSNorm",
    "Recurrent",
    "Reduction",
    "ScaledDotProductAttention",
    "Scan",
    "Scatter",
    "SearchSorted",
    "Softmax",
    "Sort",
    "TopK",
    "Traffic",
    "Unclassified",
    "flops_per_element",
]

LAYERS: Mapping[str, type[BaseLayer]] = MappingProxyType(
    {
        layer.__name__: layer
        for layer in (
            Activation,
            BatchNorm,
            Combination,
            Conv1d,
            Conv2d,
            ConvTranspose,
            DataMovement,
            Elementwise,
            Embedding,
            EmbeddingBag,
            Factorization,
            FourierTransform,
            Gather,
            GroupNorm,
            GroupedLinear,
            Interpolation,
            LayerNorm,
            Linear,
            Matmul,
            MoEExperts,
            Module,
            RMSNorm,
            Recurrent,
            Reduction,
            ScaledDotProductAttention,
            Scan,
            Scatter,
            SearchSorted,
            Softmax,
            Sort,
            TopK,
            Unclassified,
        )
    }
)
"""Every layer by class name: what a stored layer's ``type`` names."""
