"""Which category a call belongs to: the layer's own, unless the code around it says otherwise."""

from __future__ import annotations

import re

from dsocr_graph.ir import OpCall
from modelmeter.categories import Category
from modelmeter.layers import BaseLayer, Gather, GroupedLinear, Linear, Matmul, Scatter, Softmax

_POSITIONAL = re.compile(r"rotary|rotate_half|rope|rel_pos|abs_pos|position_bias", re.IGNORECASE)
_NORM_CLASS = re.compile(r"Norm(\d?d)?$")
_ROUTER_CLASS = re.compile(r"(Gate|Router|TopKGate)$")
_ROUTING_FUNCTION = re.compile(r"sort_by_expert|combine_expert|dispatch|rout", re.IGNORECASE)


def category_of(layer: BaseLayer, call: OpCall) -> Category:
    """Return the category of a call.

    Work of functions and modules that are named for positions is positional, whatever the operator. Work of a
    router, and of the functions that move rows to experts and back, is routing, matrix products left out. All work
    of a normalization module is normalization. Products of two activations and softmaxes inside an attention module
    are attention.
    """
    class_name = call.scope[-1].class_name
    if _POSITIONAL.search(call.function) or _POSITIONAL.search(class_name):
        return Category.POSITIONAL
    products = isinstance(layer, Linear | GroupedLinear)
    if not products and (_ROUTER_CLASS.search(class_name) or _ROUTING_FUNCTION.search(call.function)):
        return Category.ROUTING
    if _NORM_CLASS.search(class_name):
        return Category.NORMALIZATION
    if "attention" in class_name.lower() and (
        isinstance(layer, Softmax) or (isinstance(layer, Matmul) and not (layer.left_weight or layer.right_weight))
    ):
        return Category.ATTENTION
    if layer.category is Category.ROUTING:  # the same operators outside a router
        return Category.DATA_MOVEMENT if isinstance(layer, Gather | Scatter) else Category.REDUCTION
    return layer.category
