"""Capture: a PyTorch model to ATen graphs by torch.export; the only reader of fx node.meta."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, cast

import attrs
import sympy
import torch
from torch import nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from dsocr_graph.errors import CaptureError
from dsocr_graph.exporting import exported
from dsocr_graph.forked import forked, most_processes
from dsocr_graph.ir import (
    Argument,
    CapturedModel,
    ModuleSpec,
    OpCall,
    OpGraph,
    ParameterSpec,
    Role,
    ScopeFrame,
    TensorRef,
    TensorSpec,
)
from dsocr_graph.models.stage_spec import StageSpec, declared_leaves
from modelmeter import dims
from modelmeter.dims import Dim
from modelmeter.dtypes import DType

_DTYPES: Mapping[torch.dtype, DType] = {
    torch.float64: DType.FP64,
    torch.float32: DType.FP32,
    torch.bfloat16: DType.BF16,
    torch.float16: DType.FP16,
    torch.float8_e4m3fn: DType.FP8_E4M3,
    torch.float8_e5m2: DType.FP8_E5M2,
    torch.int64: DType.INT64,
    torch.int32: DType.INT32,
    torch.int16: DType.INT16,
    torch.int8: DType.INT8,
    torch.uint8: DType.UINT8,
    torch.bool: DType.BOOL,
}


def capture(
    model: nn.Module,
    stages: Sequence[StageSpec],
    *,
    name: str,
    variant: Mapping[str, str],
    allow_partial: bool = False,
    processes: int | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> CapturedModel:
    """Capture every stage of a model as an ATen graph.

    Parameters
    ----------
    model : nn.Module
        The model, in evaluation mode, usually on the `meta` device.
    stages : sequence of StageSpec
        What to run, and which dims stay symbolic.
    name : str
        Name of the model.
    variant : mapping of str to str
        What tells this variant of the model from others.
    allow_partial : bool
        Leave out stages that cannot be captured: the variant then says without which it is, the provenance why.
    processes : int, optional
        How many stages are captured at a time, each in a process forked for it; 1 captures them in this one, as to
        debug a model. By default one per core, where forks are safe.
    progress : callable
        Told what is being captured.

    Raises
    ------
    CaptureError
        When torch.export cannot capture a stage, or any stage at all; the error names the module and the operator.
    LostProcessError
        When a process is killed.

    Examples
    --------
    >>> stage = StageSpec(
    ...     name="forward",
    ...     description="one call",
    ...     module=nn.Linear(4, 2, device="meta"),
    ...     inputs=(torch.empty(3, 4, device="meta"),),
    ... )
    >>> captured = capture(stage.module, [stage], name="toy", variant={})
    >>> [call.op for call in captured.graphs[0].calls]
    ['aten::linear']
    """
    graphs: list[OpGraph] = []
    left_out: dict[str, str] = {}
    most = min(len(stages), _most_processes() if processes is None else processes)
    with closing(_outcomes(stages, model, most)) as outcomes:
        for stage in stages:
            progress(f"capturing {stage.name}")
            outcome = next(outcomes)
            if isinstance(outcome, OpGraph):
                graphs.append(outcome)
                continue
            if not (isinstance(outcome, CaptureError) and allow_partial and len(left_out) + 1 < len(stages)):
                raise outcome
            progress(f"left out: {outcome}")
            left_out[stage.name] = str(outcome)
    return CapturedModel(
        name=name,
        variant={**variant, "partial": f"without {', '.join(left_out)}"} if left_out else dict(variant),
        modules=_modules(model),
        parameters=tuple(
            ParameterSpec(name=path, shape=tuple(parameter.shape), dtype=_dtype(parameter.dtype, path))
            for path, parameter in model.named_parameters()
        ),
        graphs=tuple(graphs),
        provenance={
            "torch": torch.__version__.split("+")[0],
            **{f"why without {stage}": reason for stage, reason in left_out.items()},
        },
    )


def _most_processes() -> int:
    return 1 if torch.cuda.is_initialized() else most_processes()  # CUDA does not survive a fork


def _outcomes(stages: Sequence[StageSpec], model: nn.Module, processes: int) -> Generator[OpGraph | Exception]:
    """Yield each stage's graph, or why it has none."""
    if processes > 1:
        yield from forked(lambda number: _capture_in_fork(stages[number], model), len(stages), processes=processes)
        return
    for stage in stages:
        try:
            graph = _capture_stage(stage, model)
        except CaptureError as error:
            yield error
        else:
            yield graph


def _capture_in_fork(stage: StageSpec, model: nn.Module) -> OpGraph:
    torch.set_num_threads(1)  # the threads of torch's pools were not copied: to wait for them would never end
    return _capture_stage(stage, model)


def _modules(model: nn.Module) -> tuple[ModuleSpec, ...]:
    owners: dict[str, list[str]] = {}
    for path, _ in model.named_parameters():
        owners.setdefault(path.rpartition(".")[0], []).append(path)
    return tuple(
        ModuleSpec(path=path, class_name=type(module).__name__, parameters=tuple(owners.get(path, ())))
        for path, module in _all_paths(model)
    )


def _all_paths(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module under every path that leads to it: a shared one belongs to each of its callers."""
    return model.named_modules(remove_duplicate=False)


def _capture_stage(stage: StageSpec, model: nn.Module) -> OpGraph:
    made = exported(stage, model)
    return _Reader(stage, model, made.program, made.held).graph()


class _Reader:
    """Reads one exported program into an OpGraph."""

    def __init__(self, stage: StageSpec, model: nn.Module, program: ExportedProgram, held: Mapping[int, int]) -> None:
        self._stage = stage
        self._held_numbers = held
        self._numbers: list[int] = []  # of each call
        self._model = model
        self._program = program
        self._classes = {path: type(module).__name__ for path, module in _all_paths(model)}
        first = {id(module): path for path, module in model.named_modules()}
        self._first_paths = {path: first[id(module)] for path, module in _all_paths(model)}
        self._tensors: list[TensorSpec] = []
        self._ids: dict[Node, Any] = {}  # node -> tensor id, or a tuple of them
        self._storages: dict[int, int] = {}
        self._symbols: dict[sympy.Symbol, sympy.Expr] = {}
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
        self._symbols = self._dim_symbols(users)
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

    def _dim_symbols(self, users: Sequence[Node]) -> dict[sympy.Symbol, sympy.Expr]:
        """Map torch's renamed symbols (`s77`) back to the declared dims, by the placeholders' shapes."""
        found: dict[sympy.Symbol, sympy.Expr] = {}
        if self._stage.dynamic_shapes is None:
            return found
        for node, declared in zip(users, declared_leaves(self._stage.dynamic_shapes), strict=True):
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor) or declared is None:
                continue
            for axis, dim in declared.items():
                size = value.shape[axis]
                if dim is None or not isinstance(size, torch.SymInt):
                    continue
                expr = size.node.expr
                if isinstance(expr, sympy.Symbol):
                    label = dim.__name__
                    alias = self._stage.aliases.get(label)
                    found[expr] = sympy.sympify(dims.parse(alias) if alias else dims.symbol(label))
        return found

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
                dtype=_dtype(value.dtype, name),
                role=role,
                storage=storage,
                storage_bytes=self._dim(value.untyped_storage().nbytes()),
            )
        )
        return tensor

    def _dim(self, size: Any) -> Dim:
        if isinstance(size, int):
            return size
        expr = size.node.expr
        unknown = expr.free_symbols - self._symbols.keys()
        if unknown:
            raise CaptureError(
                f"stage {self._stage.name!r}: a size depends on data ({expr}) at {self._where}; "
                "use operators whose result sizes follow from the input sizes"
            )
        return _plain(expr, self._symbols)

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

    def _arguments(self, node: Node, schema: Any) -> dict[str, Argument]:
        named = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
        named.update(node.kwargs)
        return {name: self._argument(value) for name, value in named.items()}

    def _argument(self, value: Any) -> Argument:
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
        if isinstance(value, torch.dtype):
            return str(value).removeprefix("torch.")
        return str(value)

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


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    return isinstance(value, list | tuple) and any(isinstance(item, torch.Tensor) for item in value)


def _storage_key(value: torch.Tensor) -> int:
    storage: Any = value.untyped_storage()
    return storage._cdata  # the only identity of a storage that holds no data


def _dtype(dtype: torch.dtype, name: str) -> DType:
    known = _DTYPES.get(dtype)
    if known is None:
        raise CaptureError(
            f"tensor {name!r} has dtype {dtype}, which has no analytic counterpart; "
            f"known are {', '.join(sorted(str(item) for item in _DTYPES))}"
        )
    return known


def _plain(expr: sympy.Expr, symbols: Mapping[sympy.Symbol, sympy.Expr]) -> Dim:
    """Rewrite torch's size expression in our symbols and sympy's own functions."""
    return dims.simplify(_without_torch_functions(expr.xreplace(symbols)))


def _without_torch_functions(expr: Any) -> Any:
    if not expr.args:
        return expr
    arguments = [_without_torch_functions(argument) for argument in expr.args]
    kind = type(expr).__name__
    if kind in {"FloorDiv", "CleanDiv", "IntTrueDiv"}:
        quotient = sympy.expand(arguments[0] / arguments[1])
        return quotient if kind != "FloorDiv" or quotient.is_integer else sympy.floor(quotient)
    if kind in {"PythonMod", "Mod"}:
        quotient = sympy.expand(arguments[0] / arguments[1])
        return sympy.Integer(0) if quotient.is_integer else arguments[0] - arguments[1] * sympy.floor(quotient)
    if kind in {"Max", "Min"}:
        return _extreme(arguments, largest=kind == "Max")
    return expr.func(*arguments)


def _extreme(arguments: Sequence[Any], *, largest: bool) -> Any:
    """Return the largest or smallest argument where that holds for all sizes, else the open Max or Min."""
    for candidate in arguments:
        sign = 1 if largest else -1
        if all(dims.never_negative(sign * (candidate - other)) for other in arguments):
            return candidate
    return (sympy.Max if largest else sympy.Min)(*arguments)
