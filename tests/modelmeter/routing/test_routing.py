"""Routing models: distinct experts by hand and by enumeration, bounds, and what a histogram must be."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelmeter
from modelmeter.evaluate import evaluate
from modelmeter.expert_counts import fewest_routing, most_routing, uniform_routing
from modelmeter.model import AnalyticModel
from modelmeter.routing import (
    FEWEST,
    MOST,
    UNIFORM,
    Histogram,
    MissingHistogramError,
    RoutingError,
    UnknownRoutingError,
    Zipf,
    inclusion_probabilities,
    parse_routing,
    read_histogram,
)
from modelmeter.workload import StageRun, Workload, WorkloadItem

LAYERS = [f"model.layers.{layer}.mlp.experts" for layer in range(1, 12)]


@pytest.fixture(scope="module")
def model() -> AnalyticModel:
    """Return the shipped model: 11 layers of 64 experts, 6 per token."""
    return modelmeter.load("deepseek-ocr")


def by_enumeration(weights: tuple[float, ...], draws: int) -> list[float]:
    """Return inclusion probabilities by walking through every order of draws."""
    chances = [0.0] * len(weights)
    for order in itertools.permutations(range(len(weights)), draws):
        chance, left = 1.0, sum(weights)
        for item in order:
            chance *= weights[item] / left
            left -= weights[item]
        for item in order:
            chances[item] += chance
    return chances


@given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6).map(tuple),
    draws=st.integers(1, 6),
)
@settings(deadline=None)
def test_inclusion_probabilities_are_those_of_every_order_of_draws(weights: tuple[float, ...], draws: int) -> None:
    """The integral over Poisson clocks equals the enumeration of successive draws."""
    draws = min(draws, len(weights))
    assert inclusion_probabilities(weights, draws) == pytest.approx(by_enumeration(weights, draws), abs=1e-9)


@given(exponent=st.floats(0, 100))
@settings(max_examples=20, deadline=None)
def test_a_token_picks_k_experts(exponent: float) -> None:
    """The chances of one token add up to k, however steep the law."""
    assert Zipf(exponent=exponent)(64, 6, 1) == pytest.approx(6, abs=1e-9)


@given(tokens=st.integers(1, 4096), top_k=st.integers(1, 64))
@settings(max_examples=20, deadline=None)
def test_a_flat_zipf_law_is_uniform(tokens: int, top_k: int) -> None:
    """With exponent 0 every expert is as likely as another."""
    assert Zipf(exponent=0)(64, top_k, tokens) == pytest.approx(uniform_routing(64, top_k, tokens), abs=1e-7)


@given(exponent=st.floats(0, 100), tokens=st.integers(1, 4096))
@settings(max_examples=20, deadline=None)
def test_every_zipf_law_lies_between_the_bounds(exponent: float, tokens: int) -> None:
    """From min(k, E) to min(E, T*k), and a skewed law touches no more than a uniform one."""
    touched = Zipf(exponent=exponent)(64, 6, tokens)
    assert fewest_routing(64, 6, tokens) - 1e-9 <= touched <= most_routing(64, 6, tokens) + 1e-9
    assert touched <= uniform_routing(64, 6, tokens) + 1e-7


def test_no_token_touches_no_expert() -> None:
    """Without tokens nothing is read."""
    assert [routing(64, 6, 0) for routing in (UNIFORM, FEWEST, MOST, Zipf(exponent=1.0))] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "touched"),
    [("uniform", 64 * (1 - (58 / 64) ** 8)), ("top-k", 6), ("most", 48), ("zipf:0", 64 * (1 - (58 / 64) ** 8))],
)
def test_a_routing_is_named_by_a_text(model: AnalyticModel, text: str, touched: float) -> None:
    """8 tokens of 6 of 64 experts, by hand; the name is the text again."""
    routing = parse_routing(text, model)
    assert routing(64, 6, 8) == pytest.approx(touched)
    assert routing.name == text


@pytest.mark.parametrize("exponent", ["", "steep", "nan", "inf", "-1", "101"])
def test_an_impossible_exponent_names_the_limits(model: AnalyticModel, exponent: str) -> None:
    """A Zipf exponent is a finite number from 0 to 100."""
    with pytest.raises(RoutingError, match=r"finite number from 0 \(uniform\) to 100"):
        parse_routing(f"zipf:{exponent}", model)


def test_an_unknown_routing_lists_the_known(model: AnalyticModel) -> None:
    """The message names every form of the option."""
    with pytest.raises(UnknownRoutingError, match=r"Known: histogram:FILE, most, top-k, uniform, zipf:EXPONENT"):
        parse_routing("random", model)


def test_a_report_calls_a_routing_by_its_name(model: AnalyticModel) -> None:
    """An evaluation takes the record as it takes a function."""
    run = StageRun(stage="decode", count=1, bindings={"B": 8, "T": 1})
    workload = Workload(name="step", items=(WorkloadItem(name="page", documents=8, runs=(run,)),))
    report = evaluate(model, workload, routing=Zipf(exponent=1.5))
    assert report.routing == "zipf:1.5"
    assert report.moe[0].distinct_experts.selected == pytest.approx(Zipf(exponent=1.5)(64, 6, 8))


# --- histograms


def write(folder: Path, document: object) -> Path:
    """Write a histogram file."""
    path = folder / "counts.json"
    path.write_text(json.dumps(document))
    return path


def test_a_histogram_averages_the_layers_that_a_leaf_stands_for(tmp_path: Path, model: AnalyticModel) -> None:
    """One layer always picks the same 6 experts, ten pick evenly: the mean of 6 and 10 times the uniform figure."""
    even, same = [6] * 64, [64] * 6 + [0] * 58
    path = write(tmp_path, {layer: same if layer == LAYERS[0] else even for layer in LAYERS})
    routing = parse_routing(f"histogram:{path}", model)
    assert routing(64, 6, 8) == pytest.approx((6 + 10 * uniform_routing(64, 6, 8)) / 11)


def test_counts_are_chances_of_a_token() -> None:
    """Experts picked 4, 2 and 2 times by 4 tokens of 2 each: chances 1, 1/2, 1/2; 2 tokens touch 1 + 3/4 + 3/4."""
    assert Histogram(source="counts", counts={"layer": (4, 2, 2)})(3, 2, 2) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([1, 2], "must map layers to counts"),
        ({layer: [1] * 63 for layer in LAYERS}, "counts 63 experts, the model has 64"),
        ({layer: [-1] + [1] * 63 for layer in LAYERS}, "has -1; counts are whole numbers"),
        ({layer: [0.5] * 64 for layer in LAYERS}, "has 0.5; counts are whole numbers"),
        ({layer: ["many"] * 64 for layer in LAYERS}, "has 'many'; counts are whole numbers"),
        ({layer: [True] * 64 for layer in LAYERS}, "has True; counts are whole numbers"),
        ({layer: [0] * 64 for layer in LAYERS}, "has no pick at all"),
        (dict.fromkeys(LAYERS, 7), "must have a list of counts"),
        ({layer: [100] + [1] * 63 for layer in LAYERS}, "a token picks an expert at most once"),
        ({layer: [1] * 64 for layer in LAYERS[1:]}, "lacks model.layers.1.mlp.experts"),
        ({"layers.0": [1] * 64} | {layer: [1] * 64 for layer in LAYERS}, "it has layers.0 too many"),
        ({}, "has no layer; give the counts of each"),
    ],
)
def test_a_histogram_of_a_wrong_shape_says_what_is_wrong(
    tmp_path: Path, model: AnalyticModel, document: object, message: str
) -> None:
    """Each mistake gets one message with the layer and the limit."""
    with pytest.raises(RoutingError, match=message):
        read_histogram(write(tmp_path, document), model)


def test_a_histogram_that_cannot_be_read_says_why(tmp_path: Path, model: AnalyticModel) -> None:
    """A missing file and one that is no JSON are told apart."""
    with pytest.raises(MissingHistogramError, match="No such file"):
        read_histogram(tmp_path / "none.json", model)
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(RoutingError, match="is no JSON"):
        read_histogram(tmp_path / "text.json", model)


def test_a_histogram_is_named_by_its_path(tmp_path: Path, model: AnalyticModel) -> None:
    """Its name is text that names it again, so two files of one name in two folders do not share it."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, {layer: [6] * 64 for layer in LAYERS})
    first, second = (parse_routing(f"histogram:{tmp_path / folder / 'counts.json'}", model) for folder in ("a", "b"))
    assert parse_routing(first.name) == first
    assert first.name != second.name


def test_a_histogram_is_told_from_others_by_what_it_counts() -> None:
    """It has a hash, as a key of a table of what-ifs must; the order of layers is none of it."""
    first = Histogram(source="c", counts={"a": (1, 2), "b": (3, 0)})
    assert {first: 1}[Histogram(source="c", counts={"b": (3, 0), "a": (1, 2)})] == 1
    assert first != Histogram(source="c", counts={"a": (1, 2), "b": (0, 3)})


@pytest.mark.parametrize(
    ("counts", "message"),
    [({}, "the histogram c has no layer"), ({"a": (0, 0)}, "layer 'a' has no pick at all"), ({"a": (1, -1)}, "has -1")],
)
def test_a_histogram_counts_something(counts: dict[str, tuple[int, ...]], message: str) -> None:
    """Without a layer, or a pick in one, there is nothing to divide by."""
    with pytest.raises(RoutingError, match=message):
        Histogram(source="c", counts=counts)


def test_near_exponents_have_different_names() -> None:
    """Seven digits of them are alike."""
    assert [Zipf(exponent=each).name for each in (1.1000001, 1.1000002, 2.0)] == [
        "zipf:1.1000001",
        "zipf:1.1000002",
        "zipf:2",
    ]
