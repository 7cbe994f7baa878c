"""What a node of the ONNX graph says about its call: the module that runs it and the cost of one execution."""

from __future__ import annotations

from collections.abc import Sequence

from dsocr_graph.ir import OpCall
from dsocr_graph.scopes import CallGraph
from modelmeter.dim_text import to_text
from modelmeter.dims import total
from modelmeter.model import AnalyticModel, Exactness, Leaf


class CallMetadata:
    """What each call says about itself: its module and its cost."""

    def __init__(self, graph: CallGraph, model: AnalyticModel) -> None:
        leaves: dict[tuple[str, str], list[Leaf]] = {}
        for leaf in model.leaves:
            leaves.setdefault((leaf.stage, leaf.id.partition("~")[0]), []).append(leaf)
        self._of: dict[tuple[str, int], dict[str, str]] = {}
        for scoped in graph.calls:
            facts = {
                "module": scoped.node or "(root)",
                "function": scoped.call.function,
                **_costs(leaves.get((scoped.stage, f"{scoped.node}/{scoped.name}"), [])),
            }
            for index in scoped.indices:
                self._of[scoped.stage, index] = facts

    def of(self, stage: str, call: OpCall) -> dict[str, str]:
        """Return the facts about one call, by the key of the node's metadata; costs are expressions in dims."""
        frame = call.scope[-1]
        return {"scope": frame.path or "(root)", "class": frame.class_name, **self._of[stage, call.index]}


def _costs(leaves: Sequence[Leaf]) -> dict[str, str]:
    """Return the cost of one execution; without a leaf the call is free."""
    if not leaves:
        return {"free": "true"}
    leaf = leaves[0]
    facts = {
        "category": leaf.category.value,
        "flops": _sum_text(leaf.cost.matmul_flops.text, leaf.cost.vector_flops.text, leaf),
        "bytes": leaf.cost.bytes.text,
        # Folded instances whose neighbours differ are several leaves of one call: the first figure is the first's.
        "fused_bytes": " or ".join(dict.fromkeys(each.cost.fused_bytes.text for each in leaves)),
    }
    if leaf.exactness is not Exactness.EXACT:
        facts |= {"exactness": leaf.exactness.value, "note": leaf.note}
    return facts


def _sum_text(matmul: str, vector: str, leaf: Leaf) -> str:
    if "0" in (matmul, vector):
        return matmul if vector == "0" else vector
    return to_text(total((leaf.cost.matmul_flops.value, leaf.cost.vector_flops.value)))
