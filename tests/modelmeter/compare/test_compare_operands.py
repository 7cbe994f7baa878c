"""Operands: files and names read as what they are, and made sides that fit together."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from modelmeter.compare import CompareError, Metric, UnknownOperandError, read_operand, set_side_by_side, sides_of
from modelmeter.compare.from_measurement import side_of_measurement
from modelmeter.compare.operands import Operand
from modelmeter.compare.side import UNNAMED, Piece
from modelmeter.evaluate import evaluate
from modelmeter.machine import Machine
from modelmeter.measurement import Measurement, StageMeasurement, measurement_to_json
from modelmeter.registry import UnknownVariantError
from modelmeter.reports.report import REPORT_SCHEMA_VERSION, ReportFileError
from modelmeter.serialize import model_to_json
from modelmeter.workload import Workload


def measurement(seconds: float, *, calls: tuple[float, ...] = (), torch: str = "2.13.0") -> Measurement:
    """Return one decode step of the toy, measured."""
    return Measurement(
        machine=Machine(kind="cpu", device="toy", driver="", memory_bytes=1 << 30, threads=1, torch=torch),
        date="2026-01-02",
        model="toy",
        variant={"dtype": "bf16", "attention": "none"},
        weights="random",
        stages=(
            StageMeasurement(
                stage="decode", bindings={"B": 1, "T": 5}, warmups=1, wall_seconds=(seconds,), call_seconds=calls
            ),
        ),
    )


@pytest.fixture
def folder(tmp_path: Path, toy: ModuleType) -> Path:
    """Return a directory as `analyze` writes it, of the toy, and a measurement beside it."""
    model = toy.scheduled_toy_model()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.json").write_text(model_to_json(model), encoding="utf-8")
    (tmp_path / "run" / "report.json").write_text(evaluate(model, toy.toy_workload()).to_json(), encoding="utf-8")
    # cat 1 s, up 2 s twice, mystery 3 s: 8 s of calls in a run of 10 s
    text = measurement_to_json(measurement(10.0, calls=(1.0, 2.0, 2.0, 3.0)))
    (tmp_path / "measured.json").write_text(text, encoding="utf-8")
    return tmp_path


def bind(toy: ModuleType) -> Workload:
    """Return the workload of a model in these tests."""
    return toy.toy_workload()


def test_files_and_names_are_read_as_what_they_are(folder: Path) -> None:
    """A directory gives its report and model, a file what it holds, a name a registered variant."""
    run = read_operand(str(folder / "run"))
    assert run.report is not None
    assert run.model is not None
    assert read_operand(str(folder / "run" / "report.json")).model is None
    assert read_operand(str(folder / "run" / "model.json")).report is None
    assert read_operand(str(folder / "measured.json")).measurement is not None
    tiny = read_operand("deepseek-ocr:tiny")
    assert (tiny.label, tiny.variant) == ("deepseek-ocr:tiny", "tiny")
    assert read_operand("deepseek-ocr").variant == "gundam"  # the default is named


def test_a_model_in_the_directory_of_another_report_is_not_taken_for_its_model(folder: Path, toy: ModuleType) -> None:
    """Files of two runs may lie in one directory; parameters by module come from the report's own model alone."""
    report = json.loads((folder / "run" / "report.json").read_text())
    report["model"]["variant"]["dtype"] = "fp32"
    (folder / "run" / "report.json").write_text(json.dumps(report))
    assert read_operand(str(folder / "run")).model is None


def test_what_is_no_operand_is_refused(folder: Path) -> None:
    """Each message says what was given and what would do."""
    with pytest.raises(UnknownOperandError, match=r"no registered model .*Known: .*NAME:VARIANT"):
        read_operand("deepseek-ocr-3")
    with pytest.raises(UnknownVariantError, match="did you mean tiny"):
        read_operand("deepseek-ocr:tyny")
    for nothing in ("", " "):  # the path of nothing is the working directory
        with pytest.raises(UnknownOperandError, match="a side has no name; give a report"):
            read_operand(nothing)
    with pytest.raises(UnknownOperandError, match=r"neither a report\.json nor a model\.json"):
        read_operand(str(folder))
    (folder / "notes.txt").write_text("notes")
    with pytest.raises(UnknownOperandError, match="neither a report, a model nor a measurement"):
        read_operand(str(folder / "notes.txt"))


def test_a_report_of_a_newer_release_is_refused(folder: Path) -> None:
    """The message names both versions."""
    path = folder / "run" / "report.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "schema_version": REPORT_SCHEMA_VERSION + 1}))
    with pytest.raises(ReportFileError, match=f"schema_version {REPORT_SCHEMA_VERSION + 1}, this release reads"):
        read_operand(str(path))


def test_what_must_be_analyzed_first_says_how(tmp_path: Path) -> None:
    """A configuration or its directory is the --model, and never the --out; so is a factory, and no name of a model."""
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama"}', encoding="utf-8")
    for text in (str(tmp_path), str(config), "llmfac:make", "pack.llmfac:make"):
        with pytest.raises(UnknownOperandError) as caught:
            read_operand(text)
        assert f"run `dsocr-graph analyze --model {text} --out DIRECTORY` and give that" in str(caught.value)
    with pytest.raises(UnknownOperandError) as caught:
        read_operand("deepsek-ocr:tiny")
    assert "analyze --model" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnknownOperandError, match="analyze --model MODEL --out DIRECTORY"):
        read_operand(str(tmp_path / "empty"))


def test_nothing_is_left_of_a_run_whose_calls_add_up(toy: ModuleType) -> None:
    """0.1 + 0.2 + 0.2 + 0.3 in floats is more than 0.8: the rounding is no time between calls."""
    measured = measurement(0.8, calls=(0.1, 0.2, 0.2, 0.3))
    side = side_of_measurement(measured, label="run", model=toy.scheduled_toy_model())
    assert UNNAMED not in {piece.module for piece in side.work}
    rest = side_of_measurement(measurement(0.9, calls=(0.1, 0.2, 0.2, 0.3)), label="run", model=side.model)
    assert rest.work[Piece(stage="decode", module=UNNAMED)][Metric.TIME] == pytest.approx(0.1)


def test_times_of_the_same_calls_have_their_unit() -> None:
    """Two measurements that differ in nothing but how long they took."""
    runs = [Operand(label=label, measurement=measurement(seconds)) for label, seconds in (("a", 2e-3), ("b", 3e-3))]
    sides = sides_of(runs, workload_of=lambda _: bind_nothing())
    (entry,) = set_side_by_side(sides).changes[0].entries
    assert [reason.text for reason in entry.reasons] == ["time of the same calls 2.00 ms → 3.00 ms"]


def bind_nothing() -> Workload:
    """Return no workload: measurements are of what they ran."""
    raise AssertionError


def test_a_measurement_beside_a_model_is_split_by_module(folder: Path, toy: ModuleType) -> None:
    """Measured calls belong to modules, the rest to none; the model is evaluated at what was measured."""
    operands = [read_operand(str(folder / "measured.json")), read_operand(str(folder / "run" / "model.json"))]
    sides = sides_of(operands, workload_of=lambda _: bind(toy), time_model=toy.ToyClock())
    compared = set_side_by_side(sides)
    assert [side.label for side in sides] == ["measured.json", "model.json"]
    rows = {row.name: [figures.get(Metric.TIME) for figures in row.figures] for row in compared.modules}
    seconds = {name: times for name, times in rows.items() if any(times)}  # the model has parameters as well
    assert seconds == {
        "model": [1.0, 1.0],
        "model.layers.[0-1].up": [4.0, 4.0],
        "": [3.0, 3.0],
        "(not attributed)": [pytest.approx(2.0), None],
    }
    assert compared.additive == (Metric.TIME,)


def test_two_measurements_compare_versions_of_torch() -> None:
    """Without the model nothing is attributed, and the version that differs is the reason."""
    runs = [Operand(label=f"{torch}.json", measurement=measurement(10.0 / int(torch), torch=torch)) for torch in "12"]
    compared = set_side_by_side(sides_of(runs, workload_of=lambda _: pytest.fail("no model")))
    (entry,) = compared.changes[0].entries
    assert (entry.difference, [reason.text for reason in entry.reasons]) == (-5.0, ["torch 1 → 2"])


@pytest.mark.parametrize("versions", [("5.22.0", "5.23.0"), ("5.23.0", "5.22.0"), (None, "5.23.0"), ("5.23.0", None)])
def test_reports_of_two_versions_of_a_package_say_so(folder: Path, versions: tuple[str | None, str | None]) -> None:
    """Files that name another transformers, or none, differ in one fact, whichever comes first."""
    document = json.loads((folder / "run" / "report.json").read_text())
    for place, version in enumerate(versions):
        document["model"]["provenance"] = {"torch": "2.13.0"} | ({} if version is None else {"transformers": version})
        (folder / f"{place}.json").write_text(json.dumps(document))
    operands = [read_operand(str(folder / f"{place}.json")) for place in (0, 1)]
    compared = set_side_by_side(sides_of(operands, workload_of=lambda _: pytest.fail("no model")))
    assert [(fact.name, fact.values) for fact in compared.facts if fact.differs] == [
        ("version of transformers", versions)
    ]


def test_a_report_and_a_measurement_do_not_fit(folder: Path, toy: ModuleType) -> None:
    """A whole workload and single executions have no unit in common."""
    operands = [read_operand(str(folder / "run")), read_operand(str(folder / "measured.json"))]
    with pytest.raises(CompareError, match="of a whole workload, a measurement of one execution"):
        sides_of(operands, workload_of=lambda _: bind(toy))


def test_a_measurement_and_a_model_without_times_have_nothing_in_common(folder: Path, toy: ModuleType) -> None:
    """The message says what each side has."""
    operands = [read_operand(str(folder / "measured.json")), read_operand(str(folder / "run" / "model.json"))]
    sides = sides_of(operands, workload_of=lambda _: bind(toy))
    with pytest.raises(CompareError, match=r"no figure in common: measured\.json has time; model\.json has parameters"):
        set_side_by_side(sides)


def test_one_operand_is_refused(folder: Path, toy: ModuleType) -> None:
    """There is nothing to compare it with."""
    with pytest.raises(CompareError, match="two sides or more, given are 1"):
        sides_of([read_operand(str(folder / "run"))], workload_of=lambda _: bind(toy))


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["a/x/report.json", "a/y/report.json"], ["x/report.json", "y/report.json"]),
        (["runs/old", "runs/new/"], ["old", "new"]),
        (["toy:a", "toy:a"], ["toy:a", "toy:a (2)"]),
    ],
)
def test_labels_tell_sides_apart(toy: ModuleType, given: list[str], labels: list[str]) -> None:
    """Of paths, as many parts as needed; the same operand twice gets a number."""
    model = toy.toy_model()
    operands = [Operand(label=label, model=model) for label in given]
    assert [side.label for side in sides_of(operands, workload_of=lambda _: bind(toy))] == labels
