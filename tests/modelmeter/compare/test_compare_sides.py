"""Sides beside each other: totals, rows that add up to them, facts and thresholds."""

import itertools
from collections.abc import Callable
from types import ModuleType

import pytest
from attrs import evolve

import modelmeter
from modelmeter.compare import (
    CompareError,
    Metric,
    MissingFigureError,
    Side,
    movements,
    set_side_by_side,
    side_of_report,
)
from modelmeter.compare.side import UNNAMED
from modelmeter.evaluate import evaluate
from modelmeter.reports.report import report_from_json
from modelmeter.workload import StageRun, Workload, WorkloadItem

MakeSide = Callable[..., Side]


def page(name: str, *, views: int, context: int) -> Workload:
    """Return one page, with crops or without."""
    crops = [StageRun(stage="vision_local", count=1, bindings={"V": views, "H": 1, "W": views})] if views else []
    runs = [
        *crops,
        StageRun(stage="vision_global", count=1, bindings={}),
        StageRun(stage="prefill", count=1, bindings={"B": 1, "S": context, "N": context - 10}),
        StageRun(stage="decode", count=9, bindings={"B": 1, "T": context}, sweep="T"),
    ]
    return Workload(name=name, items=(WorkloadItem(name="page", documents=1, runs=tuple(runs)),))


@pytest.fixture(scope="module")
def shipped_sides() -> dict[str, Side]:
    """Return variants of a shipped model on a device, and one as a bare report."""
    h200 = modelmeter.load_device("h200")
    workloads = {"gundam": page("cropped", views=2, context=493), "tiny": page("plain", views=0, context=83)}
    workloads["gundam-eager"] = workloads["gundam"]
    sides: dict[str, Side] = {}
    for variant, workload in workloads.items():
        model = modelmeter.load("deepseek-ocr", variant)
        report = evaluate(model, workload, device=h200)
        sides[variant] = side_of_report(report, label=variant, model=model)
        sides[f"{variant} report"] = side_of_report(report_from_json(report.to_json()), label=f"{variant} report")
    return sides


def test_rows_add_up_to_the_totals(shipped_sides: dict[str, Side]) -> None:
    """By stage, by role, by module and in the changes nothing is dropped: every split is the whole of each side."""
    for pair in itertools.permutations(shipped_sides.values(), 2):
        compared = set_side_by_side(pair)
        for metric in compared.additive:
            splits = [compared.roles, compared.modules]
            if metric not in {Metric.PARAMETERS, Metric.WEIGHT_BYTES}:  # parameters belong to no stage
                splits.append(compared.stages)
            for index, rows in itertools.product((0, 1), splits):
                total = sum(row.figures[index].get(metric, 0) for row in rows)
                assert total == pytest.approx(compared.totals[index][metric], rel=1e-12), (metric, index)
        (changes,) = compared.changes
        differences = sum(entry.difference for entry in changes.entries)
        assert differences == pytest.approx(changes.difference, rel=1e-9, abs=1e-12)


def test_rows_of_aligned_models_add_up_to_the_totals() -> None:
    """Three models of two packages, whose modules are one row under several ids: each side is whole in every split."""
    runs = {
        "deepseek-ocr": [StageRun(stage="prefill", count=1, bindings={"B": 1, "S": 83, "N": 73})],
        "deepseek-ocr-2": [StageRun(stage="prefill", count=1, bindings={"B": 1, "S": 83, "N": 73})],
        "qwen3-30b-a3b": [StageRun(stage="prefill", count=1, bindings={"B": 1, "S": 83})],
    }
    sides: list[Side] = []
    for name, stages in runs.items():
        decode = StageRun(stage="decode", count=9, bindings={"B": 1, "T": 83}, sweep="T")
        workload = Workload(name=name, items=(WorkloadItem(name="page", documents=1, runs=(*stages, decode)),))
        model = modelmeter.load(name)
        sides.append(side_of_report(evaluate(model, workload), label=name, model=model))
    compared = set_side_by_side(sides)
    assert any(None not in ids for ids in compared.alignment.renamed.values())
    for metric, rows in itertools.product(compared.additive, (compared.roles, compared.modules)):
        for index, totals in enumerate(compared.totals):
            assert sum(row.figures[index].get(metric, 0) for row in rows) == pytest.approx(totals[metric], rel=1e-12)


def test_a_report_has_the_roles_of_its_model(shipped_sides: dict[str, Side]) -> None:
    """A report.json alone, read back, is split as the model is: what ran is enough to tell roles."""
    for variant in ("gundam", "tiny"):
        with_model, alone = shipped_sides[variant], shipped_sides[f"{variant} report"]
        assert alone.roles == {name: with_model.roles[name] for name in alone.roles}


def test_totals_of_the_toy(toy_side: MakeSide) -> None:
    """Figures by hand, of a prefill of 2 x 5 tokens and 3 steps."""
    totals = toy_side("toy").totals
    # prefill 2*640 + 2*320 + 320 + 1280 + 160 = 3680 (tests/modelmeter/toy.py); a step at T attends with
    # 2 calls * 2*2*T*4*8 = 256*T FLOPs: 256*(5 + 6 + 7) = 4608
    assert totals[Metric.FLOPS] == 3680 + 4608
    assert totals[Metric.CONTEXT_TOKENS] == 2 * 5
    assert totals[Metric.OUTPUT_TOKENS] == 2 * (1 + 3)
    assert totals[Metric.KV_PER_TOKEN] == 8  # the cache is 8*B*S bytes
    assert totals[Metric.MEMORY] == 4302 + 2100  # parameters; at S=5 late: 10*2*5 + 2000, more than 100*10 + 16
    assert Metric.TIME not in totals


def test_parameters_that_no_module_accounts_for_have_a_row(toy_side: MakeSide) -> None:
    """The toy's modules name 320 of its 4302 bytes of weights: the rest is not attributed."""
    compared = set_side_by_side([toy_side("a"), toy_side("b")])
    (row,) = [row for row in compared.modules if row.name == UNNAMED]
    assert row.figures[0][Metric.WEIGHT_BYTES] == 4302 - 320
    assert compared.roles[-1].name == "not attributed"


def test_a_part_that_one_side_has_keeps_its_row(toy: ModuleType, toy_side: MakeSide) -> None:
    """A module of another name is a row of its own on each side, with nothing on the other."""
    model = toy.toy_model()
    renamed = evolve(
        model,
        modules=tuple(evolve(node, id="output") if node.id == "lm_head" else node for node in model.modules),
        leaves=tuple(evolve(leaf, module="output") if leaf.module == "lm_head" else leaf for leaf in model.leaves),
    )
    compared = set_side_by_side([toy_side("old"), toy_side("new", model=renamed)])
    rows = {row.name: row.figures for row in compared.modules}
    assert rows["lm_head"][0][Metric.FLOPS] == rows["output"][1][Metric.FLOPS] == 1280 + 160
    assert rows["lm_head"][1] == rows["output"][0] == {}


def test_facts_name_model_and_variant_and_tell_what_differs(toy: ModuleType, toy_side: MakeSide) -> None:
    """Two variants of one model are told apart by the fact that differs."""
    other = evolve(toy.toy_model(), variant={"dtype": "fp32", "attention": "none"})
    compared = set_side_by_side([toy_side("a"), toy_side("b", model=other)])
    facts = {fact.name: fact for fact in compared.facts}
    assert facts["model"].values == ("toy", "toy")
    assert [name for name, fact in facts.items() if fact.differs] == ["variant: dtype"]


@pytest.mark.parametrize(
    ("variant", "fact", "value"),
    [
        ({"experts": "grouped"}, "moe", "grouped"),
        ({"experts_implementation": "grouped_mm"}, "moe", "grouped"),
        ({"torch_dtype": "bfloat16"}, "dtype", "bf16"),
        ({"attn_implementation": "sdpa"}, "attention", "sdpa"),
        ({"moe": "loop", "experts": "grouped"}, "experts", "grouped"),  # a what-if beside the capture: both stay
        ({"base_size": "1024"}, "base_size", "1024"),
    ],
)
def test_facts_that_mean_the_same_have_one_name(
    toy: ModuleType, toy_side: MakeSide, variant: dict[str, str], fact: str, value: str
) -> None:
    """Another package's name of a choice is the row that the first package's is in."""
    side = toy_side("a", model=evolve(toy.toy_model(), variant=variant))
    assert side.facts[f"variant: {fact}"] == value


def test_one_side_is_no_comparison(toy_side: MakeSide) -> None:
    """A comparison needs a second side."""
    with pytest.raises(CompareError, match="needs two sides or more, this one has 1"):
        set_side_by_side([toy_side("alone")])


def test_ranking_by_time_needs_times(toy_side: MakeSide) -> None:
    """The message names the sides without times and what to do."""
    with pytest.raises(MissingFigureError, match="b has no time: analyze it with a device"):
        set_side_by_side([toy_side("a", device=modelmeter.load_device("h200")), toy_side("b")], ranked_by=Metric.TIME)


def test_a_total_that_moves_more_than_the_threshold_is_found(toy: ModuleType, toy_side: MakeSide) -> None:
    """Four steps instead of three add 256*8 = 2048 FLOPs to 8288: 24.7 %, in either direction."""
    item = toy.toy_workload().items[0]
    longer = evolve(item, runs=(item.runs[0], evolve(item.runs[1], count=4)))
    sides = [toy_side("short"), toy_side("long", workload=evolve(toy.toy_workload(), items=(longer,)))]
    compared = set_side_by_side(sides)
    (movement,) = movements(compared, ["flops", "parameters"], 24)
    assert (movement.metric, movement.before, movement.after) == (Metric.FLOPS, 8288, 8288 + 2048)
    assert movement.percent == pytest.approx(24.71, abs=0.01)
    assert movements(compared, ["flops"], 25) == ()
    back = set_side_by_side(sides[::-1])
    assert [each.percent for each in movements(back, ["flops"], 19)] == [pytest.approx(-2048 / 10336 * 100)]


@pytest.mark.parametrize(
    ("gates", "percent", "message"),
    [
        (["flop"], 1, "no total 'flop'; choose of flops, bytes, time, memory, parameters"),
        (["flops"], -1, "the threshold is -1 %; expected 0 or more"),
        (["flops"], float("nan"), "expected 0 or more"),
        (["time"], 1, "has no time: analyze it with a device"),
    ],
)
def test_a_threshold_that_says_nothing_is_refused(
    toy_side: MakeSide, gates: list[str], percent: float, message: str
) -> None:
    """Unknown totals, thresholds below zero and figures that are not there are mistakes."""
    compared = set_side_by_side([toy_side("a"), toy_side("b")])
    with pytest.raises(CompareError, match=message):
        movements(compared, gates, percent)
