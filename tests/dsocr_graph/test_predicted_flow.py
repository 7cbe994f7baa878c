"""Calibrate, measure and analyze in a row, on the toy model: what a user does, by the command line."""

import csv
import json
from pathlib import Path

import pytest

from dsocr_graph.cli import main
from dsocr_graph.errors import OptionError
from dsocr_graph.time_models import choose_time_model
from modelmeter.measurement import read_measurement
from modelmeter.predict import Calibrated, read_calibration
from modelmeter.reports import read_report

MODEL = ["--model", "deepseek-ocr-tiny", "--dtype", "fp32"]
POINTS = {
    "vision_global": ["vision_global"],
    "prefill": ["prefill:B=1,S=83,N=73", "prefill:B=1,S=120,N=110"],
    "decode": ["decode:B=1,T=83", "decode:B=1,T=120"],
}
PAGES = 'mode = "Tiny"\nnew_tokens = 20\npages = [{name = "a", width = 500, height = 500}]\n'


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a calibration, a measurement and pages."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "pages.toml").write_text(PAGES, encoding="utf-8")
    points = [word for texts in POINTS.values() for text in texts for word in ("--points", text)]
    calibration, measurement = folder / "calibration.json", folder / "measurement.json"
    assert main(["calibrate", *MODEL, "--mode", "Tiny", "--passes", "1", *points, "--out", str(calibration)]) == 0
    measured = [word for texts in POINTS.values() for word in ("--points", texts[0])]
    options = ["--mode", "Tiny", "--repeats", "3", *measured, "--out", str(measurement)]
    assert main(["measure", *MODEL, *options]) == 0
    return folder


@pytest.fixture(scope="module")
def predicted(desk: Path) -> Path:
    """Return the artefacts of an analysis with both files."""
    out = desk / "out"
    options = ["--calibration", str(desk / "calibration.json"), "--measurement", str(desk / "measurement.json")]
    assert main(["analyze", *MODEL, "--workload", str(desk / "pages.toml"), *options, "--out", str(out)]) == 0
    return out


def test_the_report_predicts_with_an_interval(predicted: Path) -> None:
    """Total, stages and modules carry seconds with p10 and p90; nothing of it is zero."""
    report = read_report(predicted / "report.json")
    assert report.prediction is not None
    assert (report.prediction.method, report.prediction.runtime) == ("calibration", "eager")
    for amount in (report.total.total, *report.total.stages.values(), report.total.modules["lm_head"].inclusive):
        assert amount.time is not None
        assert amount.time.p10 is not None
        assert amount.time.p90 is not None
        assert 0 < amount.time.p10 <= amount.time.p90


def test_the_report_reads_as_a_prediction(predicted: Path) -> None:
    """Sections on predicted times, on serving and on the measurement; not a word of a roofline."""
    text = (predicted / "report.md").read_text(encoding="utf-8")
    for words in (
        "## Predicted time",
        "TTFT",
        "pages/s",
        "## Predicted beside measured",
        "--calibration calibration.json",
    ):
        assert words in text
    assert "not calibrated" not in text


def test_predicted_and_measured_share_their_module_ids(predicted: Path) -> None:
    """Both tracks of the trace name the same modules; the table has every measured stage in total."""
    events = json.loads((predicted / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    names = {
        process: {event["name"] for event in events if event["ph"] == "X" and event["pid"] == process}
        for process in {event["pid"] for event in events if event["ph"] == "X"}
    }
    assert len(names) == 2
    first, second = names.values()
    modules = {name for name in first if name.startswith("model.layers")}
    assert modules
    assert modules <= second
    with (predicted / "comparison.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["stage"] for row in rows} >= set(POINTS)


def test_the_measurement_is_whole(desk: Path) -> None:
    """Calls of modules agree with the graph but for the root of vision, which runs methods; calls are attributed."""
    measurement = read_measurement(desk / "measurement.json")
    assert {(count.module, count.stage) for count in measurement.miscounted} <= {("", "vision_global")}
    for stage in measurement.stages:
        assert stage.attributed >= 0.9
        assert stage.peak_bytes is not None
        assert stage.peak_bytes > 0
        assert len(stage.cpu_seconds) == 3


def test_the_calibration_says_what_it_covers(desk: Path) -> None:
    """The file alone has the model, its calls and the machine's rates."""
    predictor = Calibrated(calibration=read_calibration(desk / "calibration.json"))
    assert [model.name for model in predictor.calibration.models] == ["deepseek-ocr-tiny"]
    assert len(predictor.calibration.samples) > 100
    assert predictor.facts.device.bytes_per_second > 1e8


def test_a_calibration_of_another_machine_is_refused(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The measurement says two threads, the calibration one."""
    document = json.loads((desk / "measurement.json").read_text(encoding="utf-8"))
    document["machine"]["threads"] = 2
    other = desk / "other.json"
    other.write_text(json.dumps(document), encoding="utf-8")
    options = ["--calibration", str(desk / "calibration.json"), "--measurement", str(other)]
    assert main(["analyze", *MODEL, *options, "--out", str(desk / "none")]) == 2
    assert "threads is 1, not 2" in capsys.readouterr().err


def test_a_calibration_of_another_dtype_names_what_it_lacks(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The toy in bf16 needs products in bf16."""
    options = ["--model", "deepseek-ocr-tiny", "--dtype", "bf16", "--workload", str(desk / "pages.toml")]
    file = ["--calibration", str(desk / "calibration.json"), "--out", str(desk / "none")]
    assert main(["analyze", *options, *file]) == 2
    message = capsys.readouterr().err
    assert "bf16" in message
    assert "It covers deepseek-ocr-tiny" in message
    assert "--physical" in message


def test_a_calibration_of_another_model_is_refused(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The toy's calls tell little of the full-size model's; both are named, and how to do it all the same."""
    file = ["--calibration", str(desk / "calibration.json")]
    assert main(["analyze", "--model", "deepseek-ocr", *file, "--out", str(desk / "none")]) == 2
    assert main(["plan", "--pages-per-day", "10", *file]) == 2
    messages = capsys.readouterr().err
    assert messages.count("is of calls of deepseek-ocr-tiny, not of deepseek-ocr; make one with") == 2
    assert not (desk / "none").exists()


def test_a_prediction_of_the_loop_says_what_is_of_the_grouped_form() -> None:
    """Times are those of the loop alone, so the report names what is not; it names the calibrated models too."""
    calibration = read_calibration(
        Path(__file__).parents[2] / "benchmarks/accuracy/data/cpu-fp32-loop/calibration.json.gz"
    )
    source = Calibrated(calibration=calibration, moe="loop").facts.source
    assert (
        source["experts"] == "times of the published loop; FLOPs, bytes, memory and calls are those of the grouped form"
    )
    assert source["calibrated"] == "deepseek-ocr-narrow"
    assert "experts" not in Calibrated(calibration=calibration).facts.source


def test_a_truncated_calibration_is_refused(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half a file is no calibration."""
    text = (desk / "calibration.json").read_text(encoding="utf-8")
    half = desk / "half.json"
    half.write_text(text[: len(text) // 2], encoding="utf-8")
    assert main(["analyze", *MODEL, "--calibration", str(half), "--out", str(desk / "none")]) == 2
    assert "is no JSON or cut off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "h200", "runtime": "eager"}, "runtime 'eager' needs a calibration"),
        ({"device": "h200", "runtime": "fast"}, "choose one of eager, cudagraph, engine"),
        ({"device": None, "runtime": "engine"}, "needs a device"),
        ({"device": "h200", "calibration": "file.json"}, "leave one of them out"),
        ({"device": None, "calibration": "file.json", "runtime": "engine"}, "leave out --calibration"),
        ({"device": "h200", "moe": "loop"}, "give --calibration, or leave it out"),
        ({"device": "h200", "physical": True}, "a roofline has nothing else"),
        ({"device": None, "calibration": "f.json", "runtime": "cudagraph", "moe": "loop"}, "which no CUDA graph holds"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    """Each says what to leave out or to add."""
    with pytest.raises(OptionError, match=message):
        choose_time_model(**options)  # type: ignore[arg-type]


def test_a_measurement_alone_is_refused(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing predicted can stand beside it."""
    file = str(desk / "measurement.json")
    assert main(["analyze", *MODEL, "--measurement", file, "--out", str(desk / "none")]) == 2
    assert "give --calibration as well" in capsys.readouterr().err
