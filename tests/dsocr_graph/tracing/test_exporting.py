"""Export: many sizes declared as one dim share a symbol, others never; torch is left as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from dsocr_graph.errors import CaptureError
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.tracing.exporting import MANY_SIZES, exported


class Doubled(nn.Module):
    """Doubles every tensor and puts none of one with another."""

    def forward(self, *x: Tensor) -> tuple[Tensor, ...]:
        """Double."""
        return tuple(item * 2 for item in x)


def sizes(*inputs: tuple[tuple[int, ...], dict[int, Any] | None]) -> tuple[list[list[str]], int]:
    """Return the sizes of inputs as the exporter names them, and how many symbols it made."""
    stage = StageSpec(
        name="forward",
        description="",
        module=Doubled(),
        inputs=tuple(torch.empty(shape, device="meta") for shape, _ in inputs),
        dynamic_shapes={"x": tuple(dims for _, dims in inputs)},
    )
    nodes = exported(stage, stage.module).program.graph.nodes
    values = [node.meta["val"] for node in nodes if node.op == "placeholder"]
    environment = values[0].fake_mode.shape_env
    return [[str(size) for size in value.shape] for value in values], len(environment.var_to_sources)


def test_many_sizes_of_one_dim_share_a_symbol() -> None:
    """T is one symbol in all tensors, though no operator finds two of them equal; the 4 beside it stays a number."""
    T, anew = Dim("T", max=64), Dim("T", max=64)
    many = [((5, 4), {0: T if number % 2 else anew}) for number in range(MANY_SIZES)]
    found, symbols = sizes(*many)
    assert symbols == 1
    assert {tuple(shape) for shape in found} == {(found[0][0], "4")}


def test_few_sizes_are_left_to_the_exporter() -> None:
    """It makes a symbol for each of two sizes, whatever they are declared as."""
    T = Dim("T", max=64)
    assert sizes(((5,), {0: T}), ((5,), {0: T}))[1] == 2


def test_equal_example_sizes_of_two_dims_stay_apart() -> None:
    """Both are 5 in the example; sharing a symbol would make them one dim."""
    S, T = Dim("S", max=64), Dim("T", max=64)
    found, _ = sizes(*[((5,), {0: T})] * MANY_SIZES, ((5,), {0: S}))
    assert found[-1] != found[0]
    assert found[-1][0].startswith("s")


def test_a_static_size_is_none_of_a_dim() -> None:
    """A 5 that is not declared stays a number beside a dim of 5."""
    T = Dim("T", max=64)
    found, _ = sizes(*[((5,), {0: T})] * MANY_SIZES, ((5, 5), {0: None}))
    assert found[-1] == ["5", "5"]


def test_a_derived_dim_stays_what_it_was_derived_as() -> None:
    """2*T is written in the symbol of T."""
    T = Dim("T", max=64)
    found, _ = sizes(*[((5,), {0: T})] * MANY_SIZES, ((10, 5), {0: 2 * T, 1: T}))
    assert found[-1] == [f"2*{found[0][0]}", found[0][0]]


def test_torch_is_left_as_it_was() -> None:
    """What the export replaces in the exporter is back afterwards, also after an error."""
    before = ShapeEnv.create_symbol
    T = Dim("T", max=64)
    with pytest.raises(CaptureError, match=r"stage 'forward' cannot be captured"):
        sizes(((5,), {0: T}), ((1,), {0: T}))
    assert ShapeEnv.create_symbol is before
