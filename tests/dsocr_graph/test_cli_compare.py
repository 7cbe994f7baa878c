"""The subcommand `compare`: sides by name and by file, formats, thresholds, the table of models and mistakes."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from attrs import evolve

import modelmeter
from dsocr_graph import cli_compare
from dsocr_graph.errors import OptionError
from dsocr_graph.subjects import points_workload
from dsocr_graph.timing.plan import parse_point
from modelmeter import registry
from modelmeter.compare import RANKS, CompareError, Metric, MissingFigureError, Movement, UnknownOperandError
from modelmeter.evaluate import evaluate
from modelmeter.layers import Unclassified
from modelmeter.model import AnalyticModel, Exactness, Leaf
from modelmeter.serialize import model_to_json
from modelmeter.workload import StageRun, Workload, WorkloadItem

Compare = Callable[..., tuple[int, str, str]]


def options(*words: str) -> argparse.Namespace:
    """Return parsed options of the subcommand."""
    parser = argparse.ArgumentParser()
    cli_compare.add_parser(parser.add_subparsers(required=True))
    return parser.parse_args(["compare", *words])


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Compare:
    """Return a function that runs `compare` and gives back its exit status, its output and its messages."""

    def run(*words: str) -> tuple[int, str, str]:
        parsed = options("--new-tokens", "20", *words)
        status = parsed.run(parsed)
        written = capsys.readouterr()
        return status, written.out, written.err

    return run


def test_two_variants_are_compared_in_the_modes_that_they_name(compare: Compare) -> None:
    """Base has no crops: the stage of local views is gone, and says so."""
    status, text, _ = compare("deepseek-ocr:gundam", "deepseek-ocr:base")
    assert status == 0
    assert re.search(r"\| \*\*workload: mode\*\* +\| Gundam ", text)
    assert "vision_local executions 4 → 0" in text


def test_an_implementation_is_a_reason(compare: Compare) -> None:
    """Eager attention runs products and a softmax in place of one kernel."""
    _, text, _ = compare("deepseek-ocr:gundam", "deepseek-ocr:gundam-eager", "--format", "json")
    (changes,) = json.loads(text)["changes"]
    first = changes["entries"][0]
    assert first["role"] == "decoder: attention"
    (reason,) = first["why"]
    assert reason["reason"] == "attention sdpa → eager"
    assert reason["effect"] == pytest.approx(first["after"] - first["before"])
    assert sum(part["effect"] for part in reason["parts"]) == pytest.approx(reason["effect"])
    assert any("scaled_dot_product_attention calls 12 → 0" in part["reason"] for part in reason["parts"])


def test_models_of_two_packages_are_compared_module_by_module(compare: Compare) -> None:
    """The decoder has one row for both, the choice of experts one name, and each side that of its variant."""
    _, text, _ = compare("deepseek-ocr:base", "deepseek-ocr-2", "--format", "json")
    document = json.loads(text)
    assert document["sides"] == ["deepseek-ocr:base", "deepseek-ocr-2:bf16-sdpa"]
    assert document["facts"]["variant: moe"] == ["grouped", "grouped"]
    name = "model.{-/language_model}.layers.[1-11].self_attn"
    assert document["module_ids"][name] == [
        "model.layers.[1-11].self_attn",
        "model.language_model.layers.[1-11].self_attn",
    ]
    assert all(document["modules"][name]["FLOPs"])


def test_a_file_is_written_instead_of_the_output(compare: Compare, tmp_path: Path) -> None:
    """The path is printed, and the CSV has a column a side."""
    out = tmp_path / "new" / "comparison.csv"
    words = ("deepseek-ocr:tiny", "deepseek-ocr:small", "--format", "csv", "--out", str(out))
    assert compare(*words)[1] == f"{out}\n"
    assert out.read_text().startswith("split,part,metric,unit,deepseek-ocr:tiny,deepseek-ocr:small,change of ")


@pytest.mark.parametrize(
    ("threshold", "fail_on", "status"),
    [("50", "flops", 0), ("1", "flops", 1), ("1", "parameters", 0), ("1", "parameters,memory,flops", 1)],
)
def test_the_exit_status_says_whether_a_total_moved(
    compare: Compare, threshold: str, fail_on: str, status: int
) -> None:
    """Small needs more FLOPs than Tiny, the parameters are the same; the report is written either way."""
    words = ("deepseek-ocr:tiny", "deepseek-ocr:small", "--threshold", threshold, "--fail-on", fail_on)
    found, text, messages = compare(*words)
    assert found == status
    assert text.startswith("# deepseek-ocr:small compared with deepseek-ocr:tiny")
    assert ("FLOPs of deepseek-ocr:small moved by +" in messages) == bool(status)


def test_the_check_works_in_both_directions(compare: Compare) -> None:
    """Fewer FLOPs move the total as more do; the message has both figures and the threshold."""
    status, _, messages = compare(
        "deepseek-ocr:small", "deepseek-ocr:tiny", "--threshold", "1", "--fail-on", "flops", "--format", "csv"
    )
    assert status == 1
    moved = r"FLOPs of deepseek-ocr:tiny moved by -[\d.]+ % \([\d.]+ TFLOP → [\d.]+ TFLOP\); up to 1 % passes, "
    assert re.fullmatch(f"{moved}either way\n", messages)
    words = ("deepseek-ocr:small", "deepseek-ocr:small", "--threshold", "0")
    assert compare(*words)[::2] == (0, "")  # nothing moved at all


def test_a_total_that_fails_is_explained(compare: Compare) -> None:
    """Beside the time, whatever moved; with --by that one alone, and with nothing that failed the time alone."""
    words = ("deepseek-ocr:tiny", "deepseek-ocr:small", "--threshold", "0.01", "--fail-on", "flops,memory")
    titles = r"## What changed and why: (.*) of deepseek-ocr:small"
    assert re.findall(titles, compare(*words)[1]) == ["time", "FLOPs", "peak memory"]
    assert re.findall(titles, compare(*words, "--by", "bytes")[1]) == ["bytes"]
    assert re.findall(titles, compare(*words[:2])[1]) == ["time"]
    document = json.loads(compare(*words, "--format", "json")[1])
    assert document["explained"] == ["time", "FLOPs", "peak memory"]
    assert [changes["metric"] for changes in document["changes"]] == document["explained"]
    assert "\nchange,activations,peak memory,bytes," in compare(*words, "--format", "csv")[1]


def test_every_word_of_by_is_known(compare: Compare) -> None:
    """The help names what modelmeter can explain, and each of them works."""
    assert set(cli_compare.RANK_WORDS) == set(RANKS)
    for word, metric in RANKS.items():
        text = compare("deepseek-ocr:tiny", "deepseek-ocr-2", "--by", word)[1]
        assert f"## What changed and why: {metric.value} of deepseek-ocr-2:bf16-sdpa" in text
    with pytest.raises(MissingFigureError, match="has no time"):
        compare("deepseek-ocr:tiny", "deepseek-ocr:tiny", "--device", "none", "--by", "time")


def test_the_size_of_views_is_a_fact(compare: Compare) -> None:
    """Crops of 640 pixels against tiles of 768: in the facts of both, and among what is left at equal dims."""
    text = compare("deepseek-ocr", "deepseek-ocr-2")[1]
    row = r"\| \*\*workload: views of vision_local\*\* +\| 640 x 640 pixels +\| 768 x 768 pixels +\|"
    assert re.search(row, text)
    assert ": vision_local: views of 640 x 640 pixels → 768 x 768 pixels (+" in text


def _registered(monkeypatch: pytest.MonkeyPatch, models: dict[str, AnalyticModel]) -> None:
    """Register models beside one that cannot be imported and one without its default variant."""

    def lookup(name: str) -> object:
        if name == "no-import":
            raise registry.BrokenModelError("model 'no-import' cannot be imported")
        if name == "no-default":
            return registry.RegisteredModel(name="no-default", package="modelmeter.layers", default="plain")
        return entries[name]

    entries = {
        name: SimpleNamespace(default="plain", load=lambda *_, model=model: model) for name, model in models.items()
    }
    monkeypatch.setattr(registry, "available", lambda: (*entries, "no-import", "no-default"))
    monkeypatch.setattr(registry, "registered", lookup)
    monkeypatch.setattr("modelmeter.compare.operands.registered", lookup)


def test_a_broken_package_does_not_hide_the_others(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has the rest and the reasons; a model that is asked for by name fails all the same."""
    _registered(monkeypatch, {"my-lm": evolve(modelmeter.load("qwen3-8b"), name="my-lm")})
    status, text, _ = compare("--all")
    assert status == 0
    assert "| my-lm:plain " in text
    assert "- no-import: model 'no-import' cannot be imported" in text
    assert "- no-default: unknown variant of no-default 'plain'" in text
    with pytest.raises(registry.BrokenModelError):
        compare("my-lm", "no-import")


def test_a_model_of_another_package_reads_pages_by_its_stages(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A language model reads their text as those of the catalog do, and the facts say that this is assumed."""
    qwen = modelmeter.load("qwen3-8b")
    _registered(monkeypatch, {"my-lm": evolve(qwen, name="my-lm"), "qwen3-8b": qwen})
    _, text, _ = compare("my-lm", "my-lm", "--format", "json")
    document = json.loads(text)
    read = document["facts"]["workload: read"]
    assert read == ["the text of each page, as decoder-only language models do (assumed from the stages)"] * 2
    _, known, _ = compare("qwen3-8b", "qwen3-8b", "--format", "json")
    assert json.loads(known)["totals"]["FLOPs"] == document["totals"]["FLOPs"]


def test_a_total_that_was_nothing_moved_from_nothing() -> None:
    """There is no percentage of 0."""
    movement = Movement(metric=Metric.FLOPS, label="new", before=0, after=2e9)
    assert cli_compare.moved_text(movement, 5) == (
        "FLOPs of new moved from nothing (0 FLOP → 2.00 GFLOP); up to 5 % passes, either way"
    )


def test_without_fail_on_every_total_that_there_is_counts(compare: Compare) -> None:
    """Without times the others are checked all the same."""
    words = ("deepseek-ocr:tiny", "deepseek-ocr:small", "--device", "none", "--threshold", "0.5")
    status, _, messages = compare(*words)
    assert status == 1
    moved = [line.partition(" of ")[0] for line in messages.splitlines()]
    assert "FLOPs" in moved
    assert "time" not in moved


def test_a_model_file_is_asked_for_its_own_mode(compare: Compare, tmp_path: Path) -> None:
    """Pages in a mode of another size would be wrong sizes: the message says which fact differs."""
    path = tmp_path / "tiny.json"
    path.write_text(model_to_json(modelmeter.load("deepseek-ocr", "tiny")), encoding="utf-8")
    with pytest.raises(OptionError, match=r"for base_size 1024, not 512 as .*tiny\.json is; choose another --mode"):
        compare(str(path), "deepseek-ocr:tiny")
    status, text, _ = compare(str(path), "deepseek-ocr:tiny", "--mode", "Tiny")
    assert status == 0
    assert "Nothing: " in text


def _other_stages() -> AnalyticModel:
    model = modelmeter.load("deepseek-ocr", "tiny")
    return evolve(
        model,
        stages=tuple(
            evolve(stage, name="encode") if stage.name == "vision_global" else stage for stage in model.stages
        ),
        leaves=tuple(evolve(leaf, stage="encode") if leaf.stage == "vision_global" else leaf for leaf in model.leaves),
    )


def _unclassified(leaf: Leaf) -> Leaf:
    """Return a call as of an operator that no rule is for."""
    return evolve(leaf, exactness=Exactness.UNCLASSIFIED, layer=Unclassified(op="linear", reads=(), writes=()))


def _report_folder(folder: Path, model: AnalyticModel) -> str:
    step = StageRun(stage="decode", count=1, bindings={"B": 1, "T": 9})
    workload = Workload(name="step", items=(WorkloadItem(name="one", documents=1, runs=(step,)),))
    folder.mkdir()
    (folder / "report.json").write_text(evaluate(model, workload).to_json(), encoding="utf-8")
    return str(folder)


def test_reports_are_of_their_own_workload(tmp_path: Path) -> None:
    """What models are evaluated at is refused where there is none; beside a model it is of that one."""
    tiny = modelmeter.load("deepseek-ocr", "tiny")
    report = _report_folder(tmp_path / "a", tiny)
    for words, named in ((("--batch", "4", "--mode", "Base"), "--batch, --mode"), (("--device", "h100"), "--device")):
        parsed = options(report, report, *words)
        with pytest.raises(OptionError, match=f"{named} would say nothing: reports and measurements are of what they"):
            parsed.run(parsed)
    parsed = options(report, "deepseek-ocr:tiny", "--batch", "4", "--out", str(tmp_path / "out.md"))
    assert parsed.run(parsed) == 0


def test_a_mode_is_of_sides_that_name_none(compare: Compare) -> None:
    """Variants named after a mode stay in it; where no side takes the mode, it is refused and not ignored."""
    for other in ("deepseek-ocr", "qwen3-8b"):
        with pytest.raises(OptionError, match=r"--mode Base is for models whose variant names none, and no side takes"):
            compare("deepseek-ocr:gundam", other, "--mode", "Base")
    with pytest.raises(OptionError, match=r"no side takes it: .*deepseek-ocr"):
        compare("--all", "--mode", "Base")


def test_a_side_that_leaves_something_out_says_so(compare: Compare, tmp_path: Path) -> None:
    """A stage that a partial model is without, and an operator without a rule; of whole sides nothing is said."""
    tiny = modelmeter.load("deepseek-ocr", "tiny")
    (logits,) = (leaf for leaf in tiny.leaves if (leaf.stage, leaf.module) == ("decode", "lm_head"))
    odd = evolve(
        tiny,
        leaves=tuple(_unclassified(leaf) if leaf is logits else leaf for leaf in tiny.leaves),
        provenance={**tiny.provenance, "why without classify": "stage 'classify' cannot be captured"},
    )
    sides = [_report_folder(tmp_path / name, model) for name, model in (("odd", odd), ("whole", tiny))]
    parsed = options(*sides, "--out", str(tmp_path / "out.json"), "--format", "json")
    parsed.run(parsed)
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert document["uncounted"] == [
        ["everything (it cannot be captured) in classify", "FLOPs of aten::linear (unclassified) in decode"],
        [],
    ]
    assert not [name for name in document["facts"] if "why without" in name]
    parsed = options(*sides, "--out", str(tmp_path / "out.md"))
    parsed.run(parsed)
    text = (tmp_path / "out.md").read_text(encoding="utf-8")
    assert "- odd leaves out: everything (it cannot be captured) in classify; FLOPs of aten::linear" in text
    assert "whole leaves out" not in text
    assert "Not all is counted" not in compare("deepseek-ocr:tiny", "deepseek-ocr:tiny")[1]


def test_all_is_a_table_of_registered_models(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model has a row, in its default variant; one that pages say nothing to is left out with the reason."""
    other = evolve(_other_stages(), name="other")
    tiny = registry.registered("deepseek-ocr").load("tiny")
    entries = {
        "deepseek-ocr": SimpleNamespace(default="tiny", load=lambda: tiny),
        "other": SimpleNamespace(default="bf16", load=lambda: other),
    }
    monkeypatch.setattr(registry, "available", lambda: tuple(entries))
    monkeypatch.setattr(registry, "registered", entries.__getitem__)
    status, text, _ = compare("--all")
    assert status == 0
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| deepseek-ocr:")]
    assert names == ["deepseek-ocr:tiny"]
    left_out = "no reading of the pages of profile 'dsocr-standard-v1' is known: other:bf16 has the stages"
    assert f"- other:bf16: {left_out} encode (no dims), vision_local (H, V), " in text


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ((), CompareError, "two sides or more, given are 0"),
        (("deepseek-ocr",), CompareError, "two sides or more, given are 1"),
        (("deepseek-ocr", "deepsek-ocr"), UnknownOperandError, "did you mean deepseek-ocr"),
        (("deepseek-ocr", "deepseek-ocr:tiny", "--fail-on", "time"), OptionError, "by how much with --threshold"),
        (("deepseek-ocr", "deepseek-ocr:tiny", "--lines", "0"), OptionError, "lines is 0; expected 1 or more"),
        (
            ("deepseek-ocr:tiny", "deepseek-ocr:tiny", "--device", "none", "--threshold", "1", "--fail-on", "time"),
            MissingFigureError,
            "has no time: analyze it with a device",
        ),
        (("--all", "deepseek-ocr"), OptionError, "--all is a table of every registered model"),
        (("deepseek-ocr", "deepseek-ocr", "--by", "speed"), OptionError, "--by speed is no total whose change can be"),
        (("deepseek-ocr", ""), UnknownOperandError, "a side has no name"),
        (("--all", "--by", "flops"), OptionError, "--all is a table of every registered model"),
        (("--all", "--threshold", "1"), OptionError, "--all is a table of every registered model"),
    ],
)
def test_a_mistake_has_its_message(
    compare: Compare, words: tuple[str, ...], error: type[Exception], message: str
) -> None:
    """What is missing or too much is named."""
    with pytest.raises(error, match=message):
        compare(*words)


def test_comparing_loads_no_torch(tmp_path: Path) -> None:
    """A comparison by name starts as quickly as any warm run."""
    code = (
        "import sys, argparse\n"
        "from dsocr_graph import cli_compare\n"
        "parser = argparse.ArgumentParser()\n"
        "cli_compare.add_parser(parser.add_subparsers())\n"
        "options = parser.parse_args(['compare', 'deepseek-ocr:tiny', 'deepseek-ocr:tiny', '--out', sys.argv[1]])\n"
        "options.run(options)\n"
        "print(sorted({'torch', 'transformers', 'networkx', 'onnx'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out.md")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_models_are_compared_at_sizes_of_their_stages(capsys: pytest.CaptureFixture[str]) -> None:
    """Points take the place of pages, which not every model reads; all sides run the same."""
    parsed = options(
        *("qwen3-8b", "qwen3-30b-a3b", "--points", "prefill:B=1,S=512", "--points", "decode:B=8,T=512"),
        *("--format", "json"),
    )
    assert parsed.run(parsed) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["facts"]["workload"] == ["prefill B=1, S=512; decode B=8, T=512"] * 2
    dense, _ = document["totals"]["FLOPs"]
    points = points_workload([parse_point("prefill:B=1,S=512"), parse_point("decode:B=8,T=512")])
    assert dense == evaluate(modelmeter.load("qwen3-8b"), points).total.total.cost.flops


def test_all_at_points_leaves_out_models_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    """Stages, their dims and their limits decide, and each reason is given."""
    parsed = options("--all", "--points", "prefill:B=1,S=512", "--device", "none")
    assert parsed.run(parsed) == 0
    text = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in text.partition("## By role")[0].splitlines() if " billion" in line]
    assert rows == ["deepseek-v3:bf16-sdpa", "qwen3-30b-a3b:bf16-sdpa", "qwen3-8b:bf16-sdpa"]
    assert "- siglip-so400m-patch14-384:bf16-sdpa: siglip-so400m-patch14-384 has no stage 'prefill'" in text
    assert "- whisper-large-v3:bf16-sdpa: point 'prefill B=1, S=512' runs at S = 512" in text
    assert "- deepseek-ocr:gundam: 'prefill B=1, S=512' does not fit stage 'prefill'" in text


@pytest.mark.parametrize("point", ["nosuch:B=2", "decode:B=64"])
def test_a_table_without_rows_is_refused(capsys: pytest.CaptureFixture[str], point: str) -> None:
    """A stage that no model has, or a size too few: an error with some of the reasons, and no empty table."""
    parsed = options("--all", "--points", point)
    with pytest.raises(
        OptionError, match=r"runs on no registered model[^\n]*\n  deepseek-ocr:gundam: [^\n]+\n(.*\n)+  and 6 more$"
    ):
        parsed.run(parsed)
    assert capsys.readouterr().out == ""


def test_a_table_of_no_models_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no package registers one, that is the reason."""
    monkeypatch.setattr(registry, "available", lambda: ())
    parsed = options("--all")
    with pytest.raises(OptionError, match="no installed package registers one"):
        parsed.run(parsed)


def test_pages_beside_points_say_nothing() -> None:
    """Nor do points where every side is a report."""
    for words in (("--mode", "Base"), ("--batch", "2"), ("--new-tokens", "5"), ("--workload", "dsocr-standard-v1")):
        parsed = options("qwen3-8b", "qwen3-8b", "--points", "decode:B=1,T=8", *words)
        with pytest.raises(OptionError, match=r"--points gives the sizes themselves, so that .*" + words[0]):
            parsed.run(parsed)
