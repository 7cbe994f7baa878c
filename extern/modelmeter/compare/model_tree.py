"""The modules of an analytic model as a comparison sees them: their place, their stages and their parameters."""

from __future__ import annotations

from collections.abc import Mapping

from modelmeter.categories import Category
from modelmeter.compare.metrics import Metric
from modelmeter.compare.roles import Node
from modelmeter.compare.side import RESIDENT, UNNAMED, Figures, Piece
from modelmeter.model import AnalyticModel


def nodes_of_model(model: AnalyticModel) -> dict[str, Node]:
    """Return every module, parents before children, with the stages that run it or something below it.

    Examples
    --------
    >>> import modelmeter
    >>> nodes = nodes_of_model(modelmeter.load("deepseek-ocr", "tiny"))
    >>> sorted(nodes["lm_head"].stages), sorted(nodes["model.layers"].stages)
    (['decode', 'prefill'], ['decode', 'prefill'])
    """
    categories: dict[str, set[Category]] = {}
    stages: dict[str, set[str]] = {node.id: set() for node in model.modules}
    for leaf in model.leaves:
        categories.setdefault(leaf.module, set()).add(leaf.category)
        stages[leaf.module].add(leaf.stage)
    for node in reversed(model.modules):  # children before parents
        if node.parent is not None:
            stages[node.parent] |= stages[node.id]
    return {
        node.id: Node(
            id=node.id,
            class_name=node.class_name,
            parent=node.parent,
            instances=node.instances,
            stages=frozenset(stages[node.id]),
            categories=frozenset(categories.get(node.id, ())),
        )
        for node in model.modules
    }


def cached_stages(model: AnalyticModel) -> frozenset[str]:
    """Return the stages that leave keys and values behind.

    Examples
    --------
    >>> import modelmeter
    >>> sorted(cached_stages(modelmeter.load("deepseek-ocr", "tiny")))
    ['decode', 'prefill']
    """
    return frozenset(stage.name for stage in model.stages if stage.kv_cache_text != "0")


def parameter_work(model: AnalyticModel) -> Mapping[Piece, Figures]:
    """Return the parameters that each module holds itself; what no module accounts for has an entry of its own.

    Examples
    --------
    >>> import modelmeter
    >>> model = modelmeter.load("deepseek-ocr", "tiny")
    >>> sum(held[Metric.PARAMETERS] for held in parameter_work(model).values()) == model.parameters
    True
    """
    held: dict[str, Figures] = {
        node.id: {Metric.PARAMETERS: node.parameters, Metric.WEIGHT_BYTES: node.parameter_bytes}
        for node in model.modules
        if node.parameters
    }
    rest = {
        Metric.PARAMETERS: model.parameters - sum(node.parameters for node in model.modules),
        Metric.WEIGHT_BYTES: model.parameter_bytes - sum(node.parameter_bytes for node in model.modules),
    }
    if any(rest.values()):
        held[UNNAMED] = rest
    return {Piece(stage=RESIDENT, module=module): figures for module, figures in held.items()}
