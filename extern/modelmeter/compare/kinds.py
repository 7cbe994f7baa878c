"""What a module is, so that modules of several models can be told to be the same thing: its role and its kind."""

from __future__ import annotations

import re

from modelmeter.compare.roles import Node, Part, Role
from modelmeter.compare.side import Side

_OF_EXPERTS = (Part.ROUTER, Part.EXPERTS, Part.SHARED_EXPERTS)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+")
_SAYS_NOTHING = "Activation"  # at the end of the class of a function such as SiLU


def kinds_of(side: Side) -> dict[str, str]:
    """Return what each module is, in words.

    That is its role and the last word of its class, as classes are named after their model first. A router is one
    whatever its class, and so is a block that holds experts, whether it chooses them itself or has a router for that.

    Examples
    --------
    >>> import modelmeter
    >>> from modelmeter.compare.from_report import side_of_report
    >>> from modelmeter.workload import StageRun, Workload, WorkloadItem
    >>> step = StageRun(stage="decode", count=1, bindings={"B": 1, "T": 10})
    >>> workload = Workload(name="step", items=(WorkloadItem(name="one", documents=1, runs=(step,)),))
    >>> model = modelmeter.load("deepseek-ocr", "tiny")
    >>> kinds = kinds_of(side_of_report(modelmeter.evaluate.evaluate(model, workload), label="tiny", model=model))
    >>> for name in ("0.mlp", "[1-11].mlp", "[1-11].mlp.gate", "0.input_layernorm"):
    ...     print(kinds[f"model.layers.{name}"])
    decoder: feed-forward, MLP
    decoder: block of experts
    decoder: router
    decoder: norm, Norm
    """
    holding = {node.parent for node in side.nodes.values() if side.roles[node.id].part in _OF_EXPERTS}
    return {name: _kind(side.nodes.get(name), role, holds_experts=name in holding) for name, role in side.roles.items()}


def _kind(node: Node | None, role: Role, *, holds_experts: bool) -> str:
    if node is None:  # what no module accounts for
        return role.name
    if holds_experts and role.part in {Part.FEED_FORWARD, Part.ROUTER}:
        return f"{role.tower.value}: block of experts"
    return role.name if role.part is Part.ROUTER else f"{role.name}, {_last_word(node.class_name)}"


def _last_word(class_name: str) -> str:
    """Return the last word of a class's name.

    Examples
    --------
    >>> [_last_word(name) for name in ("Qwen3VLTextRMSNorm", "DeepseekV2MLP", "Conv2d", "SiLUActivation", "SiLU")]
    ['Norm', 'MLP', 'Conv2d', 'LU', 'LU']
    """
    return (_WORD.findall(class_name.removesuffix(_SAYS_NOTHING)) or [class_name])[-1]
