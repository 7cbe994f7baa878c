"""Real inputs and weights made from what is on `meta`."""

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import sympy
import torch
from torch import Tensor, nn
from torch.export import Dim

from dsocr_graph.errors import OptionError
from dsocr_graph.ir import OpGraph
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.models.user_model import user_model
from dsocr_graph.tracing import capture
from dsocr_graph.verification.id_ranges import id_ranges
from dsocr_graph.verification.stage_inputs import example_bindings, meta_inputs, random_inputs
from dsocr_graph.verification.weights import fill_with_random_weights
from modelmeter.dims import symbol


class Decoder(nn.Module):
    """Reads ids, positions, a mask and a pair of caches."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        """[B, S], [S], [B, S], ([B, T, 4], [T]) -> [B, T + S, 4]."""
        rows = (self.table(ids) + positions[:, None]).masked_fill(mask[..., None], 0)
        return torch.cat([cache[0] + cache[1][:, None], rows], dim=1)


def decoder(**options: object) -> tuple[OpGraph, StageSpec]:
    """Return the graph and the stage of the decoder at B = 2, S = 3, T = 5."""
    B, S, T = (Dim(name, min=1, max=64) for name in "BST")
    with torch.device("meta"):
        inputs = (
            torch.empty(2, 3, dtype=torch.int64),
            torch.empty(3, dtype=torch.int64),
            torch.empty(2, 3, dtype=torch.bool),
            (torch.empty(2, 5, 4), torch.empty(5)),
        )
        module = Decoder().eval()
    axes = {"ids": {0: B, 1: S}, "positions": {0: S}, "mask": {0: B, 1: S}, "cache": ({0: B, 1: T}, {0: T})}
    stage = StageSpec(name="decode", description="", module=module, inputs=inputs, dynamic_shapes=axes, **options)  # pyright: ignore[reportArgumentType]
    (graph,) = capture(module, [stage], name="toy", variant={}).graphs
    return graph, stage


def test_inputs_have_the_sizes_and_values_that_operators_take() -> None:
    """Ids are within the table of 11, positions count up, one place per row of a mask is set."""
    graph, stage = decoder()
    assert example_bindings(graph, stage) == {"B": 2, "S": 3, "T": 5}
    ids, positions, mask, keys, shifts = random_inputs(graph, stage, {"B": 4, "S": 50, "T": 7}, seed=0)
    assert (tuple(ids.shape), tuple(keys.shape), tuple(shifts.shape)) == ((4, 50), (4, 7, 4), (7,))
    assert int(ids.max()) == 10  # 200 draws of 11
    assert positions.tolist() == list(range(50))
    assert mask.sum(dim=1).tolist() == [1, 1, 1, 1]


class Reading(nn.Module):
    """Reads by ids, in some way, from what has a few rows, places or classes."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(3, 4)
        self.rows = nn.Buffer(torch.zeros(5, 7))
        self.run = run

    def forward(self, ids: Tensor) -> Tensor:
        """Read."""
        return self.run(self, ids)


@pytest.mark.parametrize(
    ("run", "largest"),
    [
        (lambda model, ids: model.bag(ids), 2),
        (lambda model, ids: model.rows.index_select(0, ids[0]), 4),
        (lambda model, ids: model.rows.index_select(-1, ids[0]), 6),
        (lambda model, ids: model.rows.gather(1, ids), 6),
        (lambda model, ids: nn.functional.cross_entropy(model.rows[:2].unsqueeze(-1).expand(2, 7, 40), ids), 6),
        (lambda model, ids: nn.functional.nll_loss(model.rows[:2].unsqueeze(-1).expand(2, 7, 40), ids), 6),
    ],
)
def test_ids_are_within_what_is_read_by_them(run: Callable[[Any, Tensor], Tensor], largest: int) -> None:
    """Of 2 x 40 ids each is in range, and the last row, place or class is among them: the model runs on them."""
    given = user_model(Reading(run), torch.zeros(2, 40, dtype=torch.int64))
    (stage,) = given.stages
    (graph,) = capture(given.module, given.stages, name="toy", variant={}).graphs
    (ids,) = random_inputs(graph, stage, {}, seed=0)
    assert (int(ids.min()), int(ids.max())) == (0, largest)
    given.module(ids)


def test_positions_that_have_room_are_as_they_were() -> None:
    """Only what is past the last place begins anew: of 5 rows, 4 positions are 0 to 3 and 7 end with 0 and 1."""
    for count, expected in ((4, [0, 1, 2, 3]), (7, [0, 1, 2, 3, 4, 0, 1])):
        model = Reading(lambda model, ids: model.rows.index_select(0, ids))
        given = user_model(model, torch.zeros(count, dtype=torch.int64))
        (graph,) = capture(given.module, given.stages, name="toy", variant={}).graphs
        (ids,) = random_inputs(graph, given.stages[0], {}, seed=0)
        assert ids.tolist() == expected


def test_probabilities_of_classes_are_no_ids() -> None:
    """A loss takes them in place of ids: random numbers, of which none is out of range."""
    model = Reading(lambda model, target: nn.functional.cross_entropy(model.rows[:2], target))
    given = user_model(model, torch.ones(2, 7))
    (graph,) = capture(given.module, given.stages, name="toy", variant={}).graphs
    assert id_ranges(graph, {}) == {}


def test_inputs_keep_the_structure_of_the_example() -> None:
    """The tuple of caches stays a tuple."""
    graph, stage = decoder()
    *_, cache = meta_inputs(graph, stage, {"B": 4, "S": 1, "T": 7})
    assert [tuple(each.shape) for each in cache] == [(4, 7, 4), (7,)]


def test_a_dim_in_terms_of_others_is_solved_for() -> None:
    """Six views in two rows are three columns: V = 6 from V/H = 3."""
    views = {"input": {0: Dim("H", min=1, max=64), 1: Dim("W", min=1, max=64)}}
    with torch.device("meta"):
        module, x = nn.Linear(4, 2), torch.empty(2, 3, 4)
    stage = StageSpec(
        name="local", description="", module=module, inputs=(x,), dynamic_shapes=views, aliases={"W": "V/H"}
    )
    (graph,) = capture(module, [stage], name="toy", variant={}).graphs
    assert example_bindings(graph, stage) == {"H": 2, "V": 6}


def windowed(keys: int, shifts: int) -> tuple[OpGraph, StageSpec]:
    """Return the decoder with caches that windows of 7 and 15 tokens bound, and that hold so many in the example."""
    graph, stage = decoder()
    T, windows = symbol("T"), dict(zip(graph.inputs[3:], (7, 15), strict=True))
    tensors = tuple(
        attrs.evolve(each, shape=tuple(sympy.Min(windows[each.id], T) if size == T else size for size in each.shape))
        if each.id in windows
        else each
        for each in graph.tensors
    )
    ids, positions, mask, _ = stage.inputs
    with torch.device("meta"):
        caches = torch.empty(2, keys, 4), torch.empty(shifts)
    return attrs.evolve(graph, tensors=tensors), attrs.evolve(stage, inputs=(ids, positions, mask, caches))


@pytest.mark.parametrize(("keys", "shifts", "tokens"), [(5, 5, 5), (7, 9, 9), (7, 15, 15)])
def test_the_tokens_that_fill_windows_are_the_fewest_that_do(keys: int, shifts: int, tokens: int) -> None:
    """Both windows of 7 and 15 are full from T = 15 on, the first one from 7 on: of 9 tokens it keeps 7."""
    graph, stage = windowed(keys, shifts)
    assert example_bindings(graph, stage) == {"B": 2, "S": 3, "T": tokens}


def test_sizes_that_no_number_of_tokens_gives_are_an_error() -> None:
    """A window of 7 that holds 4 and one of 15 that holds 9 are of no common T."""
    graph, stage = windowed(4, 9)
    with pytest.raises(OptionError, match="do not say the size of T; give the sizes, such as --points decode:B=2,S=2,"):
        example_bindings(graph, stage)


def test_a_dim_that_the_example_does_not_say_is_an_error() -> None:
    """Two unknown dims in one size leave both open."""
    columns = {"input": {0: Dim("W", min=1, max=64)}}
    with torch.device("meta"):
        module, x = nn.Linear(4, 2), torch.empty(6, 4)
    stage = StageSpec(
        name="local", description="", module=module, inputs=(x,), dynamic_shapes=columns, aliases={"W": "V*H"}
    )
    (graph,) = capture(module, [stage], name="toy", variant={}).graphs
    with pytest.raises(OptionError, match=r"do not say the size of H, V; give the sizes, such as --points local:H=2"):
        example_bindings(graph, stage)


class Stacked(nn.Module):
    """Holds a buffer, a parameter in it, a plain tensor and an index."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.empty(5)
        stacked = torch.empty(2, 3)
        self.stacked = nn.Buffer(stacked)
        self.first = nn.Parameter(stacked[0], requires_grad=False)
        self.index = nn.Buffer(torch.empty(4, dtype=torch.int64))


def test_weights_that_share_a_storage_share_it_afterwards() -> None:
    """A view of a stacked buffer stays one, a plain tensor is filled too, and an index points at the first row."""
    with torch.device("meta"):
        module = Stacked()
    fill_with_random_weights(module, seed=0)
    assert torch.equal(module.stacked[0], module.first)
    assert module.stacked.untyped_storage().data_ptr() == module.first.untyped_storage().data_ptr()
    assert isinstance(module.first, nn.Parameter)
    assert not module.plain.is_meta
    assert module.index.tolist() == [0, 0, 0, 0]


def test_weights_follow_the_seed() -> None:
    """The same seed gives the same weights, another one others; what is not on meta stays."""

    def filled(seed: int) -> Tensor:
        layer = nn.Linear(4, 4, device="meta")
        fill_with_random_weights(layer, seed=seed)
        return layer.weight

    assert torch.equal(filled(0), filled(0))
    assert not torch.equal(filled(0), filled(1))
    kept = nn.Linear(4, 4)
    before = kept.weight.clone()
    fill_with_random_weights(kept, seed=0)
    assert torch.equal(kept.weight, before)
