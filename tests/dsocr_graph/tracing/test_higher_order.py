"""Higher-order operators: branches and attention of the user's own are counted, loops are refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan, while_loop
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from dsocr_graph import analyze_model
from dsocr_graph.errors import CaptureError, MissingLoweringError
from dsocr_graph.lowering.higher_order import costliest
from dsocr_graph.models.user_model import user_model
from dsocr_graph.tracing import capture
from modelmeter.model import AnalyticModel, Leaf

Function = Callable[["Calling", Tensor], Any]


class Calling(nn.Module):
    """Calls a function with itself and its input; has two linear layers to call."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.wide = nn.Linear(8, 8)
        self.narrow = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Any:
        """Call the function."""
        return self.function(self, x)


def analyzed(function: Function, *, device: str = "meta") -> AnalyticModel:
    """Return a function's analytic model, of B rows of 8."""
    with torch.device(device):
        module, rows = Calling(function), torch.empty(4, 8)
    return analyze_model(module, rows, dims={"x": {0: "B"}}, device="none").model


def leaves(model: AnalyticModel, op: str) -> list[Leaf]:
    """Return the leaves of one operator."""
    return [leaf for leaf in model.leaves if leaf.op == op]


def gate(module: Calling, x: Tensor) -> Tensor:
    """One linear layer, or two and a product, by the sum of x."""
    return torch.cond(x.sum() > 0, module.wide, lambda y: module.narrow(module.wide(y)) * 2, (x,))


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_costlier_branch_is_counted_as_taken(device: str) -> None:
    """Two layers of 8 x 8 beat one: 2 x 2 x B x 64 FLOPs in products, B x 8 for the bias, as much again for * 2."""
    model = analyzed(gate, device=device)
    linear = leaves(model, "aten::linear")
    assert [str(leaf.layer.matmul_flops()) for leaf in linear] == ["128*B", "128*B"]
    assert [leaf.module for leaf in linear] == ["wide", "narrow"]  # by the weights that they read
    (product,) = leaves(model, "aten::mul")
    assert product.module == ""
    assert str(product.layer.vector_flops()) == "8*B"
    for leaf in (*linear, product):
        assert leaf.exactness.value == "approximated"
        assert leaf.note.startswith("one branch of torch.cond, counted as taken each time")
    (asked,) = leaves(model, "aten::sum")
    assert asked.exactness.value == "exact"  # it runs whatever the branch
    assert {node.id: dict(node.calls) for node in model.modules}["narrow"] == {"forward": 1}


def test_the_order_of_branches_does_not_matter() -> None:
    """The same two branches the other way round."""

    def other(module: Calling, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: module.narrow(module.wide(y)) * 2, module.wide, (x,))

    assert len(leaves(analyzed(other), "aten::linear")) == 2


def test_results_of_a_branch_are_its_own_memory() -> None:
    """A view of what cond returns is free, and no copy: transpose is no leaf."""
    model = analyzed(lambda module, x: gate(module, x).transpose(0, 1))
    assert not leaves(model, "aten::transpose")
    assert [item.op for item in model.free] == ["aten::transpose"]


def test_branches_inside_of_branches_are_counted() -> None:
    """The costlier of the costlier: sin alone against a layer, inside of a branch that is chosen for it."""

    def nested(module: Calling, x: Tensor) -> Tensor:
        def inner(y: Tensor) -> Tensor:
            return torch.cond(y.sum() > 1, lambda z: z.sin(), module.wide, (y,))

        return torch.cond(x.sum() > 0, lambda y: y.cos(), inner, (x,))

    model = analyzed(nested)
    assert len(leaves(model, "aten::linear")) == 1
    assert not leaves(model, "aten::sin")
    assert not leaves(model, "aten::cos")


@torch.library.custom_op("test_higher_order::odd", mutates_args=())
def odd(x: Tensor) -> Tensor:
    """Return a copy; no rule knows what it costs."""
    return x.clone()


@odd.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_a_branch_of_unknown_cost_is_never_dropped() -> None:
    """The operator without a rule is in the cheaper branch by all that is known, and reported all the same."""
    with pytest.raises(MissingLoweringError, match=r"test_higher_order::odd  x1, first in \(root\)"):
        analyzed(lambda module, x: torch.cond(x.sum() > 0, odd, module.wide, (x,)))


def test_without_a_way_to_choose_a_branch_is_refused() -> None:
    """A capture that nobody told what costs more, as `verify` makes it, holds no branch."""
    model = user_model(Calling(gate), torch.empty(4, 8), dims={"x": {0: "B"}})
    with pytest.raises(
        CaptureError, match=r"no lowering for higher-order op cond, in module \(root\) \(Calling\): which"
    ):
        capture(model.module, model.stages, name="toy", variant={})
    assert costliest([[], []], {}) == 0


@pytest.mark.parametrize(
    ("function", "name", "why"),
    [
        (lambda module, x: scan(lambda c, y: (c + y, c * y), torch.zeros(8, device=x.device), x), "scan", "each step"),
        (
            lambda module, x: while_loop(
                lambda i, y: i.sum() < 5, lambda i, y: (i + 1, module.wide(y)), (torch.zeros((), device=x.device), x)
            ),
            "while_loop",
            "depends on the values of tensors",
        ),
    ],
)
def test_loops_are_refused_with_the_reason(function: Function, name: str, why: str) -> None:
    """How often their graph runs is in no shape; the error names the operator and the module."""
    with pytest.raises(CaptureError, match=rf"no lowering for higher-order op {name}, in module \(root\) .*{why}"):
        analyzed(function)


def test_autocast_is_refused_with_the_reason() -> None:
    """Its casts are in no graph: counting the layer in fp32 would be wrong."""

    def cast(module: Calling, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module.wide(x)

    with pytest.raises(
        CaptureError, match=r"op wrap_with_autocast, in module \(root\) \(Calling\): torch.autocast casts"
    ):
        analyzed(cast)


def test_a_switch_of_gradients_changes_no_cost() -> None:
    """What runs under torch.enable_grad is a graph of its own, which runs once: 2 x B x 64 FLOPs in the layer."""

    def switched(module: Calling, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return module.wide(x) * 2

    model = analyzed(switched)
    assert [(leaf.op, leaf.module, leaf.exactness.value) for leaf in model.leaves] == [
        ("aten::linear", "wide", "exact"),
        ("aten::mul", "", "exact"),
    ]


class Flex(nn.Module):
    """flex_attention with a score function and a causal block mask, keys shared by two heads each."""

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, q: Tensor, k: Tensor) -> Any:
        """[B, 4, Sq, 64] and [B, 2, Sk, 64] -> [B, 4, Sq, 64]."""
        if not self.masked:
            return flex_attention(q, k, k, enable_gqa=True)
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, q.shape[2], k.shape[2], device=q.device)
        return flex_attention(q, k, k, score_mod=lambda s, b, h, i, j: s * 2, block_mask=mask, enable_gqa=True)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("masked", [False, True])
def test_flex_attention_is_attention_over_all_blocks(device: str, masked: bool) -> None:
    """2 x B x 4 heads x 128 x 256 x (64 + 64) FLOPs; q and o of 4 heads, k and v of 2, in fp32."""
    q, k = torch.empty(2, 4, 128, 64, device=device), torch.empty(2, 2, 256, 64, device=device)
    model = analyze_model(Flex(masked=masked), (q, k), dims=[{0: "B"}, {0: "B"}], device="none").model
    (leaf,) = leaves(model, "higher_order::flex_attention")
    assert str(leaf.layer.matmul_flops()) == f"{2 * 4 * 128 * 256 * 128}*B"
    assert str(leaf.layer.traffic().bytes) == f"{4 * 64 * (2 * 4 * 128 + 2 * 2 * 256)}*B"
    assert leaf.exactness.value == "approximated"
    assert "those that its block mask skips included" in leaf.note
    if masked:  # the mask itself is made of 128 x 256 comparisons of positions, which vmap shows one at a time
        (compared,) = leaves(model, "aten::ge")
        assert compared.layer.traffic().bytes == 8 * (128 + 256) + 128 * 256


def test_flex_attention_takes_symbolic_lengths() -> None:
    """4 x B x H x S x S x D without a mask."""
    q = torch.empty(3, 2, 128, 64, device="meta")

    class Own(nn.Module):
        def forward(self, q: Tensor) -> Any:
            return flex_attention(q, q, q)

    model = analyze_model(Own(), q, dims={"q": {0: "B", 2: "S"}}, device="none").model
    (leaf,) = leaves(model, "higher_order::flex_attention")
    assert str(leaf.layer.matmul_flops()) == "512*B*S**2"


def test_vmap_hides_no_elements() -> None:
    """B x 8 products, though the function sees rows of 8."""
    (leaf,) = analyzed(lambda module, x: torch.vmap(lambda row: row * 2)(x)).leaves
    assert str(leaf.layer.vector_flops()) == "8*B"


def test_vmap_of_what_is_counted_by_axes_is_refused() -> None:
    """A softmax along an axis that vmap renumbers: the error names operator and module."""
    with pytest.raises(CaptureError, match=r"aten.softmax.int in \(root\): aten.softmax.int runs under torch.vmap"):
        analyzed(lambda module, x: torch.vmap(lambda row: row.softmax(0))(x))


def test_what_dynamo_cannot_trace_is_said_to_be_that() -> None:
    """A branch that asks the user: neither are the inputs wrong, nor can torch.export take it."""

    def printing(module: Calling, x: Tensor) -> Tensor:
        def branch(y: Tensor) -> Tensor:
            return y.sin() if input() else y

        return torch.cond(x.sum() > 0, branch, lambda y: y.cos(), (x,))

    with pytest.raises(CaptureError, match=r"what it gives to a higher-order operator, such as torch.cond, cannot be"):
        analyzed(printing)
