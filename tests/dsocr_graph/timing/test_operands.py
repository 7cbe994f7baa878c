"""Operands from signatures: layouts, values that operators take, weights out of the caches."""

import itertools
import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dsocr_graph.errors import OperandError
from dsocr_graph.lowering import lower
from dsocr_graph.scopes import group_by_module
from dsocr_graph.timing.aten import overload_of
from dsocr_graph.timing.operands import OperandMaker
from dsocr_graph.timing.plan import PlannedCall, Point, plan_calls
from modelmeter.dtypes import DType
from modelmeter.signature import Signature, TensorArgument

CPU = torch.device("cpu")


def tensor(
    *shape: int, dtype: DType = DType.FP32, strides: tuple[int, ...] | None = None, weight: bool = False
) -> TensorArgument:
    """Return a contiguous operand, or one with strides."""
    packed = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return TensorArgument(dtype=dtype, shape=shape, strides=strides or packed, weight=weight)


def whole(*shape: int) -> TensorArgument:
    """Return an operand of int64."""
    return tensor(*shape, dtype=DType.INT64)


def call(op: str, overload: str = "default", active: int | None = None, **arguments: Any) -> PlannedCall:
    """Return a planned call."""
    return PlannedCall(
        signature=Signature(op=op, overload=overload, arguments=arguments),
        conditions={} if active is None else {"active_experts": active},
        flops=0,
        bytes=0,
        origin="a test",
    )


def executions(planned: PlannedCall, cold_bytes: int = 4096) -> tuple[dict[str, Any], ...]:
    """Return what the call is given, execution by execution."""
    made = OperandMaker([planned], CPU, cold_bytes=cold_bytes, cache_bytes=1 << 30).executions(planned)
    return tuple(cast("dict[str, Any]", arguments) for arguments in made)


def run(planned: PlannedCall, times: int = 1) -> Any:
    """Execute a call some times and return its last result."""
    overload = overload_of(planned.signature.op, planned.signature.overload)
    result = None
    with torch.inference_mode():
        for arguments in itertools.islice(itertools.cycle(executions(planned)), times):
            result = overload(**arguments)
    return result


@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 40)), min_size=1, max_size=4),
    dtype=st.sampled_from([DType.FP32, DType.BF16, DType.INT64, DType.BOOL]),
)
def test_an_operand_has_exactly_the_shape_strides_and_type_of_its_signature(
    sizes: list[tuple[int, int]], dtype: DType
) -> None:
    """Whatever the strides: gaps, stretched axes, axes out of order."""
    shape, strides = zip(*sizes, strict=True)
    (arguments,) = executions(call("aten::clone", self=tensor(*shape, dtype=dtype, strides=strides)))
    made: Tensor = arguments["self"]
    assert (tuple(made.shape), made.stride()) == (shape, strides)
    assert str(made.dtype) == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}.get(
        dtype.value, f"torch.{dtype.value}"
    )


def test_floating_operands_are_random_and_do_not_share_memory() -> None:
    """Zeros run faster on a GPU, and aliased operands are read once instead of twice."""
    (arguments,) = executions(call("aten::mul", "Tensor", self=tensor(100, 100), other=tensor(100, 100)))
    for made in arguments.values():
        assert 0.9 < float(made.std()) < 1.1
    first, second = sorted(made.data_ptr() for made in arguments.values())
    assert second - first >= 100 * 100 * 4


def test_weights_come_from_another_place_in_every_execution() -> None:
    """A pool of 40 KB holds ten weights of 4 KB; activations stay where they are."""
    planned = call("aten::linear", input=tensor(2, 32), weight=tensor(32, 32, weight=True))
    made = executions(planned, cold_bytes=40 * 1024)
    assert len({arguments["weight"].data_ptr() for arguments in made}) == len(made) == 10
    assert len({arguments["input"].data_ptr() for arguments in made}) == 1


def test_a_weight_larger_than_the_pool_enlarges_it() -> None:
    """One weight of 4 KB with a pool of 1 KB asked for."""
    planned = call("aten::linear", input=tensor(2, 32), weight=tensor(32, 32, weight=True))
    assert len(executions(planned, cold_bytes=1024)) == 1


def test_indices_of_an_embedding_are_rows_of_its_table() -> None:
    """Each execution looks up other rows, which are then not in the caches: 2 rows of 16 bytes from 64 KB."""
    planned = call("aten::embedding", weight=tensor(7, 4, weight=True), indices=whole(2, 1))
    made = executions(planned, cold_bytes=64 * 1024)
    assert all(0 <= int(index) < 7 for arguments in made for index in arguments["indices"].flatten())
    assert len({tuple(arguments["indices"].flatten().tolist()) for arguments in made}) > 1


def test_rows_are_gathered_as_often_as_each_other() -> None:
    """12 indices of 4 rows, as 4 tokens go to 3 experts each."""
    (arguments,) = executions(call("aten::index", "Tensor", self=tensor(4, 8), indices=(whole(12),)))
    assert sorted(arguments["indices"][0].tolist()) == sorted([0, 1, 2, 3] * 3)


def test_an_index_may_leave_axes_out() -> None:
    """x[:, i]: the first axis is taken whole, the second at 3 places below 8."""
    planned = call("aten::index", "Tensor", self=tensor(4, 8), indices=(None, whole(3)))
    (arguments,) = executions(planned)
    assert arguments["indices"][0] is None
    assert run(planned).shape == (4, 3)


def test_rows_are_put_back_where_no_other_goes() -> None:
    """The indices of a scatter of 6 rows are a permutation."""
    planned = call("aten::index_put_", self=tensor(6, 4), indices=(whole(6),), values=tensor(6, 4))
    (arguments,) = executions(planned)
    assert sorted(arguments["indices"][0].tolist()) == list(range(6))


def test_an_index_along_a_dim_is_within_it() -> None:
    """The published gate scatters ones into [tokens, experts]: experts from 0 to 7."""
    planned = call("aten::scatter_", "value", self=whole(5, 8), dim=1, index=whole(5, 2), value=1)
    (arguments,) = executions(planned)
    assert 0 <= int(arguments["index"].min()) <= int(arguments["index"].max()) < 8
    assert run(planned).shape == (5, 8)


def test_image_features_replace_tokens_after_the_first() -> None:
    """2 documents of 5 tokens with 3 features each: tokens 1 to 3 of both, not token 0."""
    planned = call(
        "aten::masked_scatter_",
        self=tensor(2, 5, 4),
        mask=tensor(2, 5, 1, dtype=DType.BOOL),
        source=tensor(2, 3, 4),
    )
    (arguments,) = executions(planned)
    assert arguments["mask"].int().squeeze(-1).tolist() == [[0, 1, 1, 1, 0]] * 2
    assert torch.equal(run(planned)[:, 1:4], arguments["source"])


def test_ends_of_groups_are_searched_for_in_sorted_ranks() -> None:
    """12 sorted ranks of 4 experts, each expert looked for once."""
    planned = call("aten::searchsorted", "Tensor", sorted_sequence=whole(12), self=whole(4), right=True)
    (arguments,) = executions(planned)
    ranks = arguments["sorted_sequence"].tolist()
    assert ranks == sorted(ranks)
    assert max(ranks) < 4
    assert arguments["self"].tolist() == [0, 1, 2, 3]


@given(experts=st.integers(1, 16), rows=st.integers(1, 60), data=st.data())
def test_rows_go_to_as_many_experts_as_the_condition_says(experts: int, rows: int, data: st.DataObject) -> None:
    """Evenly: no active expert has two rows more than another; the last offset is the number of rows."""
    active = data.draw(st.integers(1, min(experts, rows)))
    planned = call(
        "dsocr_graph::grouped_linear",
        active=active,
        input=tensor(rows, 4),
        weight=tensor(experts, 8, 4, weight=True),
        offsets=tensor(experts, dtype=DType.INT32),
        experts_per_token=1,
    )
    for arguments in executions(planned):
        offsets: Tensor = arguments["offsets"]
        counts = torch.diff(offsets, prepend=torch.zeros(1, dtype=torch.int32))
        some = counts[counts > 0]
        assert (len(some), int(offsets[-1]), offsets.dtype) == (active, rows, torch.int32)
        assert int(some.max() - some.min()) <= 1


@pytest.mark.parametrize("name", ["sqrt", "rsqrt", "log"])
def test_operators_of_positive_numbers_get_positive_numbers(name: str) -> None:
    """A NaN may take another way through a kernel."""
    assert torch.isfinite(run(call(f"aten::{name}", self=tensor(100, 100)))).all()


def test_an_operand_written_to_stays_in_ordinary_numbers() -> None:
    """x times random factors 2000 times over would be zero or denormal: the factors are 1 and -1."""
    planned = call("aten::mul_", "Tensor", self=tensor(8, 4), other=tensor(8, 1))
    once, often = run(planned).abs(), run(planned, times=2000).abs()
    assert torch.equal(once, often)
    assert float(once.max()) > 0.5


def test_writing_to_an_operand_leaves_other_calls_alone() -> None:
    """Minus infinity in a masked score must not be what the next call computes with."""
    fill = call("aten::masked_fill_", "Scalar", self=tensor(64), mask=tensor(64, dtype=DType.BOOL), value=-math.inf)
    exp = call("aten::exp", self=tensor(64))
    maker = OperandMaker([fill, exp], CPU, cold_bytes=0, cache_bytes=1 << 30)
    overload_of("aten::masked_fill_", "Scalar")(**maker.executions(fill)[0])
    assert torch.isfinite(cast("Tensor", maker.executions(exp)[0]["self"])).all()


def test_every_call_of_the_toy_size_model_can_be_made(tiny: Any) -> None:
    """All four stages, at sizes that no example input had; nothing but masked scores is not finite."""
    stages = ("vision_global", "vision_local", "prefill", "decode")
    model = lower(group_by_module(tiny.captured(*stages)))
    points = [
        Point(stage="vision_global", bindings={}),
        Point(stage="vision_local", bindings={"V": 2, "H": 2}),
        Point(stage="prefill", bindings={"B": 3, "S": 23, "N": 11}),
        Point(stage="decode", bindings={"B": 3, "T": 17}),
    ]
    plan = plan_calls([(model, points)])
    maker = OperandMaker(plan.calls, CPU, cold_bytes=2**20, cache_bytes=1 << 30)
    assert len(plan.calls) > 150
    for planned in plan.calls:
        overload = overload_of(planned.signature.op, planned.signature.overload)
        for arguments in maker.executions(planned)[:2]:
            with torch.inference_mode():
                result = overload(**arguments)
            first = result[0] if isinstance(result, tuple | list) else result
            assert torch.isfinite(first).all(), planned.key


# --- what cannot be made


def test_an_operator_whose_indices_no_rule_knows_is_an_error() -> None:
    """Random indices could be out of range; the message says where a rule goes."""
    planned = call("aten::repeat_interleave", "self_Tensor", self=tensor(4), repeats=whole(4))
    with pytest.raises(OperandError, match=r"takes indices whose range no rule knows; add one to .*operand_values\.py"):
        executions(planned)


def test_a_type_that_cannot_be_filled_is_an_error() -> None:
    """fp8 has no random numbers; the message names the types that do."""
    planned = call("aten::clone", self=tensor(4, dtype=DType.FP8_E4M3))
    with pytest.raises(OperandError, match="takes fp8_e4m3, which operands cannot be made of; known are fp64, fp32"):
        executions(planned)
