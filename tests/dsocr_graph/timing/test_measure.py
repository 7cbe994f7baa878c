"""A real model measured: what the record holds, and what is refused with which words."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsocr_graph.cli_measure import add_parser
from dsocr_graph.errors import (
    CheckpointNotFoundError,
    DsocrGraphError,
    MeasurementMemoryError,
    MissingDeviceError,
    ModelConfigError,
    ModelInputError,
    OptionError,
    OutputError,
    ReplayError,
)
from dsocr_graph.lowering import lower
from dsocr_graph.models.deepseek_ocr import DeepseekOCRConfig, DeepseekOCRForCausalLM, initialize, save_checkpoint
from dsocr_graph.models.registry import Variant
from dsocr_graph.scopes import group_by_module
from dsocr_graph.timing import stage_inputs
from dsocr_graph.timing.bench import Bench
from dsocr_graph.timing.measure import measure
from dsocr_graph.timing.memory_limits import memory_explained
from dsocr_graph.timing.plan import Point
from dsocr_graph.timing.stage_inputs import StageInputs
from modelmeter.measurement import CallCount, Measurement, StageMeasurement, measurement_from_json, measurement_to_json
from modelmeter.model import AnalyticModel

from .conftest import Tiny

DECODE = Point(stage="decode", bindings={"B": 2, "T": 21})


@pytest.fixture(scope="module")
def analytic(tiny: Tiny) -> AnalyticModel:
    """Return the compiled decode stage of the toy-size model."""
    return lower(group_by_module(tiny.captured("decode")))


@pytest.fixture
def bench(tiny: Tiny, analytic: AnalyticModel) -> Bench:
    """Return a bench whose decode stage need not be captured again."""
    made = Bench(tiny.named, tiny.variant, analytic=analytic)
    made._graphs["decode"] = tiny.captured("decode")
    return made


def test_a_stage_is_measured_as_a_whole_and_call_by_call(bench: Bench, analytic: AnalyticModel) -> None:
    """Seven runs count; every call of the schedule has a time, and together they are all of the stage's time."""
    measured = bench.measure(DECODE)
    assert len(measured.wall_seconds) == len(measured.cpu_seconds) == 7
    assert len(measured.call_seconds) == len(analytic.stages[0].schedule)
    assert min(measured.call_seconds) >= 0
    assert measured.attributed >= 0.9
    assert sum(measured.scaled_call_seconds) == pytest.approx(measured.seconds * min(1, measured.attributed))
    assert measured.launches is None  # nothing is started on a device


def test_peak_and_experts_are_those_of_the_run(bench: Bench) -> None:
    """Two tokens with two of eight experts each: 2 to 4 per layer, in the two layers behind the dense one."""
    measured = bench.measure(DECODE, repeats=1)
    assert measured.active_experts.keys() == {f"model.layers.{layer}.mlp.experts" for layer in (1, 2)}
    assert all(2 <= active <= 4 for active in measured.active_experts.values())
    # Keys and values of one layer, 2 * [2, 4, 22, 16] floats, exist beside the old ones at least.
    assert measured.peak_bytes is not None
    assert measured.peak_bytes >= 2 * 2 * 4 * 22 * 16 * 4


def test_a_budget_ends_the_runs_but_leaves_three(tiny: Tiny, bench: Bench) -> None:
    """With no time at all there are three runs and one of the calls, and the progress says so."""
    told: list[str] = []
    bench._progress = told.append
    measured = bench.measure(DECODE, budget_seconds=0)
    assert len(measured.wall_seconds) == 3
    assert re.search(r"decode B=2, T=21: 3 runs of 7 took .*, over the budget of 0", told[-1])


def test_several_threads_are_timed_by_the_wall(tiny: Tiny) -> None:
    """CPU times of threads add up, so that they are left out."""
    try:
        measured = Bench(tiny.named, tiny.variant, threads=2).measure(DECODE, repeats=2, instrument=False)
    finally:
        torch.set_num_threads(1)
    assert measured.cpu_seconds == ()
    assert measured.seconds > 0


def test_another_page_size_shares_the_weights(bench: Bench, tiny: Tiny) -> None:
    """The global view of 128 pixels has 2 * 3 + 1 tokens; no second model is built."""
    smaller = bench.at(attrs.evolve(tiny.variant, base_size=128))
    assert smaller._runner.model is bench._runner.model
    assert smaller.run(Point(stage="vision_global", bindings={})).cpu > 0
    with pytest.raises(OptionError, match=r"differs from .* in more than the page size; build another bench"):
        bench.at(Variant(base_size=128, dtype="bf16", attention="sdpa"))


def test_a_graph_of_other_calls_is_refused(bench: Bench, analytic: AnalyticModel) -> None:
    """Times that do not match the compiled model's schedule would be attributed to wrong modules."""
    (stage,) = analytic.stages
    shorter = attrs.evolve(analytic, stages=(attrs.evolve(stage, schedule=stage.schedule[1:]),))
    bench._runner = bench._runner.at(bench._runner.variant, analytic=shorter)
    count = len(stage.schedule)
    with pytest.raises(
        ReplayError, match=rf"decode has {count - 1} calls in the compiled model and {count} as captured"
    ):
        bench.call_times(DECODE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "repeats is 0; measure each stage at least once, better 7 times"),
        ({"warmups": 0}, "warmups is 0; the first run of a stage is never one that counts"),
    ],
)
def test_runs_are_at_least_one(bench: Bench, options: dict[str, int], message: str) -> None:
    """A number that would leave nothing to count is an error."""
    with pytest.raises(OptionError, match=message):
        bench.measure(DECODE, **options)


@pytest.mark.parametrize(
    ("stage", "bindings", "message"),
    [
        ("decod", {"B": 1}, "unknown stage 'decod'; the stages are vision_global, vision_local, prefill, decode"),
        ("decode", {"B": 1}, "stage decode takes the dims B, T; given are B"),
        ("decode", {"B": 1, "T": 3, "S": 4}, "stage decode takes the dims B, T; given are B, S, T"),
        ("vision_global", {"V": 1}, "stage vision_global takes the dims none; given are V"),
        ("decode", {"B": 0, "T": 3}, "stage decode cannot run at B=0: every dim is at least 1"),
        ("prefill", {"B": 1, "S": 5, "N": 5}, "N = 5 image tokens do not fit into S = 5 tokens"),
        ("vision_local", {"V": 5, "H": 2}, "stage vision_local cannot run at V=5, H=2: the views fill a grid"),
        ("vision_local", {"V": 4, "H": 2, "W": 3}, "cannot run at V=4, H=2, W=3: the views fill a grid"),
    ],
)
def test_a_point_that_cannot_run_is_refused_before_the_model_is_built(
    stage: str, bindings: dict[str, int], message: str
) -> None:
    """The message names the stage, the sizes and what would be right."""
    told: list[str] = []
    with pytest.raises(ModelInputError, match=re.escape(message)):
        measure("deepseek-ocr-tiny", points=[Point(stage=stage, bindings=bindings)], progress=told.append)
    assert told == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"points": []}, OptionError, "nothing to measure: give at least one point"),
        ({"budget_seconds": -3.0}, OptionError, r"budget_seconds is -3\.0; give a time of 0 or more"),
        ({"budget_seconds": float("nan")}, OptionError, "budget_seconds is nan"),
        ({"model": "gpt2"}, DsocrGraphError, "unknown model 'gpt2'; known models: deepseek-ocr, .*deepseek-ocr-tiny"),
        ({"moe": "sideways"}, ModelConfigError, "moe_implementation = 'sideways': known are grouped, loop"),
        ({"threads": 0}, OptionError, "threads is 0"),
        ({"checkpoint": "no/such/folder"}, CheckpointNotFoundError, "no/such/folder is not a directory"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """One message says what is wrong and what there is."""
    given_options: dict[str, Any] = {"model": "deepseek-ocr-tiny", "points": [DECODE], "mode": "Tiny", **options}
    with pytest.raises(error, match=message):
        measure(**given_options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_absent_is_said_before_anything_is_built() -> None:
    """The message says why there is none and what to do."""
    told: list[str] = []
    with pytest.raises(MissingDeviceError, match=r"'cuda' is asked for, but torch .* use --device cpu"):
        measure("deepseek-ocr-tiny", points=[DECODE], device="cuda", progress=told.append)
    assert told == []


def test_a_model_for_analysis_only_is_refused(toy_model: Callable[..., Any]) -> None:
    """A model without a way to run it can be analysed, not measured."""
    toy_model()
    with pytest.raises(
        OptionError, match=r"model 'toy' is .* cannot be run; choose one of deepseek-ocr, deepseek-ocr-tiny"
    ):
        measure("toy", points=[DECODE])


def test_a_checkpoint_gives_its_weights_and_its_name(tmp_path: Path) -> None:
    """The folder's name is recorded."""
    config = DeepseekOCRConfig.tiny()
    save_checkpoint(initialize(DeepseekOCRForCausalLM(config)), tmp_path / "mine")
    measured = measure(
        "deepseek-ocr-tiny", points=[DECODE], checkpoint=tmp_path / "mine", repeats=1, instrument=False, mode="Tiny"
    )
    assert measured.weights == "mine"


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    """Two layers instead of three are another model, and their times would be filed under a wrong name."""
    config = DeepseekOCRConfig.tiny(num_hidden_layers=2)
    save_checkpoint(initialize(DeepseekOCRForCausalLM(config)), tmp_path)
    with pytest.raises(ModelConfigError, match=r"is of another model: its config\.json differs"):
        measure("deepseek-ocr-tiny", points=[DECODE], checkpoint=tmp_path, mode="Tiny")


def test_the_loop_over_experts_is_measured_as_a_whole(tiny: Tiny) -> None:
    """It has times and no calls; asking for those is an error that says why."""
    bench = Bench(tiny.named, tiny.variant, moe="loop")
    assert bench.measure(DECODE, repeats=2, instrument=False).seconds > 0
    with pytest.raises(OptionError, match="moe 'loop' cannot be timed call by call: its loop over experts follows"):
        bench.call_times(DECODE)


# --- memory


def test_what_does_not_fit_is_refused_before_it_runs(bench: Bench) -> None:
    """The KV cache of 10^9 documents is terabytes; the message says so, and what to do."""
    huge = Point(stage="decode", bindings={"B": 10**9, "T": 100})
    with pytest.raises(
        MeasurementMemoryError,
        match=r"deepseek-ocr-tiny .*, decode B=1000000000, T=100 does not fit on cpu: it needs \d+ TB, .* available; "
        "measure it at smaller sizes, in bf16",
    ):
        bench.run(huge)


def test_an_allocation_that_fails_is_explained() -> None:
    """Torch's own message names neither the stage nor a remedy."""
    with (
        pytest.raises(MeasurementMemoryError, match=r"decode ran out of memory on cpu; it needs 2.00 kB .*; buy more"),
        memory_explained("decode", 2000, torch.device("cpu"), "buy more"),
    ):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_pass_through() -> None:
    """An error of another kind is none of memory's."""
    with pytest.raises(RuntimeError, match=r"^something else$"), memory_explained("", 0, torch.device("cpu"), ""):
        raise RuntimeError("something else")


@given(order=st.lists(st.integers(1, 6), min_size=1, max_size=20), room=st.integers(0, 100))
def test_inputs_are_equal_each_time_whatever_was_dropped_between(order: list[int], room: int) -> None:
    """A point's inputs follow from the point alone, and no more is kept than there is room for, but for the last."""

    def make(point: Point) -> list[torch.Tensor]:
        return [torch.full((3,), float(point.bindings["B"]))]  # 12 bytes

    with patch.object(stage_inputs, "_MOST_BYTES", room):
        inputs = StageInputs(make)
        for number in order:
            assert inputs.copy(Point(stage="decode", bindings={"B": number}))[0].tolist() == [number] * 3
        kept = sum(inputs.has(Point(stage="decode", bindings={"B": number})) for number in range(1, 7))
    assert 1 <= kept <= max(1, room // 12)
    assert inputs.has(Point(stage="decode", bindings={"B": order[-1]}))


# --- the file and the command line


def test_a_measurement_is_read_back(tiny: Tiny) -> None:
    """Written and read, a measurement is the same."""
    measured = measure("deepseek-ocr-tiny", points=[DECODE], repeats=2, instrument=False, mode="Tiny", dtype="fp32")
    assert measured.variant["moe"] == "grouped"
    assert measurement_from_json(measurement_to_json(measured)) == measured


def run_command(*words: object) -> int:
    """Run `measure` with some words."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    options = parser.parse_args(["measure", *map(str, words)])
    status: int = options.run(options)
    return status


def test_the_command_writes_a_file_and_prints_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: Tiny
) -> None:
    """A measurement with its calls, counted modules and peaks; no half file is left beside it."""
    from dsocr_graph import compiling

    compiled = lower(group_by_module(tiny.captured("decode")))
    monkeypatch.setattr(compiling, "analytic_model", lambda *_, **__: compiled)
    monkeypatch.setattr(Bench, "_captured", lambda _, stage: tiny.captured(stage))
    out = tmp_path / "deeper" / "measured.json"
    words = ["--model", "deepseek-ocr-tiny", "--points", "decode:B=2,T=21", "--mode", "Tiny", "--dtype", "fp32"]
    assert run_command(*words, "--repeats", 2, "--out", out) == 0
    printed = capsys.readouterr().out
    measured = measurement_from_json(out.read_text(encoding="utf-8"))
    assert [stage.stage for stage in measured.stages] == ["decode"]
    assert measured.miscounted == ()
    assert re.search(r"decode +B=2, T=21 +2 .*%.* kB .* kB \([+-]0\.0%\)", printed)
    assert re.search(r"calls of modules: (\d+) of \1 counts as in the graph\n", printed)
    assert printed.endswith(f"{out}\n")
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--points", "decode:B=1,T=3", "--workload", "x.toml"],
            "--points gives the sizes themselves, so that --workload",
        ),
        (["--points", "decode:B=1,T=3", "--batch", "2"], "so that --batch would say nothing"),
        (["--points", "decode=3"], "unknown stage 'decode=3'"),
        (["--workload", "no-such.toml"], "no profile file 'no-such.toml'; check the path"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: list[str], message: str) -> None:
    """Points are named one by one or come from pages."""
    with pytest.raises(DsocrGraphError, match=message):
        run_command("--model", "deepseek-ocr-tiny", *words)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", r"cannot write '\.': it is a directory; give the name of a file"),
        ("file/m.json", "file is a file, not a directory"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, message: str
) -> None:
    """The run is what takes long; it does not begin."""

    def fail(*_: object, **__: object) -> Measurement:
        raise AssertionError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dsocr_graph.timing.measure.measure", fail)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=message):
        run_command("--model", "deepseek-ocr-tiny", "--points", "decode:B=2,T=21", "--out", out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_workload_is_measured_at_its_distinct_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two equal pages in Tiny mode: one global view, one prefill, and three steps of a decode of 10 - 1."""
    seen: dict[str, Any] = {}

    class StopHereError(Exception):
        pass

    def fake(model: str, **options: Any) -> Measurement:
        seen.update(options)
        raise StopHereError

    monkeypatch.setattr("dsocr_graph.timing.measure.measure", fake)
    profile = tmp_path / "two.toml"
    pages = [{"name": name, "width": 100, "height": 100} for name in ("a", "b")]
    lines = [f'{{name = "{page["name"]}", width = {page["width"]}, height = {page["height"]}}}' for page in pages]
    profile.write_text(f'mode = "Tiny"\nnew_tokens = 10\npages = [{", ".join(lines)}]\n', encoding="utf-8")
    with pytest.raises(StopHereError):
        run_command("--model", "deepseek-ocr-tiny", "--workload", profile)
    assert [point.text for point in seen["points"]] == [
        "vision_global",
        "prefill B=1, S=83, N=73",
        "decode B=1, T=83",
        "decode B=1, T=87",
        "decode B=1, T=91",
    ]
    assert seen["mode"] == "Tiny"


def test_differences_of_calls_are_explained() -> None:
    """The table names the module, both numbers and the reason."""
    from dsocr_graph.emit.measurement_table import reason, to_table
    from modelmeter.machine import Machine

    machine = Machine(kind="cuda", device="a GPU", driver="1", memory_bytes=1, threads=1, torch="2.13.0")
    stage = StageMeasurement(
        stage="decode", bindings={"B": 1}, warmups=3, wall_seconds=(2.0, 2.0), call_seconds=(1.0, 0.8), peak_bytes=0
    )
    counts = (
        CallCount(stage="decode", module="lm_head", counted=1, expected=1),
        CallCount(stage="decode", module="mlp.experts.[0-7]", counted=4, expected=0),
    )
    measurement = Measurement(
        machine=machine, date="2026-11-25", model="toy", variant={}, weights="mine", stages=(stage,), calls=counts
    )
    lines = to_table(measurement, [500]).splitlines()
    assert lines[0] == "toy on a GPU, torch 2.13.0, mine weights"
    assert lines[3].split() == [
        *("decode", "B=1", "2", "-", "2.00", "s", "0.0%", "90.0%"),
        *("0", "B", "500", "B", "(nothing", "measured)"),
    ]
    assert lines[5] == "calls of modules: 1 of 2 counts as in the graph, but for"
    assert "mlp.experts.[0-7]: called 4, in the graph 0: it runs in the loop over experts" in lines[6]
    assert (
        reason(CallCount(stage="decode", module="x", counted=3, expected=2)) == "the graph does not hold for this run"
    )


def test_calls_that_take_longer_than_the_run_are_shown_as_they_are() -> None:
    """1.36 s of calls in a run of 1 s are 136 %, and a line says what that means."""
    from dsocr_graph.emit.measurement_table import to_table
    from modelmeter.machine import Machine

    machine = Machine(kind="cpu", device="a CPU", driver="", memory_bytes=1, threads=1, torch="2.13.0")
    stage = StageMeasurement(
        stage="decode", bindings={"B": 1}, warmups=1, wall_seconds=(1.0,), call_seconds=(1.0, 0.36), peak_bytes=500
    )
    measurement = Measurement(
        machine=machine, date="2026-11-25", model="toy", variant={}, weights="random", stages=(stage,)
    )
    lines = to_table(measurement, [500]).splitlines()
    assert "136.0%" in lines[3]
    assert lines[5].startswith("in calls: above 100 % timing call by call costs more than it attributes, or the run")
