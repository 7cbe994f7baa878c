"""Every row of a sweep is what `evaluate` says of that workload."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmeter.devices import load_device
from modelmeter.errors import UnboundDimError
from modelmeter.evaluate import evaluate, evaluate_stage
from modelmeter.expert_counts import Routing, fewest_routing, most_routing, uniform_routing
from modelmeter.model import AnalyticModel, LeafCost, SizeLimitError, UnknownStageError
from modelmeter.reports.serving import serving_of
from modelmeter.routing import Zipf
from modelmeter.stored import StoredDim
from modelmeter.sweeps import (
    Axis,
    Detail,
    Grid,
    Program,
    Section,
    StageRule,
    SweepError,
    SweepOverflowError,
    chunk_table,
    stage_tables,
)

FLOPS = ("flops", "tensor_core_flops", "cuda_core_flops")
BYTES = ("bytes", "fused_bytes", "weight_bytes_read")
DECODE = StageRule(stage="decode", count="n", bindings={"B": "B", "T": "T"}, sweep="T")


def row(grid: Grid, point: int) -> dict[str, Any]:
    """Return one row of a grid of one section, evaluated among its neighbours."""
    chunk = list(grid.chunks(16))[point // 16]
    table = chunk_table(grid, chunk, Detail.TOTALS)
    return {name: values[point % 16] for name, values in table.columns.items()}


@settings(deadline=None, max_examples=30)
@given(point=st.integers(0, 224), device=st.sampled_from(["h200", "l4"]))
def test_a_row_is_what_evaluate_says(shipped: AnalyticModel, grid: Grid, point: int, device: str) -> None:
    """FLOPs and memory agree to the last digit, bytes and seconds to rounding."""
    section = next(part for part in grid.sections if part.labels["device"] == device)
    found = row(Grid(sections=(section,)), point)
    report = evaluate(shipped, section.workload(point), device=section.device)
    cost = report.total.total.cost
    assert {name: found[name] for name in FLOPS} == {name: getattr(cost, name) for name in FLOPS}
    for name in BYTES:
        assert found[name] == pytest.approx(getattr(cost, name), rel=1e-12)
    assert found["kv_cache_bytes"] == max(memory.kv_cache_bytes for memory in report.memory.stages)
    assert found["running_bytes"] == report.memory.running_bytes
    assert found["peak_bytes"] == report.memory.peak_bytes
    serving = serving_of(report)[0]
    assert found["ttft_seconds"] == pytest.approx(serving.ttft.seconds, rel=1e-9)
    assert found["page_seconds"] == pytest.approx(serving.page.seconds, rel=1e-9)
    if serving.tpot is None:
        assert np.isnan(found["tpot_seconds"])
    else:
        assert found["tpot_seconds"] == pytest.approx(serving.tpot.seconds, rel=1e-9)
    for stage, amount in report.total.stages.items():
        assert amount.time is not None
        assert found[f"{stage}_seconds"] == pytest.approx(amount.time.seconds, rel=1e-9)


@pytest.mark.parametrize("routing", [uniform_routing, fewest_routing, most_routing, Zipf(exponent=1.1)])
def test_a_routing_decides_the_bytes(shipped: AnalyticModel, plain_grid: Grid, routing: Routing) -> None:
    """Under any routing, weights read are those that evaluate counts."""
    section = evolve(plain_grid.sections[0], routing=routing)
    found = row(Grid(sections=(section,)), 33)
    cost = evaluate(shipped, section.workload(33), routing=routing).total.total.cost
    assert found["weight_bytes_read"] == pytest.approx(cost.weight_bytes_read, rel=1e-12)


def test_the_toy_model_by_hand(toy_grid: Grid) -> None:
    """At B=2, S=5 the prefill has 2*640 + 2*320 + 320 + 1280 + 160 FLOPs, decode 2 * 2*B*T*4*8 at T = 5, 6, 7."""
    prefill = 2 * 640 + 2 * 320 + 320 + 1280 + 160
    decode = sum(2 * 2 * 2 * t * 4 * 8 for t in (5, 6, 7))
    found = row(toy_grid, 3)
    assert found["flops"] == prefill + decode == 8288
    assert found["kv_cache_bytes"] == 8 * 2 * 7 + 8 * 2  # after the step at T = 7
    assert found["running_bytes"] == 4302 + 10 * 2 * 5 + 2000  # of the prefill: parameters and the larger peak


def test_cells_are_what_evaluate_says(shipped: AnalyticModel, plain_grid: Grid) -> None:
    """The table by module has each cell's own FLOPs, exactly, its bytes and its calls."""
    chunk = list(plain_grid.chunks(100))[1]
    tables = {table.stage: table for table in stage_tables(plain_grid, chunk)}
    for point in (3, 57, 99):
        for run in plain_grid.sections[0].workload(chunk.start + point).items[0].runs:
            sizes = {dim: size for dim, size in run.bindings.items() if dim in shipped.dims}
            part = evaluate_stage(shipped, run.stage, count=run.count, sweep=run.sweep, **sizes)
            table = tables[run.stage]
            assert set(table.cells) == set(part.cells)
            column = table.points.tolist().index(point)
            for index, cell in enumerate(table.cells):
                cost = part.cells[cell].cost
                assert table.calls[index, column] == cost.calls
                assert [table.figures[name][index, column] for name in FLOPS] == [getattr(cost, name) for name in FLOPS]
                for name in BYTES:
                    assert table.figures[name][index, column] == pytest.approx(getattr(cost, name), rel=1e-12)


def test_rows_by_module_add_up_to_the_totals(plain_grid: Grid) -> None:
    """Of each point, the rows of all modules together are the row of totals."""
    chunk = next(plain_grid.chunks(40))
    totals, modules = (chunk_table(plain_grid, chunk, detail).columns for detail in (Detail.TOTALS, Detail.MODULES))
    assert (np.diff(modules["point"]) >= 0).all()
    for name in FLOPS:
        assert np.bincount(modules["point"], weights=modules[name]).tolist() == totals[name].tolist()


def test_a_stage_that_does_not_run_has_no_rows(plain_grid: Grid) -> None:
    """An uncropped page with one new token has no local views and no decode: points 0 has new = 1 and no views."""
    modules = chunk_table(plain_grid, next(plain_grid.chunks(1)), Detail.MODULES).columns
    assert set(modules["stage"]) == {"vision_global", "prefill"}


@settings(deadline=None, max_examples=25)
@given(B=st.integers(1, 4096), T=st.integers(1, 8000), n=st.integers(1, 200))
def test_a_closed_form_is_the_loop(shipped: AnalyticModel, B: int, T: int, n: int) -> None:
    """The FLOPs of n decode steps in closed form are those of the steps one by one."""
    axes = (Axis.of("B", (B,)), Axis.of("T", (T,)), Axis.of("n", (n,)))
    grid = Grid(sections=(Section(program=Program.of(shipped), axes=axes, rules=(DECODE,)),))
    ends = [evaluate_stage(shipped, "decode", B=B, T=T + step).total.cost.flops for step in (0, n - 1)]
    # FLOPs are linear in T, so n steps cost n times the mean of the first and the last.
    assert row(grid, 0)["flops"] == n * (ends[0] + ends[1]) // 2


def test_what_no_form_is_closed_for_is_summed_step_by_step(toy: ModuleType) -> None:
    """With a cost of Max(T, 6)*B vector FLOPs and ceiling(T/4) bytes, three steps at T = 5, 6, 7 cost B*19 and 6."""
    model = toy.toy_model()
    work = StoredDim(text="Max(T, 6)*B")
    cost = LeafCost(vector_flops=work, cuda_core_flops=work, bytes=StoredDim(text="ceiling(T/4)"))
    changed = evolve(model, leaves=(evolve(model.leaves[-1], cost=cost),))
    axes = (Axis.of("B", (2,)), Axis.of("T", (5,)), Axis.of("n", (3,)))
    section = Section(program=Program.of(changed), axes=axes, rules=(DECODE,), device=load_device("h200"))
    found = row(Grid(sections=(section,)), 0)
    assert found["flops"] == 2 * (6 + 6 + 7)
    assert found["bytes"] == 2 + 2 + 2
    time = evaluate(changed, section.workload(0), device=section.device).total.total.time
    assert time is not None
    assert found["decode_seconds"] == pytest.approx(time.seconds, rel=1e-12)


def big_grid(program: Program, batch: int) -> Grid:
    """Return one decode of many sequences."""
    axes = (Axis.of("B", (batch,)), Axis.of("T", (8000,)), Axis.of("n", (190,)))
    return Grid(sections=(Section(program=program, axes=axes, rules=(DECODE,)),))


def test_integers_stay_exact_beyond_floats(shipped: AnalyticModel) -> None:
    """190 steps of 99,999 sequences are over 2**53 FLOPs, where floats skip integers; the count is still exact."""
    grid = big_grid(Program.of(shipped), 99_999)
    exact = evaluate(shipped, grid.sections[0].workload(0)).total.total.cost.flops
    assert exact > 2**53
    assert exact % 2 == row(grid, 0)["flops"] % 2
    assert row(grid, 0)["flops"] == exact


def test_an_overflow_is_an_error_that_names_the_limit(shipped: AnalyticModel) -> None:
    """Two thousand million sequences would leave 64-bit integers: said, not wrapped around."""
    with pytest.raises(SweepOverflowError, match=r"flops of stage 'decode' may reach .* over 2\*\*63 - 1"):
        row(big_grid(Program.of(shipped), 2_000_000_000), 0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "axis 'x' has no values"),
        ({"a": (), "b": ()}, "axis 'x' has no values"),
        ({"a": (1,), "b": (1, 2)}, "columns of unequal length"),
        ({"a": (1.5,)}, "a is 1.5; expected a whole number from 0"),
        ({"a": (-1,)}, "a is -1; expected a whole number from 0"),
    ],
)
def test_an_axis_is_of_whole_numbers(columns: dict[str, tuple[int, ...]], message: str) -> None:
    """An axis without values, or with others than whole numbers, is refused by name."""
    with pytest.raises(SweepError, match=message):
        Axis(name="x", columns=columns)


def test_a_batch_of_0_names_the_limit(shipped: AnalyticModel) -> None:
    """B = 0 is no workload."""
    axes = (Axis.of("B", (1, 0)), Axis.of("T", (9,)), Axis.of("n", (1,)))
    grid = Grid(sections=(Section(program=Program.of(shipped), axes=axes, rules=(DECODE,)),))
    with pytest.raises(SweepError, match="B of stage 'decode' is 0, from 'B'; expected a whole number from 1 up"):
        row(grid, 0)


def test_steps_beyond_the_model_are_refused(shipped: AnalyticModel) -> None:
    """With room for a cache of 8,191, 192 steps from 8,000 on end there and a 193rd does not fit."""
    program, axes = Program.of(shipped), (Axis.of("B", (1,)), Axis.of("T", (8000,)))
    fits, beyond = (
        Grid(sections=(Section(program=program, axes=(*axes, Axis.of("n", (steps,))), rules=(DECODE,)),))
        for steps in (192, 193)
    )
    assert row(fits, 0)["n"] == 192
    with pytest.raises(SizeLimitError, match=r"stage 'decode' of the grid runs at T = 8,192; .* up to 8,191"):
        row(beyond, 0)


def test_sections_are_checked_when_they_are_made(shipped: AnalyticModel) -> None:
    """A missing dim, an unknown column, an unknown stage, a repeated name and no rule are told apart."""
    program, axes = Program.of(shipped), (Axis.of("B", (1,)), Axis.of("T", (9,)))
    with pytest.raises(UnboundDimError, match="no size for dim T"):
        Section(program=program, axes=axes, rules=(StageRule(stage="decode", count="1", bindings={"B": "B"}),))
    with pytest.raises(SweepError, match="reads n, which no axis has"):
        Section(program=program, axes=axes, rules=(DECODE,))
    with pytest.raises(UnknownStageError, match="unknown stage 'encode'"):
        Section(program=program, axes=axes, rules=(StageRule(stage="encode", count="1"),))
    with pytest.raises(SweepError, match="repeated are B"):
        Section(program=program, axes=axes, labels={"B": "b"}, rules=(StageRule(stage="vision_global", count="1"),))
    with pytest.raises(SweepError, match="runs no stage"):
        Section(program=program, axes=axes, rules=())


def test_sections_of_a_grid_make_one_table(grid: Grid, plain_grid: Grid) -> None:
    """Sections with and without times have different columns, so they are no grid; nor are none."""
    with pytest.raises(SweepError, match="a device each or none"):
        Grid(sections=(grid.sections[0], plain_grid.sections[0]))
    with pytest.raises(SweepError, match="at least one section"):
        Grid(sections=())


def test_tables_by_module_have_no_times(grid: Grid) -> None:
    """Times by module are refused, not left out."""
    with pytest.raises(SweepError, match="leave out the devices"):
        chunk_table(grid, next(grid.chunks(1)), Detail.MODULES)


def test_a_count_that_is_no_whole_number_is_refused(shipped: AnalyticModel) -> None:
    """Half of 3 executions are none; half of 4 are two, and the ceiling of half of 3 too."""

    def swept(count: str, value: int) -> dict[str, Any]:
        rule = StageRule(stage="decode", count=count, bindings={"B": "1", "T": "1"})
        section = Section(program=Program.of(shipped), axes=(Axis.of("n", (value,)),), rules=(rule,))
        return row(Grid(sections=(section,)), 0)

    with pytest.raises(SweepError, match=r"count of stage 'decode' is 1\.5, from 'n/2'; expected a whole number"):
        swept("n/2", 3)
    assert swept("n/2", 4)["flops"] == swept("ceiling(n/2)", 3)["flops"] == 2 * swept("1", 3)["flops"]


@pytest.mark.parametrize("detail", list(Detail))
def test_every_column_of_numbers_has_a_unit(toy_grid: Grid, detail: Detail) -> None:
    """An axis says its own, or counts; labels have none."""
    table = chunk_table(toy_grid, next(toy_grid.chunks(4)), detail)
    assert set(table.units) == {name for name, values in table.columns.items() if values.dtype != object}
    assert (table.units["B"], table.units["flops"], table.units["bytes"]) == ("1", "FLOPs", "bytes")


def test_a_unit_is_of_a_column() -> None:
    """A unit for what the axis does not have is a slip."""
    with pytest.raises(SweepError, match="has units of pages, which it has no column of; its columns are batch"):
        Axis(name="batch", columns={"batch": (1,)}, units={"pages": "1"})
