"""Operands of a call from its signature: exact shapes and strides, random values that its operator takes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from dsocr_graph.errors import OperandError
from dsocr_graph.timing.aten import overload_of, plain_argument
from dsocr_graph.timing.memory_limits import available_bytes
from dsocr_graph.timing.operand_values import Place, Random, valid_values
from dsocr_graph.timing.plan import PlannedCall
from modelmeter.dtypes import DType
from modelmeter.predict.expert_loop import GROUPED
from modelmeter.signature import TensorArgument, Value

Arguments = Mapping[str, object]
"""The arguments of one execution, by the names of the operator's schema."""

_LEAST_COLD_BYTES = 600 * 10**6
"""Weights that a CPU does not touch again before this much else was read come from memory. Source: TIMING."""
_MOST_OF_FREE = 0.6  # of the free memory that the pool takes
_COLD_L2 = 5  # L2 sizes; more than 4, so that nothing of the first round is left
_WARM_SHARE = 0.25  # of the last cache: what a call reads beyond it is not all there any more when it begins

_MOST_VARIANTS = 512
_ALIGNMENT = 64  # elements; tensors of torch begin at multiples of 64 bytes at least

TORCH_DTYPES: Mapping[DType, torch.dtype] = {
    DType.FP64: torch.float64,
    DType.FP32: torch.float32,
    DType.BF16: torch.bfloat16,
    DType.FP16: torch.float16,
    DType.FP8_E4M3: torch.float8_e4m3fn,
    DType.FP8_E5M2: torch.float8_e5m2,
    DType.INT64: torch.int64,
    DType.INT32: torch.int32,
    DType.INT16: torch.int16,
    DType.INT8: torch.int8,
    DType.UINT8: torch.uint8,
    DType.BOOL: torch.bool,
    DType.COMPLEX128: torch.complex128,
    DType.COMPLEX64: torch.complex64,
}
"""The types that torch has tensors of."""
_DRAWN = tuple(
    dtype for dtype in TORCH_DTYPES if dtype not in {DType.FP8_E4M3, DType.FP8_E5M2} and not dtype.is_complex
)
"""The types that operands can be made of: torch draws no random numbers in fp8, and a complex one would need two."""


class OperandMaker:
    """Makes the operands of a plan's calls on one device.

    Floating-point operands are windows of pools of random numbers, so that making them costs nothing. Weights come from
    one pool that is larger than the caches: every call begins somewhere in it and every execution takes the next place.
    So it finds its weights in memory, as a model does that reads all its weights in every step. Other operands stay
    where they are from one execution to the next, and are as warm as what a model has just written, unless they are
    large for the caches: then they come from the pool as well. What a call writes to is its own.

    Parameters
    ----------
    calls : sequence of PlannedCall
        All calls that operands will be made for: they decide how large the pools are.
    device : torch.device
        Where the operands live.
    cold_bytes : int
        Size of the pool of weights, at least.
    cache_bytes : int
        Size of the last cache.

    Raises
    ------
    OperandError
        When an operand is of a type that cannot be made.

    Examples
    --------
    >>> from modelmeter.signature import Signature
    >>> x = TensorArgument(dtype=DType.FP32, shape=(3, 4), strides=(8, 1))
    >>> w = TensorArgument(dtype=DType.FP32, shape=(2, 4), strides=(4, 1), weight=True)
    >>> signature = Signature(op="aten::linear", overload="default", arguments={"input": x, "weight": w})
    >>> call = PlannedCall(signature=signature, conditions={}, flops=48, bytes=104, origin="here")
    >>> maker = OperandMaker([call], torch.device("cpu"), cold_bytes=1024, cache_bytes=1 << 20)
    >>> executions = maker.executions(call)
    >>> executions[0]["input"].stride(), executions[0]["weight"].data_ptr() == executions[1]["weight"].data_ptr()
    ((8, 1), False)
    """

    def __init__(
        self, calls: Sequence[PlannedCall], device: torch.device, *, cold_bytes: int, cache_bytes: int
    ) -> None:
        self._device = device
        self._random = Random(device)
        self._warm_bytes = _WARM_SHARE * cache_bytes
        self._warm = self._pools([(call, self._warm_operands(call)) for call in calls], least_bytes=0)
        self._pool = self._pools([(call, self._cold_operands(call)) for call in calls], least_bytes=cold_bytes)
        self._next: dict[DType, int] = dict.fromkeys(self._pool, 0)  # element of the pool that comes next

    def executions(self, call: PlannedCall) -> tuple[Arguments, ...]:
        """Return the arguments of some executions, to be taken in turn.

        They differ in where cold operands lie and, where values decide which part of a weight is read, in these values.

        Raises
        ------
        OperandError
            When no rule says which values the operator takes.
        UnknownOperatorError, OperatorArgumentError
            When this torch does not have the operator.
        """
        signature = call.signature
        overload = overload_of(signature.op, signature.overload)
        plain = {
            name: plain_argument(overload, name, value, self._device)
            for name, value in signature.arguments.items()
            if not dict(_tensors({name: value}))
        }
        tensors = dict(_tensors(signature.arguments))
        self._next = {dtype: self._somewhere(pool) for dtype, pool in self._pool.items()}
        valid = valid_values(call, 0, self._random)
        cold = {place: tensor for place, tensor in self._cold_operands(call).items() if place not in valid}
        others = {place: tensor for place, tensor in tensors.items() if place not in cold and place not in valid}
        shared = self._shared(call, others)
        made: list[Arguments] = []
        for variant in range(self._variants(call, cold.values())):
            values = valid if variant == 0 else valid_values(call, variant, self._random)
            special = {place: _laid_out(values[place], tensors[place]) for place in values}
            made.append(_arguments(signature.arguments, plain, {**shared, **self._cold(cold), **special}))
        return tuple(made)

    def _cold_operands(self, call: PlannedCall) -> dict[Place, TensorArgument]:
        """Return the floating-point operands that a call finds in memory: weights, and what is large for the caches."""
        floating = _floating(call)
        name = call.signature.op.rpartition("::")[2]
        own = name.endswith("_") or name in _OF_POSITIVE  # it writes to them, or cannot take any number
        large = not own and sum(tensor.bytes for tensor in floating.values()) > self._warm_bytes
        return {place: tensor for place, tensor in floating.items() if tensor.weight or large}

    def _warm_operands(self, call: PlannedCall) -> dict[Place, TensorArgument]:
        cold = self._cold_operands(call)
        return {place: tensor for place, tensor in _floating(call).items() if place not in cold}

    def _pools(
        self, calls: Sequence[tuple[PlannedCall, Mapping[Place, TensorArgument]]], *, least_bytes: int
    ) -> dict[DType, Tensor]:
        """Return random numbers by type, enough for the call that needs most."""
        needed: dict[DType, int] = {}
        for call, operands in calls:
            _check_types(call)
            of_call: dict[DType, int] = {}
            for tensor in operands.values():
                of_call[tensor.dtype] = of_call.get(tensor.dtype, 0) + _room(tensor)
            for dtype, elements in of_call.items():
                needed[dtype] = max(needed.get(dtype, least_bytes // dtype.itemsize), elements)
        return {dtype: self._random.normal(elements, TORCH_DTYPES[dtype]) for dtype, elements in needed.items()}

    def _shared(self, call: PlannedCall, places: Mapping[Place, TensorArgument]) -> dict[Place, Tensor]:
        """Return what all executions use: next to each other in the pools; whole numbers are made for the call."""
        begin: dict[DType, int] = {}
        made: dict[Place, Tensor] = {}
        for place, tensor in places.items():
            if tensor.dtype.is_floating:
                start = begin.get(tensor.dtype, 0)
                begin[tensor.dtype] = start + _room(tensor)
                flat = _adapted(self._warm[tensor.dtype][start : start + _span(tensor)], call, place)
            else:
                flat = self._random.whole(_span(tensor), TORCH_DTYPES[tensor.dtype])
            made[place] = _strided(flat, tensor)
        return made

    def _cold(self, places: Mapping[Place, TensorArgument]) -> dict[Place, Tensor]:
        """Return operands at the next place of the pool."""
        made: dict[Place, Tensor] = {}
        for place, tensor in places.items():
            pool, room = self._pool[tensor.dtype], _room(tensor)
            start = self._next[tensor.dtype] if self._next[tensor.dtype] + room <= len(pool) else 0
            self._next[tensor.dtype] = start + room
            made[place] = _strided(pool[start : start + room], tensor)
        return made

    def _somewhere(self, pool: Tensor) -> int:
        """Return an element of a pool at which an operand may begin."""
        return int(self._random.below(max(1, len(pool) // _ALIGNMENT), ()).item()) * _ALIGNMENT

    def _variants(self, call: PlannedCall, cold: Collection[TensorArgument]) -> int:
        """Return how many executions it takes to go once through the pool, within reason."""
        touched = sum(_touched_bytes(call, tensor) for tensor in cold)
        if not touched:
            return 1
        pool = max(self._pool[tensor.dtype].nbytes for tensor in cold)
        return min(max(1, pool // touched), _MOST_VARIANTS)


def cold_bytes(device: torch.device, weight_bytes: int) -> int:
    """Return how large a pool of weights is to be, so that its end pushes its beginning out of the caches.

    On a CPU it is as large as the model's weights where memory allows: how fast memory is read depends on where it
    lies, above all on a virtual machine, and page tables have to come from memory too.

    Parameters
    ----------
    device : torch.device
        Where the pool lies.
    weight_bytes : int
        Of the model.

    Examples
    --------
    >>> cold_bytes(torch.device("cpu"), 10**6)
    600000000
    """
    if device.type == "cpu":
        free = available_bytes(device)
        return max(_LEAST_COLD_BYTES, weight_bytes if free is None else min(weight_bytes, int(_MOST_OF_FREE * free)))
    return _COLD_L2 * cache_bytes(device)


def cache_bytes(device: torch.device) -> int:
    """Return the size of the last cache before the memory.

    Examples
    --------
    >>> cache_bytes(torch.device("cpu")) > 0
    True
    """
    if device.type == "cpu":
        return max(map(_cache_size, _CACHES.glob("index*/size")), default=_USUAL_CACHE)
    return torch.cuda.get_device_properties(device).L2_cache_size


_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")  # of Linux
_USUAL_CACHE = 8 * 2**20  # bytes


def _cache_size(file: Path) -> int:
    """Read a size such as "8192K"."""
    return int(file.read_text(encoding="ascii").strip().removesuffix("K")) * 1024


def _touched_bytes(call: PlannedCall, weight: TensorArgument) -> int:
    """Return how much of an operand one execution reads."""
    signature = call.signature
    if signature.op == GROUPED and weight.weight:
        return weight.bytes * call.conditions["active_experts"] // cast("int", weight.shape[0])
    if signature.op == "aten::embedding" and weight.weight:
        return signature.tensor("indices").elements * cast("int", weight.shape[-1]) * weight.dtype.itemsize
    return weight.bytes


def _adapted(noise: Tensor, call: PlannedCall, place: Place) -> Tensor:
    """Return noise that the operator can be given again and again without leaving ordinary numbers."""
    name = call.signature.op.rpartition("::")[2]
    if name in _OF_POSITIVE:
        return noise.abs()
    if not name.endswith("_"):
        return noise
    if place == ("self", None):
        return noise.clone()  # it is written to
    # Products with other factors would run off to zero, through denormal numbers, which are slow.
    return torch.where(noise < 0, -1.0, 1.0).to(noise.dtype) if name in _BY_FACTOR else noise


_OF_POSITIVE = frozenset({"sqrt", "rsqrt", "log"})  # NaN may take another way through a kernel
_BY_FACTOR = frozenset({"mul_", "div_"})


# --- tensors by signature


def _tensors(arguments: Mapping[str, Value]) -> Iterator[tuple[Place, TensorArgument]]:
    for name, value in arguments.items():
        if isinstance(value, TensorArgument):
            yield (name, None), value
        elif isinstance(value, tuple):
            for position, item in enumerate(value):
                if isinstance(item, TensorArgument):
                    yield (name, position), item


def _arguments(
    arguments: Mapping[str, Value], plain: Mapping[str, object], tensors: Mapping[Place, Tensor]
) -> Arguments:
    """Return what the operator is called with, in the order of the signature."""
    made: dict[str, object] = {}
    for name, value in arguments.items():
        if name in plain:
            made[name] = plain[name]
        elif isinstance(value, tuple):
            made[name] = [tensors.get((name, position)) for position in range(len(value))]
        else:
            made[name] = tensors[name, None]
    return made


def _floating(call: PlannedCall) -> dict[Place, TensorArgument]:
    return {place: tensor for place, tensor in _tensors(call.signature.arguments) if tensor.dtype.is_floating}


def _check_types(call: PlannedCall) -> None:
    for tensor in call.signature.tensors:
        if tensor.dtype not in _DRAWN:
            raise OperandError(
                f"{call.signature.text} takes {tensor.dtype.value}, which operands cannot be made of; known are "
                f"{', '.join(known.value for known in _DRAWN)}. Calibrate a variant of another type"
            )


def _span(tensor: TensorArgument) -> int:
    """Return the elements from the first of a tensor to its last in memory; one at least."""
    sizes = zip(cast("tuple[int, ...]", tensor.shape), cast("tuple[int, ...]", tensor.strides), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in sizes) if tensor.elements else 1


def _room(tensor: TensorArgument) -> int:
    return -(-_span(tensor) // _ALIGNMENT) * _ALIGNMENT


def _strided(flat: Tensor, tensor: TensorArgument) -> Tensor:
    return flat.as_strided(cast("tuple[int, ...]", tensor.shape), cast("tuple[int, ...]", tensor.strides))


def _laid_out(values: Tensor, tensor: TensorArgument) -> Tensor:
    """Return values with the strides of an operand; along a stretched axis the first of them."""
    made = _strided(torch.empty(_span(tensor), dtype=TORCH_DTYPES[tensor.dtype], device=values.device), tensor)
    once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.strides)
    made[once].copy_(values[once])
    return made
