"""Alignment of modules of several models."""

from hypothesis import given
from hypothesis import strategies as st

from modelmeter.compare.align import align


def test_modules_of_equal_ids_are_one_row() -> None:
    """The stable id decides, whatever the class."""
    assert align([{"a.b": "Linear"}, {"a.b": "Conv2d"}]) == [{"a.b": "a.b"}, {"a.b": "a.b"}]


def test_layers_that_differ_in_number_alone_are_one_row() -> None:
    """Decoders of 12 and of 24 layers share their rows; another class does not."""
    assert align([{"layers.[0-11].mlp": "MLP"}, {"layers.[0-23].mlp": "MLP"}, {"layers.[0-5].mlp": "MoE"}]) == [
        {"layers.[0-11].mlp": "layers.[*].mlp"},
        {"layers.[0-23].mlp": "layers.[*].mlp"},
        {"layers.[0-5].mlp": "layers.[0-5].mlp"},
    ]


def test_a_pattern_that_fits_two_modules_of_a_model_aligns_none() -> None:
    """Two groups of layers could each be meant: nothing is guessed."""
    first, second = align([{"l.[0-1].x": "X", "l.[2-3].x": "X"}, {"l.[0-3].x": "X"}])
    assert first == {"l.[0-1].x": "l.[0-1].x", "l.[2-3].x": "l.[2-3].x"}
    assert second == {"l.[0-3].x": "l.[0-3].x"}


IDS = st.sampled_from(["a", "a.0", "a.1", "a.[0-1]", "a.[2-3]", "a.[0-3].b", "a.4.b", "b.0", "b.0.1", "b.[0-1].1"])
TREES = st.lists(st.dictionaries(IDS, st.sampled_from(["X", "Y"])), min_size=2, max_size=3)


@given(TREES)
def test_no_two_modules_of_a_model_share_a_row(trees: list[dict[str, str]]) -> None:
    """Every module has a row, and rows of one model are all different: nothing is dropped or merged."""
    for tree, rows in zip(trees, align(trees), strict=True):
        assert rows.keys() == tree.keys()
        assert len(set(rows.values())) == len(tree)
