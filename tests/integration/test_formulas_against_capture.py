"""Formulas of a capture with open sizes against captures at fixed sizes, and against FLOPs counted while running.

The model is the toy one: the same code as the published model's, whose captures take seconds.
"""

import logging
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from attrs import evolve
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsocr_graph.lowering import lower
from dsocr_graph.models.deepseek_ocr import DeepseekOCRConfig, stage_inputs
from dsocr_graph.models.deepseek_ocr.running import RunnableModel
from dsocr_graph.models.registry import CROP_SIZE, Variant, model_named
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import group_by_module
from dsocr_graph.tracing import capture
from modelmeter.evaluate import evaluate_stage
from modelmeter.formulas import QUANTITIES, Formula, module_formulas, stage_formulas
from modelmeter.model import AnalyticModel

BASE = 128  # pixels: 2 rows of 2 cells and a newline each, then the separator
GLOBAL_FEATURES = 2 * (2 + 1) + 1

# The implementation of attention is one of the decoder; it does not reach the vision stages.
STAGES = pytest.mark.parametrize(
    ("attention", "stage"),
    [
        ("sdpa", "vision_global"),
        ("sdpa", "vision_local"),
        *((attention, stage) for attention in ("sdpa", "eager") for stage in ("prefill", "decode")),
    ],
)

Sizes = dict[str, int]
SIZES: dict[str, st.SearchStrategy[Sizes]] = {
    "vision_global": st.just({}),
    # two columns at least: `test_a_grid_of_one_column_needs_one_copy_less`
    "vision_local": st.builds(
        lambda rows, columns: {"V": rows * columns, "H": rows}, st.integers(1, 3), st.integers(2, 4)
    ),
    "prefill": st.builds(
        lambda documents, image, text: {"B": documents, "S": image + text, "N": image},
        st.integers(1, 4),
        st.integers(1, 60),
        st.integers(1, 20),
    ),
    "decode": st.fixed_dictionaries({"B": st.integers(1, 4), "T": st.integers(1, 80)}),
}
# A failing capture takes seconds: the sizes are small as they are drawn, and are not made smaller.
FEW = settings(max_examples=2, deadline=None, phases=(Phase.generate,))


@pytest.fixture(scope="module", autouse=True)
def _without_torch_traces() -> Iterator[None]:
    """Torch traces each step of an export; pytest would keep it all."""
    before = logging.root.manager.disable
    logging.disable(logging.DEBUG)
    yield
    logging.disable(before)


@pytest.fixture(scope="module")
def with_open_sizes() -> Callable[[str, str], AnalyticModel]:
    """Return a compiler of the stages that an implementation of attention reaches; each is captured once."""

    @cache
    def compiled(attention: str, stage: str) -> AnalyticModel:
        return _compiled(attention, stage, lambda spec: spec)

    return compiled


def _compiled(attention: str, stage: str, prepare: Callable[[StageSpec], StageSpec]) -> AnalyticModel:
    model, specs = _built(attention)
    wanted = [prepare(spec) for spec in specs if spec.name == stage]
    return lower(group_by_module(capture(model, wanted, name="deepseek-ocr-tiny", variant={"attention": attention})))


@cache
def _built(attention: str) -> tuple[nn.Module, tuple[StageSpec, ...]]:
    return model_named("deepseek-ocr-tiny").build(Variant(base_size=BASE, dtype="bf16", attention=attention))


def _at_fixed_sizes(attention: str, stage: str, sizes: Sizes) -> AnalyticModel:
    """Return a stage captured without any symbolic dim."""
    dims: dict[str, int] = {"base": BASE, "view": CROP_SIZE, "G": GLOBAL_FEATURES, **sizes}
    if stage == "vision_local":
        dims["W"] = dims.pop("V") // sizes["H"]
    inputs = stage_inputs(DeepseekOCRConfig.tiny(), stage, device="meta", dtype=torch.bfloat16, **dims)
    return _compiled(attention, stage, lambda spec: evolve(spec, inputs=inputs, dynamic_shapes=None, aliases={}))


def _is_same(formula: Formula, sizes: Sizes, expected: float) -> bool:
    """Whether a formula gives the same integer; an expected number of experts is rounded in another order."""
    value = formula.at(sizes)
    whole = isinstance(value, int) and isinstance(expected, int)
    return value == expected if whole else value == pytest.approx(expected, rel=1e-12)


@STAGES
@FEW
@given(st.data())
def test_formulas_are_what_a_capture_at_fixed_sizes_costs(
    with_open_sizes: Callable[[str, str], AnalyticModel], attention: str, stage: str, data: st.DataObject
) -> None:
    """Every module, its own operators and all below it, and the stage's memory: the same integers."""
    sizes = data.draw(SIZES[stage])
    symbolic = with_open_sizes(attention, stage)
    static = _at_fixed_sizes(attention, stage, sizes)
    assert not static.stage(stage).dims
    found = evaluate_stage(static, stage)
    assert len(found.modules) > 30
    wrong: list[str] = []
    for module, amount in found.modules.items():
        (formulas,) = module_formulas(symbolic, module, stages=[stage])
        for kind, costs in ((formulas.formulas, amount.inclusive.cost), (formulas.own, amount.own.cost)):
            wrong += [
                f"{module}: {quantity}"
                for quantity in QUANTITIES
                if not _is_same(kind[quantity], sizes, getattr(costs, quantity))
            ]
    wrong += [
        f"the stage: {quantity}"
        for quantity, formula in stage_formulas(symbolic, stage).items()
        if not _is_same(formula, sizes, getattr(found.memory, quantity))
    ]
    assert wrong == []


def test_a_grid_of_one_column_needs_one_copy_less(with_open_sizes: Callable[[str, str], AnalyticModel]) -> None:
    """The one size at which bytes differ from a capture: stitching one column of crops copies nothing.

    The formula has the copy that two columns need: 2 crops * 10 * 10 cells * 64 elements * 2 bytes, read and written.
    """
    sizes = {"V": 2, "H": 2}
    static = evaluate_stage(_at_fixed_sizes("sdpa", "vision_local", sizes), "vision_local").total.cost
    (whole,) = module_formulas(with_open_sizes("sdpa", "vision_local"), "", stages=["vision_local"])
    assert whole.formulas["matmul_flops"].at(sizes) == static.matmul_flops
    assert whole.formulas["vector_flops"].at(sizes) == static.vector_flops
    assert whole.formulas["bytes"].at(sizes) - static.bytes == 2 * (2 * 10 * 10 * 64 * 2)


@STAGES
@FEW
@given(st.data())
def test_matrix_flops_are_those_counted_while_the_loop_over_experts_runs(
    with_open_sizes: Callable[[str, str], AnalyticModel], attention: str, stage: str, data: st.DataObject
) -> None:
    """The model with weights on the CPU, each chosen expert by its own products, multiplies what the formula says.

    Fused attention would count as 0 on a CPU, so it runs as its two products.
    """
    sizes = data.draw(SIZES[stage])
    config = DeepseekOCRConfig.tiny().with_implementations(attn_implementation=attention, moe_implementation="loop")
    runnable = RunnableModel(config=config, base_size=BASE, view_size=CROP_SIZE, dtype=torch.float32)
    model = runnable.load(device="cpu", seed=3)
    inputs = runnable.inputs(stage, sizes, device="cpu", seed=5)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        runnable.run(model, stage, inputs)
    (whole,) = module_formulas(with_open_sizes(attention, stage), "", stages=[stage])
    assert whole.formulas["matmul_flops"].at(sizes) == counter.get_total_flops() > 0
