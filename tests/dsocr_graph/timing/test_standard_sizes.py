"""The standard sizes: they fit every stage, the pages that occur, and the time that a calibration may take."""

import pytest
from attrs import evolve

import modelmeter
from dsocr_graph.errors import PlanError
from dsocr_graph.timing.plan import check_point, plan_calls
from dsocr_graph.timing.standard_sizes import STANDARD_LATTICES, standard_points
from modelmeter.model import AnalyticModel


@pytest.fixture(scope="module")
def model() -> AnalyticModel:
    """Return the shipped model: Gundam, bf16."""
    return modelmeter.load("deepseek-ocr")


def test_standard_points_fit_their_model(model: AnalyticModel) -> None:
    """Every stage has points, each with exactly the dims of the stage."""
    for lattices in STANDARD_LATTICES.values():
        points = standard_points(model, lattices)
        assert {point.stage for point in points} == {stage.name for stage in model.stages}
        for point in points:
            check_point(model, point)


def test_a_stage_with_fewer_dims_takes_the_sizes_once(model: AnalyticModel) -> None:
    """A decode without cached tokens has one point per batch size."""
    stages = tuple(evolve(stage, dims=("B",)) if stage.name == "decode" else stage for stage in model.stages)
    points = standard_points(
        evolve(model, stages=stages),
        [({"B": 1, "T": 5}, {"B": 1, "T": 6}, {"B": 2, "T": 5}), *STANDARD_LATTICES["cpu"]],
    )
    decodes = [point.bindings for point in points if point.stage == "decode"]
    assert decodes == [{"B": 1}, {"B": 2}]


def test_a_dim_without_standard_sizes_is_an_error_that_shows_the_way_out(model: AnalyticModel) -> None:
    """Another model's dims have to be given by hand."""
    stages = tuple(evolve(stage, dims=("B", "Q")) if stage.name == "decode" else stage for stage in model.stages)
    with pytest.raises(PlanError, match=r"dims B, Q, for which.*--points decode:B=SIZE,Q=SIZE"):
        standard_points(evolve(model, stages=stages), STANDARD_LATTICES["cpu"])


def test_the_standard_plan_of_a_cpu_fits_fifteen_minutes_three_times(model: AnalyticModel) -> None:
    """At 23 GFLOP/s and 10 GB/s, as fp32 runs on two old cores; 25 ms a call for what is short."""
    plan = plan_calls([(model, standard_points(model, STANDARD_LATTICES["cpu"]))])
    # The shipped model is bf16, with half the bytes.
    seconds = sum(0.025 + max(call.flops / 23e9, 2 * call.bytes / 10e9) for call in plan.calls)
    assert 3 * seconds < 15 * 60


def test_the_standard_plan_of_a_gpu_fits_ten_minutes_three_times(model: AnalyticModel) -> None:
    """At 20 ms a call, and windows of what takes long at 300 TFLOP/s and 1.5 TB/s, the lattice of rows included."""
    plan = plan_calls([(model, standard_points(model, STANDARD_LATTICES["cuda"]))], row_lattice=True)
    seconds = sum(0.02 + 6 * max(call.flops / 300e12, call.bytes / 1.5e12) for call in plan.calls)
    assert 3 * seconds < 10 * 60


def test_the_standard_sizes_cover_the_pages_that_occur() -> None:
    """Nine crops in a row and the global view are 990 + 273 image tokens and 10 of text; 2 to 9 crops."""
    for crops, prompts, _ in STANDARD_LATTICES.values():
        lengths = [sizes["S"] for sizes in prompts if sizes["B"] == 1]
        assert max(lengths) >= 990 + 273 + 10
        assert {sizes["V"] for sizes in crops} >= {2, 6, 9}
