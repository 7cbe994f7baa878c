"""Alignment of modules of several models."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

import modelmeter
from modelmeter.compare.align import Alignment, align
from modelmeter.compare.kinds import kinds_of
from modelmeter.compare.model_tree import cached_stages, nodes_of_model
from modelmeter.compare.side import Side
from modelmeter.model import AnalyticModel

Tree = Mapping[str, str]


def pairs(*trees: Tree) -> set[tuple[str | None, ...]]:
    """Return the ids of each row, by tree."""
    alignment = align(trees)
    found = [{row: module for module, row in rows.items()} for rows in alignment.rows]
    return {tuple(of_tree.get(name) for of_tree in found) for name in {name for of_tree in found for name in of_tree}}


def kinds(model: AnalyticModel) -> Mapping[str, str]:
    """Return what each module of a model is."""
    side = Side(
        label="a",
        facts={},
        totals={},
        work={},
        stages={},
        cached=cached_stages(model),
        nodes=nodes_of_model(model),
    )
    return kinds_of(side)


def aligned(*names: tuple[str, ...]) -> Alignment:
    """Align shipped models, by name and variant."""
    return align([kinds(modelmeter.load(*name)) for name in names])


def test_modules_of_equal_ids_are_one_row() -> None:
    """The stable id decides, whatever the modules are."""
    assert align([{"a.b": "linear"}, {"a.b": "convolution"}]).rows == ({"a.b": "a.b"}, {"a.b": "a.b"})


def test_layers_that_differ_in_number_alone_are_one_row() -> None:
    """Decoders of 12 and of 24 layers share their rows; a block of another kind does not."""
    assert align([{"layers.[0-11].mlp": "MLP"}, {"layers.[0-23].mlp": "MLP"}, {"layers.[0-5].mlp": "MoE"}]).rows == (
        {"layers.[0-11].mlp": "layers.{[0-11]/[0-23]}.mlp"},
        {"layers.[0-23].mlp": "layers.{[0-11]/[0-23]}.mlp"},
        {"layers.[0-5].mlp": "layers.[0-5].mlp"},
    )


def test_paths_that_end_alike_are_one_row_if_the_modules_are_the_same() -> None:
    """A decoder inside a wrapper is the decoder; a norm of another role stays apart."""
    alignment = align([{"model.0.mlp": "mlp", "norm": "decoder norm"}, {"model.text.0.mlp": "mlp", "v.norm": "norm"}])
    assert alignment.rows == (
        {"model.0.mlp": "model.{-/text}.0.mlp", "norm": "norm"},
        {"model.text.0.mlp": "model.{-/text}.0.mlp", "v.norm": "v.norm"},
    )
    assert alignment.renamed == {"model.{-/text}.0.mlp": ("model.0.mlp", "model.text.0.mlp")}


def test_the_longer_equal_end_decides() -> None:
    """Of two groups of layers in each model, those of equal numbers belong together, whatever the lists are called."""
    first = {"blocks.[0-1].mlp": "mlp", "blocks.[2-3].mlp": "mlp"}
    second = {"layers.[0-1].mlp": "mlp", "layers.[2-3].mlp": "mlp"}
    assert pairs(first, second) == {
        ("blocks.[0-1].mlp", "layers.[0-1].mlp"),
        ("blocks.[2-3].mlp", "layers.[2-3].mlp"),
    }


def test_what_several_fit_equally_well_stays_apart_and_is_named() -> None:
    """Two groups of layers could each be meant: nothing is guessed, and both sides name what they could be."""
    alignment = align([{"l.[0-1].x": "X", "l.[2-3].x": "X"}, {"l.[0-3].x": "X"}])
    assert alignment.rows == ({"l.[0-1].x": "l.[0-1].x", "l.[2-3].x": "l.[2-3].x"}, {"l.[0-3].x": "l.[0-3].x"})
    assert alignment.undecided == {
        "l.[0-1].x": ("l.[0-3].x",),
        "l.[2-3].x": ("l.[0-3].x",),
        "l.[0-3].x": ("l.[0-1].x", "l.[2-3].x"),
    }


def test_modules_that_hold_the_same_parts_are_one_row() -> None:
    """`blocks.0` and `layers.0` have no name in common, yet each holds the other's attention; so do their lists."""
    first = {"a": "A", "a.blocks": "list", "a.blocks.0": "Block", "a.blocks.0.attn": "attention"}
    second = {"a": "A", "a.layers": "list", "a.layers.0": "Layer", "a.layers.0.attn": "attention"}
    assert pairs(first, second) == {
        ("a", "a"),
        ("a.blocks", "a.layers"),
        ("a.blocks.0", "a.layers.0"),
        ("a.blocks.0.attn", "a.layers.0.attn"),
    }


def test_what_holds_modules_decides_between_them() -> None:
    """Dense and routed layers of other numbers: the blocks tell which layers belong together, these the norms."""
    first = {"l.0": "L", "l.0.mlp": "dense", "l.0.norm": "norm", "l.[1-3]": "L", "l.[1-3].mlp": "routed"}
    first |= {"l.[1-3].norm": "norm"}
    second = {"l.[0-2]": "L", "l.[0-2].mlp": "dense", "l.[0-2].norm": "norm", "l.[3-9]": "L", "l.[3-9].mlp": "routed"}
    second |= {"l.[3-9].norm": "norm"}
    assert pairs(first, second) == {
        *((f"l.0{part}", f"l.[0-2]{part}") for part in ("", ".mlp", ".norm")),
        *((f"l.[1-3]{part}", f"l.[3-9]{part}") for part in ("", ".mlp", ".norm")),
    }


def test_a_third_model_joins_the_rows_of_two() -> None:
    """Its wrapper has the second's name, its numbers are its own; of three paths a name says only where they differ."""
    trees = ({"l.[0-1].x": "X"}, {"text.l.[0-1].x": "X"}, {"text.l.[0-7].x": "X"})
    assert align(trees).rows == (
        {"l.[0-1].x": "….l.[*].x"},
        {"text.l.[0-1].x": "….l.[*].x"},
        {"text.l.[0-7].x": "….l.[*].x"},
    )


def test_rows_of_one_pattern_are_named_by_their_ids() -> None:
    """Two kinds of modules at each of three places have what is common in common: each row has the name of its ids."""
    trees = [
        {f"{name}.0.x": "X", f"{name}.1.x": "Y"} if name != "c" else {"c.[2-3].x": "X", "c.[4-5].x": "Y"}
        for name in "abc"
    ]
    first = align(trees).rows[0]
    assert first == {"a.0.x": "a.0.x = b.0.x = c.[2-3].x", "a.1.x": "a.1.x = b.1.x = c.[4-5].x"}


IDS = st.sampled_from(
    [
        "a",
        "a.0",
        "a.1",
        "a.[0-1]",
        "a.[2-3]",
        "a.[0-3].b",
        "a.4.b",
        "b.0",
        "b.0.1",
        "b.[0-1].1",
        "c.a.4.b",
        "c.a",
        "c.b",
    ]
)
TREES = st.dictionaries(IDS, st.sampled_from(["X", "Y"]))


@given(st.lists(TREES, min_size=2, max_size=4))
def test_no_two_modules_of_a_model_share_a_row(trees: list[dict[str, str]]) -> None:
    """Every module has a row, and rows of one model are all different: nothing is dropped or merged."""
    alignment = align(trees)
    for tree, rows in zip(trees, alignment.rows, strict=True):
        assert rows.keys() == tree.keys()
        assert len(set(rows.values())) == len(tree)
    assert alignment.undecided.keys() <= {row for rows in alignment.rows for row in rows.values()}


@given(TREES, TREES)
def test_which_of_two_models_is_first_does_not_matter(one: dict[str, str], other: dict[str, str]) -> None:
    """The same modules are one row either way."""
    assert pairs(one, other) == {pair[::-1] for pair in pairs(other, one)}


def test_the_decoder_of_another_package_is_the_same_decoder() -> None:
    """DeepSeek-OCR's 12 layers are those of DeepSeek-OCR-2, which has them in a wrapper: 8 + 2 * 5 rows by hand."""
    renamed = aligned(("deepseek-ocr", "base"), ("deepseek-ocr-2",)).renamed
    parts = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm", "self_attn.q_proj")
    expected = {
        *(f"layers.{layers}.{part}" for layers in ("0", "[1-11]") for part in parts),
        *(f"layers.[1-11].mlp.{part}" for part in ("experts", "gate", "shared_experts", "shared_experts.up_proj")),
        "layers.0.mlp.gate_proj",
        "layers",
        "embed_tokens",
        "norm",
    }
    found = {pair for pair in renamed.values() if None not in pair}
    assert {(f"model.{name}", f"model.language_model.{name}") for name in expected} <= found


def test_every_module_of_a_language_model_is_in_the_one_that_also_sees() -> None:
    """Qwen3-VL-8B holds a Qwen3-8B: nothing of the smaller model is left over."""
    text, seeing = aligned(("qwen3-8b",), ("qwen3-vl-8b",)).rows
    assert set(text.values()) <= set(seeing.values())


def test_dense_layers_and_layers_of_experts_share_all_but_the_experts() -> None:
    """36 layers beside 48: attention and norms are one row, the blocks are not."""
    dense, experts = aligned(("qwen3-8b",), ("qwen3-30b-a3b",)).rows
    alone = {module for module, row in dense.items() if row not in experts.values()}
    mlp = "model.layers.[0-35].mlp"
    assert alone == {mlp, *(f"{mlp}.{part}" for part in ("gate_proj", "up_proj", "down_proj", "act_fn"))}


@pytest.mark.parametrize("class_name", ["MoEGate", "TopKRouter"])
def test_a_router_is_one_whatever_its_class(toy: ModuleType, class_name: str) -> None:
    """What a router is does not name its class; what a plain module is does, by the last word."""
    model = toy.toy_model()
    changes: dict[str, dict[str, Any]] = {
        "model.spare": {"id": "model.gate", "class_name": class_name},
        "lm_head": {"class_name": "FunnyLinear"},
    }
    found = kinds(evolve(model, modules=tuple(evolve(node, **changes.get(node.id, {})) for node in model.modules)))
    assert found["model.gate"].endswith(": router")
    assert found["lm_head"] == "head, Linear"
