"""What the leaves of the full-size model move: fusion only lowers it, copies are copies, and views are free."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering import lower
from dsocr_graph.lowering.registry import is_free, rule_of
from dsocr_graph.models.deepseek_ocr import StageModule, stage_inputs
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import group_by_module
from dsocr_graph.tracing import capture
from modelmeter.binding import Binding
from modelmeter.dim_binding import bind

STAGES = ("vision_global", "vision_local", "prefill", "decode")
SIZES: dict[str, dict[str, int]] = {
    "vision_global": {},
    "vision_local": {"H": 2, "W": 3},
    "prefill": {"B": 2, "S": 83, "N": 73},
    "decode": {"B": 2, "T": 83},
}


@given(
    drawn=st.fixed_dictionaries(
        {
            "B": st.integers(1, 16),
            "text": st.integers(1, 64),
            "N": st.integers(1, 4096),
            "T": st.integers(1, 16384),
            "H": st.integers(1, 9),
            "W": st.integers(1, 9),
        }
    )
)
@settings(max_examples=15)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_fusion_never_adds_traffic(attention: str, drawn: dict[str, int], compile_stages: Any) -> None:
    """At any sizes every leaf moves at least nothing when fused, and at most what it moves unfused."""
    sizes = {**drawn, "S": drawn["N"] + drawn["text"], "V": drawn["H"] * drawn["W"]}
    stages = STAGES if attention == "sdpa" else ("prefill", "decode")
    leaves = compile_stages(*stages, attention=attention).analytic.leaves
    assert leaves
    at = Binding(bindings=sizes).sum  # evaluates each distinct expression once
    for leaf in leaves:
        unfused, fused = at(leaf.cost.bytes.text), at(leaf.cost.fused_bytes.text)
        # Expected numbers of experts are no integers; their sums round in the last place.
        assert -1e-6 <= fused <= unfused * (1 + 1e-12), leaf.id
        assert at(leaf.cost.weight_bytes_read.text) <= unfused * (1 + 1e-12), leaf.id
        assert at(leaf.cost.matmul_flops.text) >= 0
        assert at(leaf.cost.vector_flops.text) >= 0


@pytest.mark.parametrize("stage", STAGES)
def test_free_calls_share_memory(stage: str, compile_stages: Any) -> None:
    """A call without a layer makes no memory, except an empty tensor that its first writer is charged for."""
    (graph,) = compile_stages(stage).captured.graphs
    free = [call for call in graph.calls if _is_free(call)]
    assert len(free) > 100
    for call in free:
        if call.op in {"aten::empty_like", "aten::empty", "aten::new_empty"}:
            assert not {tensor.storage for tensor in call.writes} & {tensor.storage for tensor in call.reads}
        else:
            assert call.is_view, f"{call.op} in {call.module}"


def _is_free(call: OpCall) -> bool:
    rule = rule_of(call.op)
    return is_free(call) or (rule is not None and rule(call) is None)


class _Casts(TorchDispatchMode):
    """Counts, shape by shape, the casts that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it if it casts."""
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].dtype != result.dtype:
            self.found[tuple(result.shape)] += 1
        return result


class _AttentionInOneKernel(TorchFunctionMode):
    """Keeps attention whole: on meta it would decompose, with casts that no fused kernel has."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function; of attention only the shape of its result."""
        if func is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", STAGES)
def test_casts_are_those_that_run(stage: str, compile_stages: Any, full_size: Any) -> None:
    """The casts among the leaves are, shape by shape, the casts that an uncaptured run of the stage dispatches."""
    model = full_size()
    inputs = stage_inputs(model.config, stage, **SIZES[stage])
    with torch.no_grad(), _AttentionInOneKernel(), _Casts() as casts:
        StageModule(model, stage)(*inputs)
    (graph,) = compile_stages(stage).captured.graphs
    sizes = {"V": 6, "H": 2} if stage == "vision_local" else SIZES[stage]
    ours = Counter(
        tuple(bind(size, sizes) for size in call.result.shape)
        for call in graph.calls
        if call.op in {"aten::to", "aten::float", "aten::type_as"} and not call.is_view
    )
    assert ours.total() > 40
    assert ours == casts.found


class _Moves(nn.Module):
    """One way to copy or not to, by name."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        """[2, 3, 4] in bf16."""
        match self.way:
            case "reshape":
                return x.reshape(6, 4)
            case "reshape of a transposed tensor":
                return x.transpose(0, 1).reshape(6, 4)
            case "contiguous":
                return x.contiguous()
            case "contiguous of a transposed tensor":
                return x.transpose(1, 2).contiguous()
            case "to the same dtype":
                return x.to(torch.bfloat16)
            case "to float32":
                return x.to(torch.float32)
            case "flatten":
                return x.flatten(1)
            case "flatten of a transposed tensor":
                return x.transpose(1, 2).flatten(1)
            case _:
                return x.clone()


@pytest.mark.parametrize(
    ("way", "moved"),
    [
        # 24 elements of 2 bytes: a copy reads 48 and writes 48 bytes, a cast to float32 reads 48 and writes 96.
        ("reshape", None),
        ("reshape of a transposed tensor", 96),
        ("contiguous", None),
        ("contiguous of a transposed tensor", 96),
        ("to the same dtype", None),
        ("to float32", 144),
        ("flatten", None),
        ("flatten of a transposed tensor", 96),
        ("clone", 96),
    ],
)
def test_layout_and_dtype_decide_whether_a_call_copies(way: str, moved: int | None) -> None:
    """The same operator is free or a copy by its tensors, and eager torch agrees about the memory."""
    x = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    shares = _Moves(way)(x).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert shares is (moved is None)
    stage = StageSpec(name="run", description="", module=_Moves(way), inputs=(x.to("meta"),))
    model = lower(group_by_module(capture(stage.module, [stage], name="toy", variant={})))
    assert [leaf.layer.traffic().bytes for leaf in model.leaves] == ([] if moved is None else [moved])
