"""Subjects: every way to name a model, the sizes it is analyzed at, and a model without one of its stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attrs import evolve
from torch import Tensor, nn

from dsocr_graph import analyze_model
from dsocr_graph.emit.console import to_console
from dsocr_graph.emit.markdown import to_markdown
from dsocr_graph.errors import CaptureError, FactoryError, OptionError, PlanError, UnknownModelError
from dsocr_graph.models.from_transformers.configuration import ConfigNotFoundError
from dsocr_graph.models.user_model import UserModel, stage_of
from dsocr_graph.subjects import named_or_configured, subject_of


class Halves(nn.Module):
    """A linear layer, and a branch on values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4] -> [B, 2], if the values are large."""
        y = self.linear(x)
        return y * 2 if x.sum() > 0 else y


def halves() -> UserModel:
    """Return a model with a stage that can be captured and one that cannot: what a factory makes."""
    model, x = Halves(), torch.ones(3, 4)
    dims = [{0: "B"}]
    return UserModel(
        name="halves",
        module=model,
        stages=[stage_of(model.linear, x, dims=dims, name="good"), stage_of(model, x, dims=dims, name="bad")],
    )


def test_a_model_is_named_in_four_ways(tmp_path: Path) -> None:
    """By name, by the path of a configuration or its directory, by a factory, and as a module."""
    file = tmp_path / "small" / "config.json"
    file.parent.mkdir()
    file.write_text('{"model_type": "qwen3", "num_hidden_layers": 1}', encoding="utf-8")
    assert subject_of("deepseek-ocr").name == "deepseek-ocr"
    assert named_or_configured(file).name == named_or_configured(file.parent).name == "small"
    assert subject_of(nn.Linear(4, 2), torch.ones(3, 4)).name == "Linear"
    with pytest.raises(FactoryError, match="has no factory 'make'"):
        subject_of("torch.nn:make")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("deepseek-orc", UnknownModelError, "by the path of its config.json, or by a factory"),
        ("no/config.json", ConfigNotFoundError, "no transformers configuration at no/config.json"),
    ],
)
def test_what_names_no_model_says_how_to(model: str, error: type[Exception], message: str) -> None:
    """The message has the known names, or what is missing."""
    with pytest.raises(error, match=message):
        subject_of(model)


def test_inputs_belong_to_modules() -> None:
    """A module needs them; a named model brings its own."""
    with pytest.raises(OptionError, match="a Linear is analyzed with example inputs"):
        subject_of(nn.Linear(4, 2))
    with pytest.raises(OptionError, match="'deepseek-ocr' brings its own"):
        subject_of("deepseek-ocr", torch.ones(1))


def test_options_that_say_nothing_of_the_model_are_refused() -> None:
    """Pages and variants belong to named models, and points take their place."""
    with pytest.raises(OptionError, match="--batch, --dtype would say nothing of Linear, which comes as it is"):
        analyze_model(nn.Linear(4, 2), torch.ones(3, 4), batch=2, dtype="fp32")
    with pytest.raises(OptionError, match="--points gives the sizes themselves, so that --batch would say nothing"):
        analyze_model("deepseek-ocr", points=["decode:B=1,T=9"], batch=2)
    for points in ([], ["decode:B=1,T=9"]):
        with pytest.raises(OptionError, match="--mode would say nothing of qwen3-8b: modes and crops are how DeepSeek"):
            analyze_model("qwen3-8b", points=points, mode="Base")
    with pytest.raises(OptionError, match="--crops would say nothing of qwen3-8b"):
        analyze_model("qwen3-8b", crops=(2, 3), mode=None)


def test_a_module_is_analyzed_at_its_example_or_at_points() -> None:
    """2 x B x 4 x 2 FLOPs: 3 rows in the example, 10 asked for."""
    linear, x = nn.Linear(4, 2), torch.ones(3, 4)
    flops = [
        analyze_model(linear, x, dims={"input": {0: "B"}}, points=points).report.total.total.cost.matmul_flops
        for points in ([], ["forward:B=10"])
    ]
    assert flops == [2 * 3 * 4 * 2, 2 * 10 * 4 * 2]
    with pytest.raises(PlanError, match="has no stage 'forwards'; its stages are forward"):
        analyze_model(linear, x, points=["forwards"])


def test_a_report_always_names_its_variant(tmp_path: Path) -> None:
    """A module without weights has no type of them, which is said in every place; so is a model without any fact."""
    analysis = analyze_model(nn.ReLU(), torch.ones(3, 4), out=tmp_path)
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith("# ReLU (weights none)\n")
    assert to_console(analysis.report).startswith("ReLU (weights none), 0 parameters\n")
    assert b"variant.weights" in (tmp_path / "graph.onnx").read_bytes()
    assert analysis.model.variant == {"weights": "none"}
    without = evolve(analysis.report, model=evolve(analysis.report.model, variant={}))
    assert to_console(without).startswith("ReLU (as given), 0 parameters\n")
    assert to_markdown(analysis.model, without, None).startswith("# ReLU (as given)\n")


def test_a_partial_model_is_reported_only_when_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default is an error that names the stage; with allow_partial the report says what it is without, and why."""
    monkeypatch.setattr("dsocr_graph.models.user_model.load_factory", lambda _: halves())
    with pytest.raises(CaptureError, match=r"(?s)stage 'bad' cannot be captured.*; --allow-partial reports the other"):
        analyze_model("here:halves")
    analysis = analyze_model("here:halves", allow_partial=True, out=tmp_path)
    assert analysis.report.model.variant["partial"] == "without bad"
    assert "Halves" in analysis.report.model.provenance["why without bad"]
    assert analysis.report.total.total.cost.matmul_flops == 2 * 3 * 4 * 2
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "partial without bad" in text.splitlines()[0]
    assert text.index("## What is left out") < text.index("## Workload")
    assert "Why without bad:\n\n```text\nstage 'bad' cannot be captured: " in text
    assert "Workload **good B=3**: " in text  # what was not evaluated is not named
    console = to_console(analysis.report).splitlines()
    assert console[1] == "workload good B=3: 1 document"
    assert console[2].startswith("  PARTIAL    without bad, which is in no figure: stage 'bad' cannot be captured: ")
    assert "Halves" in console[3]
    assert "--allow-partial" in text


@pytest.mark.parametrize("allow_partial", [False, True])
def test_a_model_of_one_stage_is_not_told_of_others(allow_partial: bool) -> None:
    """Nothing would be left, whether it is asked for or has been already."""
    with pytest.raises(CaptureError, match=r"stage 'forward' cannot be captured") as caught:
        analyze_model(nn.Linear(4, 2), torch.ones(3, 5), allow_partial=allow_partial)
    assert "--allow-partial" not in str(caught.value)


def test_a_stage_that_was_left_out_cannot_be_asked_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of the points: the message says so, and what can be asked."""
    monkeypatch.setattr("dsocr_graph.models.user_model.load_factory", lambda _: halves())
    message = "nothing is left of what is asked of halves: bad cannot be captured and is left out; ask for good"
    with pytest.raises(OptionError, match=message):
        analyze_model("here:halves", points=["bad:B=9"], allow_partial=True)
