"""Higher-order operators: what torch.export leaves as graphs inside of a graph, and what `torch.vmap` leaves."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

from dsocr_graph.errors import CaptureError

_batching: Any = importlib.import_module("torch._C")._functorch  # has no types

COND = "cond"
FLEX_ATTENTION = "flex_attention"
_ONCE = frozenset({"wrap", "wrap_with_set_grad_enabled", "tag_activation_checkpoint", "invoke_subgraph", "strict_mode"})
_WHY_NOT = {
    "cond": "which branch runs depends on the values of tensors, so that a run need not be the graph's; analyze it, "
    "which counts the costlier branch",
    "map_impl": "it runs its graph once for each row; write it with an axis for the rows, as torch's operators take it",
    "scan": "it runs its graph once for each step, one after the other; write the steps as a loop over a number that "
    "the model fixes",
    "associative_scan": "how often it runs its graph is up to the kernel; write it with torch.cumsum or the like",
    "while_loop": "how often it runs its graph depends on the values of tensors; let a stage be one round, and say "
    "how often it runs",
    "wrap_with_autocast": "torch.autocast casts inside of operators, where no graph has it; leave it out and build the "
    "model in the type that it runs in",
}
_ANY_OTHER = "leave it out of the module's forward"
_VMAP_STEPS = frozenset({"_add_batch_dim", "_remove_batch_dim"})
_VMAP = "torch._functorch.predispatch"
# Operators whose cost the axis that vmap adds changes by the number of elements alone, beside the pointwise ones.
_MAPPED = frozenset(
    {
        "_assert_tensor_metadata",
        "arange",
        "clone",
        "empty",
        "empty_like",
        "expand",
        "full",
        "full_like",
        "index",
        "index_put_",
        "masked_fill",
        "new_empty",
        "new_full",
        "new_ones",
        "new_zeros",
        "ones",
        "ones_like",
        "select",
        "slice",
        "squeeze",
        "to",
        "unsqueeze",
        "view",
        "where",
        "zeros",
        "zeros_like",
    }
)


@frozen(kw_only=True)
class Inner:
    """A graph that a higher-order operator runs, and what it is given, in the order of its placeholders."""

    graph: Graph
    operands: tuple[Any, ...]


def name_of(node: Node) -> str | None:
    """Return the name of the higher-order operator that a node calls; None where it calls none.

    Examples
    --------
    >>> graph = Graph()
    >>> name_of(graph.call_function(torch.ops.higher_order.cond)), name_of(graph.placeholder("x"))
    ('cond', None)
    """
    return node.target.name() if isinstance(node.target, HigherOrderOperator) else None


def inner_graphs(node: Node) -> tuple[Inner, ...]:
    """Return the graphs that a node runs once, or of which it runs one once; none where it does neither.

    Examples
    --------
    >>> inner_graphs(Graph().call_function(torch.ops.higher_order.scan))
    ()
    """
    name = name_of(node)
    if name == COND:
        _, *branches, operands = node.args
        return tuple(Inner(graph=_graph(branch), operands=tuple(operands)) for branch in branches)  # pyright: ignore[reportArgumentType]
    if name not in _ONCE:
        return ()
    at = next(place for place, argument in enumerate(node.args) if _is_graph(argument))
    operands = [argument for argument in tree_leaves(node.args[at + 1 :]) if not isinstance(argument, str)]
    return (Inner(graph=_graph(node.args[at]), operands=tuple(operands)),)


def refusal(stage: str, node: Node, module: str) -> CaptureError:
    """Return the error for a higher-order operator whose cost cannot be told; the module as "layers.0 (Block)".

    Examples
    --------
    >>> str(refusal("forward", Graph().call_function(torch.ops.higher_order.scan), "(root) (Model)"))[:81]
    "stage 'forward': no lowering for higher-order op scan, in module (root) (Model): "
    """
    name = str(name_of(node))
    return CaptureError(
        f"stage {stage!r}: no lowering for higher-order op {name.removesuffix('_impl')}, in module {module}: "
        f"{_WHY_NOT.get(name, _ANY_OTHER)}"
    )


def _graph(argument: Any) -> Graph:  # noqa: ANN401 - an argument of a node
    return getattr(argument.graph.owning_module, argument.target).graph


def _is_graph(argument: object) -> bool:
    return (
        isinstance(argument, Node)
        and argument.op == "get_attr"
        and isinstance(getattr(argument.graph.owning_module, str(argument.target), None), GraphModule)
    )


# --- vmap


def steps_of_vmap(node: Node) -> bool:
    """Whether a node takes an axis out of torch.vmap's sight, or brings it back; the data stay where they are."""
    return getattr(node.target, "__module__", "") == _VMAP and getattr(node.target, "__name__", "") in _VMAP_STEPS


def physical(value: Any) -> Any:  # noqa: ANN401 - what a node makes
    """Return a tensor with the axes that torch.vmap hides; anything else as it is.

    Examples
    --------
    >>> shapes = []
    >>> torch.vmap(lambda row: shapes.append((row.shape, physical(row).shape)) or row)(torch.ones(3, 4)).shape
    torch.Size([3, 4])
    >>> shapes
    [(torch.Size([4]), torch.Size([3, 4]))]
    """
    while isinstance(value, Tensor) and _batching.is_batchedtensor(value):
        value = _batching.get_unwrapped(value)
    if isinstance(value, list | tuple):
        return [physical(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def require_countable(target: OpOverload, values: Sequence[object], where: str) -> None:
    """Do nothing unless an operator runs under torch.vmap whose cost does not follow from the whole tensors.

    Parameters
    ----------
    target : OpOverload
        The operator.
    values : sequence of object
        What it reads and makes.
    where : str
        Its stage and module, for the message.

    Raises
    ------
    CaptureError
        When it does.
    """
    mapped = any(isinstance(value, Tensor) and _batching.is_batchedtensor(value) for value in tree_leaves(values))
    name = target.name().partition("::")[2].partition(".")[0]
    if mapped and torch.Tag.pointwise not in target.tags and name not in _MAPPED:
        raise CaptureError(
            f"{where}: {target} runs under torch.vmap, which hides an axis from it; write the axis out, as the "
            "operator takes it"
        )
