"""Whole runs: the same bytes everywhere, totals that other programs find again, nothing heavy when warm."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dsocr_graph import analyze_model
from dsocr_graph.command_text import command_line
from dsocr_graph.compiling import compile_model
from dsocr_graph.emit.console import to_console
from dsocr_graph.errors import OptionError
from dsocr_graph.model_cache import ModelCache
from dsocr_graph.models.registry import Variant
from dsocr_graph.pipeline import require_measured_calls
from modelmeter.devices import load_device
from modelmeter.machine import Machine
from modelmeter.predict import Calibrated
from modelmeter.predict.engine import Engine
from modelmeter.reports import read_report
from modelmeter.routing import MOST
from modelmeter.serialize import read_model
from modelmeter.whatif import Options

Command = Callable[..., Any]
ARTEFACTS = ["model.json", "report.json", "report.md", "modules.csv", "callgraph.graphml", "graph.onnx"]

# A warm process that says at the end which heavy packages it has loaded.
WARM = """
import sys
from dsocr_graph.cli import main
status = main(sys.argv[1:])
print("loaded", sorted({"torch", "transformers"} & set(sys.modules)))
sys.exit(status)
"""

# modelmeter alone, with the compiler's packages out of reach: the run of report.json evaluated again.
EVALUATE = """
import json, sys
sys.modules.update(dict.fromkeys(["torch", "transformers", "networkx", "dsocr_graph"]))
from modelmeter import load_device
from modelmeter.evaluate import evaluate
from modelmeter.serialize import read_model
from modelmeter.workload import StageRun, Workload, WorkloadItem
from modelmeter import load_device
report = json.load(open(sys.argv[2], encoding="utf-8"))
items = [
    WorkloadItem(name=item["name"], documents=item["documents"], facts=item["facts"],
                 runs=tuple(StageRun(**run) for run in item["runs"]))
    for item in report["items"]
]
workload = Workload(name=report["workload"], items=tuple(items), facts=report["workload_facts"])
device = load_device(report["prediction"]["device"]["key"])
sys.stdout.write(evaluate(read_model(sys.argv[1]), workload, device=device).to_json())
"""

# The published model with a tiny configuration: two layers, captured in seconds.
TINY = """
import sys
from dsocr_graph.models import registry
from dsocr_graph.models.deepseek_ocr.config import DeepseekOCRConfig
registry._deepseek_ocr_config = lambda variant: DeepseekOCRConfig.tiny(num_hidden_layers=2)
from dsocr_graph.cli import main
sys.exit(main(sys.argv[1:]))
"""


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_cold_and_warm_runs_elsewhere_write_the_same_bytes(standard_run: Any, python: Command, tmp_path: Path) -> None:
    """Another process, directory, hash seed and a filled cache change no byte of the six artefacts; no torch is loaded.

    The cold run had the hash seed 1, a relative output path and an empty cache.
    """
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    settings = {
        "PYTHONHASHSEED": "4242",
        "DSOCR_GRAPH_CACHE": str(standard_run.cache),
        "LC_ALL": "C",
        "TZ": "Asia/Tokyo",
    }
    result = python("-c", WARM, "analyze", "--out", tmp_path / "warm", cwd=elsewhere, **settings)
    assert result.returncode == 0, result.stderr
    assert "found in the cache" in result.stderr
    assert result.stdout.splitlines()[-1] == "loaded []"
    cold, warm = _bytes(standard_run.out), _bytes(tmp_path / "warm")
    assert sorted(cold) == sorted(ARTEFACTS)
    assert [name for name in ARTEFACTS if cold[name] != warm[name]] == []
    assert list(elsewhere.iterdir()) == []


def test_two_cold_captures_write_the_same_bytes(
    process_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """Captures in two processes with other hash seeds and directories agree in every byte of all six artefacts."""
    homes = {seed: tmp_path / f"directory-{seed}" for seed in ("0", "99")}
    for home in homes.values():
        home.mkdir()
    command = [sys.executable, "-c", TINY, "analyze", "--no-cache", "--out", "out"]
    both = [  # at once: each keeps one core busy
        subprocess.Popen(
            command,
            cwd=home,
            env=process_environment(PYTHONHASHSEED=seed, OMP_NUM_THREADS="1"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for seed, home in homes.items()
    ]
    assert [process.wait(timeout=200) for process in both] == [0, 0]
    assert [[path.name for path in home.iterdir()] for home in homes.values()] == [["out"], ["out"]]
    first, second = (_bytes(home / "out") for home in homes.values())
    assert sorted(first) == sorted(ARTEFACTS)
    assert [name for name in ARTEFACTS if first[name] != second[name]] == []


def test_artefacts_know_nothing_of_when_and_where_they_were_made(standard_run: Any, repo_root: Path) -> None:
    """No artefact holds the path of the checkout, of the output or of the home directory."""
    for name, content in _bytes(standard_run.out).items():
        for place in (repo_root, standard_run.out, Path.home() / "."):
            assert str(place).encode() + b"/" not in content, name


def test_model_without_torch_gives_the_report(standard_run: Any, python: Command, tmp_path: Path) -> None:
    """modelmeter alone, torch and networkx out of reach, evaluates model.json to the very text of report.json."""
    paths = [standard_run.out / "model.json", standard_run.out / "report.json"]
    result = python("-c", EVALUATE, *paths, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == paths[1].read_text(encoding="utf-8")


def test_a_dozen_lines_recompute_the_totals(
    standard_run: Any, python: Command, repo_root: Path, tmp_path: Path
) -> None:
    """json and eval over model.json, decode step by decode step, give report.json's FLOPs exactly and its bytes."""
    script = repo_root / "tests" / "data" / "recompute_totals.py"
    paths = [standard_run.out / "model.json", standard_run.out / "report.json"]
    result = python("-I", "-S", script, *paths, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    total = json.loads(paths[1].read_text(encoding="utf-8"))["total"]["total"]
    assert found["flops"] == total["flops"]
    assert isinstance(found["flops"], int)
    assert math.isclose(found["bytes"], total["bytes"], rel_tol=1e-9)


def test_readme_shows_the_script_as_it_is_run(repo_root: Path) -> None:
    """Every line of code of the script stands in modelmeter's README, and they are about a dozen."""
    script = (repo_root / "tests" / "data" / "recompute_totals.py").read_text(encoding="utf-8")
    readme = (repo_root / "extern" / "modelmeter" / "README.md").read_text(encoding="utf-8")
    code = [line for line in script.splitlines() if line and not line.startswith(('"""', "import", "from"))]
    assert len(code) <= 14
    assert [line for line in code if line.partition("  # noqa")[0] not in readme] == []


def test_totals_of_a_toy_are_those_worked_by_hand(
    toy_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Capture to report on one page: the stages times their counts, every FLOP by hand.

    A page of 640x640 in Tiny mode is one view of 512 with 8*9+1 = 73 image tokens; with the prompt's 10, S = 83. With
    three new tokens there are two decode steps, at T = 83 and 84. The model, [.., 4] -> [.., 2], costs 2*4*2 = 16
    FLOPs a row and 2 of relu:
      vision_global  3*5 = 15 rows   prefill  1*83 rows   decode  83 + 84 = 167 rows   together 265 rows
      products 265*16 = 4,240, elsewhere 265*2 = 530
    """
    toy_model()
    monkeypatch.setenv("DSOCR_GRAPH_CACHE", str(tmp_path / "cache"))
    profile = tmp_path / "one.toml"
    profile.write_text('mode = "Tiny"\nnew_tokens = 3\npages = [{name = "a", width = 640, height = 640}]\n')
    analysis = analyze_model("toy", workload=profile)
    cost = analysis.report.total.total.cost
    assert (cost.matmul_flops, cost.vector_flops) == (4240, 530)
    assert analysis.files == ()


def test_a_what_if_is_named_in_every_artefact(
    toy_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy's 8 weights in bf16 instead of fp32 save 16 bytes in each of 1 + 1 + 2 executions.

    The report, its JSON, the console and the command say so, and model.json is the model that was evaluated.
    """
    toy_model()
    monkeypatch.setenv("DSOCR_GRAPH_CACHE", str(tmp_path / "cache"))
    pages: dict[str, Any] = {"page": [(640, 640)], "mode": "Tiny", "new_tokens": 3, "dtype": "fp32"}
    plain = analyze_model("toy", **pages)
    analysis = analyze_model("toy", **pages, what_if=Options(weight_dtype="bf16"), out=tmp_path / "out")
    (effect,) = analysis.report.what_ifs
    assert (effect.option, effect.bytes, effect.weight_bytes_read, effect.matmul_flops) == ("weight_dtype", -64, -64, 0)
    saved = plain.report.total.total.cost.bytes - analysis.report.total.total.cost.bytes
    assert saved == 64
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "## What is changed" in text
    assert "| `weight_dtype` | every parameter is stored in bf16 " in text
    assert "--page 640x640" in text
    assert "--weight-dtype bf16" in text
    assert read_report(tmp_path / "out" / "report.json") == analysis.report
    assert read_model(tmp_path / "out" / "model.json") == analysis.model
    assert "  what-if    weight_dtype: every parameter is stored in bf16 (-64 B moved)" in to_console(analysis.report)


def test_a_distribution_of_lengths_gives_the_mean_page(
    toy_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of 3 and 5 tokens: the sum of both pages, so half of it is the mean; the report names the lengths."""
    toy_model()
    monkeypatch.setenv("DSOCR_GRAPH_CACHE", str(tmp_path / "cache"))

    def flops(new_tokens: int | str) -> float:
        report = analyze_model("toy", page=[(640, 640)], mode="Tiny", new_tokens=new_tokens).report
        assert ("new_tokens" in report.workload_facts) == isinstance(new_tokens, str)
        return report.total.total.cost.flops

    assert flops("3,5") == flops(3) + flops(5)


def test_a_calibration_is_not_asked_for_calls_that_a_what_if_changes() -> None:
    """The message names the what-if and what to do; routing, and a type that is the captured one, change no call."""
    machine = Machine(kind="cpu", device="x", driver="", memory_bytes=1, threads=1, torch="2.13.0")
    calibrated = Calibrated(calibration=cast("Any", SimpleNamespace(machine=machine)))
    message = "--kv-dtype fp8, --logits last changes some, which nobody measured; leave out --calibration"
    with pytest.raises(OptionError, match=message):
        require_measured_calls(calibrated, Options(kv_dtype="fp8", logits="last"), "bf16")
    require_measured_calls(calibrated, Options(kv_dtype="bf16", routing=MOST), "bf16")
    require_measured_calls(None, Options(kv_dtype="fp8"), "bf16")


@pytest.mark.skipif(
    find_spec("aiconfigurator_core") is None, reason="needs the extra `tables`: pip install -e '.[tables]'"
)
def test_an_engine_has_no_times_of_other_types() -> None:
    """Its tables are read for the captured types; logits and the growth of the cache it takes as they are."""
    engine = Engine.on(load_device("h200"), physical=True)
    with pytest.raises(OptionError, match=r"--runtime engine has times of calls .* --weight-dtype fp8 changes some"):
        require_measured_calls(engine, Options(weight_dtype="fp8", logits="last"), "bf16")
    require_measured_calls(engine, Options(logits="last", kv_growth="preallocated"), "bf16")


def test_without_out_nothing_is_written(
    toy_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library call without `out` and cache leaves the working directory as it was."""
    toy_model()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSOCR_GRAPH_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    analysis = analyze_model("toy", cache=False, progress=said.append)
    assert analysis.model.name == "toy"
    assert list(tmp_path.iterdir()) == []
    assert said[0] == "building toy base1024-bf16-sdpa-grouped without weights"
    assert said[-1] == "evaluating dsocr-standard-v1"


def test_a_second_run_takes_the_model_from_the_cache(toy_model: Callable[..., Any], tmp_path: Path) -> None:
    """The second compilation builds nothing and returns the same bytes; another variant is another entry."""
    named = toy_model()
    store = ModelCache(directory=tmp_path)
    variant = Variant(base_size=1024, dtype="bf16", attention="sdpa")
    said: list[str] = []
    first = compile_model(named, variant, store=store)
    again = compile_model(named, variant, store=store, progress=said.append)
    assert again == first
    assert said == ["compiled toy base1024-bf16-sdpa-grouped found in the cache"]
    compile_model(named, Variant(base_size=640, dtype="bf16", attention="sdpa"), store=store, progress=said.append)
    assert "building toy base640-bf16-sdpa-grouped without weights" in said
    assert len(list(tmp_path.iterdir())) == 2


def test_a_model_with_unclassified_calls_is_not_kept(toy_model: Callable[..., Any], tmp_path: Path) -> None:
    """What --allow-unclassified lets through stays out of the cache: without the flag it is an error again."""
    import torch

    named = toy_model(torch.special.airy_ai)
    variant = Variant(base_size=1024, dtype="bf16", attention="sdpa")
    compile_model(named, variant, store=ModelCache(directory=tmp_path), allow_unclassified=True)
    assert list(tmp_path.iterdir()) == []


def test_pages_come_from_one_place() -> None:
    """A profile together with files is refused before anything is read."""
    with pytest.raises(OptionError, match="from --workload or from --image, --pdf and --page, not from both"):
        analyze_model(workload="dsocr-standard-v1", pdf=["no-such.pdf"])


def test_command_line_quotes_and_leaves_out() -> None:
    """Flags repeat for lists, names get dashes, spaces are quoted, None and empty lists are left out."""
    options = {"pdf": ["a.pdf", "b c.pdf"], "image": [], "new_tokens": 7, "device": None, "allow_unclassified": True}
    assert command_line(options) == (
        "python -m dsocr_graph.analyze --pdf a.pdf --pdf 'b c.pdf' --new-tokens 7 --allow-unclassified"
    )


@pytest.mark.parametrize(
    "name", ["model.json", "report.json", "report.md", "modules.csv", "callgraph.graphml", "graph.onnx"]
)
def test_a_cold_standard_run_writes_the_kept_artefact(name: str, standard_run: Any, repo_root: Path) -> None:
    """What is captured anew is what graphs/deepseek-ocr keeps, byte for byte; `python graphs/make.py` renews it."""
    kept = repo_root / "graphs" / "deepseek-ocr" / name
    assert (standard_run.out / name).read_bytes() == kept.read_bytes(), f"{kept} is out of date"
