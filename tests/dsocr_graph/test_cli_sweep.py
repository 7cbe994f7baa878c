"""The subcommand `sweep`: grids of pages to a file."""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelmeter
from dsocr_graph import cli_sweep
from dsocr_graph.errors import OptionError
from dsocr_graph.sweep_pages import PageAxes, page_grid
from dsocr_graph.workloads import (
    STANDARD,
    PageSize,
    bind_profile,
    load_profile,
    mode_named,
    override,
    profile_from_pages,
)
from dsocr_graph.workloads.errors import (
    ContextTooLongError,
    CropGridError,
    InvalidProfileError,
    PageSizeError,
    UnknownModeError,
)
from modelmeter.errors import UnknownDeviceError
from modelmeter.evaluate import evaluate, evaluate_stage
from modelmeter.lengths import LengthsError
from modelmeter.model import SizeLimitError, UnknownStageError
from modelmeter.routing import RoutingError, UnknownRoutingError
from modelmeter.sweeps import SweepError
from modelmeter.whatif import UnknownChoiceError


def sweep(*arguments: str) -> int:
    """Run the subcommand."""
    parser = argparse.ArgumentParser()
    cli_sweep.add_parser(parser.add_subparsers())
    options = parser.parse_args(["sweep", *arguments])
    return options.run(options)


def test_a_table_of_every_combination(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2 modes * 2 routings * 2 devices * 1 page * 3 batches * 20 new tokens are 480 rows, modes slowest."""
    out = tmp_path / "sweep.csv"
    options = ["--batch", "1,2,4", "--mode", "Base,Gundam", "--new-tokens", "100:2000:100", "--out", str(out)]
    assert sweep(*options, "--device", "h200,a100-80gb-sxm", "--routing", "uniform,most") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{out}: 480 points"
    assert said[1].startswith("routing: tokens share no expert")
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 480
    assert [rows[0][name] for name in ("mode", "routing", "device")] == ["Base", "uniform", "h200"]
    assert [rows[-1][name] for name in ("mode", "routing", "device")] == ["Gundam", "most", "a100-80gb-sxm"]
    assert [row["new_tokens"] for row in rows[:2]] == ["100", "200"]


def test_the_standard_page(tmp_path: Path) -> None:
    """A letter page at 200 dpi in Gundam mode, 1,100 new tokens: the total that the standard analysis reports."""
    out = tmp_path / "sweep.csv"
    sweep("--out", str(out))
    with out.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    profile = override(profile_from_pages([PageSize(name="letter", width=1700, height=2200)], name="letter"))
    report = evaluate(modelmeter.load("deepseek-ocr"), bind_profile(profile))
    assert int(row["flops"]) == report.total.total.cost.flops


@settings(deadline=None, max_examples=20)
@given(
    mode=st.sampled_from(["Tiny", "Base", "Gundam"]),
    page=st.tuples(st.integers(100, 3000), st.integers(100, 3000)),
    batch=st.integers(1, 64),
    new=st.integers(1, 2000),
)
def test_a_point_is_the_workload_of_its_page(mode: str, page: tuple[int, int], batch: int, new: int) -> None:
    """The rules of the grid run the stages that `bind_profile` runs, at its sizes."""
    axes = PageAxes(modes=(mode,), pages=(page,), batches=(batch,), new_tokens=(new,))
    model = modelmeter.load("deepseek-ocr", mode.lower())
    profile = profile_from_pages(
        [PageSize(name="page", width=page[0], height=page[1])], name="p", mode=mode, batch=batch, new_tokens=new
    )
    wanted = bind_profile(profile).items[0]
    found = page_grid(axes, {mode_named(mode).name: model}).sections[0].workload(0).items[0]
    assert (found.documents, found.runs) == (wanted.documents, wanted.runs)


def test_the_prompt_has_the_tokens_of_the_standard_profile() -> None:
    """Without --prompt-tokens, a page has as many as in the profile that everything else runs."""
    axes = PageAxes(modes=("Base",), pages=((640, 480),), batches=(1,), new_tokens=(1,))
    assert axes.prompt_tokens == (load_profile(STANDARD).prompt_tokens,)


@pytest.mark.parametrize(
    ("option", "value", "error", "message"),
    [
        ("--batch", "0", InvalidProfileError, "batch is 0; expected a whole number from 1 to 4,096"),
        ("--batch", "1,two", OptionError, "'two' is no number and no range"),
        ("--batch", "5:1", OptionError, "the range '5:1' has no values"),
        ("--batch", "1:5:0", OptionError, "has no values or over 1,000,000"),
        (
            "--new-tokens",
            "8000",
            ContextTooLongError,
            "over the model's 8,192 positions; make new_tokens 7,279 at most",
        ),
        ("--page", "1700", OptionError, "'1700' is no size"),
        ("--page", "0x10", PageSizeError, "page width is 0"),
        ("--mode", "Huge", UnknownModeError, "Known: Tiny, Small, Base, Large, Gundam"),
        ("--device", "h300", UnknownDeviceError, "unknown device 'h300'.*Known: a10"),
        ("--routing", "best", UnknownRoutingError, "unknown routing 'best'"),
        ("--kv-dtype", "bf16,int7", UnknownChoiceError, "unknown kv_dtype 'int7'"),
        ("--routing", "zipf:steep", RoutingError, "finite number from 0"),
        ("--crops", "5x5", CropGridError, "no grid of 2 to 9 crops"),
        ("--new-tokens", "normal:9", LengthsError, "need two numbers"),
        ("--detail", "leaves", SweepError, "choose one of totals, modules"),
    ],
)
def test_what_cannot_be_names_the_limit(
    tmp_path: Path, option: str, value: str, error: type[Exception], message: str
) -> None:
    """Every mistake in a grid is told before anything is swept."""
    with pytest.raises(error, match=message):
        sweep("--out", str(tmp_path / "sweep.csv"), option, value)
    assert not list(tmp_path.iterdir())


def test_a_stage_of_any_model_is_swept_over_its_own_dims(tmp_path: Path) -> None:
    """2 devices * 2 batches * 3 lengths: a step's seconds are those of `evaluate`; a step is no page."""
    out = tmp_path / "sweep.csv"
    options = ["--stage", "decode", "--axis", "B=1,8", "--axis", "T=128:384:128", "--device", "h200,l4"]
    assert sweep("--model", "whisper-large-v3", *options, "--out", str(out)) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["device"], row["B"], row["T"]) for row in rows[:4]] == [
        ("h200", "1", "128"), ("h200", "1", "256"), ("h200", "1", "384"), ("h200", "8", "128"),
    ]  # fmt: skip
    assert len(rows) == 12
    step = evaluate_stage(
        modelmeter.load("whisper-large-v3"), "decode", B=8, T=384, device=modelmeter.load_device("l4")
    )
    assert int(rows[-1]["flops"]) == step.total.cost.flops
    assert step.total.time is not None
    assert float(rows[-1]["decode_seconds"]) == pytest.approx(step.total.time.seconds, rel=1e-9)
    assert not {"ttft_seconds", "tpot_seconds", "page_seconds"} & rows[0].keys()


FACTORY = """
import torch
from torch import nn


def make():
    with torch.device("meta"):
        return nn.Linear(64, 8), torch.empty(4, 64), {"input": {0: "B"}}
"""


def test_a_stage_of_a_factory_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 64 elements is 2 x 64 x 8 FLOPs of a product and 8 of the bias; no variant can be asked for."""
    (tmp_path / "swept_rows.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = ("--model", "swept_rows:make", "--stage", "forward", "--axis", "B=1,3", "--out", "sweep.csv")
    assert sweep(*words) == 0
    with Path("sweep.csv").open(encoding="utf-8", newline="") as file:
        assert [int(row["flops"]) for row in csv.DictReader(file)] == [2 * 64 * 8 + 8, 3 * (2 * 64 * 8 + 8)]
    with pytest.raises(OptionError, match="Linear comes as it is, so that --dtype would say nothing"):
        sweep(*words, "--dtype", "fp32")


def test_what_ifs_are_axes_of_a_stage(tmp_path: Path) -> None:
    """A cache of qwen3-8b in fp8 is half of one in bf16: 36 layers * 2 * 8 heads * 128 of 9 tokens, 1 byte each."""
    out = tmp_path / "sweep.csv"
    options = ["--stage", "decode", "--axis", "B=1", "--axis", "T=8", "--kv-dtype", "bf16,fp8", "--out", str(out)]
    assert sweep("--model", "qwen3-8b", *options) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kv_dtype"], float(row["kv_cache_bytes"])) for row in rows] == [
        ("bf16", 2 * 36 * 2 * 8 * 128 * 9),
        ("fp8", 36 * 2 * 8 * 128 * 9),
    ]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("--model whisper-large-v3", OptionError, "reads them otherwise; .* such as --stage decode --axis B=1,8,64"),
        ("--axis B=1", OptionError, "--axis B=1 is of a stage, and none is named"),
        ("--model qwen3-8b --stage decode --axis B=1", OptionError, "has the dims B, T, and there are axes of B; give"),
        ("--model siglip-so400m-patch14-384 --stage encode", OptionError, "has the dims B, and there are axes of none"),
        ("--model qwen3-8b --stage decode --axis B", OptionError, "--axis 'B' names no dim"),
        ("--model qwen3-8b --stage decode --axis B=1 --axis B=2", OptionError, "repeats a dim"),
        ("--model qwen3-8b --stage decode --axis B=one", OptionError, "--axis B: 'one' is no number"),
        ("--model qwen3-8b --stage decode --batch 8", OptionError, "so that --batch would say nothing"),
        ("--model qwen3-8b --stage decode --mode Base", OptionError, "--mode would say nothing of qwen3-8b"),
        ("--model qwen3-8b --stage paint", UnknownStageError, "unknown stage 'paint'. Known: decode, prefill"),
        ("--model qwen3-8b --stage decode --axis B=0 --axis T=8", SweepError, "B of stage 'decode' is 0"),
        ("--model whisper-large-v3 --stage decode --axis B=1 --axis T=448", SizeLimitError, "room for T up to 447"),
    ],
)
def test_a_stage_that_cannot_be_swept_says_why(
    tmp_path: Path, words: str, error: type[Exception], message: str
) -> None:
    """Axes are those of the stage, and pages are for the model that reads them."""
    with pytest.raises(error, match=message):
        sweep(*words.split(), "--out", str(tmp_path / "sweep.csv"))
    assert not list(tmp_path.iterdir())


def test_what_ifs_are_axes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column for what changes; the KV cache of a point halves from bf16 to fp8, and each what-if is said once."""
    out = tmp_path / "sweep.csv"
    options = ["--crops", "1x1,2x3", "--kv-dtype", "bf16,fp8", "--logits", "all,last", "--out", str(out)]
    assert sweep(*options) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kv_dtype"], row["logits"], row["crop_rows"]) for row in rows] == [
        (kv, logits, crops) for kv in ("bf16", "fp8") for logits in ("all", "last") for crops in ("1", "3")
    ]
    assert "page_width" not in rows[0]
    kept = [float(row["kv_cache_bytes"]) for row in rows]
    assert kept[:4] == [2 * each for each in kept[4:]]
    assert capsys.readouterr().out.count("kv_dtype: the KV cache is kept and read in fp8") == 1
    profile = override(profile_from_pages([PageSize(name="a", width=1700, height=2200)], name="a"), crops=(2, 3))
    report = evaluate(modelmeter.load("deepseek-ocr"), bind_profile(profile))
    assert int(rows[1]["flops"]) == report.total.total.cost.flops


def test_a_distribution_is_its_equally_likely_lengths(tmp_path: Path) -> None:
    """uniform:100:1700 stands for 150, 250, ..., 1650: sixteen rows."""
    out = tmp_path / "sweep.csv"
    sweep("--new-tokens", "uniform:100:1700", "--out", str(out))
    with out.open(encoding="utf-8", newline="") as file:
        assert [int(row["new_tokens"]) for row in csv.DictReader(file)] == list(range(150, 1700, 100))


def test_a_page_has_a_size_or_crops(tmp_path: Path) -> None:
    """Both would say how it is cropped."""
    with pytest.raises(OptionError, match="or crops, not both; leave one out"):
        sweep("--page", "640x480", "--crops", "2x3", "--out", str(tmp_path / "sweep.csv"))


def test_an_axis_needs_a_value() -> None:
    """An axis without values would make an empty table."""
    axes = PageAxes(modes=("Base",), pages=(), batches=(1,), new_tokens=(1,))
    with pytest.raises(OptionError, match="axis pages has no values"):
        page_grid(axes, {"Base": modelmeter.load("deepseek-ocr", "base")})


def test_tables_by_module(tmp_path: Path) -> None:
    """Of one page in Base mode, each cell of the global view, the prefill and the decode is a row."""
    out = tmp_path / "sweep.csv"
    sweep("--mode", "Base", "--detail", "modules", "--out", str(out))
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["stage"] for row in rows} == {"vision_global", "prefill", "decode"}
    assert sum(int(row["flops"]) for row in rows if row["module"] == "lm_head" and row["stage"] == "decode") == (
        2 * 1280 * 129_280 * 1099  # a row of logits per step
    )


def test_a_sweep_loads_no_torch(tmp_path: Path) -> None:
    """Compiling and sweeping read the shipped model alone."""
    program = (
        "import argparse, sys; from dsocr_graph import cli_sweep; parser = argparse.ArgumentParser()\n"
        "cli_sweep.add_parser(parser.add_subparsers())\n"
        f"options = parser.parse_args(['sweep', '--device', 'h200', '--out', {str(tmp_path / 'sweep.csv')!r}])\n"
        "options.run(options); print(sorted({'torch', 'networkx', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def histogram(folder: Path, experts: int) -> str:
    """Write counts of as many picks of each of some experts in 11 layers; return the option's value."""
    path = folder / "counts.json"
    counts = {f"model.layers.{layer}.mlp.experts": [6] * experts for layer in range(1, 12)}
    path.write_text(json.dumps(counts), encoding="utf-8")
    return f"histogram:{path}"


def test_a_measured_routing_beside_a_uniform_one(tmp_path: Path) -> None:
    """Experts that were picked equally often are uniform routing: both rows read as many bytes of weights."""
    out = tmp_path / "sweep.csv"
    assert sweep("--routing", f"uniform,{histogram(tmp_path, 64)}", "--batch", "8", "--out", str(out)) == 0
    with out.open(encoding="utf-8", newline="") as file:
        uniform, measured = csv.DictReader(file)
    assert measured["routing"] == f"histogram:{tmp_path / 'counts.json'}"
    assert float(measured["weight_bytes_read"]) == pytest.approx(float(uniform["weight_bytes_read"]))


def test_a_histogram_of_another_model_says_so(tmp_path: Path) -> None:
    """The model has 64 experts."""
    with pytest.raises(RoutingError, match="counts 63 experts, the model has 64"):
        sweep("--routing", histogram(tmp_path, 63), "--out", str(tmp_path / "sweep.csv"))


def test_a_group_size_is_of_the_weights_that_have_groups(tmp_path: Path) -> None:
    """Beside int8 weights, bf16 ones are swept without; alone, they refuse it."""
    out = str(tmp_path / "sweep.csv")
    assert sweep("--weight-dtype", "bf16,int8", "--group-size", "64", "--out", out) == 0
    with pytest.raises(OptionError, match="--group-size 64 is of int8 and int4 weights"):
        sweep("--weight-dtype", "bf16,fp8", "--group-size", "64", "--out", out)


def test_columns_of_pages_have_units() -> None:
    """Pixels, crops, pages and tokens."""
    axes = PageAxes(modes=("Base",), pages=((640, 480),), batches=(1,), new_tokens=(1,))
    (section,) = page_grid(axes, {"Base": modelmeter.load("deepseek-ocr", "base")}).sections
    assert {name: section.units[name] for name in ("page_width", "views", "batch", "image_tokens", "new_tokens")} == {
        "page_width": "pixels",
        "views": "crops",
        "batch": "pages",
        "image_tokens": "tokens",
        "new_tokens": "tokens",
    }


def test_groups_of_weights_have_a_column(tmp_path: Path) -> None:
    """Scales of other groups are other bytes, so a row says its group; weights without groups leave it empty."""
    out = tmp_path / "groups.csv"
    options = ["--mode", "Base", "--weight-dtype", "bf16,int4", "--group-size", "32", "--out", str(out)]
    assert sweep(*options) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = [(row["weight_dtype"], row["group_size"]) for row in csv.DictReader(file)]
    assert set(rows) == {("bf16", ""), ("int4", "32")}


def test_the_loop_over_experts_is_an_axis(tmp_path: Path) -> None:
    """Grouped and looped rows stand in one table; the loop moves more, and multiplies as much."""
    out = tmp_path / "loop.csv"
    assert sweep("--mode", "Base", "--new-tokens", "100", "--moe", "grouped,loop", "--out", str(out)) == 0
    with out.open(encoding="utf-8", newline="") as file:
        grouped, looped = csv.DictReader(file)
    assert (grouped["moe"], looped["moe"]) == ("grouped", "loop")
    assert grouped["flops"] == looped["flops"]
    assert float(looped["bytes"]) > float(grouped["bytes"])
