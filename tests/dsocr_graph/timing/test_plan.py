"""Which calls a calibration times: points, distinct calls, numbers of active experts."""

from collections.abc import Mapping

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

import modelmeter
from dsocr_graph.errors import PlanError
from dsocr_graph.timing.plan import Point, active_counts, check_point, parse_point, plan_calls
from dsocr_graph.timing.row_lattice import ROWS
from modelmeter.model import AnalyticModel


@pytest.fixture(scope="module")
def model() -> AnalyticModel:
    """Return the shipped model: Gundam, bf16."""
    return modelmeter.load("deepseek-ocr")


def decode(**sizes: int) -> Point:
    """Return a decode step."""
    return Point(stage="decode", bindings=sizes)


def test_a_call_that_many_modules_make_is_planned_once(model: AnalyticModel) -> None:
    """The query projections of 12 layers are one call, with x of 2 documents and w of 1280 x 1280."""
    plan = plan_calls([(model, [decode(B=2, T=64)])])
    keys = [call.key for call in plan.calls]
    assert keys.count("aten::linear.default(input=bf16[2,1,1280], weight=bf16[1280,1280]w)") == 1
    assert len(set(keys)) == len(keys)


def test_a_point_that_differs_in_one_dim_adds_only_the_calls_with_that_dim(model: AnalyticModel) -> None:
    """More cached tokens change the position, and per layer the two joins and the attention: one call each."""
    one = plan_calls([(model, [decode(B=2, T=64)])])
    both = plan_calls([(model, [decode(B=2, T=64), decode(B=2, T=65)])])
    added = [call.signature.op for call in both.calls[len(one.calls) :]]
    assert sorted(added) == ["aten::arange", "aten::cat", "aten::scaled_dot_product_attention"]


def test_work_is_that_of_the_layer_at_the_point(model: AnalyticModel) -> None:
    """lm_head of 2 tokens: 2*2*1280*129280 FLOPs; bf16 weights, x and y of 2 bytes an element."""
    plan = plan_calls([(model, [decode(B=2, T=64)])])
    (head,) = [call for call in plan.calls if "weight=bf16[129280,1280]w" in call.key and "linear" in call.key]
    assert head.flops == 2 * 2 * 1280 * 129280
    assert head.bytes == 2 * (129280 * 1280 + 2 * 1280 + 2 * 129280)
    assert head.origin == "lm_head in decode B=2, T=64"


def test_a_grouped_product_reads_the_weights_of_its_active_experts(model: AnalyticModel) -> None:
    """2 tokens of 6 experts: between 6 and 12 active ones, each with weights of 896 x 1280; 12 rows, 64 offsets."""
    plan = plan_calls([(model, [decode(B=2, T=64)])])
    grouped = [call for call in plan.calls if "weight=bf16[64,896,1280]" in call.key]
    assert [call.conditions for call in grouped] == [{"active_experts": count} for count in (6, 9, 11, 12)]
    assert [call.bytes for call in grouped] == [
        2 * (count * 896 * 1280 + 12 * 1280 + 12 * 896) + 4 * 64 for count in (6, 9, 11, 12)
    ]


@given(experts=st.integers(2, 128), data=st.data())
def test_counts_of_active_experts_are_possible_and_reach_the_most(experts: int, data: st.DataObject) -> None:
    """No fewer than one token needs, no more than there are rows or experts; sorted, none twice."""
    per_token = data.draw(st.integers(1, experts))
    tokens = data.draw(st.integers(1, 200))
    counts = active_counts(experts, per_token, tokens * per_token)
    assert list(counts) == sorted(set(counts))
    assert per_token <= counts[0]
    assert counts[-1] == min(experts, tokens * per_token)


def test_plans_are_equal_when_their_calls_are(model: AnalyticModel) -> None:
    """The identity follows the calls and the points they come from, and nothing else."""
    plan = plan_calls([(model, [decode(B=1, T=64)])])
    assert plan.identity == plan_calls([(model, [decode(B=1, T=64)])]).identity
    assert plan.identity != plan_calls([(model, [decode(B=1, T=65)])]).identity
    assert plan.dtypes == ("bf16", "fp32")


# --- points


@pytest.mark.parametrize(
    ("text", "stage", "sizes"),
    [
        ("decode:B=1,T=913", "decode", {"B": 1, "T": 913}),
        ("vision_global", "vision_global", {}),
        (" prefill : B = 2 , S = 64 , N = 54 ", "prefill", {"B": 2, "S": 64, "N": 54}),
    ],
)
def test_a_point_is_read_from_text(text: str, stage: str, sizes: Mapping[str, int]) -> None:
    """A stage, a colon, and sizes by dim."""
    assert parse_point(text) == Point(stage=stage, bindings=sizes)


@pytest.mark.parametrize("text", ["", ":B=1", "decode:B", "decode:B=", "decode:B=-1", "decode:B=1.5", "decode:B=1,B=2"])
def test_text_that_is_no_point_is_refused(text: str) -> None:
    """The message shows how a point is written."""
    with pytest.raises(PlanError, match="cannot be read; write a stage and its sizes, such as decode:B=1,T=913"):
        parse_point(text)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (Point(stage="encode", bindings={}), "has no stage 'encode'; its stages are vision_global, vision_local"),
        (decode(B=1), "does not fit stage 'decode' of deepseek-ocr, which takes B=SIZE, T=SIZE"),
        (decode(B=1, T=5, S=5), "takes B=SIZE, T=SIZE"),
        (Point(stage="vision_global", bindings={"B": 1}), "takes no sizes"),
        (decode(B=0, T=5), "has a size below 1"),
    ],
)
def test_a_point_that_does_not_fit_the_model_is_refused(model: AnalyticModel, point: Point, message: str) -> None:
    """An unknown stage, missing or foreign dims, and sizes that nothing can have."""
    with pytest.raises(PlanError, match=message):
        check_point(model, point)


def test_nothing_to_plan_is_refused(model: AnalyticModel) -> None:
    """A calibration without calls would predict nothing."""
    with pytest.raises(PlanError, match="nothing to calibrate"):
        plan_calls([(model, [])])


def test_a_model_without_signatures_is_refused(model: AnalyticModel) -> None:
    """A model written by hand says what its calls cost, not which operands they take."""
    bare = evolve(model, leaves=tuple(evolve(leaf, signature=None) for leaf in model.leaves))
    with pytest.raises(PlanError, match="does not say which operands its call takes; calibrate models that were comp"):
        plan_calls([(bare, [decode(B=1, T=5)])])


# --- experts one by one


def test_the_loop_over_experts_is_planned_when_asked_for(model: AnalyticModel) -> None:
    """One token of two experts: each expert's product has one row; the counting has its own calls."""
    point = decode(B=1, T=5)
    plain, loop = (plan_calls([(model, [point])], moe=moe) for moe in ("grouped", "loop"))
    extra = {call.key for call in loop.calls} - {call.key for call in plain.calls}
    operators = {key.partition("(")[0] for key in extra}
    assert {"aten::linear.default", "aten::scatter_.value", "aten::cat.default", "aten::sum.dim_IntList"} <= operators
    assert len(loop.calls) == len(plain.calls) + len(extra)


def test_an_unknown_form_of_experts_is_refused(model: AnalyticModel) -> None:
    """The message has the forms there are."""
    with pytest.raises(PlanError, match="moe 'dense' is not known; choose one of grouped, loop"):
        plan_calls([(model, [decode(B=1, T=5)])], moe="dense")


# --- more rows


def rows_of_head(model: AnalyticModel, points: list[Point]) -> list[int]:
    """Return the numbers of rows that the output head is planned at with the lattice, in order."""
    plan = plan_calls([(model, points)], row_lattice=True)
    heads = [call for call in plan.calls if "weight=bf16[129280,1280]w" in call.key and "linear" in call.key]
    return sorted(call.signature.tensor("input").elements // 1280 for call in heads)


def test_products_are_planned_at_the_lattice_of_rows(model: AnalyticModel) -> None:
    """From one row to 4,096, and the 5 of the point; 16 rows of the point of 16 are not planned twice."""
    assert rows_of_head(model, [decode(B=5, T=64), decode(B=16, T=64)]) == sorted([*ROWS, 5])


def test_only_products_whose_rows_vary_are_added(model: AnalyticModel) -> None:
    """The global view has products of 256 rows whatever is asked for; a decode step has 7 of other shapes each."""
    vision = Point(stage="vision_global", bindings={})
    plain, more = (plan_calls([(model, [vision, decode(B=2, T=64)])], row_lattice=on) for on in (False, True))
    added = [call.signature for call in more.calls[len(plain.calls) :]]
    assert {signature.op for signature in added} == {"aten::linear"}
    weights = {signature.tensor("weight").text for signature in added}
    # Queries and outputs, the dense layer, the router (cast to fp32), the shared experts, the head.
    assert weights == {
        "bf16[1280,1280]w",
        *("bf16[6848,1280]w", "bf16[1280,6848]w"),
        "fp32[64,1280]",
        *("bf16[1792,1280]w", "bf16[1280,1792]w"),
        "bf16[129280,1280]w",
    }
    assert len(added) == 7 * (len(ROWS) - 1)  # 2 rows are there already


def test_work_at_more_rows_is_that_of_the_product(model: AnalyticModel) -> None:
    """The head of 3 rows: 2*3*1280*129280 FLOPs; weight, x and y in bf16."""
    plan = plan_calls([(model, [decode(B=2, T=64)])], row_lattice=True)
    (call,) = [call for call in plan.calls if "input=bf16[1,3,1280], weight=bf16[129280,1280]w" in call.key]
    assert call.flops == 2 * 3 * 1280 * 129280
    assert call.bytes == 2 * (129280 * 1280 + 3 * 1280 + 3 * 129280)
    assert call.origin == "lm_head in decode with 3 rows"


def test_a_lattice_is_another_plan(model: AnalyticModel) -> None:
    """A calibration without it cannot go on as one with it."""
    plain, more = (plan_calls([(model, [decode(B=2, T=64)])], row_lattice=on) for on in (False, True))
    assert plain.identity != more.identity
