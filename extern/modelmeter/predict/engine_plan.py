"""Which calls of a stage an engine runs as one kernel: projections of one input, expert blocks, what lies between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cached_property

from attrs import field, frozen

from modelmeter.dim_text import free_dims, to_text
from modelmeter.dims import Dim, simplify
from modelmeter.layers import DataMovement, GroupedLinear, Linear, Matmul, MoEExperts, ScaledDotProductAttention
from modelmeter.model import AnalyticModel, Leaf
from modelmeter.predict.schedule import scheduled_stage
from modelmeter.stored import StoredDim


class Role(StrEnum):
    """What kind of kernel a call belongs to."""

    GEMM = "gemm"  # a product with weights on matrix units
    EXPERTS = "experts"  # all of a module that multiplies by experts
    ATTENTION = "attention"
    OTHER_PRODUCT = "other product"  # convolutions, products of two activations, matrix work in fp32
    STREAMING = "streaming"  # everything else: bound by memory


@frozen(kw_only=True)
class EngineKernel:
    """Calls that run as one kernel.

    Attributes
    ----------
    role : Role
    leaves : tuple of Leaf
        Whose work it is.
    calls : int
        Executions in one run of the stage.
    moved : tuple of StoredDim
        Bytes per leaf of one execution, for a streaming kernel.
    read_back : StoredDim
        Bytes of the results of the products before it, which a table's kernel has written: fusion would have kept them
        on chip.
    """

    role: Role
    leaves: tuple[Leaf, ...]
    calls: int
    moved: tuple[StoredDim, ...] = ()
    read_back: StoredDim = field(factory=lambda: StoredDim(0))

    @cached_property
    def dims(self) -> frozenset[str]:
        """Names of the dims that its sizes depend on."""
        values = [part.value for part in (*self.moved, self.read_back)]
        return frozenset().union(
            *(free_dims(value) for value in values), *(leaf.layer.free_dims() for leaf in self.leaves)
        )


@frozen(kw_only=True)
class _Run:
    """Positions of leaves that run as one kernel; equal ones are counted."""

    role: Role
    positions: tuple[int, ...]
    after: tuple[int, ...] = ()  # of the products before a streaming kernel


def plan_kernels(model: AnalyticModel, name: str) -> tuple[EngineKernel, ...]:
    """Return the kernels of one run of a stage.

    - Linear layers of one module that read the same module's result are one product: query, key and value, or gate and
      up.
    - A module with grouped products is one call, with the sorting, gathering and summing in it.
    - All else between two products is one memory-bound kernel; what fusion leaves no bytes costs nothing.
    - Keys and values are kept in place: appending to them moves the new rows only.

    Raises
    ------
    UnscheduledModelError
        When the model does not say in which order its calls run.
    """
    stage = scheduled_stage(model, name)
    leaves = model.leaves_by_stage[name]
    order = [position for position in stage.schedule if position < len(leaves)]
    inputs = _inputs(model, name, leaves)
    counts = Counter(_runs(leaves, order, inputs))
    appended = _appended(leaves)
    return tuple(_kernel(leaves, run, calls, appended) for run, calls in counts.items())


def _kernel(leaves: Sequence[Leaf], run: _Run, calls: int, appended: Mapping[int, StoredDim]) -> EngineKernel:
    chosen = tuple(leaves[position] for position in run.positions)
    if run.role is not Role.STREAMING:
        return EngineKernel(role=run.role, leaves=chosen, calls=calls)
    moved = tuple(
        appended.get(position, leaf.cost.fused_bytes) for position, leaf in zip(run.positions, chosen, strict=True)
    )
    back: Dim = 0
    for position in run.after:
        cost = leaves[position].cost
        back += cost.bytes.value - cost.fused_bytes.value
    return EngineKernel(role=run.role, leaves=chosen, calls=calls, moved=moved, read_back=StoredDim(simplify(back)))


def _runs(leaves: Sequence[Leaf], order: Sequence[int], inputs: Mapping[int, object]) -> Iterator[_Run]:
    """Cut the order of calls into kernels."""
    expert_modules = {leaf.module for leaf in leaves if isinstance(leaf.layer, GroupedLinear | MoEExperts)}
    role = Role.STREAMING
    product: list[int] = []  # the product that began last; later calls may join it
    streaming: list[int] = []  # memory-bound calls since then
    for position in order:
        own = _role(leaves[position], expert_modules)
        if own is Role.STREAMING:
            streaming.append(position)
            continue
        if product and own is role and _joins(leaves, product, position, inputs, own):
            product.append(position)
            continue
        yield from _closed(role, product, streaming)
        role, product, streaming = own, [position], []
    yield from _closed(role, product, streaming)


def _closed(role: Role, product: Sequence[int], streaming: Sequence[int]) -> Iterator[_Run]:
    if product:
        yield _Run(role=role, positions=tuple(product))
    if streaming:
        after = () if role is Role.EXPERTS else tuple(product)
        yield _Run(role=Role.STREAMING, positions=tuple(streaming), after=after)


def _role(leaf: Leaf, expert_modules: set[str]) -> Role:
    if leaf.module in expert_modules:
        return Role.EXPERTS
    layer = leaf.layer
    if leaf.cost.matmul_flops.text == "0" or (isinstance(layer, Matmul) and layer.k == 1):
        return Role.STREAMING  # an outer product is a multiplication per element
    if isinstance(layer, ScaledDotProductAttention):
        return Role.ATTENTION
    if isinstance(layer, Linear) and layer.runs_on_tensor_cores():
        return Role.GEMM
    return Role.OTHER_PRODUCT


def _joins(
    leaves: Sequence[Leaf], product: Sequence[int], position: int, inputs: Mapping[int, object], role: Role
) -> bool:
    if role is Role.EXPERTS:
        return leaves[position].module == leaves[product[-1]].module
    if role is not Role.GEMM or position in product:
        return False
    return inputs[position] is not None and inputs[position] == inputs[product[-1]]


def _inputs(model: AnalyticModel, stage: str, leaves: Sequence[Leaf]) -> Mapping[int, object]:
    """Return what tells whether two linear layers read one tensor: parent, modules it comes from, and its sizes."""
    sources: dict[str, set[str]] = {}
    for edge in model.edges:
        if edge.stage == stage:
            sources.setdefault(edge.target, set()).add(edge.source)
    found: dict[int, object] = {}
    for position, leaf in enumerate(leaves):
        layer = leaf.layer
        if isinstance(layer, Linear):
            origin = frozenset(sources.get(leaf.module, ()))
            sizes = (to_text(layer.rows), to_text(layer.in_features), layer.dtype)
            found[position] = (model.parents[leaf.module], origin, sizes) if origin else None
    return found


def _appended(leaves: Sequence[Leaf]) -> Mapping[int, StoredDim]:
    """Return the bytes that appending to cached keys or values moves in place: the new rows, read and written."""
    cached = {
        (leaf.module, to_text(_key_elements(leaf.layer)))
        for leaf in leaves
        if isinstance(leaf.layer, ScaledDotProductAttention) and leaf.layer.query_length != leaf.layer.key_length
    }
    found: dict[int, StoredDim] = {}
    for position, leaf in enumerate(leaves):
        layer = leaf.layer
        if not isinstance(layer, DataMovement) or layer.op != "cat" or len(layer.reads) != 2:
            continue
        if (leaf.module, to_text(layer.writes[0].elements)) in cached:
            found[position] = StoredDim(simplify(2 * layer.reads[1].bytes))
    return found


def _key_elements(layer: ScaledDotProductAttention) -> Dim:
    return simplify(layer.batch * layer.kv_heads * layer.key_length * layer.head_dim)
