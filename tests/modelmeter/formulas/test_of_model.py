"""Formulas of the shipped model: what they say is what an evaluation finds, at any sizes."""

from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

import modelmeter
from modelmeter.evaluate import StageCost, evaluate_stage
from modelmeter.formulas import (
    QUANTITIES,
    UnknownModuleError,
    active_parameters,
    module_formulas,
    stage_formulas,
)
from modelmeter.formulas.of_model import NoDecoderError
from modelmeter.formulas.page import formulas_page
from modelmeter.model import AnalyticModel, UnknownStageError

PAGE = Path(__file__).parents[3] / "docs" / "formulas.md"


@pytest.fixture(scope="module", params=["gundam", "gundam-eager", "base"])
def model(request: pytest.FixtureRequest) -> AnalyticModel:
    """Return a shipped variant of DeepSeek-OCR."""
    return modelmeter.load("deepseek-ocr", request.param)


@pytest.fixture(scope="module")
def gundam() -> AnalyticModel:
    """Return the default variant."""
    return modelmeter.load("deepseek-ocr")


bindings = st.one_of(
    st.just(("vision_global", {})),
    st.tuples(
        st.just("vision_local"), st.builds(lambda h, w: {"V": h * w, "H": h}, st.integers(1, 9), st.integers(1, 9))
    ),
    st.tuples(
        st.just("prefill"),
        st.builds(
            lambda b, s, n: {"B": b, "S": s, "N": min(s, n)},
            st.integers(1, 64),
            st.integers(1, 8192),
            st.integers(1, 999),
        ),
    ),
    st.tuples(st.just("decode"), st.builds(lambda b, t: {"B": b, "T": t}, st.integers(1, 64), st.integers(1, 8191))),
)


def differences(found: StageCost, model: AnalyticModel, stage: str, sizes: dict[str, int]) -> list[str]:
    """Return the modules and quantities in which a formula gives another number than an evaluation."""
    wrong: list[str] = []
    for module, amount in found.modules.items():
        (formulas,) = module_formulas(model, module, stages=[stage])
        for kind, expected in ((formulas.formulas, amount.inclusive.cost), (formulas.own, amount.own.cost)):
            wrong += [
                f"{module} {quantity}"
                for quantity in QUANTITIES
                if kind[quantity].at(sizes) != pytest.approx(getattr(expected, quantity), rel=1e-12)
            ]
    return wrong


@settings(max_examples=12, deadline=None)
@given(bindings)
def test_every_module_costs_what_its_formulas_say(model: AnalyticModel, run: tuple[str, dict[str, int]]) -> None:
    """Own and inclusive FLOPs and bytes of all modules are those of an evaluation; FLOPs are the same integers."""
    stage, sizes = run
    found = evaluate_stage(model, stage, **sizes)
    assert differences(found, model, stage, sizes) == []
    (whole,) = module_formulas(model, "", stages=[stage])
    for quantity in ("tensor_core_flops", "cuda_core_flops"):
        value = whole.formulas[quantity].at(sizes)
        assert isinstance(value, int)
        assert value == getattr(found.total.cost, quantity)


@settings(max_examples=25, deadline=None)
@given(bindings)
def test_a_stage_holds_what_its_formulas_say(model: AnalyticModel, run: tuple[str, dict[str, int]]) -> None:
    """Weights, KV cache and peak are the bytes of an evaluation."""
    stage, sizes = run
    memory, formulas = evaluate_stage(model, stage, **sizes).memory, stage_formulas(model, stage)
    assert {name: formula.at(sizes) for name, formula in formulas.items()} == {
        "weight_bytes": memory.weight_bytes,
        "kv_cache_bytes": memory.kv_cache_bytes,
        "peak_bytes": memory.peak_bytes,
    }


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 32), st.integers(1, 4000), st.integers(1, 4000))
def test_decode_in_closed_form_is_decode_step_by_step(
    gundam: AnalyticModel, batch: int, cached: int, steps: int
) -> None:
    """The sum over n steps gives the integer of an evaluated run of n steps."""
    (decode,) = module_formulas(gundam, "", stages=["decode"])
    run = evaluate_stage(gundam, "decode", count=steps, sweep="T", B=batch, T=cached).total.cost
    for quantity in ("tensor_core_flops", "cuda_core_flops"):
        summed = decode.formulas[quantity].summed("T")
        assert summed.at({"B": batch, "T": cached, "n": steps}) == getattr(run, quantity)
        space: dict[str, object] = {}
        exec(summed.python("total"), space)  # noqa: S102 - the source is what is tested
        function = space["total"]
        assert callable(function)
        assert function(B=batch, T=cached, n=steps) == getattr(run, quantity)


def test_the_output_head_by_hand(gundam: AnalyticModel) -> None:
    """2*1280*129280 FLOPs a row; the weight 2*1280*129280 bytes, a row in of 2*1280 and out of 2*129280 bytes."""
    (head,) = module_formulas(gundam, "lm_head", stages=["decode"])
    assert head.formulas["tensor_core_flops"].text == "330956800*B"
    assert head.formulas["bytes"].at({"B": 3}) == 2 * 1280 * 129280 + 3 * (2 * 1280 + 2 * 129280)
    assert head.own == head.formulas


def test_active_parameters_by_hand(gundam: AnalyticModel) -> None:
    """Attention, the dense layer, 11 MoE layers of 6 experts, 2 shared ones and a router, and the output head."""
    attention = 12 * 4 * 1280 * 1280
    dense = 3 * 1280 * 6848
    experts = 11 * (6 + 2) * 3 * 1280 * 896
    router = 11 * 64 * 1280
    head = 1280 * 129280
    assert active_parameters(gundam) == attention + dense + experts + router + head == 574_095_360


def test_unknown_names_are_told_with_those_that_exist(gundam: AnalyticModel) -> None:
    """A module or stage that is not there is an error; so are active parameters without a decoder."""
    with pytest.raises(UnknownModuleError, match=r"unknown module 'lm_heat'; did you mean lm_head\?"):
        module_formulas(gundam, "lm_heat")
    with pytest.raises(UnknownStageError, match="unknown stage 'decoder'"):
        module_formulas(gundam, "", stages=["decoder"])
    vision = evolve(gundam, stages=gundam.stages[:1])
    with pytest.raises(NoDecoderError, match="its stages are vision_global"):
        active_parameters(vision)


def test_the_page_is_the_one_that_is_kept(gundam: AnalyticModel) -> None:
    """docs/formulas.md is what the command in it makes."""
    kept = PAGE.read_text(encoding="utf-8")
    assert formulas_page(gundam, command="dsocr-graph formulas --format page --out docs/formulas.md") == kept


def test_the_page_names_every_module_that_runs_something(gundam: AnalyticModel) -> None:
    """A heading per stage and module with operators of its own."""
    kept = PAGE.read_text(encoding="utf-8")
    headings = {f"### {leaf.stage}: {leaf.module or 'the model itself'}\n" for leaf in gundam.leaves}
    assert {heading for heading in headings if heading not in kept} == set()
