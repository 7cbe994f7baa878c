"""The subcommand `verify`: its exit status, its files, and the real model at toy size."""

import argparse
import json
import logging
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch
from torch import nn

from dsocr_graph import cli_verify
from dsocr_graph.errors import CaptureError, MissingLoweringError, OptionError, UnknownModelError
from dsocr_graph.models.registry import NamedModel
from dsocr_graph.models.user_model import UserModel, stage_of, user_model
from modelmeter.model import SizeLimitError


@pytest.fixture(autouse=True)
def _no_traces() -> Generator[None]:
    """Switch off the traces of torch's exporter, all of which pytest would keep."""
    before = logging.root.manager.disable
    logging.disable(logging.DEBUG)
    yield
    logging.disable(before)


def run(*arguments: str) -> int:
    """Run the subcommand and return its exit status."""
    parser = argparse.ArgumentParser()
    cli_verify.add_parser(parser.add_subparsers())
    options = parser.parse_args(["verify", *arguments])
    return options.run(options)


def otherwise_for_real(x: torch.Tensor) -> torch.Tensor:
    """Do something on real tensors that is not done while capturing."""
    return x if x.is_meta else torch.relu(x)


def test_a_model_that_agrees_ends_with_status_0(
    toy_model: Callable[..., NamedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The console has a line per check, the files hold the same; 2 * 15 * 4 * 2 = 240 FLOPs of 3 x 5 rows."""
    toy_model()
    assert (
        run("--model", "toy", "--points", "prefill:B=3,S=5", "--points", "decode:B=1,T=2", "--out", str(tmp_path)) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "toy: 0 unexplained differences"
    assert "prefill at B=3, S=5: 2 captured calls, 240 FLOP" in lines
    assert lines[-2:] == [str(tmp_path / "verification.md"), str(tmp_path / "verification.json")]
    document = json.loads((tmp_path / "verification.json").read_text(encoding="utf-8"))
    assert document["unexplained"] == 0
    assert [(stage["stage"], stage["bindings"]) for stage in document["stages"]] == [
        ("prefill", {"B": 3, "S": 5}),
        ("decode", {"B": 1, "T": 2}),
    ]
    page = (tmp_path / "verification.md").read_text(encoding="utf-8")
    assert "Made by `dsocr-graph verify --model toy --points prefill:B=3,S=5 --points decode:B=1,T=2`" in page
    assert "| `aten::relu`   | `aten::relu`" in page


def test_an_unexplained_difference_ends_with_status_1(
    toy_model: Callable[..., NamedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An operator that only the run has is named on the console, in the page and in the JSON."""
    toy_model(otherwise_for_real)
    assert run("--model", "toy", "--points", "decode:B=1,T=2", "--out", str(tmp_path)) == 1
    assert "UNEXPLAINED: (root): aten::relu: 1 in the run, 0 in the graph" in capsys.readouterr().out
    assert "UNEXPLAINED" in (tmp_path / "verification.md").read_text(encoding="utf-8")
    document = json.loads((tmp_path / "verification.json").read_text(encoding="utf-8"))
    operators = next(check for check in document["stages"][0]["checks"] if check["subject"] == "operators")
    assert operators["differences"] == [
        {"module": "", "what": "aten::relu", "run": "1", "graph": "0", "instances": 1, "reason": None}
    ]


def test_mistakes_are_told(toy_model: Callable[..., NamedModel]) -> None:
    """An unknown model and an unknown stage name the alternatives."""
    toy_model()
    with pytest.raises(UnknownModelError, match="known models: deepseek-ocr"):
        run("--model", "no-model")
    with pytest.raises(OptionError, match="the stages are vision_global, vision_local, prefill, decode"):
        run("--model", "toy", "--points", "train:B=1")


def test_options_that_say_nothing_of_a_model_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's model comes as it is; one of transformers has neither modes nor a loop over experts."""
    built = user_model(nn.Linear(4, 2), torch.ones(3, 4))
    monkeypatch.setattr("dsocr_graph.models.user_model.load_factory", lambda _: built)
    for words, named in (
        (("--dtype", "bf16"), "--dtype"),
        (("--mode", "Base", "--attention", "eager", "--moe", "loop"), "--attention, --mode, --moe"),
    ):
        with pytest.raises(OptionError, match=f"{named} would say nothing of Linear, which comes as it is"):
            run("--model", "here:linear", *words)
    with pytest.raises(OptionError, match="--mode would say nothing of qwen3-8b"):
        run("--model", "qwen3-8b", "--mode", "Large", "--moe", "loop")
    with pytest.raises(OptionError, match="--moe loop would say nothing of qwen3-8b: only DeepSeek-OCR's own code has"):
        run("--model", "qwen3-8b", "--moe", "loop")


def test_sizes_beyond_a_models_limits_are_refused_before_it_runs(tmp_path: Path) -> None:
    """The message is that of an analysis: GPT-2 of 16 positions has room for 15 cached tokens at a step."""
    settings = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 16, "vocab_size": 32}
    (tmp_path / "gpt2.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(SizeLimitError, match=r"'decode B=2, T=16' runs at T = 16; .* has room for T up to 15"):
        run("--model", str(tmp_path / "gpt2.json"), "--points", "decode:B=2,T=16")


class Halves(nn.Module):
    """Two ways to run a layer: one that can be captured, and one that follows the values of a tensor."""

    def __init__(self, *, follows: bool) -> None:
        super().__init__()
        self.root = nn.Linear(4, 2)
        self.follows = follows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the layer."""
        return self.root(x[x > 0].view(-1, 4)) if self.follows and bool(x.sum() > 0) else self.root(x)


def partly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a factory return a model with a stage that can be captured and one that cannot."""
    stages = []
    layer = nn.Linear(4, 2)
    for name, follows in (("plain", False), ("following", True)):
        module = Halves(follows=follows).eval()
        module.root = layer
        stages.append(stage_of(module, torch.ones(3, 4), name=name, root="root"))
    built = UserModel(name="Halves", module=layer, stages=tuple(stages))
    monkeypatch.setattr("dsocr_graph.models.user_model.load_factory", lambda _: built)


def test_a_stage_that_cannot_be_captured_is_left_out_where_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the option it is an error that names it; with it, the files say what is left out, and why."""
    partly(monkeypatch)
    with pytest.raises(CaptureError, match=r"stage 'following' cannot (.|\n)*; --allow-partial compares the other"):
        run("--model", "here:halves")
    assert run("--model", "here:halves", "--allow-partial", "--out", str(tmp_path)) == 0
    assert "  PARTIAL    without following: " in capsys.readouterr().out
    document = json.loads((tmp_path / "verification.json").read_text(encoding="utf-8"))
    assert [stage["stage"] for stage in document["stages"]] == ["plain"]
    assert list(document["left_out"]) == ["following"]
    page = (tmp_path / "verification.md").read_text(encoding="utf-8")
    assert "**Without following**: what cannot be captured cannot be compared." in page
    assert "`dsocr-graph verify --model here:halves --allow-partial`" in page


@torch.library.custom_op("verified::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    """Return twice a tensor, by an operator that no rule knows."""
    return x * 2


@doubled.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Doubling(nn.Linear):
    """A layer, and what no rule knows."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Run the layer on twice its input."""
        return super().forward(doubled(input))


def test_an_operator_without_a_rule_is_listed_where_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the option that the message names it is an error; with it, everything else is compared."""
    built = user_model(Doubling(4, 2), torch.ones(3, 4))
    monkeypatch.setattr("dsocr_graph.models.user_model.load_factory", lambda _: built)
    with pytest.raises(MissingLoweringError, match="--allow-unclassified"):
        run("--model", "here:doubling")
    assert run("--model", "here:doubling", "--allow-unclassified", "--out", str(tmp_path)) == 0
    assert "  UNCLASSIFIED  verified::doubled x1 in (root) of forward" in capsys.readouterr().out
    document = json.loads((tmp_path / "verification.json").read_text(encoding="utf-8"))
    assert document["unclassified"] == [{"op": "verified::doubled", "stage": "forward", "module": "", "calls": 1}]
    assert "- verified::doubled x1 in (root) of forward" in (tmp_path / "verification.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_loop_over_experts_is_explained(tmp_path: Path) -> None:
    """Two tokens of two experts in two layers are at most 8 calls of expert MLPs; the grouped graph has none."""
    assert run("--moe", "loop", "--points", "decode:B=2,T=5", "--out", str(tmp_path)) == 0
    (stage,) = json.loads((tmp_path / "verification.json").read_text(encoding="utf-8"))["stages"]
    checks = {check["subject"]: check for check in stage["checks"]}
    experts = checks["module calls"]["differences"]
    assert {each["reason"] for each in experts} == {"runs a loop over experts, the graph their grouped product"}
    assert all(each["module"].startswith("model.layers.[1-2].mlp.experts.[0-7]") for each in experts)
    assert 4 <= int(experts[0]["run"]) <= 8
    assert checks["FLOPs"]["differences"] == []


@pytest.mark.slow
def test_the_toy_size_model_agrees_in_all_stages(tmp_path: Path) -> None:
    """Results equal bit by bit; sizes, FLOPs, parameters, operators and edges agree exactly."""
    assert run("--out", str(tmp_path)) == 0
    document = json.loads((tmp_path / "verification.json").read_text(encoding="utf-8"))
    assert [stage["stage"] for stage in document["stages"]] == ["vision_global", "vision_local", "prefill", "decode"]
    assert document["parameters"]["differences"] == []
    for stage in document["stages"]:
        agreeing = {check["subject"] for check in stage["checks"] if not check["differences"]}
        assert {"parent-child edges", "symbolic sizes", "operators", "results", "FLOPs"} <= agreeing
        assert min(check["compared"] for check in stage["checks"]) >= 1
