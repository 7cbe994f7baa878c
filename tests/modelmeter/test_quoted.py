"""Quoted figures of the shipped model, each worked out by hand."""

from __future__ import annotations

import pytest

import modelmeter
from modelmeter.errors import DimError
from modelmeter.expert_counts import uniform_routing
from modelmeter.formulas.of_model import kv_cache_bytes_per
from modelmeter.model import AnalyticModel
from modelmeter.reports.quoted import BATCHES, ROUTINGS, quoted_figures
from modelmeter.routing import FEWEST, UNIFORM
from modelmeter.whatif import Options, apply

EXPERT = 11 * 3 * 1280 * 896 * 2  # bytes of one expert in each of the 11 layers: 75,694,080

# Bytes that a step reads besides routed experts, in bf16 unless said otherwise, but for the embedding's row:
ALWAYS = (
    2 * (12 * 4 * 1280 * 1280)  # attention
    + 2 * (3 * 1280 * 6848)  # the dense layer
    + 2 * (11 * 3 * 1280 * 1792)  # shared experts
    + 2 * (1280 * 129_280)  # lm_head
    + 2 * (25 * 1280)  # norms: two in each of 12 layers, one at the end
    + (2 + 4) * (11 * 64 * 1280)  # routers: bf16 weights cast, their fp32 copies read
)


@pytest.fixture(scope="module")
def model() -> AnalyticModel:
    """Return the shipped model."""
    return modelmeter.load("deepseek-ocr")


def test_the_quoted_figures_of_a_token(model: AnalyticModel) -> None:
    """30,720 elements of keys and values in bf16, and the parameters that one token is multiplied with."""
    figures = quoted_figures(model)
    assert figures.kv_bytes_per_token == 12 * 2 * 10 * 128 * 2 == 61_440
    assert figures.active_parameters == 574_095_360
    assert len(figures.steps) == len(BATCHES) * len(ROUTINGS)


@pytest.mark.parametrize("batch", BATCHES)
def test_weight_bytes_of_a_step_lie_between_those_of_k_and_of_all_picked_experts(
    model: AnalyticModel, batch: int
) -> None:
    """6 experts at least, min(64, 6*B) at most, E*(1 - (1 - 6/64)**B) under uniform routing; a row each of 1,280."""
    (step,) = quoted_figures(model, batches=(batch,), routings=(UNIFORM,)).steps
    fixed = ALWAYS + batch * 1280 * 2
    assert step.fewest_bytes == fixed + 6 * EXPERT
    assert step.most_bytes == fixed + min(64, 6 * batch) * EXPERT
    assert step.distinct_experts == pytest.approx(uniform_routing(64, 6, batch))
    assert step.weight_bytes == pytest.approx(fixed + 64 * (1 - (58 / 64) ** batch) * EXPERT, rel=1e-12)


def test_every_routing_states_its_assumption(model: AnalyticModel) -> None:
    """A figure without its assumption is none: each routing is in the list by name."""
    figures = quoted_figures(model)
    for routing in ROUTINGS:
        assert any(line.startswith(f"{routing.name}: ") for line in figures.assumptions)


def test_what_ifs_change_the_quoted_figures(model: AnalyticModel) -> None:
    """An int8 cache halves KV per token; int4 weights read less, and as many parameters multiply."""
    changed = quoted_figures(apply(model, Options(kv_dtype="int8", weight_dtype="int4")).model, routings=(FEWEST,))
    assert changed.kv_bytes_per_token == 30_720
    assert changed.active_parameters == 574_095_360
    assert changed.steps[0].weight_bytes < quoted_figures(model, routings=(FEWEST,)).steps[0].weight_bytes


@pytest.mark.parametrize("batch", [0, -1, True, 1.5])
def test_an_impossible_batch_names_the_limit(model: AnalyticModel, batch: int) -> None:
    """A batch is a whole number from 1 up."""
    with pytest.raises(DimError, match="whole number of documents from 1 up"):
        quoted_figures(model, batches=(batch,))


def test_a_model_without_a_decoder_has_its_parameters_alone() -> None:
    """SigLIP only encodes: 428,225,600 parameters of two bytes, no tokens, and why."""
    figures = quoted_figures(modelmeter.load("siglip-so400m-patch14-384"))
    assert (figures.parameters, figures.parameter_bytes) == (428_225_600, 2 * 428_225_600)
    assert (figures.kv_bytes_per_token, figures.kept_bytes_per_document, figures.active_parameters) == (None,) * 3
    assert figures.steps == ()
    (reason,) = figures.assumptions
    assert "no figures of tokens and steps: siglip-so400m-patch14-384 has no stage 'decode'" in reason


def test_what_a_document_keeps_beside_its_tokens_is_a_figure(model: AnalyticModel) -> None:
    """Whisper's 32 layers keep keys and values of 1,500 frames by 1,280 in bf16 for each document; others nothing."""
    figures = quoted_figures(modelmeter.load("whisper-large-v3"))
    assert figures.kept_bytes_per_document == 32 * 2 * 1500 * 1280 * 2 == 245_760_000
    assert figures.kv_bytes_per_token == 32 * 2 * 1280 * 2
    assert quoted_figures(model).kept_bytes_per_document == 0


def test_the_cache_grows_by_the_dims_of_a_step_alone(model: AnalyticModel) -> None:
    """A prompt's length is no size of a decode step."""
    assert kv_cache_bytes_per(model, "T") == 61_440
    with pytest.raises(DimError, match="has the dims B, T, and no 'S'"):
        kv_cache_bytes_per(model, "S")
