"""AnalyticModel: a compiled model, free of workload and device; a tree of modules whose leaves are layers."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property

from attrs import field, fields, frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim
from modelmeter.dtypes import DType
from modelmeter.errors import ModelMeterError, UnknownNameError
from modelmeter.expert_counts import Routing, uniform_routing
from modelmeter.layers.base import BaseLayer
from modelmeter.signature import Signature, StoredSignature
from modelmeter.stored import StoredDim, StoredLayer, stored

SCHEMA_VERSION = 2


class UnknownStageError(UnknownNameError):
    """A stage that the model does not have."""


class SizeLimitError(ModelMeterError, ValueError):
    """A size beyond what the model has room for."""


class Exactness(StrEnum):
    """How far a leaf's cost can be trusted."""

    EXACT = "exact"  # counted from shapes
    APPROXIMATED = "approximated"  # rests on an assumption that `Leaf.note` states
    UNCLASSIFIED = "unclassified"  # no rule for the operator: bytes of its tensors, no FLOPs


_NOTHING = StoredDim(0)


@frozen(kw_only=True)
class LeafCost:
    """What one execution of a leaf costs, each dim as text or number: all that an evaluation reads.

    Examples
    --------
    >>> LeafCost(matmul_flops=8, bytes=6).matmul_flops.text
    '8'
    """

    matmul_flops: StoredDim = field(default=_NOTHING, converter=stored)  # FLOPs
    vector_flops: StoredDim = field(default=_NOTHING, converter=stored)  # FLOPs
    tensor_core_flops: StoredDim = field(default=_NOTHING, converter=stored)  # FLOPs
    cuda_core_flops: StoredDim = field(default=_NOTHING, converter=stored)  # FLOPs
    bytes: StoredDim = field(default=_NOTHING, converter=stored)  # bytes moved, unfused
    weight_bytes_read: StoredDim = field(default=_NOTHING, converter=stored)  # bytes of parameters read
    fused_bytes: StoredDim = field(default=_NOTHING, converter=stored)  # bytes, pointwise chains on chip

    @classmethod
    def of(cls, layer: BaseLayer, fused_bytes: StoredDim) -> LeafCost:
        """Return the cost that a layer's methods state."""
        traffic = layer.traffic()
        return cls(
            matmul_flops=layer.matmul_flops(),
            vector_flops=layer.vector_flops(),
            tensor_core_flops=layer.tensor_core_flops(),
            cuda_core_flops=layer.cuda_core_flops(),
            bytes=traffic.bytes,
            weight_bytes_read=traffic.weights_read,
            fused_bytes=fused_bytes,
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """The fields as text, in their order."""
        return tuple(getattr(self, name).text for name in COST_FIELDS)


COST_FIELDS = tuple(attribute.name for attribute in fields(LeafCost))


def _called(signature: Signature | StoredSignature | None) -> Signature | None:
    return signature.signature if isinstance(signature, StoredSignature) else signature


def _built(layer: BaseLayer | StoredLayer) -> BaseLayer:
    return layer.layer if isinstance(layer, StoredLayer) else layer


@frozen(kw_only=True)
class Leaf:
    """One operator call of a module, all folded instances together.

    The layer and the fused bytes may come from a file; they are then built when they are first asked for.
    `cost` is what the file says, or what the layer's methods state; to change the layer of a leaf, evolve it with
    ``cost=None`` as well.
    """

    id: str  # module id, "/" and a name unique in the module and stage
    module: str  # id of the module whose forward runs it
    stage: str
    op: str  # ATen name, such as "aten::linear"
    function: str  # innermost named function of the model's code that ran it
    category: Category
    _layer: BaseLayer | StoredLayer = field(alias="layer", eq=_built)  # cost of one execution
    calls: int  # executions in one run of the stage, all instances together
    _fused_bytes: StoredDim = field(alias="fused_bytes", converter=stored)  # bytes, of one execution
    exactness: Exactness = Exactness.EXACT
    note: str = ""  # the assumption behind an approximation
    _signature: Signature | StoredSignature | None = field(alias="signature", default=None, eq=_called)
    _cost: LeafCost | None = field(alias="cost", default=None, eq=False)  # as read, if it was

    @property
    def layer(self) -> BaseLayer:
        """The analytic layer: the cost of one execution."""
        return _built(self._layer)

    @property
    def signature(self) -> Signature | None:
        """The call as a kernel sees it, which decides its time; None in a model written by hand."""
        return _called(self._signature)

    @property
    def signature_document(self) -> Mapping[str, object] | None:
        """The signature as the file has it, or None when it was never in a file."""
        return self._signature.document if isinstance(self._signature, StoredSignature) else None

    @property
    def fused_bytes(self) -> Dim:
        """Bytes of one execution when pointwise chains stay on chip."""
        return self._fused_bytes.value

    @cached_property
    def cost(self) -> LeafCost:
        """The cost of one execution, in base units."""
        return LeafCost.of(self.layer, self._fused_bytes) if self._cost is None else self._cost

    @cached_property
    def dtype(self) -> DType | None:
        """The type that the layer computes in, or None for one that only moves bytes."""
        if isinstance(self._layer, StoredLayer):
            text = self._layer.document.get("dtype")
            return None if text is None else DType(text)
        dtype = getattr(self._layer, "dtype", None)
        return dtype if isinstance(dtype, DType) else None

    @property
    def layer_document(self) -> Mapping[str, object] | None:
        """The layer as the file has it, or None when it was never in a file."""
        return self._layer.document if isinstance(self._layer, StoredLayer) else None


@frozen(kw_only=True)
class FreeOps:
    """Calls that move nothing: views, by name or by layout."""

    module: str
    stage: str
    op: str
    calls: int


@frozen(kw_only=True)
class ModuleNode:
    """One module of the call graph; instances of one structure are folded, the id saying the pattern."""

    id: str  # such as "model.layers.[1-11].mlp"
    class_name: str
    parent: str | None
    instances: int  # instances folded into this node, over all folded parents
    series: int  # `for N`: instances in series under one parent
    parallel: Mapping[str, int]  # `parfor N` by stage: calls of one instance by one caller
    calls: Mapping[str, int]  # calls in one run of a stage, all instances together
    parameters: int  # elements of the module's own parameters, all instances together
    parameter_bytes: int
    fan_in: int  # modules whose results it reads
    fan_out: int  # modules that read its results
    buffer_bytes: int = 0  # of its own registered buffers, all instances together


@frozen(kw_only=True)
class Edge:
    """Tensors that pass from one module to another."""

    stage: str
    source: str
    target: str
    tensors: int  # in one run of the stage, all instances together
    _bytes: StoredDim = field(alias="bytes", converter=stored)

    @property
    def bytes(self) -> Dim:
        """Bytes of the tensors."""
        return self._bytes.value


@frozen(kw_only=True)
class LiveTensor:
    """A tensor alive at a peak."""

    name: str
    module: str
    op: str
    role: str  # "activation", "input" or "kv_cache"
    _bytes: StoredDim = field(alias="bytes", converter=stored)

    @property
    def bytes(self) -> Dim:
        """Bytes of the tensor."""
        return self._bytes.value

    def bytes_at(self, bindings: Mapping[str, int], *, routing: Routing = uniform_routing) -> int | float:
        """Return the bytes at some sizes, without building an expression."""
        return self._bytes.at(bindings, routing=routing)


@frozen(kw_only=True)
class PeakPoint:
    """A moment in a stage's schedule that can decide its peak memory."""

    at: str  # operator that allocates
    module: str
    _activation_bytes: StoredDim = field(alias="activation_bytes", converter=stored)
    _kv_cache_bytes: StoredDim = field(alias="kv_cache_bytes", converter=stored)
    _input_bytes: StoredDim = field(alias="input_bytes", converter=stored)
    live: tuple[LiveTensor, ...]  # largest first; what is left out is in the sums

    @property
    def activation_bytes(self) -> Dim:
        """Bytes of the results alive."""
        return self._activation_bytes.value

    @property
    def kv_cache_bytes(self) -> Dim:
        """Bytes of keys and values alive."""
        return self._kv_cache_bytes.value

    @property
    def input_bytes(self) -> Dim:
        """Bytes of the stage's inputs alive."""
        return self._input_bytes.value

    @property
    def texts(self) -> tuple[str, str, str]:
        """Activation, KV cache and input bytes as text."""
        return self._activation_bytes.text, self._kv_cache_bytes.text, self._input_bytes.text

    def bytes_at(
        self, bindings: Mapping[str, int], *, routing: Routing = uniform_routing
    ) -> tuple[int | float, int | float, int | float]:
        """Return activation, KV cache and input bytes at some sizes, without building an expression."""
        parts = (self._activation_bytes, self._kv_cache_bytes, self._input_bytes)
        activation, kv_cache, inputs = (part.at(bindings, routing=routing) for part in parts)
        return activation, kv_cache, inputs


@frozen(kw_only=True)
class Stage:
    """A part of the model that runs as one graph, with its memory."""

    name: str
    description: str
    dims: tuple[str, ...]
    weight_bytes: int  # parameters the stage reads, each once
    _kv_cache_bytes: StoredDim = field(alias="kv_cache_bytes", converter=stored)  # left behind
    peaks: tuple[PeakPoint, ...]  # the peak is the largest of them
    # Every call in the order of one run: its position among the stage's leaves or, after those, its free calls. Empty
    # in a model written by hand.
    schedule: tuple[int, ...] = ()

    @property
    def kv_cache_bytes(self) -> Dim:
        """Bytes of keys and values that the stage leaves behind."""
        return self._kv_cache_bytes.value

    @property
    def kv_cache_text(self) -> str:
        """Bytes of keys and values that the stage leaves behind, as text."""
        return self._kv_cache_bytes.text

    def kv_cache_bytes_at(self, bindings: Mapping[str, int], *, routing: Routing = uniform_routing) -> int | float:
        """Return the KV cache's bytes at some sizes, without building an expression."""
        return self._kv_cache_bytes.at(bindings, routing=routing)


def require_room(
    model: str, limits: Mapping[str, int], legend: Mapping[str, str], where: str, sizes: Mapping[str, int]
) -> None:
    """Refuse sizes beyond the limits of a model, as `AnalyticModel.require_room` does.

    Raises
    ------
    SizeLimitError
        When a size is.

    Examples
    --------
    >>> require_room("toy", {"T": 8}, {"T": "tokens in the cache"}, "stage 'decode'", {"T": 9})
    Traceback (most recent call last):
    modelmeter.model.SizeLimitError: stage 'decode' runs at T = 9; toy has room for T up to 8 (tokens in the cache)
    """
    for name, largest in limits.items():
        if sizes.get(name, 0) > largest:
            raise SizeLimitError(
                f"{where} runs at {name} = {sizes[name]:,}; {model} has room for {name} up to {largest:,} "
                f"({legend.get(name, 'size')})"
            )


@frozen(kw_only=True)
class AnalyticModel:
    """A compiled model: symbolic in its dims, loadable without torch."""

    name: str
    variant: Mapping[str, str]  # what tells variants of one model apart, such as dtype and attention
    dims: Mapping[str, str]  # legend of the dims
    parameters: int
    parameter_bytes: int
    load_bytes: int  # bytes alive while the weights are loaded, before a cast; buffers too
    stages: tuple[Stage, ...]
    modules: tuple[ModuleNode, ...]  # parents before children
    leaves: tuple[Leaf, ...]  # in order of first execution, stage by stage
    free: tuple[FreeOps, ...]
    edges: tuple[Edge, ...]
    provenance: Mapping[str, str] = field(factory=dict)  # versions of what made it
    limits: Mapping[str, int] = field(factory=dict)  # largest size of a dim, where the model has one

    @cached_property
    def root(self) -> ModuleNode:
        """The module without a parent."""
        return next(node for node in self.modules if node.parent is None)

    @cached_property
    def buffer_bytes(self) -> int:
        """Bytes of all registered buffers, held as long as the parameters are, whether a stage reads them or not."""
        return sum(node.buffer_bytes for node in self.modules)

    @property
    def held_bytes(self) -> int:
        """Bytes that the model holds before it runs: parameters and buffers."""
        return self.parameter_bytes + self.buffer_bytes

    def stage(self, name: str) -> Stage:
        """Return a stage by name.

        Raises
        ------
        UnknownStageError
            When the model has none of that name; the message lists those it has.
        """
        found = next((stage for stage in self.stages if stage.name == name), None)
        if found is None:
            raise UnknownStageError("stage", name, [stage.name for stage in self.stages])
        return found

    def require_room(self, where: str, bindings: Mapping[str, int]) -> None:
        """Refuse sizes beyond the model's limits.

        Raises
        ------
        SizeLimitError
            When one is; the message starts with `where` and names the limit.
        """
        require_room(self.name, self.limits, self.dims, where, bindings)

    @cached_property
    def leaves_by_stage(self) -> Mapping[str, tuple[Leaf, ...]]:
        """The leaves of each stage, in order of execution."""
        found: dict[str, list[Leaf]] = {stage.name: [] for stage in self.stages}
        for leaf in self.leaves:
            found[leaf.stage].append(leaf)
        return {name: tuple(leaves) for name, leaves in found.items()}

    @cached_property
    def free_by_stage(self) -> Mapping[str, tuple[FreeOps, ...]]:
        """The free calls of each stage, in order of first execution."""
        found: dict[str, list[FreeOps]] = {stage.name: [] for stage in self.stages}
        for free in self.free:
            found[free.stage].append(free)
        return {name: tuple(items) for name, items in found.items()}

    @cached_property
    def parents(self) -> Mapping[str, str | None]:
        """The parent of each module, by id."""
        return {node.id: node.parent for node in self.modules}
