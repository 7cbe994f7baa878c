"""The published loop over experts as a what-if: figures by hand, what stays, and where it cannot be told."""

from collections import Counter

import pytest
from attrs import evolve

import modelmeter
from modelmeter.binding import Binding
from modelmeter.evaluate import evaluate_stage
from modelmeter.expert_counts import most_routing
from modelmeter.layers import GroupedLinear, Scatter
from modelmeter.model import AnalyticModel
from modelmeter.predict.expert_loop import calls_in_loop, loop_work, spread_evenly
from modelmeter.predict.schedule import signature_at
from modelmeter.serialize import model_from_json, model_to_json
from modelmeter.sweeps import Axis, Detail, Grid, Program, Section, StageRule, chunk_table
from modelmeter.whatif import Options, UnsupportedWhatIfError, WhatIf, apply

LAYERS = 11  # with experts
DECODE = {"B": 2, "T": 283}


@pytest.fixture(scope="module")
def captured() -> AnalyticModel:
    """Return the shipped model, whose experts are grouped."""
    return modelmeter.load("deepseek-ocr")


@pytest.fixture(scope="module")
def looped(captured: AnalyticModel) -> WhatIf:
    """Return it with the loop."""
    return apply(captured, Options(moe="loop"))


def test_a_step_counts_rows_and_joins_results(captured: AnalyticModel, looped: WhatIf) -> None:
    """A step of 2 tokens with 6 of 64 experts each and 1280 wide results, in bytes per layer.

    More: zeros 2*64*8 = 1024; scatter of 12 numbers, read and written, 192; sum 1024 + 64*8 = 1536; joining 12 rows
    2 * 12*1280*2 = 61,440. Less: numbers of the experts 64*8 = 512; search (64 + 12)*8 + 64*4 = 864. Counting with
    integers is no floating-point work.
    """
    before = evaluate_stage(captured, "decode", **DECODE).total.cost
    after = evaluate_stage(looped.model, "decode", **DECODE).total.cost
    assert after.bytes - before.bytes == LAYERS * (1024 + 192 + 1536 + 61_440 - 512 - 864)
    assert after.flops == before.flops
    assert after.weight_bytes_read == before.weight_bytes_read
    assert after.calls - before.calls == LAYERS * (3 + 1 - 2)


def test_it_says_what_moved(looped: WhatIf) -> None:
    """Both stages of the decoder, none of the encoder; the formula is that of the bytes above at B = 2."""
    (change,) = looped.changes
    assert change.option == "moe"
    assert [shift.stage for shift in change.shifts] == ["prefill", "decode"]
    decode = change.shifts[1]
    assert decode.bytes.at(DECODE) == 690_976  # 11 * 62,816
    assert decode.matmul_flops.value == 0
    assert looped.model.variant["moe"] == "loop"
    assert looped.peaks_are_lower_bounds


def test_grouped_products_move_what_the_loop_does(captured: AnalyticModel) -> None:
    """The products of the experts that run, one by one, add up to the grouped product that stands for them.

    That reads where the rows of each of the 64 experts end too, in 4 bytes.
    """
    leaves = [leaf for leaf in captured.leaves_by_stage["decode"] if isinstance(leaf.layer, GroupedLinear)]
    assert len(leaves) == 3
    tokens, per_token, experts = 5, 6, 64
    binding = Binding(bindings={"B": tokens, "T": 9}, routing=most_routing)  # 30 experts, a row each
    for leaf in leaves:
        calls = calls_in_loop(signature_at(leaf, {"B": tokens, "T": 9}), spread_evenly(tokens, per_token, experts, 30))
        assert len(calls) == 30
        assert sum(loop_work(call).bytes for call in calls) + 64 * 4 == binding.sum(leaf.cost.bytes.text)
        assert sum(loop_work(call).flops for call in calls) == binding.sum(leaf.cost.matmul_flops.text)


def test_the_calls_are_those_that_a_calibration_times(captured: AnalyticModel, looped: WhatIf) -> None:
    """What stands for a search and for placing results is, call by call, what a predicted loop runs there."""
    sizes = {"B": 5, "T": 9}
    routed = spread_evenly(5, 6, 64, 30)
    predicted = [
        call.op
        for leaf in captured.leaves_by_stage["decode"]
        if leaf.module.endswith("mlp.experts") and leaf.op in {"aten::arange", "aten::searchsorted", "aten::index_put_"}
        for call in calls_in_loop(signature_at(leaf, sizes), routed)
    ]
    stated = [
        leaf.op
        for leaf in looped.model.leaves_by_stage["decode"]
        if "/loop." in leaf.id or leaf.id.endswith("experts/index_put_")
    ]
    assert predicted == stated == ["aten::zero_", "aten::scatter_", "aten::sum", "aten::cat", "aten::index_put_"]


def test_the_schedule_runs_each_call_as_often_as_it_is_counted(captured: AnalyticModel, looped: WhatIf) -> None:
    """The file of a model checks it, and reads back as it was written."""
    assert model_from_json(model_to_json(looped.model)) == looped.model
    for stage in looped.model.stages:
        added = Counter(stage.schedule).total() - len(captured.stage(stage.name).schedule)
        assert added == (2 * LAYERS if stage.name in {"prefill", "decode"} else 0)


def test_loop_and_other_what_ifs_go_together(captured: AnalyticModel, looped: WhatIf) -> None:
    """With a cache in 8 bits the loop moves as much more as without."""
    both = apply(captured, Options(moe="loop", kv_dtype="int8", logits="last", weight_dtype="int8")).model
    alone = apply(captured, Options(kv_dtype="int8", logits="last", weight_dtype="int8")).model
    for stage, sizes in (("decode", DECODE), ("prefill", {"B": 2, "S": 283, "N": 273})):
        more = [evaluate_stage(model, stage, **sizes).total.cost.bytes for model in (both, alone)]
        plain = [evaluate_stage(model, stage, **sizes).total.cost.bytes for model in (looped.model, captured)]
        assert more[0] - more[1] == plain[0] - plain[1] > 0


def test_a_sweep_evaluates_the_loop(looped: WhatIf) -> None:
    """A row of a sweep is what the library says at that point."""
    rule = StageRule(stage="decode", count="1", bindings={"B": "B", "T": "T"})
    axes = (Axis.of("B", (2,)), Axis.of("T", (283,)))
    grid = Grid(sections=(Section(program=Program.of(looped.model), axes=axes, rules=(rule,)),))
    (chunk,) = grid.chunks(1)
    row = chunk_table(grid, chunk, Detail.TOTALS).columns
    assert row["bytes"][0] == evaluate_stage(looped.model, "decode", **DECODE).total.cost.bytes


def test_a_model_without_experts_is_refused() -> None:
    """There is nothing to loop over."""
    with pytest.raises(UnsupportedWhatIfError, match="no stage of qwen3-8b has grouped experts to loop over"):
        apply(modelmeter.load("qwen3-8b"), Options(moe="loop"))


def test_experts_that_are_joined_otherwise_are_refused(captured: AnalyticModel) -> None:
    """Without a scatter of their results, it is not known what the loop would do."""
    leaves = tuple(leaf for leaf in captured.leaves if not isinstance(leaf.layer, Scatter))
    with pytest.raises(
        UnsupportedWhatIfError, match=r"sorted and placed as DeepSeek-OCR's are.*\(here 0 times\); leave"
    ):
        apply(evolve(captured, leaves=leaves), Options(moe="loop"))
