"""Reasons with their effects: what runs, what-ifs, routing, devices, and what is left by kind of operator."""

import itertools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
from attrs import evolve
from sympy import Min

import modelmeter
from modelmeter.compare import Change, Metric, Side, set_side_by_side, side_of_report, with_explained
from modelmeter.compare.layer_words import sizes_differing
from modelmeter.compare.side import PIXELS
from modelmeter.dims import symbol
from modelmeter.evaluate import evaluate
from modelmeter.layers import ScaledDotProductAttention
from modelmeter.model import AnalyticModel
from modelmeter.reports.report import report_from_json
from modelmeter.routing import parse_routing
from modelmeter.whatif import Options, apply, evaluate_what_if
from modelmeter.workload import Fact, StageRun, Workload, WorkloadItem

MakeSide = Callable[..., Side]
H200 = modelmeter.load_device("h200")
WORK = (Metric.TIME, Metric.FLOPS, Metric.BYTES, Metric.FUSED_BYTES)


def workload(*runs: StageRun, **facts: Fact) -> Workload:
    """Return one page that runs some stages."""
    return Workload(name="page", items=(WorkloadItem(name="page", documents=1, runs=runs),), facts=facts)


def prefill(tokens: int, **more: int) -> StageRun:
    """Return a prefill of one document."""
    return StageRun(stage="prefill", count=1, bindings={"B": 1, "S": tokens, **more})


def decode(tokens: int, count: int = 10) -> StageRun:
    """Return decode steps of one document."""
    return StageRun(stage="decode", count=count, bindings={"B": 1, "T": tokens}, sweep="T")


def side(label: str, model: AnalyticModel, work: Workload, *, alone: bool = False, **options: Any) -> Side:
    """Return a model as a side, with times of one device; alone without the model, as a bare report is."""
    report = evaluate(model, work, device=H200)
    if options:
        report = evaluate_what_if(apply(model, Options(**options)), work, device=H200)
        model = apply(model, Options(**options)).model
    return side_of_report(report_from_json(report.to_json()), label=label, model=None if alone else model)


def entries(old: Side, new: Side, metric: Metric = Metric.TIME) -> Sequence[Change]:
    """Return the entries of the change of a metric."""
    return set_side_by_side([old, new], ranked_by=metric).changes[0].entries


def causes(old: Side, new: Side, metric: Metric = Metric.TIME) -> dict[str, Any]:
    """Return the causes of all parts together, with what they add."""
    return {cause.text: cause.effect for cause in set_side_by_side([old, new], ranked_by=metric).changes[0].causes}


OCR = workload(
    StageRun(stage="vision_local", count=1, bindings={"V": 6, "H": 3}),
    StageRun(stage="vision_global", count=1, bindings={}),
    prefill(913, N=903),
    decode(913),
)
OCR_2 = workload(
    StageRun(stage="vision_local", count=1, bindings={"V": 4}),
    StageRun(stage="vision_global", count=1, bindings={}),
    prefill(843, N=833),
    decode(843, count=12),
)


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[Side, Side]]:
    """Return sides that differ in all kinds of ways."""
    ocr, other, qwen = (modelmeter.load(name) for name in ("deepseek-ocr", "deepseek-ocr-2", "qwen3-8b"))
    text = workload(prefill(500), decode(500))
    return {
        "two models": (side("ocr", ocr, OCR), side("ocr-2", other, OCR_2)),
        "models of other stages": (side("ocr", ocr, OCR), side("qwen", qwen, text)),
        "a what-if": (side("as captured", qwen, text), side("fp8", qwen, text, weight_dtype="fp8", kv_dtype="fp8")),
        "a what-if gone": (side("fp8", qwen, text, weight_dtype="fp8"), side("as captured", qwen, text)),
        "what runs and a what-if": (side("a", qwen, text), side("b", qwen, workload(prefill(700)), kv_dtype="int8")),
        "another variant": (
            side("sdpa", ocr, OCR),
            side("eager", modelmeter.load("deepseek-ocr", "gundam-eager"), OCR),
        ),
    }


def test_effects_add_up_to_the_change(pairs: dict[str, tuple[Side, Side]]) -> None:
    """Of every part of every metric, both ways: what reasons add is the whole, and so is what they consist of."""
    seen = 0
    for sides, metric in itertools.product(pairs.values(), WORK):
        for old, new in (sides, sides[::-1]):
            for entry in entries(old, new, metric):
                total = sum(reason.effect or 0 for reason in entry.reasons)
                assert total == pytest.approx(entry.difference, rel=1e-6), (entry.name, metric)
                for reason in entry.reasons:
                    if reason.parts:
                        assert sum(part.effect or 0 for part in reason.parts) == pytest.approx(reason.effect, rel=1e-3)
                seen += 1
    assert seen > 100


def test_reasons_that_explain_the_change_come_first(pairs: dict[str, tuple[Side, Side]]) -> None:
    """Every reason is signed; those with the sign of the change come before those against it, the largest first."""
    for old, new in pairs.values():
        for entry in entries(old, new):
            sign = 1 if entry.difference > 0 else -1
            along = [sign * (reason.effect or 0) for reason in entry.reasons]
            assert all(along)
            against = [effect for effect in along if effect < 0]
            assert along == sorted((effect for effect in along if effect > 0), reverse=True) + sorted(against)


def test_what_ifs_are_causes(pairs: dict[str, tuple[Side, Side]]) -> None:
    """Types of weights and of the cache each have their part, where they matter; leaving one again is the opposite."""
    old, new = pairs["a what-if"]
    found = causes(old, new, Metric.BYTES)
    assert list(found) == ["weight_dtype bf16 → fp8", "kv_dtype bf16 → fp8"]
    by_part = {entry.name: [reason.text for reason in entry.reasons] for entry in entries(old, new, Metric.BYTES)}
    assert by_part["decode, decoder: feed-forward"] == ["weight_dtype bf16 → fp8"]
    assert set(by_part["decode, decoder: attention"]) == {"weight_dtype bf16 → fp8", "kv_dtype bf16 → fp8"}
    back = causes(*pairs["a what-if gone"], Metric.BYTES)
    assert back == {"weight_dtype fp8 → bf16": pytest.approx(-found["weight_dtype bf16 → fp8"])}


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("deepseek-ocr", {"logits": "last"}, "logits all → last"),
        ("deepseek-ocr", {"kv_growth": "preallocated"}, "kv_growth concatenate → preallocated"),
        ("deepseek-ocr", {"moe": "loop"}, "moe grouped → loop"),
        ("deepseek-ocr", {"routing": parse_routing("zipf:1.5")}, "routing uniform_routing → zipf:1.5"),
    ],
)
def test_each_what_if_is_the_cause_of_its_change(name: str, options: dict[str, Any], text: str) -> None:
    """Nothing else differs, so that it is the only reason of every part."""
    work = workload(prefill(300, N=290), decode(300))
    old = side("a", modelmeter.load(name), work)
    new = side("b", modelmeter.load(name), work, **options)
    found = entries(old, new, Metric.BYTES)
    assert found
    assert {reason.text for entry in found for reason in entry.reasons} == {text}


def test_bare_reports_name_the_what_ifs_that_may_matter() -> None:
    """Without the models effects are not known: the cache's type is named at the attention, routing at experts."""
    model, work = modelmeter.load("deepseek-ocr"), workload(prefill(300, N=290), decode(300))
    old = side("a", model, work, alone=True)
    new = side("b", model, work, alone=True, kv_dtype="fp8", weight_dtype="fp8", routing=parse_routing("zipf:1.5"))
    found = {entry.name: [reason.text for reason in entry.reasons] for entry in entries(old, new)}
    assert found["decode, decoder: experts"] == ["weight_dtype fp8 in b alone", "routing uniform_routing → zipf:1.5"]
    assert found["decode, decoder: attention"] == ["kv_dtype fp8 in b alone", "weight_dtype fp8 in b alone"]


def test_a_window_of_the_cache_is_a_reason() -> None:
    """Attention over the last 15 tokens in place of all: lengths are formulas, and these two tell why it is less."""
    qwen = modelmeter.load("qwen3-8b")
    tokens = symbol("T")
    leaves = tuple(
        evolve(leaf, layer=evolve(leaf.layer, key_length=Min(15, tokens) + 1), cost=None)
        if leaf.stage == "decode" and isinstance(leaf.layer, ScaledDotProductAttention)
        else leaf
        for leaf in qwen.leaves
    )
    work = workload(decode(500))
    old, new = side("a", qwen, work), side("b", evolve(qwen, name="windowed", leaves=leaves), work)
    (entry,) = entries(old, new, Metric.FLOPS)
    assert "ScaledDotProductAttention key_length T + 1 → Min(15, T) + 1" in entry.reasons[0].text
    assert not [text for text in sizes_differing(qwen.leaves, qwen.leaves) if text]


def test_a_guess_that_explains_nothing_says_so(toy: ModuleType, toy_side: MakeSide) -> None:
    """More calls of less work, from reports alone: what is known works against the change, and that is said."""
    model = toy.toy_model()
    narrow = evolve(
        model,
        name="narrow",
        leaves=tuple(
            evolve(leaf, layer=evolve(leaf.layer, out_features=2), cost=None, calls=3)
            if leaf.module == "lm_head"
            else leaf
            for leaf in model.leaves
        ),
    )
    old, new = toy_side("a", alone=True), toy_side("b", model=narrow, alone=True)
    (entry,) = entries(old, new, Metric.FLOPS)
    assert [(reason.text, reason.way) for reason in entry.reasons] == [
        ("what lowers it is not known: no model.json with the operators of a and b is given", 0),
        ("prefill operator calls 1 → 3", 1),
    ]
    (entry,) = entries(new, old, Metric.FLOPS)
    assert entry.reasons[0].text.startswith("what raises it is not known: ")


def test_a_guess_says_which_way_it_works(toy: ModuleType, toy_side: MakeSide) -> None:
    """Of bare reports, executions that went down while sizes went up come last in an increase."""
    item = toy.toy_workload().items[0]
    step = evolve(item.runs[1], count=2, bindings={**item.runs[1].bindings, "T": 50})
    new = toy_side(
        "b", workload=evolve(toy.toy_workload(), items=(evolve(item, runs=(item.runs[0], step)),)), alone=True
    )
    (entry,) = entries(toy_side("a", alone=True), new, Metric.FLOPS)
    assert [(reason.text, reason.way) for reason in entry.reasons] == [
        ("decode mean T 6 → 50.5", 1),
        ("decode executions 3 → 2", -1),
    ]


def test_sizes_of_products_come_before_counts(pairs: dict[str, tuple[Side, Side]]) -> None:
    """Attention over tiles of 768 pixels sees 48 x 48 = 2304 patches, of 640 pixels 40 x 40 = 1600."""
    (entry,) = [each for each in entries(*pairs["two models"]) if each.name == "encode, vision encoder: attention"]
    (reason,) = [each for each in entry.reasons if each.text.startswith("vision_local attention: ")]
    assert "query_length and key_length 101, 1600 → 288, 2304" in reason.text.partition(" calls ")[0]
    assert reason.way == 1


def test_views_of_another_size_are_said_where_they_matter_most(pairs: dict[str, tuple[Side, Side]]) -> None:
    """The fact of the workload is beside the largest effect of the stage that takes the views, and of all."""
    old, new = (
        evolve(each, facts={**each.facts, f"workload: {PIXELS}vision_local": f"{size} pixels"})
        for each, size in zip(pairs["two models"], (640, 768), strict=True)
    )
    (entry,) = [each for each in entries(old, new) if each.name == "encode, vision encoder: feed-forward"]
    assert sum("views of 640 pixels → 768 pixels" in reason.text for reason in entry.reasons) == 1
    (left,) = [
        cause
        for cause in set_side_by_side([old, new], ranked_by=Metric.TIME).changes[0].causes
        if cause.text == "the models themselves at the same executions and dims"
    ]
    assert "vision_local: views of 640 pixels → 768 pixels" in [part.text for part in left.parts]


def test_what_is_left_of_two_models_is_told_by_stage(pairs: dict[str, tuple[Side, Side]]) -> None:
    """Each stage has the sum of what is left in its parts, and stages that work against the whole have their sign."""
    old, new = pairs["two models"]
    for metric in WORK:
        changes = set_side_by_side([old, new], ranked_by=metric).changes[0]
        (left,) = [cause for cause in changes.causes if cause.text.startswith("the models themselves")]
        assert sum(part.effect or 0 for part in left.parts) == pytest.approx(left.effect, rel=1e-6)
        found = {part.text.partition(":")[0]: part.effect for part in left.parts}
        assert {"vision_local", "vision_global", "prefill", "decode"} >= found.keys()
        for stage in ("vision_local", "prefill"):
            kinds = [
                reason.effect or 0
                for entry in changes.entries
                for reason in entry.reasons
                if not reason.of_all and reason.text.startswith(f"{stage} ")
            ]
            assert found[stage] == pytest.approx(sum(kinds), rel=0.2)  # parts of one side alone have other words


def test_what_a_stage_is_captured_without_is_said(pairs: dict[str, tuple[Side, Side]]) -> None:
    """One model copies the logits and chooses the token in its decode step; the other one's ends with logits."""
    (entry,) = [each for each in entries(*pairs["two models"]) if each.name == "decode, whole model"]
    (reason,) = entry.reasons
    assert "is not captured as part of any module in decode of ocr-2" in reason.text
    assert "argmax (" in reason.text


def test_the_same_work_in_another_module_is_recognised() -> None:
    """What the model itself runs on one side and its head on the other: where it is, is said."""
    model = modelmeter.load("deepseek-ocr")
    moved = tuple(
        evolve(leaf, module="lm_head") if (leaf.stage, leaf.module) == ("decode", "") else leaf for leaf in model.leaves
    )
    work = workload(decode(300))
    old, new = side("a", model, work), side("b", evolve(model, name="other", leaves=moved), work)
    (entry,) = [each for each in entries(old, new, Metric.BYTES) if each.name == "decode, whole model"]
    texts = " ".join(reason.text for reason in entry.reasons)
    assert "is in `lm_head` in decode of b" in texts
    assert "not captured" not in texts


def test_memory_says_which_weights_and_tensors_changed(pairs: dict[str, tuple[Side, Side]]) -> None:
    """Weights by role and what is alive at the peak add up to its change; the largest tensors are named."""
    for old, new in pairs.values():
        for metric in (Metric.MEMORY, Metric.LOAD_MEMORY):
            changes = set_side_by_side([old, new], ranked_by=metric).changes[0]
            assert changes.difference == new.totals[metric] - old.totals[metric]
            assert sum(entry.difference for entry in changes.entries) == pytest.approx(changes.difference, rel=1e-9)
            for entry in changes.entries:
                assert sum(reason.effect or 0 for reason in entry.reasons) == pytest.approx(entry.difference)
    found = {entry.name: entry for entry in entries(*pairs["two models"], Metric.MEMORY)}
    (reason,) = found["activations"].reasons
    assert "peak in prefill → vision_local at V=4" in reason.text
    assert "largest in ocr: " in reason.text
    (weights,) = [
        entry
        for entry in entries(*pairs["a what-if"], Metric.MEMORY)
        if entry.name == "parameters, decoder: feed-forward"
    ]
    assert [reason.text for reason in weights.reasons] == ["weight_dtype fp8 in fp8 alone, bytes an element 2 → 1"]


def test_loading_in_another_type_is_said() -> None:
    """DeepSeek-OCR loads fp32 and keeps bf16, DeepSeek-OCR-2 loads what it keeps."""
    old, new = (
        side("ocr", modelmeter.load("deepseek-ocr"), OCR),
        side("ocr-2", modelmeter.load("deepseek-ocr-2"), OCR_2),
    )
    first, *_ = entries(old, new, Metric.LOAD_MEMORY)
    assert first.name == "loading"
    assert (
        first.reasons[0].text == "ocr loads 4 bytes an element and keeps 2, ocr-2 loads 2 bytes an element and keeps 2"
    )


def test_further_totals_are_explained_on_demand(pairs: dict[str, tuple[Side, Side]]) -> None:
    """One section for each total and side, none twice."""
    compared = set_side_by_side(pairs["two models"])
    more = with_explained(compared, [Metric.FLOPS, Metric.TIME, Metric.MEMORY])
    assert [changes.metric for changes in more.changes] == [Metric.TIME, Metric.FLOPS, Metric.MEMORY]


def test_a_device_and_sizes_are_told_apart(toy: ModuleType, toy_side: MakeSide) -> None:
    """Twice the prompt on a slower device: at the old device's speed first, then on the new one."""
    a100 = modelmeter.load_device("a100-80gb-sxm")
    item = toy.toy_workload().items[0]
    longer = evolve(item, runs=(evolve(item.runs[0], bindings={"B": 2, "S": 10}), item.runs[1]))
    long = evolve(toy.toy_workload(), items=(longer,))
    old, new = toy_side("a", device=H200), toy_side("b", device=a100, workload=long)
    found = causes(old, new)
    assert found["prefill S 5 → 10"] == pytest.approx(
        toy_side("c", device=H200, workload=long).totals[Metric.TIME] - old.totals[Metric.TIME]
    )
    assert len(found) == 2


def test_a_model_of_another_run_explains_nothing(toy: ModuleType, toy_side: MakeSide) -> None:
    """Where evaluating a side again does not give its totals, effects are not known: reasons are named without."""
    other = evolve(toy_side("a"), totals={**toy_side("a").totals, Metric.FLOPS: 1})
    item = toy.toy_workload().items[0]
    longer = evolve(toy.toy_workload(), items=(evolve(item, runs=(item.runs[0], evolve(item.runs[1], count=4))),))
    (entry,) = entries(other, toy_side("b", workload=longer), Metric.FLOPS)
    assert {reason.effect for reason in entry.reasons} == {None}


def test_stages_of_two_names_say_at_which_sizes_they_run(toy: ModuleType, toy_side: MakeSide) -> None:
    """A prefill that the other model calls `read`, of twice the tokens: the sizes are said beside what they change."""
    model, work = toy.toy_model(), toy.toy_workload()
    prefill_only = evolve(work, items=(evolve(work.items[0], runs=work.items[0].runs[:1]),))
    other = evolve(
        model,
        name="other",
        stages=tuple(evolve(stage, name="read") if stage.name == "prefill" else stage for stage in model.stages),
        leaves=tuple(evolve(leaf, stage="read") if leaf.stage == "prefill" else leaf for leaf in model.leaves),
    )
    read = workload(StageRun(stage="read", count=2, bindings={"B": 2, "S": 10}))
    found = entries(toy_side("a", workload=prefill_only), toy_side("b", model=other, workload=read), Metric.FLOPS)
    (head,) = [entry for entry in found if entry.name.endswith("head")]
    (reason,) = head.reasons
    assert reason.text == "prefill and read linear: executions 1 → 2, S 5 → 10, linear 1.44 kFLOP → 5.76 kFLOP"


def items(*runs: tuple[str, StageRun]) -> Workload:
    """Return a workload of items by name, each of one run; a name may come again."""
    names = dict.fromkeys(name for name, _ in runs)
    return Workload(
        name="items",
        items=tuple(
            WorkloadItem(name=name, documents=1, runs=tuple(run for item, run in runs if item == name))
            for name in names
        ),
    )


@pytest.mark.parametrize("name", ["large", "small 1"])
def test_fewer_executions_are_less_whatever_items_are_called(name: str) -> None:
    """Two small documents against a large one: half the prefills at the old mean, then the size, which is named."""
    qwen = modelmeter.load("qwen3-8b")
    two = items(("small 1", prefill(300)), ("small 2", prefill(500)))
    found = causes(side("a", qwen, two), side("b", qwen, items((name, prefill(9_000)))), Metric.FLOPS)
    assert list(found) == ["prefill mean S 400 → 9,000", "prefill executions 2 → 1"]
    halved = side("a", qwen, two).totals[Metric.FLOPS] / 2
    assert found["prefill executions 2 → 1"] == pytest.approx(-halved)
    back = causes(side("b", qwen, items((name, prefill(9_000)))), side("a", qwen, two), Metric.FLOPS)
    assert list(back) == ["prefill mean S 9,000 → 400", "prefill executions 1 → 2"]
    assert back["prefill executions 1 → 2"] > 0


def test_a_step_of_a_point_names_its_sizes() -> None:
    """Ten steps of a page against one step of a batch: executions, batch and context, each with its own effect."""
    qwen = modelmeter.load("qwen3-8b")
    point = StageRun(stage="decode", count=1, bindings={"B": 64, "T": 4096})
    found = causes(
        side("a", qwen, items(("page", decode(400)))), side("b", qwen, items(("decode B=64", point))), Metric.FLOPS
    )
    assert set(found) == {"decode executions 10 → 1", "decode B 1 → 64", "decode mean T 404.5 → 4,096"}
    assert found["decode executions 10 → 1"] < 0 < found["decode mean T 404.5 → 4,096"]


def test_runs_of_unequal_numbers_add_up() -> None:
    """Documents of three sizes become five of two: what each cause adds is the whole, and nothing is left."""
    qwen = modelmeter.load("qwen3-8b")
    old = items(*((f"a{size}", prefill(size)) for size in (100, 700, 900)), ("a100", decode(100)))
    new = items(*((f"b{size}", prefill(size)) for size in (50, 51, 52, 53, 2000)), ("b50", decode(300, count=4)))
    one, other = side("a", qwen, old), side("b", qwen, new)
    for metric in WORK:
        found = causes(one, other, metric)
        assert sum(found.values()) == pytest.approx(other.totals[metric] - one.totals[metric], rel=1e-9)
        assert {text.partition(" ")[0] for text in found} == {"prefill", "decode"}
