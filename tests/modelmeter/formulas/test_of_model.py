"""Formulas of the shipped model: what they say is what an evaluation finds, at any sizes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

import modelmeter
from modelmeter.evaluate import StageCost, evaluate_stage
from modelmeter.formulas import (
    QUANTITIES,
    Formula,
    UnknownModuleError,
    active_parameters,
    kv_cache_bytes_per_token,
    module_formulas,
    peak_formulas,
    stage_formulas,
)
from modelmeter.formulas.of_model import NoDecoderError
from modelmeter.formulas.page import formulas_page
from modelmeter.model import AnalyticModel, UnknownStageError

Evaluator = Callable[[str, Mapping[str, int]], float]

Written = Callable[[str], Sequence[tuple[Formula, str, str]]]

FLOPS = ("matmul_flops", "vector_flops", "tensor_core_flops", "cuda_core_flops")
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


def same(value: float, expected: float) -> bool:
    """Whether two numbers are the same integer, or the same expectation but for its rounding."""
    whole = isinstance(value, int) and isinstance(expected, int)
    return value == expected if whole else value == pytest.approx(expected, rel=1e-12)


@pytest.fixture(scope="module")
def written(model: AnalyticModel) -> Written:
    """Return a function: each distinct formula of a stage with its Python source and its LaTeX.

    A function, as hypothesis prints arguments, and these would be long.
    """
    found: dict[str, list[tuple[Formula, str, str]]] = {}
    for stage in model.stages:
        formulas = {formula.text: formula for formula in stage_formulas(model, stage.name).values()}
        for module in {leaf.module for leaf in model.leaves_by_stage[stage.name]}:
            (each,) = module_formulas(model, module, stages=[stage.name])
            formulas |= {formula.text: formula for formula in (*each.formulas.values(), *each.own.values())}
        found[stage.name] = [(formula, formula.python("cost"), formula.latex) for formula in formulas.values()]
    return lambda stage: found[stage]


def differences(found: StageCost, model: AnalyticModel, stage: str, sizes: dict[str, int]) -> list[str]:
    """Return the modules and quantities in which a formula gives another number than an evaluation."""
    wrong: list[str] = []
    for module, amount in found.modules.items():
        (formulas,) = module_formulas(model, module, stages=[stage])
        for kind, expected in ((formulas.formulas, amount.inclusive.cost), (formulas.own, amount.own.cost)):
            wrong += [
                f"{module} {quantity}"
                for quantity in QUANTITIES
                if not same(kind[quantity].at(sizes), getattr(expected, quantity))
            ]
    return wrong


@settings(max_examples=12, deadline=None)
@given(bindings)
def test_every_module_costs_what_its_formulas_say(model: AnalyticModel, run: tuple[str, dict[str, int]]) -> None:
    """Own and inclusive FLOPs and bytes of all modules are those of an evaluation; integers are the same integers."""
    stage, sizes = run
    found = evaluate_stage(model, stage, **sizes)
    assert differences(found, model, stage, sizes) == []


@settings(max_examples=12, deadline=None)
@given(bindings)
def test_the_written_forms_of_every_module_agree(
    run_python: Evaluator, run_latex: Evaluator, written: Written, run: tuple[str, dict[str, int]]
) -> None:
    """Python source and LaTeX of every formula of a stage give the number that the formula gives."""
    stage, sizes = run
    assert written(stage)
    for each, source, latex in written(stage):
        expected = each.at(sizes)
        assert same(run_python(source, {name: sizes[name] for name in each.dims}), expected), source
        assert same(run_latex(latex, sizes), expected), latex


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
@given(st.fixed_dictionaries({"B": st.integers(1, 32), "T": st.integers(1, 4000), "n": st.integers(1, 4000)}))
def test_decode_in_closed_form_is_decode_step_by_step(
    run_python: Evaluator, run_latex: Evaluator, model: AnalyticModel, sizes: dict[str, int]
) -> None:
    """The sum over n steps gives the integer of an evaluated run of n steps, in every form; so do bytes, as floats."""
    (decode,) = module_formulas(model, "", stages=["decode"])
    run = evaluate_stage(model, "decode", count=sizes["n"], sweep="T", B=sizes["B"], T=sizes["T"]).total.cost
    for quantity in ("bytes", "fused_bytes", "weight_bytes_read"):
        value = decode.formulas[quantity].summed("T").at(sizes)
        assert value == pytest.approx(getattr(run, quantity), rel=1e-12)
    for quantity in FLOPS:
        summed = decode.formulas[quantity].summed("T")
        assert summed.at(sizes) == getattr(run, quantity)
        assert run_python(summed.python("total"), sizes) == getattr(run, quantity)
        assert run_latex(summed.latex, sizes) == getattr(run, quantity)


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


def test_a_token_has_61440_bytes_of_keys_and_values(gundam: AnalyticModel) -> None:
    """2 (keys and values) * 12 layers * 10 heads * 128 * 2 bytes of bf16."""
    assert kv_cache_bytes_per_token(gundam) == 2 * 12 * 10 * 128 * 2 == 61_440


def test_the_allocation_that_decides_is_the_one_of_an_evaluation(gundam: AnalyticModel) -> None:
    """A decode with few cached tokens needs most for the logits, with many for a layer's grown cache.

    1,095,696 B of the one exceed 74,248 B + 520 of the other until 5,120 B T of the cache make up for it: T = 200.
    """
    logits, cache = (
        next(peak for peak in peak_formulas(gundam, "decode") if peak.at == at) for at in ("aten::argmax", "aten::cat")
    )
    for sizes, decisive in (({"B": 1, "T": 199}, logits), ({"B": 1, "T": 200}, cache)):
        memory = evaluate_stage(gundam, "decode", **sizes).memory
        assert (memory.at, memory.module) == (decisive.at, decisive.module)
        assert memory.peak_bytes == decisive.alive.at(sizes)


def test_a_module_holds_its_parameters_and_those_below(gundam: AnalyticModel) -> None:
    """A dense MLP is three bf16 matrices of 1280 * 6848, none its own; the whole model 3,336,106,240 parameters."""
    (mlp,) = module_formulas(gundam, "model.layers.0.mlp", stages=["decode"])
    assert (mlp.parameter_bytes, mlp.own_parameter_bytes) == (2 * 3 * 1280 * 6848, 0)
    (whole,) = module_formulas(gundam, "", stages=["decode"])
    assert whole.parameter_bytes == gundam.parameter_bytes == 2 * 3_336_106_240


def test_unknown_names_are_told_with_those_that_exist(gundam: AnalyticModel) -> None:
    """A module or stage that is not there is an error; so are a token's parameters and cache without a decoder."""
    with pytest.raises(UnknownModuleError, match=r"unknown module 'lm_heat'; did you mean lm_head\?"):
        module_formulas(gundam, "lm_heat")
    with pytest.raises(UnknownStageError, match="unknown stage 'decoder'"):
        module_formulas(gundam, "", stages=["decoder"])
    vision = evolve(gundam, stages=gundam.stages[:1])
    for per_token in (active_parameters, kv_cache_bytes_per_token):
        with pytest.raises(NoDecoderError, match=r"its stages are vision_global \(no dims\)"):
            per_token(vision)


def test_a_numbered_layer_is_the_equal_ones_that_it_is_folded_into(gundam: AnalyticModel) -> None:
    """Layer 5 is one of 11 of one structure, block 7 of SAM one of 8: the formulas are of all of them."""
    for asked, folded in (
        ("model.layers.5", "model.layers.[1-11]"),
        ("model.sam_model.blocks.7.attn", "model.sam_model.blocks.[0-1,3-4,6-7,9-10].attn"),
    ):
        assert module_formulas(gundam, asked) == module_formulas(gundam, folded)
    with pytest.raises(UnknownModuleError) as error:
        module_formulas(gundam, "model.layers.12.mlp")
    assert "did you mean" in str(error.value)
    assert str(error.value).endswith("The model has 90 modules, outermost lm_head, model")  # not the list of 90


def test_the_page_is_the_one_that_is_kept(gundam: AnalyticModel) -> None:
    """docs/formulas.md is what the command in it makes."""
    kept = PAGE.read_text(encoding="utf-8")
    assert formulas_page(gundam, command="dsocr-graph formulas --format page --out docs/formulas.md") == kept


def test_the_page_names_every_module_that_runs_something(gundam: AnalyticModel) -> None:
    """A heading per stage and module with operators of its own."""
    kept = PAGE.read_text(encoding="utf-8")
    headings = {f"### {leaf.stage}: {leaf.module or 'the model itself'}\n" for leaf in gundam.leaves}
    assert {heading for heading in headings if heading not in kept} == set()
