"""Read: an exported program to an op graph; the only reader of fx node.meta."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import attrs
import sympy
import torch
from torch import nn
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from dsocr_graph.errors import CaptureError
from dsocr_graph.exporting import Exported
from dsocr_graph.ir import Argument, OpCall, OpGraph, Role, ScopeFrame, TensorRef, TensorSpec
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.torch_terms import dtype_of, size_in, symbols_of
from modelmeter import dims
from modelmeter.dims import Dim


def graph_of(stage: StageSpec, model: nn.Module, made: Exported) -> OpGraph:
    """Return the op graph of a stage of a model that was exported.

    Raises
    ------
    CaptureError
        When a size depends on data, a dtype has no counterpart, or something in the graph is no ATen operator.

    Examples
    --------
    >>> from dsocr_graph.exporting import exported
    >>> module = nn.Linear(4, 2, device="meta")
    >>> stage = StageSpec(name="forward", description="", module=module, inputs=(torch.empty(3, 4, device="meta"),))
    >>> [call.op for call in graph_of(stage, module, exported(stage, module)).calls]
    ['aten::linear']
    """
    return _Reader(stage, model, made).graph()


def all_paths(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module under every path that leads to it: a shared one belongs to each of its callers."""
    return model.named_modules(remove_duplicate=False)


class _Reader:
    """Reads one exported program; a node after those that it reads."""

    def __init__(self, stage: StageSpec, model: nn.Module, made: Exported) -> None:
        self._stage = stage
        self._held_numbers = made.held
        self._numbers: list[int] = []  # of each call
        self._model = model
        self._program = made.program
        self._classes = {path: type(module).__name__ for path, module in all_paths(model)}
        first = {id(module): path for path, module in model.named_modules()}
        self._first_paths = {path: first[id(module)] for path, module in all_paths(model)}
        self._tensors: list[TensorSpec] = []
        self._ids: dict[Node, Any] = {}  # node -> tensor id, or a tuple of them
        self._storages: dict[int, int] = {}
        self._symbols: Mapping[sympy.Symbol, sympy.Expr] = {}
        self._weights: dict[int, tuple[str, ...]] = {}
        self._where = ""

    def graph(self) -> OpGraph:
        signature = self._program.graph_signature
        targets = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        nodes = list(self._program.graph.nodes)
        users = [node for node in nodes if node.op == "placeholder" and node.name not in targets]
        self._symbols = symbols_of(self._stage, users)
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
            elif node.target is operator.getitem:
                self._ids[node] = self._ids[cast("Node", node.args[0])][cast("int", node.args[1])]
            elif isinstance(node.target, OpOverload):
                call = self._call(node, len(calls))
                if call is not None:
                    calls.append(call)
            elif node.op == "call_function" and not isinstance(node.meta.get("val"), torch.Tensor):
                continue  # arithmetic on sizes
            else:
                raise CaptureError(
                    f"stage {self._stage.name!r}: the graph holds {node.op} {node.target}, which is no ATen operator; "
                    "remove the control flow or the context manager that makes it from the model's forward"
                )
        tensors = tuple(self._with_kv_outputs(outputs))
        return OpGraph(
            stage=self._stage.name,
            dims=tuple(sorted(set().union(*(dims.free_dims(size) for tensor in tensors for size in tensor.shape)))),
            tensors=tensors,
            calls=tuple(attrs.evolve(call, tensors=tensors) for call in calls),
            inputs=tuple(inputs),
            outputs=outputs,
            weights=self._weights,
            held=self._held(calls),
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
                storage = self._tensors[result].storage
                if until > held.get(storage, call.index):
                    held[storage] = until
        return held

    def _with_kv_outputs(self, outputs: tuple[int, ...]) -> Iterator[TensorSpec]:
        cached = {outputs[position] for position in self._stage.kv_outputs}
        for tensor in self._tensors:
            yield attrs.evolve(tensor, role=Role.KV_CACHE) if tensor.id in cached else tensor

    def _parameter_owners(self) -> dict[int, tuple[str, ...]]:
        """Names of the parameters in each storage; a stacked buffer holds those of its experts."""
        owners: dict[int, list[str]] = {}
        for path, parameter in self._model.named_parameters():
            owners.setdefault(_storage_key(parameter), []).append(path)
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
        names = owners.get(_storage_key(live), ()) if live is not None else ()
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
        tensor = self._new_tensor(value, name, role)
        self._ids[node] = tensor
        return tensor

    def _new_tensor(self, value: torch.Tensor, name: str, role: Role) -> int:
        tensor = len(self._tensors)
        key = _storage_key(value)
        storage = self._storages.setdefault(key, len(self._storages))
        self._tensors.append(
            TensorSpec(
                id=tensor,
                name=name,
                shape=tuple(self._dim(size) for size in value.shape),
                strides=tuple(self._dim(size) for size in value.stride()),
                dtype=dtype_of(value.dtype, name),
                role=role,
                storage=storage,
                storage_bytes=self._dim(value.untyped_storage().nbytes()),
            )
        )
        return tensor

    def _dim(self, size: int | torch.SymInt) -> Dim:
        if isinstance(size, int):
            return size
        expr = size.node.expr
        unknown = expr.free_symbols - self._symbols.keys()
        if unknown:
            raise CaptureError(
                f"stage {self._stage.name!r}: a size depends on data ({expr}) at {self._where}; "
                "use operators whose result sizes follow from the input sizes"
            )
        return size_in(expr, self._symbols)

    def _call(self, node: Node, index: int) -> OpCall | None:
        value = node.meta.get("val")
        target = cast("Any", node.target)
        if not _holds_tensor(value):
            return None  # assertions on sizes and sizes themselves
        scope = self._scope(node)
        self._where = f"{target} in {scope[-1].path or '(root)'}"
        custom = node.meta.get("custom") or {}
        if isinstance(value, torch.Tensor):
            results: tuple[int, ...] = (self._add(node, value, node.name, Role.ACTIVATION),)
        else:
            made = [
                self._new_tensor(item, f"{node.name}.{position}", Role.ACTIVATION)
                if isinstance(item, torch.Tensor)
                else None
                for position, item in enumerate(cast("Sequence[Any]", value))
            ]
            self._ids[node] = tuple(made)
            results = tuple(item for item in made if item is not None)
        self._numbers.append(int(custom.get("number", self._numbers[-1] if self._numbers else 0)))
        namespace, _, packet = target._schema.name.partition("::")
        return OpCall(
            index=index,
            op=f"{namespace}::{packet}",
            overload=target._overloadname,
            arguments=self._arguments(node, target._schema),
            results=results,
            scope=scope,
            function=str(custom.get("function", "forward")),
            tensors=(),
        )

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
            return self._dim(size) if isinstance(size, torch.SymInt | int) else str(size)
        if isinstance(value, list | tuple):
            return tuple(self._argument(item) for item in value)
        if value is None or isinstance(value, int | float | str | bool):
            return value
        return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else str(value)

    def _scope(self, node: Node) -> tuple[ScopeFrame, ...]:
        """Return the modules around a call, root first, containers that are only indexed included."""
        counts: dict[str, int] = {}
        path = ""
        prefix = self._stage.root + "." if self._stage.root else ""
        for key, (raw, _) in (node.meta.get("nn_module_stack") or {}).items():
            path = "" if raw == self._stage.root else raw.removeprefix(prefix)
            if path not in self._classes:
                path = ""
            counts[path] = _call_number(key)
        custom = node.meta.get("custom") or {}
        found = str(custom.get("module", path))
        if self._first_paths.get(path) != found:  # else the same module, under the path by which it was called
            path = found
        parts = path.split(".") if path else []
        paths = ["", *(".".join(parts[: end + 1]) for end in range(len(parts)))]
        return tuple(
            ScopeFrame(path=item, class_name=self._classes[item], call=counts.get(item, 0), entered=item in counts)
            for item in paths
            if item in self._classes
        )


def _call_number(key: str) -> int:
    """Return which call of its module a key of `nn_module_stack` stands for; "x@1" is the second."""
    _, _, number = key.rpartition("@")
    return int(number) if number.isdigit() and "@" in key else 0


def _holds_tensor(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    return isinstance(value, list | tuple) and any(isinstance(item, torch.Tensor) for item in value)


def _storage_key(value: torch.Tensor) -> int:
    storage: Any = value.untyped_storage()
    return storage._cdata  # the only identity of a storage that holds no data
