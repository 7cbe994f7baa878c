"""Peak memory of every stage against an independent run that watches storages come and go.

The tracker runs the real stage code on fake CPU tensors of the full sizes (shapes, dtypes and Python's reference
counts are real, data is not) and sees every storage that an operator allocates, in composite operators too, and every
storage that Python frees. It shares no code with capture or liveness. Parameters are left out on both sides, buffers
are alive all the time on both; the caller holds the stage's inputs, and the KV cache given to a decode step belongs to
the cache alone, as in `generate`.

One kernel is put in the place of another: a softmax from bf16 to float32 casts on the fly on CUDA, where the CPU's
makes a float32 copy first, which would raise the peak of eager attention itself by B * heads * S * T * 2 bytes.

The figures agree to the byte at all the sizes below, so the tests allow 0.1 %, for other releases of torch. What the
comparison leaves out, on both sides:

- Operators that stay whole in a captured graph may allocate inside: a matmul or an einsum may copy an operand, sort
  has a buffer of its own. The tracker sees it; none of it is alive at a peak.
- A fused attention kernel is one on CPU as on CUDA. CUDA's pads a float mask whose rows are no multiple of 16 bytes
  (SAM's windows of 196 tokens, not its global blocks, which hold the peak), and has a workspace; so have matrix
  kernels.
- A caching allocator rounds up and keeps what it has freed.
"""

import gc
import weakref
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsocr_graph.ir import OpGraph
from dsocr_graph.liveness import lifetimes, peaks
from dsocr_graph.models.deepseek_ocr import DeepseekOCRConfig, DeepseekOCRForCausalLM, stage_inputs
from dsocr_graph.models.deepseek_ocr.cache import KVCache
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.tracing import capture
from modelmeter.dim_binding import bind

TOLERANCE = 0.001


class StorageTracker(TorchDispatchMode):
    """Adds up the storages that are alive, and keeps the largest sum."""

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}
        self._alive: set[int] = set()
        self.bytes = 0
        self.peak_bytes = 0

    def watch(self, tensor: Tensor) -> None:
        """Count the storage of a tensor until Python frees it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._ignored or key in self._alive:
            return
        self._alive.add(key)
        self.bytes += size
        weakref.finalize(storage, self._forget, key, size)
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def _forget(self, key: int, size: int) -> None:
        self._alive.remove(key)
        self.bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and watch its results."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.watch(tensor)
        return result


class _SoftmaxCastsOnTheFly(TorchFunctionMode):
    """Allocates for a softmax to another dtype what CUDA's kernel does: the result."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function; of a casting softmax only the allocation."""
        dtype = (kwargs or {}).get("dtype")
        if func is nn.functional.softmax and dtype not in (None, args[0].dtype):
            return torch.empty_like(args[0], dtype=dtype)
        return func(*args, **(kwargs or {}))


def _fake_model(attention: str, dtype: torch.dtype) -> tuple[DeepseekOCRForCausalLM, list[Tensor]]:
    """Return the full-size model with fake CPU weights, and its buffers; call it under a FakeTensorMode.

    Buffers of which parameters are views, as of the stacked experts, are not among them: they have the same memory.
    """
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    config = DeepseekOCRConfig().with_implementations(attn_implementation=attention)
    with unset_fake_temporarily(), torch.device("meta"):
        model = DeepseekOCRForCausalLM(config).eval().to(dtype)
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    buffers: list[Tensor] = []
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            fake = torch.empty(weight.shape, dtype=weight.dtype)
            setattr(module, name, nn.Parameter(fake, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            fake = torch.empty(buffer.shape, dtype=buffer.dtype)
            if buffer.untyped_storage()._cdata not in weights:
                buffers.append(fake)
            setattr(module, name, fake)
    return model, buffers


def _run(model: DeepseekOCRForCausalLM, stage: str, inputs: list[Tensor]) -> object:
    if stage == "vision_global":
        return model.encode_global(*inputs)
    if stage == "vision_local":
        return model.encode_local(*inputs)
    if stage == "prefill":
        return model.prefill(*inputs)
    ids = inputs.pop(0)
    cache = KVCache.from_tensors(inputs)
    inputs.clear()  # the cache alone holds its entries
    return model.decode_step(ids, cache)


def _with_buffers(model: nn.Module, buffers: list[Tensor]) -> StorageTracker:
    """Return a tracker that leaves out a model's weights and counts its buffers."""
    tracked = set(map(id, buffers))
    tracker = StorageTracker([*model.parameters(), *(each for each in model.buffers() if id(each) not in tracked)])
    for buffer in buffers:
        tracker.watch(buffer)
    return tracker


def tracked_peaks(stage: str, attention: str, dtype: torch.dtype, sizes: dict[str, int]) -> tuple[int, int]:
    """Return the peak bytes of a stage outside the parameters: before the output head, and in all."""
    with FakeTensorMode():
        model, buffers = _fake_model(attention, dtype)
        inputs = list(stage_inputs(model.config, stage, device="cpu", dtype=dtype, **sizes))
        tracker = _with_buffers(model, buffers)
        for position in range(len(inputs)):
            tracker.watch(inputs[position])
        before_head: list[int] = []
        model.lm_head.register_forward_pre_hook(lambda *_: before_head.append(tracker.peak_bytes))
        gc.collect()
        with torch.no_grad(), _SoftmaxCastsOnTheFly(), tracker:
            _run(model, stage, inputs)
    return (before_head or [tracker.peak_bytes])[0], tracker.peak_bytes


VISION: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    *(("vision_global", {"base": base}, {"base": base}) for base in (512, 640, 1024, 1280)),
    *(("vision_local", {}, {"H": rows, "W": columns}) for rows, columns in ((1, 2), (2, 1), (3, 2), (3, 3), (9, 1))),
]
DECODER: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    (stage, {"attention": attention}, sizes)
    for attention in ("sdpa", "eager")
    for stage, sizes in [
        *(
            ("prefill", {"B": B, "S": N + 10, "N": N})
            for B, N in ((1, 73), (8, 111), (2, 273), (4, 421), (1, 903), (8, 1263))
        ),
        *(("decode", {"B": B, "T": T}) for B, T in ((1, 83), (1, 283), (8, 913), (2, 1273), (1, 8191), (8, 8191))),
    ]
]
FP32: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("vision_global", {"dtype": "fp32"}, {"base": 1024}),
    ("vision_local", {"dtype": "fp32"}, {"H": 3, "W": 2}),
    ("prefill", {"dtype": "fp32"}, {"B": 2, "S": 913, "N": 903}),
    ("decode", {"dtype": "fp32"}, {"B": 2, "T": 913}),
]


def _name(value: object) -> str:
    return "-".join(f"{key}{size}" for key, size in value.items()) if isinstance(value, dict) else str(value)


def _bound(stage: str, sizes: dict[str, int]) -> dict[str, int]:
    return {"V": sizes["H"] * sizes["W"], "H": sizes["H"]} if stage == "vision_local" else sizes


def _before_head(graph: OpGraph, sizes: dict[str, int]) -> float:
    """Return the largest sum of allocations alive at a call before the output head."""
    end = next((call.index for call in graph.calls if call.module == "lm_head"), len(graph.calls))
    changes = [0.0] * (len(graph.calls) + 2)
    for life in lifetimes(graph):
        size = bind(life.tensor.storage_bytes, sizes)
        changes[max(life.birth, 0)] += size
        changes[life.death + 1] -= size
    return max(accumulate(changes[:end]))


@pytest.mark.parametrize(
    ("stage", "options", "sizes"),
    [*VISION, *DECODER, *(pytest.param(*case, marks=pytest.mark.slow) for case in FP32)],
    ids=_name,
)
def test_peak_is_what_a_run_reaches(
    stage: str, options: dict[str, Any], sizes: dict[str, int], compile_stages: Any
) -> None:
    """A stage's peak beside the buffers, also before its output head, is the largest sum of storages alive in a run."""
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.get("dtype", "bf16")]
    before_head, in_all = tracked_peaks(stage, options.get("attention", "sdpa"), dtype, sizes)
    compiled = compile_stages(stage, **options)
    (described,) = compiled.analytic.stages
    bound = _bound(stage, sizes)
    held = compiled.analytic.buffer_bytes
    peak = max(sum(point.bytes_at(bound)) for point in described.peaks)
    assert held + peak == pytest.approx(in_all, rel=TOLERANCE)
    (graph,) = compiled.captured.graphs
    assert held + _before_head(graph, bound) == pytest.approx(before_head, rel=TOLERANCE)


def test_buffers_are_what_the_tracker_sees(compile_stages: Any) -> None:
    """Those of the full-size model, to the byte."""
    with FakeTensorMode():
        model, buffers = _fake_model("sdpa", torch.bfloat16)
        held = _with_buffers(model, buffers).bytes
    assert held > 0
    assert compile_stages("vision_local").analytic.buffer_bytes == held


# --- how long Python holds a tensor, worked by hand -----------------------------------------------------------


class _Held(nn.Module):
    """Computes relu(2 x + 1) in one of several ways of writing it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.inner = _Inner()

    def forward(self, x: Tensor) -> Tensor:
        """[256] in float32: every tensor is 1,024 bytes."""
        if self.way == "chained":
            return ((x * 2) + 1).relu()
        if self.way == "argument":
            return self.inner(x * 2)
        doubled = x * 2
        more = doubled + 1
        if self.way == "deleted":
            del doubled
        elif self.way == "rebound":
            doubled = more
        return more.relu()


class _Inner(nn.Module):
    """Drops its argument's name half way."""

    def forward(self, x: Tensor) -> Tensor:
        """Add one, then relu."""
        x = x + 1
        return x.relu()


@pytest.mark.parametrize(
    ("way", "peak"),
    [
        ("chained", 3 * 1024),  # input, operand, result
        ("variable", 4 * 1024),  # at relu: input, doubled, more, result
        ("deleted", 3 * 1024),  # doubled is gone at relu
        ("rebound", 3 * 1024),  # the same
        ("argument", 4 * 1024),  # the caller of the module holds x * 2 until the module returns
    ],
)
def test_variables_keep_tensors_alive(way: str, peak: int) -> None:
    """What a variable or a running call holds is not freed; the tracker sees the same."""
    stage = StageSpec(name="run", description="", module=_Held(way), inputs=(torch.empty(256, device="meta"),))
    (graph,) = capture(stage.module, [stage], name="toy", variant={}).graphs
    (x,) = stage.inputs
    tracker = StorageTracker()
    tracker.watch(x)
    with tracker:
        stage.module(x)
    assert max(sum(point.bytes_at({})) for point in peaks(graph, lambda path: path)) == tracker.peak_bytes == peak


class _Replacing(nn.Module):
    """Replaces a pair of cache entries, one token longer."""

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """[7, 32] each -> [8, 32] each."""
        new = keys.new_zeros(1, 32)
        return torch.cat([keys, new]), torch.cat([values, new])


def test_keys_and_values_of_a_layer_are_replaced_together() -> None:
    """Old pair 2 * 7 * 128 = 1,792, new pair 2 * 8 * 128 = 2,048 and the new token 128 bytes are alive at once."""
    inputs = tuple(torch.empty(7, 32, device="meta") for _ in range(2))
    stage = StageSpec(
        name="run", description="", module=_Replacing(), inputs=inputs, kv_inputs=(0, 1), kv_outputs=(0, 1)
    )
    (graph,) = capture(stage.module, [stage], name="toy", variant={}).graphs
    parts = max((point.bytes_at({}) for point in peaks(graph, lambda path: path)), key=sum)
    assert parts == (128, 1_792 + 2_048, 0)
