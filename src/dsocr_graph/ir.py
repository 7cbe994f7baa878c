"""The nouns of the compiler: tensors, scopes, ATen calls and the graph they make; no torch, no networkx."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import cast

from attrs import field, frozen

from modelmeter.dims import Dim, product
from modelmeter.dtypes import DType


class Role(StrEnum):
    """What a tensor is to the model."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    INPUT = "input"
    KV_CACHE = "kv_cache"
    ACTIVATION = "activation"


@frozen(kw_only=True)
class TensorSpec:
    """A tensor as the graph sees it: no data.

    Attributes
    ----------
    id : int
        Position in `OpGraph.tensors`.
    storage : int
        Equal for tensors that share memory; views share the storage of their base.
    """

    id: int
    name: str
    shape: tuple[Dim, ...]  # elements per axis
    strides: tuple[Dim, ...]  # elements between neighbours per axis
    dtype: DType
    role: Role
    storage: int
    storage_bytes: Dim  # bytes of the whole storage, which a view may see in part

    @property
    def elements(self) -> Dim:
        """Elements as indexed; an expanded axis counts in full."""
        return product(self.shape)

    @property
    def stored_elements(self) -> Dim:
        """Elements that exist in memory; an expanded axis (stride 0) counts once."""
        return product(size for size, stride in zip(self.shape, self.strides, strict=True) if stride != 0)

    @property
    def is_weight(self) -> bool:
        """Whether the tensor belongs to the model rather than to a run of it."""
        return self.role in (Role.PARAMETER, Role.BUFFER)


@frozen(kw_only=True)
class ScopeFrame:
    """One module on the path from the root to the module that runs an operator."""

    path: str  # module path, such as "model.layers.0.mlp"; "" is the root
    class_name: str
    call: int  # 0 for the first call of this module in the stage, 1 for the second
    entered: bool = True  # False where code reached in without calling the module: containers, methods


@frozen(kw_only=True)
class TensorRef:
    """A tensor used as an argument, by id."""

    id: int


Argument = TensorRef | int | float | bool | str | None | Dim | tuple["Argument", ...]


@frozen(kw_only=True)
class OpCall:
    """One ATen call: which operator, on which tensors, run by which module."""

    index: int  # position in the schedule
    op: str  # such as "aten::linear"
    overload: str  # such as "default"
    arguments: Mapping[str, Argument]  # by the name in the operator's schema; defaults left out
    results: tuple[int, ...]  # tensor ids
    scope: tuple[ScopeFrame, ...]  # root first
    function: str  # innermost named function of the model's code; "forward" where there is none
    tensors: tuple[TensorSpec, ...] = field(repr=False)  # the graph's table, shared
    assumption: str = ""  # what is taken for granted of whether it runs; "" where it does

    @property
    def module(self) -> str:
        """Path of the module whose forward runs the call."""
        return self.scope[-1].path

    def has(self, name: str) -> bool:
        """Whether an argument was given and is not None."""
        return self.arguments.get(name) is not None

    def tensor(self, name: str) -> TensorSpec:
        """Return a tensor argument.

        Raises
        ------
        KeyError
            When the call has no such argument.
        TypeError
            When the argument is no tensor.
        """
        value = self.arguments[name]
        if not isinstance(value, TensorRef):
            raise TypeError(f"{self.op}: argument {name!r} is {value!r}, not a tensor")
        return self.tensors[value.id]

    def tensor_list(self, name: str) -> tuple[TensorSpec, ...]:
        """Return a list-of-tensors argument, None entries left out."""
        value = self.arguments[name]
        if not isinstance(value, tuple):
            raise TypeError(f"{self.op}: argument {name!r} is {value!r}, not a list of tensors")
        return tuple(self.tensors[item.id] for item in value if isinstance(item, TensorRef))

    def value(self, name: str, default: Argument = None) -> Argument:
        """Return an argument that is no tensor, or the schema's default for it."""
        return self.arguments.get(name, default)

    def integer(self, name: str, default: int) -> int:
        """Return an integer argument, or the schema's default for it."""
        return int(cast("int", self.arguments.get(name, default)))

    @property
    def reads(self) -> tuple[TensorSpec, ...]:
        """Every distinct tensor argument, in order."""
        return tuple(self.tensors[tensor] for tensor in dict.fromkeys(_tensor_ids(tuple(self.arguments.values()))))

    @property
    def writes(self) -> tuple[TensorSpec, ...]:
        """Every result."""
        return tuple(self.tensors[tensor] for tensor in self.results)

    @property
    def result(self) -> TensorSpec:
        """The only result of a call that has one."""
        (tensor,) = self.writes
        return tensor

    @property
    def is_view(self) -> bool:
        """Whether every result shares memory with an argument and nothing was written."""
        if self.op.endswith("_") or self.has("out"):
            return False
        storages = {tensor.storage for tensor in self.reads}
        return bool(self.results) and all(tensor.storage in storages for tensor in self.writes)


def _tensor_ids(value: Argument) -> list[int]:
    if isinstance(value, TensorRef):
        return [value.id]
    if isinstance(value, tuple):
        return [tensor for item in value for tensor in _tensor_ids(item)]
    return []


@frozen(kw_only=True)
class ModuleSpec:
    """A module of the model, run or not."""

    path: str
    class_name: str
    parameters: tuple[str, ...]  # names of its own parameters, tied ones at their first owner


@frozen(kw_only=True)
class ParameterSpec:
    """A parameter of the model."""

    name: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def elements(self) -> int:
        """Number of elements."""
        return int(product(self.shape))

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.elements * self.dtype.itemsize


@frozen(kw_only=True)
class BufferSpec:
    """A registered buffer of the model, persistent or not.

    Examples
    --------
    >>> frequencies = BufferSpec(name="rotary.inv_freq", elements=64, itemsize=2, is_floating=True)
    >>> frequencies.bytes, frequencies.bytes_in(DType.FP32)
    (128, 256)
    """

    name: str
    elements: int  # of its storage, 0 where a parameter or a buffer before it has the same
    itemsize: int  # bytes
    is_floating: bool  # whether a cast of the model casts it

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.elements * self.itemsize

    def bytes_in(self, dtype: DType | None) -> int:
        """Return the size in memory of a model cast to a type; None: as it is."""
        return self.elements * dtype.itemsize if dtype is not None and self.is_floating else self.bytes


@frozen(kw_only=True)
class OpGraph:
    """One stage of a model as ATen calls, in the order in which they run.

    Attributes
    ----------
    held : mapping of int to int
        Storage -> index of the last call during which a Python variable held a tensor in it, where that is known. A
        tensor is not freed before, even if nothing reads it any more.
    """

    stage: str
    dims: tuple[str, ...]  # names of the symbols in the shapes
    tensors: tuple[TensorSpec, ...]
    calls: tuple[OpCall, ...]
    inputs: tuple[int, ...]  # tensor ids of the stage's inputs, parameters and buffers left out
    outputs: tuple[int, ...]
    weights: Mapping[int, tuple[str, ...]]  # tensor id of a parameter or buffer -> names of the parameters in it
    held: Mapping[int, int] = field(factory=dict, repr=False)


@frozen(kw_only=True)
class CapturedModel:
    """A model as captured: its modules, parameters and buffers, and one graph per stage."""

    name: str
    variant: Mapping[str, str]
    modules: tuple[ModuleSpec, ...]  # parents before children
    parameters: tuple[ParameterSpec, ...]
    graphs: tuple[OpGraph, ...]
    provenance: Mapping[str, str]
    buffers: tuple[BufferSpec, ...] = ()
