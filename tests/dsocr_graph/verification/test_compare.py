"""Comparisons by themselves: figures that do not agree are found, by module."""

import attrs
import pytest
import torch
from torch import nn

from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import CallGraph, group_by_module
from dsocr_graph.tracing import capture
from dsocr_graph.verification import compare
from dsocr_graph.verification.expect import expect
from dsocr_graph.verification.flop_comparison import ModelledFlops, flops
from dsocr_graph.verification.flop_counts import CountedFlops
from dsocr_graph.verification.module_paths import ModulePaths
from dsocr_graph.verification.observe import observe
from dsocr_graph.verification.records import Reason
from dsocr_graph.verification.replayed import replay_observed
from dsocr_graph.verification.stage_run import StageRun


def model() -> nn.Sequential:
    """Return two layers on `meta`."""
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval()


def grouped() -> CallGraph:
    """Return the call graph of the two layers on three rows."""
    module = model()
    stage = StageSpec(name="forward", description="", module=module, inputs=(torch.empty(3, 4, device="meta"),))
    return group_by_module(capture(module, [stage], name="toy", variant={}))


@pytest.fixture
def run() -> StageRun:
    """Return a run of the two layers."""
    graph, real = grouped(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    (stage,) = graph.captured.graphs
    paths = {path: path for path in ("", "0", "1")}
    with torch.no_grad():
        return StageRun(
            stage="forward",
            bindings={},
            grouped=graph,
            paths=ModulePaths.from_first(paths),
            seen=observe(real, real, [torch.ones(3, 4)]),
            said=expect(stage, paths, {}),
            replayed=replay_observed(stage, real, [torch.ones(3, 4)], {}),
            same_weights=True,
        )


def test_parameters_that_differ_are_told_by_module() -> None:
    """A third bias of 2 makes 4*4+4 + 4*2+2 = 30 parameters 32; the second layer has 12 of them instead of 10."""
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    other[1].register_parameter("more", nn.Parameter(torch.zeros(2)))
    found = compare.parameters(other, grouped()).differences
    assert [(each.module, each.what, each.run, each.graph) for each in found] == [
        ("", "in all", "32", "30"),
        ("1", "own", "12", "10"),
    ]


def test_flops_that_differ_are_told_by_module(run: StageRun) -> None:
    """A module whose FLOPs torch counts otherwise, and the total with it."""
    counted = CountedFlops(total=100, called={"0": 60, "1": 40}, filed={"0": 60, "1": 40})
    check = flops(run, counted, ModelledFlops(total=102, modules={"0": 62, "1": 40}))
    assert [(each.module, each.run, each.graph) for each in check.unexplained] == [
        ("", "100", "102"),
        ("0", "60", "62"),
    ]


def test_flops_without_a_formula_of_torch_are_told(run: StageRun) -> None:
    """Where an operator is none that torch counts, its FLOPs are the difference, or there is no reason."""
    replayed = attrs.evolve(
        run.replayed, calls=tuple(attrs.evolve(each, dispatched={"aten::mv": 1}) for each in run.replayed.calls)
    )
    run = attrs.evolve(run, replayed=replayed)
    counted = CountedFlops(total=40, called={"0": 0, "1": 40}, filed={"0": 0, "1": 40})
    for operators, reason in (({("0", "aten::linear"): 60}, Reason.UNCOUNTED), ({("0", "aten::linear"): 59}, None)):
        modelled = ModelledFlops(total=100, modules={"0": 60, "1": 40}, operators=operators)
        found = flops(run, counted, modelled).differences
        assert [(each.module, each.reason) for each in found] == [("", reason), ("0", reason)]


def test_sizes_that_differ_are_told(run: StageRun) -> None:
    """A symbolic shape that does not evaluate to the real one is unexplained."""
    check = compare.sizes(run, lambda item: tuple((shape, "float16") for shape, _ in item.results))
    assert [(each.module, each.run, each.graph) for each in check.unexplained] == [
        ("0", "[3, 4] float32", "[3, 4] float16"),
        ("1", "[3, 2] float32", "[3, 2] float16"),
    ]


def test_results_that_differ_are_told(run: StageRun) -> None:
    """With the same weights and inputs other values are unexplained; with other weights nothing is compared."""
    run.seen.results[0].add_(1)
    assert [each.what for each in compare.results(run).unexplained] == ["result 0"]
    assert compare.results(attrs.evolve(run, same_weights=False)).compared == 0
