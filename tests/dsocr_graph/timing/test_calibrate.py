"""Calibrations: passes, journals that survive an interruption, files, limits of time, and what is refused."""

import argparse
import errno
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from dsocr_graph.cli_calibrate import add_parser
from dsocr_graph.errors import (
    JournalError,
    MeasurementMemoryError,
    MissingDeviceError,
    OptionError,
    OutputError,
    PlanError,
    UnfinishedCalibrationError,
)
from dsocr_graph.lowering import lower
from dsocr_graph.scopes import group_by_module
from dsocr_graph.timing import calibrator as calibrator_module
from dsocr_graph.timing.calibrate import calibrate
from dsocr_graph.timing.calibrator import Calibrator
from dsocr_graph.timing.machine import this_machine
from dsocr_graph.timing.microbench import Microbench
from dsocr_graph.timing.nvml import Reading
from dsocr_graph.timing.plan import Plan, PlannedCall, Point
from modelmeter.dtypes import DType
from modelmeter.model import AnalyticModel
from modelmeter.predict.calibration import HostCosts, Peaks, read_calibration
from modelmeter.signature import Signature, TensorArgument

MACHINE = this_machine("cpu", threads=1)
PEAKS = Peaks(matrix_flops={"fp32": 1e9}, vector_flops=1e9, bandwidth=1e9)
POINTS = [Point(stage="decode", bindings={"B": 2, "T": 9})]


def exp_call(elements: int, **fields: Any) -> PlannedCall:
    """Return a pointwise call on so many elements."""
    x = TensorArgument(dtype=DType.FP32, shape=(elements,), strides=(1,))
    given: dict[str, Any] = {"conditions": {}, "flops": elements, "bytes": 8 * elements, "origin": "a test", **fields}
    return PlannedCall(signature=Signature(op="aten::exp", overload="default", arguments={"self": x}), **given)


PLAN = Plan(models=(), calls=tuple(exp_call(elements) for elements in range(1, 13)))


class Timed:
    """Stands for the microbenchmark: a call of n elements takes n + 0.123456 us; it can be interrupted."""

    def __init__(self) -> None:
        self.elements: list[int] = []  # of the calls timed, in order
        self.interrupt_at: int | None = None

    def seconds(self, call: PlannedCall) -> float:
        """Return the time of a call."""
        if len(self.elements) == self.interrupt_at:
            raise KeyboardInterrupt
        self.elements.append(sum(tensor.elements for tensor in call.signature.tensors))
        return (self.elements[-1] + 0.123456) * 1e-6


def patch(monkeypatch: pytest.MonkeyPatch) -> Timed:
    """Let nothing be measured for real."""

    class Still:
        def __init__(self, *_: object) -> None: ...

        def seconds(self) -> dict[str, float]:
            return {"gemm": 0.01, "copy": 0.02}

    timed = Timed()
    monkeypatch.setattr(calibrator_module, "measure_peaks", lambda *_: PEAKS)
    monkeypatch.setattr(calibrator_module, "measure_host_costs", lambda _: HostCosts(classes={"view": 1e-6}))
    monkeypatch.setattr(calibrator_module, "Sentinels", Still)
    monkeypatch.setattr(calibrator_module, "cold_bytes", lambda *_: 4096)
    monkeypatch.setattr(calibrator_module, "CpuClock", lambda **_: None)
    monkeypatch.setattr(Microbench, "seconds", timed.seconds)
    return timed


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Timed:
    """Return the log of what was timed."""
    return patch(monkeypatch)


@pytest.fixture
def model(tiny: Any) -> AnalyticModel:
    """Return the decode stage of the toy-size model."""
    return lower(group_by_module(tiny.captured("decode")))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the findings in a journal."""
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- passes


def test_a_pass_times_every_call_once_in_an_order_of_its_own(timed: Timed) -> None:
    """Two passes of 12 calls, shuffled differently; another process shuffles them alike."""
    for _ in range(2):
        calibrator = Calibrator(PLAN, machine=MACHINE)
        calibrator.run_pass()
        calibrator.run_pass()
    first, second, *again = (tuple(timed.elements[begin : begin + 12]) for begin in range(0, 48, 12))
    assert sorted(first) == sorted(second) == list(range(1, 13))
    assert len({first, second, tuple(range(1, 13))}) == 3
    assert again == [first, second]


def test_a_calibration_holds_what_was_timed_to_four_digits(timed: Timed) -> None:
    """7 elements: 7.123456 us, twice; work and conditions of the plan."""
    plan = Plan(models=(), calls=(exp_call(7, conditions={"active_experts": 3}),))
    calibrator = Calibrator(plan, machine=MACHINE)
    calibrator.run_pass()
    calibrator.run_pass()
    calibration = calibrator.calibration()
    (sample,) = calibration.samples
    assert sample.seconds == (7.123e-6, 7.123e-6)
    assert (sample.flops, sample.bytes, sample.launches, sample.conditions) == (7, 56, 0, {"active_experts": 3})
    assert (calibration.machine, calibration.peaks) == (MACHINE, PEAKS)
    assert calibration.host.classes == {"view": 1e-6}
    assert {sentinel.name for sentinel in calibration.sentinels} == {"gemm", "copy"}


def test_a_calibration_without_a_complete_pass_is_refused(timed: Timed) -> None:
    """11 of 12 calls are not enough to predict with."""
    timed.interrupt_at = 11
    calibrator = Calibrator(PLAN, machine=MACHINE)
    with pytest.raises(KeyboardInterrupt):
        calibrator.run_pass()
    with pytest.raises(UnfinishedCalibrationError, match="1 of 12 calls have not been timed yet; run a pass first"):
        calibrator.calibration()


def test_the_next_pass_is_expected_to_take_what_the_last_one_took(timed: Timed) -> None:
    """Before anything is timed, peaks say: 2e9 FLOPs at 1 GFLOP/s, two seconds and some more."""
    calibrator = Calibrator(Plan(models=(), calls=(exp_call(1, flops=2e9),)), machine=MACHINE)
    assert 2 < calibrator.next_pass_seconds() < 4
    calibrator.run_pass()
    assert calibrator.next_pass_seconds() < 1


def test_calls_are_timed_for_real_with_time_for_their_work() -> None:
    """One pass over two calls, nothing replaced: a million exponentials take longer than ten."""
    calibrator = Calibrator(Plan(models=(), calls=(exp_call(10), exp_call(1_000_000))), machine=MACHINE)
    calibrator.run_pass()
    few, many = (sample.seconds[0] for sample in calibrator.calibration().samples)
    assert 1e-7 < few < many < 0.1


# --- journals


@given(stop=st.integers(0, 23))
def test_an_interrupted_calibration_goes_on_where_it_was(stop: int) -> None:
    """Wherever Ctrl-C falls in two passes of 12 calls: every call is timed twice, none a third time."""
    with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as folder:
        timed = patch(monkeypatch)
        journal = Path(folder) / "c.json.partial"
        timed.interrupt_at = stop
        interrupted = Calibrator(PLAN, machine=MACHINE, journal=journal)
        if stop >= 12:
            interrupted.run_pass()
        with pytest.raises(KeyboardInterrupt):
            interrupted.run_pass()
        timed.interrupt_at = None
        resumed = Calibrator(PLAN, machine=MACHINE, journal=journal)
        assert resumed.passes == stop // 12
        while resumed.passes < 2:
            resumed.run_pass()
        assert sorted(timed.elements) == sorted([*range(1, 13)] * 2)
        assert all(len(sample.seconds) == 2 for sample in resumed.calibration().samples)


def test_a_resumed_calibration_measures_peaks_and_host_once(timed: Timed, tmp_path: Path) -> None:
    """They are in the journal; the time of the sentinels goes on."""
    journal = tmp_path / "c.json.partial"
    for _ in range(2):
        Calibrator(PLAN, machine=MACHINE, journal=journal).run_pass()
    documents = lines_of(journal)
    assert sum("peaks" in document for document in documents) == 1
    assert sum("host" in document for document in documents) == 1
    elapsed = [document["sentinel"]["elapsed"] for document in documents if "sentinel" in document]
    assert elapsed == sorted(elapsed)


def test_a_line_cut_off_by_a_crash_is_forgotten(timed: Timed, tmp_path: Path) -> None:
    """Half a line at the end: that call is timed again."""
    journal = tmp_path / "c.json.partial"
    Calibrator(PLAN, machine=MACHINE, journal=journal).run_pass()
    kept = [line for line in journal.read_text().splitlines(keepends=True) if '"sentinel"' not in line]
    journal.write_text("".join(kept)[:-9])
    resumed = Calibrator(PLAN, machine=MACHINE, journal=journal)
    assert resumed.passes == 0
    resumed.run_pass()
    assert len(timed.elements) == 13
    assert resumed.passes == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"torch": "1.0.0"}, r"torch is '.*', not '1\.0\.0'"),
        ({"device": "another"}, "device is '.*', not 'another'"),
        ({"threads": 7}, "threads is 1, not 7"),
    ],
)
def test_a_journal_of_another_machine_is_refused(
    timed: Timed, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """The message says what differs and which file to delete; the journal stays."""
    journal = tmp_path / "c.json.partial"
    Calibrator(PLAN, machine=MACHINE, journal=journal).run_pass()
    with pytest.raises(JournalError, match=f"{message}.*or delete .*partial to begin"):
        Calibrator(PLAN, machine=evolve(MACHINE, **change), journal=journal)
    assert len(lines_of(journal)) > 12


def test_a_journal_of_another_plan_is_refused(timed: Timed, tmp_path: Path) -> None:
    """One call more is another plan."""
    journal = tmp_path / "c.json.partial"
    Calibrator(PLAN, machine=MACHINE, journal=journal).run_pass()
    with pytest.raises(JournalError, match="its plan has other calls"):
        Calibrator(evolve(PLAN, calls=(*PLAN.calls, exp_call(99))), machine=MACHINE, journal=journal)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("no JSON\n", 1),
        ("[1]\n", 1),
        ('{"journal": 1}\n', 1),
        ('HEADER{"call": 99, "seconds": 1, "launches": 0}\n', 2),
        ('HEADER{"call": -1, "seconds": 1, "launches": 0}\n', 2),
        ('HEADER{"call": true, "seconds": 1, "launches": 0}\n', 2),
        ('HEADER{"call": 0, "seconds": "nan", "launches": 0}\n', 2),
        ('HEADER{"call": 0, "seconds": NaN, "launches": 0}\n', 2),
        ('HEADER{"call": 0, "seconds": 0, "launches": 0}\n', 2),
        ('HEADER{"call": 0, "seconds": 1, "launches": -1}\n', 2),
        ('HEADER{"peaks": {"matrix_flops": {}, "vector_flops": 1, "bandwidth": 0}}\n', 2),
        ('HEADER{"peaks": {"matrix_flops": 1, "vector_flops": 1, "bandwidth": 1}}\n', 2),
        ('HEADER{"host": {"classes": {"view": -5}}}\n', 2),
        ('HEADER{"call": 0, "launches": 0}\n', 2),
        ('HEADER{"call": 0, "seconds": 1, "launches": 0}\n{"odd": 1}\n', 3),
        ("HEADER7\n", 2),
        ("HEADER\xff\n", 1),
    ],
)
def test_a_damaged_journal_is_refused_with_the_line(timed: Timed, tmp_path: Path, text: str, number: int) -> None:
    """Whatever is in it: the message names the line and says to delete the file."""
    journal = tmp_path / "c.json.partial"
    Calibrator(PLAN, machine=MACHINE, journal=journal)
    header = journal.read_text()
    journal.write_bytes(text.replace("HEADER", header).encode("latin-1"))
    with pytest.raises(JournalError, match=f"line {number}, is not what .* delete it and calibrate anew"):
        Calibrator(PLAN, machine=MACHINE, journal=journal)


def test_the_state_of_a_gpu_is_kept_for_every_pass(
    timed: Timed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,500 and 1,600 MHz at 300 W, in two processes: both are in the calibration."""
    journal = tmp_path / "c.json.partial"
    for clock in (1500.0, 1600.0):
        reading = Reading(clock_mhz=clock, power_watts=300.0)
        monkeypatch.setattr(calibrator_module, "gpu_reader", lambda _, reading=reading: lambda: reading)
        calibrator = Calibrator(PLAN, machine=MACHINE, journal=journal)
        calibrator.run_pass()
    states = calibrator.calibration().gpu
    assert [state.median_clock_mhz for state in states] == [1500.0, 1600.0]
    assert all(state.most_power_watts == 300.0 and state.samples >= 1 for state in states)


def test_launches_are_counted_once_and_many_together(timed: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 calls in sessions of 5, 5 and 2, in the order of the pass; the second pass counts nothing."""
    sessions: list[list[float]] = []

    def launches(calls: Sequence[PlannedCall]) -> tuple[int, ...]:
        sessions.append([call.flops for call in calls])
        return tuple(10 * int(call.flops) for call in calls)

    monkeypatch.setattr(Microbench, "launches", lambda _, calls: launches(calls))
    monkeypatch.setattr(calibrator_module, "_COUNTED_TOGETHER", 5)
    calibrator = Calibrator(PLAN, machine=MACHINE)
    calibrator.run_pass()
    assert list(map(len, sessions)) == [5, 5, 2]
    assert [flops for session in sessions for flops in session] == timed.elements
    calibrator.run_pass()
    assert not any(sessions[3:])
    # exp_call(n) has n FLOPs
    assert [sample.launches for sample in calibrator.calibration().samples] == [10 * n for n in range(1, 13)]


# --- files


def test_a_calibration_is_written_and_its_journal_removed(timed: Timed, tmp_path: Path, model: AnalyticModel) -> None:
    """The file reads back as the result; nothing else is left beside it."""
    out = tmp_path / "new" / "c.json"
    calibration = calibrate([(model, POINTS)], passes=2, out=out)
    assert read_calibration(out) == calibration
    assert [path.name for path in out.parent.iterdir()] == ["c.json"]
    assert calibration.models[0].points == (("decode", {"B": 2, "T": 9}),)
    assert {len(sample.seconds) for sample in calibration.samples} == {2}


def test_a_name_that_ends_in_gz_gives_a_compressed_file(timed: Timed, tmp_path: Path, model: AnalyticModel) -> None:
    """It reads back as a plain one does."""
    out = tmp_path / "c.json.gz"
    calibration = calibrate([(model, POINTS)], passes=1, out=out)
    assert out.read_bytes().startswith(b"\x1f\x8b")
    assert read_calibration(out) == calibration


def test_ctrl_c_leaves_the_journal_and_no_half_file(timed: Timed, tmp_path: Path, model: AnalyticModel) -> None:
    """The last message says how to go on; the same call then does."""
    out, said = tmp_path / "c.json", list[str]()
    timed.interrupt_at = 20
    with pytest.raises(KeyboardInterrupt):
        calibrate([(model, POINTS)], out=out, progress=said.append)
    assert [path.name for path in tmp_path.iterdir()] == ["c.json.partial"]
    assert "the same command goes on from there" in said[-1]
    timed.interrupt_at = None
    calibration = calibrate([(model, POINTS)], out=out)
    assert len(timed.elements) == 3 * len(calibration.samples)
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_a_directory_in_place_of_the_file_is_refused_before_anything_runs(
    timed: Timed, tmp_path: Path, model: AnalyticModel
) -> None:
    """Not after ten minutes of measuring."""
    with pytest.raises(OutputError, match="it is a directory; give the name of a file"):
        calibrate([(model, POINTS)], out=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file is a file, not a directory"):
        calibrate([(model, POINTS)], out=tmp_path / "file" / "c.json")
    assert timed.elements == []


def test_a_file_that_cannot_be_written_in_the_end_leaves_the_journal(
    timed: Timed, tmp_path: Path, model: AnalyticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk costs no measurement."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match=r"no space left on device; .*partial keeps all that was measured"):
        calibrate([(model, POINTS)], passes=1, out=tmp_path / "c.json")
    assert [path.name for path in tmp_path.iterdir()] == ["c.json.partial"]


# --- limits


def test_a_plan_that_does_not_fit_its_time_is_refused(timed: Timed, tmp_path: Path, model: AnalyticModel) -> None:
    """Half a second for some forty calls; the message says how long it takes and how to narrow it."""
    with pytest.raises(
        PlanError, match=r"once would take about \S+ m?s, \S+ ms are left .*--minutes 1, or plan less: .*--p"
    ):
        calibrate([(model, POINTS)], minutes=0.2 / 60, out=tmp_path / "c.json")
    assert timed.elements == []


def test_passes_end_when_the_next_one_would_not_fit(
    timed: Timed, tmp_path: Path, model: AnalyticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass fits into 10 minutes; a second one, expected to take an hour, is left out."""
    expected = iter([1.0, 3600.0])
    monkeypatch.setattr(Calibrator, "next_pass_seconds", lambda _: next(expected))
    said: list[str] = []
    calibration = calibrate([(model, POINTS)], passes=3, minutes=10, out=tmp_path / "c.json", progress=said.append)
    assert {len(sample.seconds) for sample in calibration.samples} == {1}
    assert any("another pass would take 3600 s" in message for message in said)


def test_progress_tells_the_time_left(timed: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a report after every call: so many of all, and how long the rest will take."""
    monkeypatch.setattr(calibrator_module, "_REPORT_EVERY", 0.0)
    said: list[str] = []
    Calibrator(PLAN, machine=MACHINE, progress=said.append).run_pass()
    reports = [message for message in said if message.startswith("pass 1: ")]
    assert len(reports) == 11
    assert re.fullmatch(r"pass 1: 11 of 12 calls, about \S+ \S*s left", reports[-1])


def test_a_call_that_memory_cannot_hold_is_refused_before_it_ends_the_process(timed: Timed) -> None:
    """2**60 bytes: the message names the call, where it is from, and how to leave it out."""
    plan = Plan(models=(), calls=(exp_call(4, bytes=2.0**60, origin="prefill S=99"),))
    with pytest.raises(
        MeasurementMemoryError, match=r"aten::exp.*of prefill S=99.* needs .* give smaller ones with --poi"
    ):
        Calibrator(plan, machine=MACHINE).run_pass()


# --- machines


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_absent_is_an_error_that_says_what_to_do(tmp_path: Path, model: AnalyticModel) -> None:
    """Before anything is timed or written."""
    with pytest.raises(
        MissingDeviceError, match=r"'cuda' is asked for, but torch .*; use --device cpu, or a machine with"
    ):
        calibrate([(model, POINTS)], device="cuda", out=tmp_path / "c.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["gpu", "mps", "cpu:x", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    """The message lists the devices that can be timed."""
    with pytest.raises(OptionError, match="cannot be timed; choose cpu, cuda, or cuda:INDEX"):
        this_machine(device, threads=1)


def test_counts_below_one_are_refused(tmp_path: Path, model: AnalyticModel) -> None:
    """No threads, no passes."""
    with pytest.raises(OptionError, match="threads is 0"):
        this_machine("cpu", threads=0)
    with pytest.raises(OptionError, match="passes is 0"):
        calibrate([(model, POINTS)], passes=0, out=tmp_path / "c.json")


def test_a_machine_is_told_by_its_device_and_torch() -> None:
    """Device, cores, memory and the version of torch without its build."""
    assert MACHINE.device.endswith(f"{os.cpu_count()} cores")
    assert MACHINE.memory_bytes > 2**30
    assert torch.__version__.startswith(MACHINE.torch)
    assert "+" not in MACHINE.torch


# --- the command line


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Return a function that runs the subcommand, in a directory and with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSOCR_GRAPH_CACHE", str(tmp_path / "cache"))
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())

    def run(*words: str) -> int:
        options = parser.parse_args(["calibrate", *words])
        return options.run(options)

    return run


def test_the_command_writes_a_file_named_by_device_and_dtype(
    command: Callable[..., int], timed: Timed, toy_model: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two modes of one toy: two variants, whose equal calls are timed once."""
    toy_model()
    words = ["--model", "toy", "--dtype", "fp32", "--points", "decode:B=3,T=5", "--passes", "1"]
    assert command(*words, "--mode", "Tiny", "--mode", "Gundam", "--mode", "Base") == 0
    out = Path(capsys.readouterr().out.strip())
    assert out.parent == Path("calibrations")
    assert out.name.endswith("-cores-fp32.json")
    calibration = read_calibration(out)
    assert [model.variant["base_size"] for model in calibration.models] == ["512", "1024"]
    assert {sample.signature.op for sample in calibration.samples} == {"aten::linear", "aten::relu"}
    assert len(calibration.samples) == 2


def test_the_command_plans_the_standard_sizes_by_default(
    command: Callable[..., int], timed: Timed, toy_model: Callable[..., object], tmp_path: Path
) -> None:
    """Every stage of the toy, at several sizes."""
    toy_model()
    assert command("--model", "toy", "--dtype", "fp32", "--passes", "1", "--out", "c.json") == 0
    points = read_calibration(tmp_path / "c.json").models[0].points
    assert {stage for stage, _ in points} == {"vision_global", "vision_local", "prefill", "decode"}
    assert len(points) > 50


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--points", "decode"], "takes B=SIZE, T=SIZE"),
        (["--points", "decode;B=1"], "has no stage 'decode;B=1'"),
        (["--minutes", "0"], "minutes is 0.0"),
        (["--passes", "0"], "passes is 0"),
        (["--threads", "0"], "threads is 0"),
        (["--device", "tpu"], "choose cpu, cuda"),
        (["--mode", "Huge"], "no mode 'Huge'"),
        (["--dtype", "fp4"], "did you mean .fp8.. Known: bf16, fp16, fp32, fp8"),
    ],
)
def test_wrong_options_are_refused_by_name(
    command: Callable[..., int], timed: Timed, toy_model: Callable[..., object], words: list[str], message: str
) -> None:
    """One message each, before anything is timed or written."""
    toy_model()
    with pytest.raises((ValueError, LookupError), match=message):
        command("--model", "toy", *words)
    assert timed.elements == []
    assert not Path("calibrations").exists()


@pytest.mark.parametrize("words", [["--out", "."], ["--out", "file/c.json"], ["--passes", "0"]])
def test_what_cannot_end_well_is_refused_before_compiling(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """Compiling takes a minute; a file that cannot be written and no passes are said before."""

    def fail(*_: object, **__: object) -> AnalyticModel:
        raise AssertionError

    monkeypatch.setattr("dsocr_graph.compiling.analytic_model", fail)
    Path("file").touch()
    with pytest.raises((OutputError, OptionError)):
        command("--model", "deepseek-ocr-tiny", *words)
