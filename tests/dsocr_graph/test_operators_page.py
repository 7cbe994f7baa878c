"""The page of operators: current, complete, and every operator of a shipped model classified."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import modelmeter
from dsocr_graph import cli_operators
from dsocr_graph.emit.operators_page import operators_page
from dsocr_graph.errors import OptionError
from dsocr_graph.ir import CapturedModel
from dsocr_graph.lowering import lower, lowers, unregister
from dsocr_graph.lowering.coverage import OperatorState, State, operator_states
from dsocr_graph.scopes import group_by_module
from dsocr_graph.verification.aten_names import aten_names
from modelmeter.registry import available


def run(*arguments: str) -> int:
    """Run the subcommand and return its exit status."""
    parser = argparse.ArgumentParser()
    cli_operators.add_parser(parser.add_subparsers())
    options = parser.parse_args(["operators", *arguments])
    return options.run(options)


def state_of(name: str) -> OperatorState:
    """Return the state of one operator."""
    (found,) = (state for state in operator_states({name}) if state.name == name)
    return found


def test_the_kept_page_is_current(repo_root: Path, tmp_path: Path) -> None:
    """docs/operators.md is what its command writes with this torch and these rules."""
    kept = (repo_root / "docs" / "operators.md").read_text(encoding="utf-8")
    assert kept.split("`")[1] == cli_operators.PAGE_COMMAND
    assert run("--out", str(tmp_path / "operators.md")) == 0
    assert (tmp_path / "operators.md").read_text(encoding="utf-8") == kept, f"run {cli_operators.PAGE_COMMAND}"


def test_every_operator_of_a_shipped_model_is_classified() -> None:
    """What shipped models call has a rule or is free, and exists in this torch or in this package."""
    models = [modelmeter.load(name) for name in available()]
    used = [state for state in operator_states(aten_names(), models) if state.uses]
    assert len(used) > 40
    assert [state.name for state in used if state.state is State.MISSING] == []
    assert {state.name for state in used if state.name.startswith("aten::")} <= aten_names()


def test_calls_are_those_of_the_model() -> None:
    """A decode step of the shipped model has 12 attentions and 96 linear layers: 12*4 + 3 + 11*(3+1) + 1."""
    states = {state.name: state for state in operator_states((), [modelmeter.load("deepseek-ocr")])}
    assert states["aten::scaled_dot_product_attention"].uses["deepseek-ocr"]["decode"] == 12
    assert states["aten::linear"].uses["deepseek-ocr"]["decode"] == 96


def test_a_module_list_of_one_operator_counts_its_calls(captured: Callable[..., CapturedModel]) -> None:
    """Two sines and one view of a model are counted by its name and stage."""
    model = lower(group_by_module(captured(lambda x: x.sin().sin().t(), torch.empty(2, 3, device="meta"))))
    states = {state.name: state for state in operator_states((), [model])}
    assert states["aten::sin"].uses == {"toy": {"forward": 2}}
    assert states["aten::t"].uses == {"toy": {"forward": 1}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aten::linear", OperatorState(name="aten::linear", state=State.RULE, family="linear", layers=("Linear",))),
        ("aten::view", OperatorState(name="aten::view", state=State.FREE)),
        ("aten::lu_solve", OperatorState(name="aten::lu_solve", state=State.MISSING)),
        (
            "aten::sort",
            OperatorState(name="aten::sort", state=State.RULE, family="indexing", layers=("Sort",), approximated=True),
        ),
        (
            "aten::dropout",
            OperatorState(
                name="aten::dropout",
                state=State.RULE,
                family="movement",
                layers=("DataMovement",),
                sometimes_free=True,
            ),
        ),
        (
            "aten::einsum",
            OperatorState(
                name="aten::einsum",
                state=State.RULE,
                family="linear",
                layers=("Elementwise", "Matmul", "Reduction"),
                sometimes_free=True,
                sometimes_refused=True,
            ),
        ),
        (
            "aten::sin",  # its rule is made by a function, and its layer by another
            OperatorState(name="aten::sin", state=State.RULE, family="pointwise", layers=("Elementwise",)),
        ),
    ],
)
def test_the_state_says_what_becomes_of_calls(name: str, expected: OperatorState) -> None:
    """A rule names its layer and what depends on the call; free and missing names have none."""
    assert state_of(name) == expected


def test_a_rule_that_is_added_moves_its_operator() -> None:
    """An operator is missing until a rule is registered."""
    assert state_of("aten::lu_solve").state is State.MISSING
    lowers("aten::lu_solve")(lambda call: None)
    try:
        assert state_of("aten::lu_solve").state is State.RULE
    finally:
        unregister("aten::lu_solve")


def test_the_page_has_every_operator_once() -> None:
    """Each name stands in the part of its state; the counts are those of the parts."""
    states = operator_states({"aten::linear", "aten::view", "aten::lu_solve", "aten::_ahoy", "aten::lu_solve_"})
    page = operators_page(states, torch="2.13.0", command="a command")
    assert "torch 2.13.0 has 5 operators in ATen, overloads counted together: 1 have a rule, 1 are free" in " ".join(
        page.split()
    )
    assert "### Internal, by a leading underscore: 1\n\n`_ahoy`" in page
    assert "### In place: 1\n\n`lu_solve_`" in page
    assert "### Others: 1\n\n`lu_solve`" in page
    assert "## Other free operators\n\n`view`" in page


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """The document names the release and the state of every operator."""
    assert run("--format", "json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["torch"] in torch.__version__
    states = {each["name"]: each["state"] for each in document["operators"]}
    assert aten_names() <= states.keys()
    assert (states["aten::linear"], states["aten::view"], states["aten::lu_solve"]) == ("rule", "free", "missing")


def test_an_unknown_format_is_told() -> None:
    """The error names the formats."""
    with pytest.raises(OptionError, match="format 'word' is not known; choose one of page, json"):
        run("--format", "word")
