"""Read: an exported program to an op graph; the only reader of fx node.meta."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import attrs
import torch
from attrs import frozen
from torch import nn
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from dsocr_graph.errors import CaptureError
from dsocr_graph.ir import Argument, OpCall, OpGraph, Role, ScopeFrame, TensorRef, TensorSpec
from dsocr_graph.models.stage_spec import StageSpec, example_sizes
from dsocr_graph.tracing.call_places import NUMBER, Places
from dsocr_graph.tracing.exporting import Exported
from dsocr_graph.tracing.higher_order import (
    COND,
    FLEX_ATTENTION,
    Inner,
    inner_graphs,
    name_of,
    physical,
    refusal,
    require_countable,
    steps_of_vmap,
)
from dsocr_graph.tracing.tensor_table import TensorTable, storage_key
from dsocr_graph.tracing.torch_terms import symbols_of
from modelmeter.dim_text import free_dims

Costliest = Callable[[Sequence[Sequence[OpCall]], Mapping[str, int]], int]
"""Which of several alternatives costs most at given sizes of the dims, by its position."""

_BRANCH = (
    "one branch of torch.cond, counted as taken each time: the costlier of the two, by FLOPs and then by bytes, at the "
    "example's sizes"
)


def graph_of(stage: StageSpec, model: nn.Module, made: Exported, costliest: Costliest | None = None) -> OpGraph:
    """Return the op graph of a stage of a model that was exported.

    Parameters
    ----------
    stage : StageSpec
        The stage.
    model : nn.Module
        The model that it is of.
    made : Exported
        The stage as torch exports it.
    costliest : callable, optional
        Which branch of a torch.cond the graph holds; without, a stage that has one is refused.

    Raises
    ------
    CaptureError
        When a size depends on data, a dtype has no counterpart, or something in the graph is no ATen operator.

    Examples
    --------
    >>> from dsocr_graph.tracing.exporting import exported
    >>> module = nn.Linear(4, 2, device="meta")
    >>> stage = StageSpec(name="forward", description="", module=module, inputs=(torch.empty(3, 4, device="meta"),))
    >>> [call.op for call in graph_of(stage, module, exported(stage, module)).calls]
    ['aten::linear']
    """
    return _Reader(stage, model, made, costliest).graph()


class _Reader:
    """Reads one exported program; a node after those that it reads."""

    def __init__(self, stage: StageSpec, model: nn.Module, made: Exported, costliest: Costliest | None) -> None:
        self._stage = stage
        self._costliest = costliest
        self._around: _Around | None = None  # the higher-order call whose graph is being read
        self._held_numbers = made.held
        self._numbers: list[int] = []  # of each call
        self._model = model
        self._program = made.program
        self._places = Places(model, stage.root)
        self._table = TensorTable(stage=stage.name)
        self._ids: dict[Node, Any] = {}  # node -> tensor id, or a tuple of them
        self._weights: dict[int, tuple[str, ...]] = {}

    def graph(self) -> OpGraph:
        signature = self._program.graph_signature
        targets = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        nodes = list(self._program.graph.nodes)
        users = [node for node in nodes if node.op == "placeholder" and node.name not in targets]
        self._table.symbols = symbols_of(self._stage, users)
        kv_inputs = {users[position].name for position in self._stage.kv_inputs}
        owners = self._parameter_owners()
        inputs: list[int] = []
        calls: list[OpCall] = []
        outputs: tuple[int, ...] = ()
        for node in nodes:
            if node.op == "placeholder":
                self._placeholder(node, targets.get(node.name), kv_inputs, owners, inputs)
            elif node.op == "output":
                flat = tree_leaves(node.args[0])
                outputs = tuple(self._ids[item] for item in flat if isinstance(item, Node) and item in self._ids)
            else:
                self._run(node, calls)
        tensors = tuple(self._with_kv_outputs(outputs))
        return OpGraph(
            stage=self._stage.name,
            dims=tuple(sorted(set().union(*(free_dims(size) for tensor in tensors for size in tensor.shape)))),
            tensors=tensors,
            calls=tuple(attrs.evolve(call, tensors=tensors) for call in calls),
            inputs=tuple(inputs),
            outputs=outputs,
            weights=self._weights,
            held=self._held(calls),
        )

    def _run(self, node: Node, calls: list[OpCall]) -> None:
        """Read a node that runs something, or nothing that costs."""
        if node.op == "get_attr":
            self._constant(node)
        elif node.target is operator.getitem:
            self._ids[node] = self._ids[cast("Node", node.args[0])][cast("int", node.args[1])]
        elif isinstance(node.target, OpOverload):
            call = self._call(node, len(calls))
            if call is not None:
                calls.append(call)
        elif name_of(node) == FLEX_ATTENTION:
            calls.append(self._flex_attention(node, len(calls)))
        elif name_of(node) is not None:
            self._higher_order(node, calls)
        elif steps_of_vmap(node):
            self._step_of_vmap(node, calls)
        elif node.op == "call_function" and not isinstance(node.meta.get("val"), torch.Tensor):
            return  # arithmetic on sizes
        else:
            raise CaptureError(
                f"stage {self._stage.name!r}: the graph holds {node.op} {node.target}, which is no ATen operator; "
                "remove the control flow or the context manager that makes it from the model's forward"
            )

    def _step_of_vmap(self, node: Node, calls: list[OpCall]) -> None:
        """Read a step that hides an axis, or brings it back where it was or elsewhere."""
        value = physical(node.meta["val"])
        source = self._ids[cast("Node", node.args[0])]
        self._table.share(value, source)
        if self._table.tensors[source].shape == tuple(self._table.dim(size) for size in value.shape):
            self._ids[node] = source
            return
        moved = self._add(node, value, node.name, Role.ACTIVATION)
        calls.append(
            self._made(
                node,
                len(calls),
                op="aten::movedim",
                overload="int",
                arguments={"self": TensorRef(id=source)},
                results=(moved,),
                scope=self._scope(node),
            )
        )

    def _constant(self, node: Node) -> None:
        """Read an attribute of a graph: a tensor that it holds; graphs are read where they are run."""
        value = getattr(node.graph.owning_module, str(node.target), None)
        if isinstance(value, torch.Tensor):
            self._weights[self._add(node, value, node.name, Role.BUFFER)] = ()

    def _higher_order(self, node: Node, calls: list[OpCall]) -> None:
        """Read what a higher-order operator runs, as if it stood in its place."""
        scope = self._scope(node)
        inner = inner_graphs(node)
        if not inner or (len(inner) > 1 and self._costliest is None):
            raise refusal(self._stage.name, node, f"{scope[-1].path or '(root)'} ({scope[-1].class_name})")
        before, self._around = self._around, _Around(scope=scope, custom=self._custom(node))
        chosen = inner[0] if len(inner) == 1 else inner[self._costlier(inner, calls)]
        results = self._inline(chosen, calls, assumption=_BRANCH if name_of(node) == COND else "")
        self._around = before
        made = node.meta.get("val")
        for value, tensor in zip(tree_leaves(made), results, strict=True):
            self._table.share(value, tensor)
        self._ids[node] = results[0] if isinstance(made, torch.Tensor) else tuple(results)

    def _costlier(self, branches: Sequence[Inner], calls: Sequence[OpCall]) -> int:
        """Return which branch costs most; each is read for that, and forgotten."""
        assert self._costliest is not None
        found: list[tuple[OpCall, ...]] = []
        for branch in branches:
            state, numbers, weights = self._table.state(), len(self._numbers), dict(self._weights)
            own = list(calls)
            self._inline(branch, own)
            table = tuple(self._table.tensors)
            found.append(tuple(attrs.evolve(call, tensors=table) for call in own[len(calls) :]))
            self._table.restore(state)
            self._weights = weights
            del self._numbers[numbers:]
        return self._costliest(found, example_sizes(self._stage))

    def _inline(self, inner: Inner, calls: list[OpCall], assumption: str = "") -> list[int | None]:
        """Read a graph on its operands; return the ids of its results, None for what is no tensor."""
        operands = iter(inner.operands)
        first = len(calls)
        results: list[int | None] = []
        for node in inner.graph.nodes:
            if node.op == "placeholder":
                operand = next(operands)
                if isinstance(operand, Node) and operand in self._ids:
                    self._ids[node] = self._ids[operand]
                    self._table.share(node.meta.get("val"), self._ids[operand])
            elif node.op == "output":
                results = [self._ids.get(item) if isinstance(item, Node) else None for item in tree_leaves(node.args)]
            else:
                self._run(node, calls)
        if assumption:
            calls[first:] = [attrs.evolve(call, assumption=assumption) for call in calls[first:]]
        return results

    def _flex_attention(self, node: Node, index: int) -> OpCall:
        query, key, value, _, mask, scale, options, *_ = node.args
        made = cast("Sequence[torch.Tensor]", node.meta["val"])
        asked = cast("Mapping[str, bool]", options)
        wanted = (True, asked.get("OUTPUT_LOGSUMEXP", False), asked.get("OUTPUT_MAX", False))
        self._ids[node] = tuple(
            self._table.add(item, f"{node.name}.{position}", Role.ACTIVATION) if keep else None
            for position, (item, keep) in enumerate(zip(made, wanted, strict=True))
        )
        given = {"query": query, "key": key, "value": value, "scale": scale}
        blocks = [item for item in cast("Sequence[object]", mask) if isinstance(item, Node) and item in self._ids]
        return self._made(
            node,
            index,
            op=f"higher_order::{FLEX_ATTENTION}",
            overload="",
            arguments={name: self._argument(each) for name, each in {**given, "block_mask": blocks}.items()},
            results=tuple(item for item in self._ids[node] if item is not None),
            scope=self._scope(node),
        )

    def _held(self, calls: Sequence[OpCall]) -> dict[int, int]:
        """Return until which call Python holds each storage, where a function's result was held at all."""
        held: dict[int, int] = {}
        for call, number in zip(calls, self._numbers, strict=True):
            # Of the operators that one Python function runs, the last makes its result.
            if call.index + 1 < len(calls) and self._numbers[call.index + 1] == number:
                continue
            until = bisect_right(self._numbers, self._held_numbers.get(number, -1)) - 1
            for result in call.results:
                storage = self._table.tensors[result].storage
                if until > held.get(storage, call.index):
                    held[storage] = until
        return held

    def _with_kv_outputs(self, outputs: tuple[int, ...]) -> Iterator[TensorSpec]:
        cached = {outputs[position] for position in self._stage.kv_outputs}
        for tensor in self._table.tensors:
            yield attrs.evolve(tensor, role=Role.KV_CACHE) if tensor.id in cached else tensor

    def _parameter_owners(self) -> dict[int, tuple[str, ...]]:
        """Names of the parameters in each storage; a stacked buffer holds those of its experts."""
        owners: dict[int, list[str]] = {}
        for path, parameter in self._model.named_parameters():
            owners.setdefault(storage_key(parameter), []).append(path)
        return {key: tuple(names) for key, names in owners.items()}

    def _placeholder(
        self,
        node: Node,
        target: str | None,
        kv_inputs: set[str],
        owners: Mapping[int, tuple[str, ...]],
        inputs: list[int],
    ) -> None:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return
        if target is None:
            role = Role.KV_CACHE if node.name in kv_inputs else Role.INPUT
            inputs.append(self._add(node, value, node.name, role))
            return
        live = self._live_tensor(target)
        names = owners.get(storage_key(live), ()) if live is not None else ()
        if isinstance(live, nn.Parameter):
            prefix = self._stage.root + "." if self._stage.root else ""
            names = (target.removeprefix(prefix),) if len(names) != 1 else names
        tensor = self._add(node, value, target, Role.PARAMETER if names else Role.BUFFER)
        self._weights[tensor] = names

    def _live_tensor(self, target: str) -> torch.Tensor | None:
        path, _, name = target.rpartition(".")
        try:
            owner = self._stage.module.get_submodule(path)
        except AttributeError:
            return None
        value = getattr(owner, name, None)
        return value if isinstance(value, torch.Tensor) else None

    def _add(self, node: Node, value: torch.Tensor, name: str, role: Role) -> int:
        tensor = self._table.add(value, name, role)
        self._ids[node] = tensor
        return tensor

    def _call(self, node: Node, index: int) -> OpCall | None:
        value = node.meta.get("val")
        target = cast("Any", node.target)
        if not _holds_tensor(value):
            return None  # assertions on sizes and sizes themselves
        scope = self._scope(node)
        self._table.where = f"{target} in {scope[-1].path or '(root)'}"
        mapped = [value, [source.meta.get("val") for source in node.all_input_nodes]]
        require_countable(target, mapped, f"stage {self._stage.name!r}: {self._table.where}")
        value = physical(value)
        if isinstance(value, torch.Tensor):
            results: tuple[int, ...] = (self._add(node, value, node.name, Role.ACTIVATION),)
        else:
            made = [
                self._table.add(item, f"{node.name}.{position}", Role.ACTIVATION)
                if isinstance(item, torch.Tensor)
                else None
                for position, item in enumerate(cast("Sequence[Any]", value))
            ]
            self._ids[node] = tuple(made)
            results = tuple(item for item in made if item is not None)
        namespace, _, packet = target._schema.name.partition("::")
        return self._made(
            node,
            index,
            op=f"{namespace}::{packet}",
            overload=target._overloadname,
            arguments=self._arguments(node, target._schema),
            results=results,
            scope=scope,
        )

    def _made(
        self,
        node: Node,
        index: int,
        *,
        op: str,
        overload: str,
        arguments: dict[str, Argument],
        results: tuple[int, ...],
        scope: tuple[ScopeFrame, ...],
    ) -> OpCall:
        custom = self._custom(node)
        self._numbers.append(int(custom.get("number", self._numbers[-1] if self._numbers else 0)))
        return OpCall(
            index=index,
            op=op,
            overload=overload,
            arguments=arguments,
            results=results,
            scope=scope,
            function=str(custom.get("function", "forward")),
            tensors=(),
        )

    def _custom(self, node: Node) -> Mapping[str, Any]:
        """Return what `CallSites` noted of a node; inside of a higher-order call it may have seen that call alone."""
        custom = node.meta.get("custom") or {}
        return self._around.custom if self._around is not None and NUMBER not in custom else custom

    def _scope(self, node: Node) -> tuple[ScopeFrame, ...]:
        if self._around is None or NUMBER in (node.meta.get("custom") or {}):
            return self._places.of(node)
        read = [self._ids[source] for source in node.all_input_nodes if source in self._ids]
        weights = [self._weights.get(tensor, ()) for tensor in read if isinstance(tensor, int)]
        return self._places.inside(self._around.scope, [name for names in weights for name in names])

    def _arguments(self, node: Node, schema: torch.FunctionSchema) -> dict[str, Argument]:
        named = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
        named.update(node.kwargs)
        return {name: self._argument(value) for name, value in named.items()}

    def _argument(self, value: object) -> Argument:
        if isinstance(value, Node):
            known = self._ids.get(value)
            if isinstance(known, int):
                return TensorRef(id=known)
            if isinstance(known, tuple):
                return tuple(TensorRef(id=item) for item in known if item is not None)
            size = value.meta.get("val")
            return self._table.dim(size) if isinstance(size, torch.SymInt | int) else str(size)
        if isinstance(value, list | tuple):
            return tuple(self._argument(item) for item in value)
        if value is None or isinstance(value, int | float | str | bool):
            return value
        return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else str(value)


@frozen(kw_only=True)
class _Around:
    """The higher-order call whose graph is being read."""

    scope: tuple[ScopeFrame, ...]
    custom: Mapping[str, Any]


def _holds_tensor(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    return isinstance(value, list | tuple) and any(isinstance(item, torch.Tensor) for item in value)
