"""Lowering: each call's cost by hand, the three states of an operator, fused traffic; nothing is silently zero."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsocr_graph.errors import LoweringRuleError, MissingLoweringError
from dsocr_graph.ir import OpCall
from dsocr_graph.lowering import Approximation, free, known_operators, lower, lowers, registry, unregister
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import group_by_module
from dsocr_graph.tracing import capture
from modelmeter.dims import LEGEND
from modelmeter.layers import BaseLayer, DataMovement
from modelmeter.model import AnalyticModel, Exactness

Lower = Callable[..., AnalyticModel]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor without data; 4 bytes an element unless told otherwise."""
    return torch.empty(*shape, dtype=dtype, device="meta")


@pytest.fixture
def lowered(captured: Callable[..., Any]) -> Lower:
    """Return a function that captures, groups and lowers a function or module."""

    def lower_it(what: Callable[..., object], *inputs: object, allow: bool = False, **options: Any) -> AnalyticModel:
        return lower(group_by_module(captured(what, *inputs, **options)), allow_unclassified=allow)

    return lower_it


@pytest.fixture
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test change the table of rules; it is as before afterwards."""
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    monkeypatch.setattr(registry, "_FREE", set(registry._FREE))


INDEX = torch.int64

# operator, function, inputs, FLOPs in products, FLOPs elsewhere, bytes
CASES: list[tuple[str, Callable[..., object], tuple[Tensor, ...], int, int, int]] = [
    # 2*3*4*2; a bias on 3*2; (12 + 8 + 2 read, 6 written)*4
    ("linear", F.linear, (meta(3, 4), meta(2, 4), meta(2)), 48, 6, 112),
    # 2*3*4*5; (12 + 20 + 15)*4
    ("mm", torch.mm, (meta(3, 4), meta(4, 5)), 120, 0, 188),
    # the same, and 15 additions of 5 more elements
    ("addmm", torch.addmm, (meta(5), meta(3, 4), meta(4, 5)), 120, 15, 208),
    # twice 2*3*4*5; (24 + 40 + 30)*4
    ("bmm", torch.bmm, (meta(2, 3, 4), meta(2, 4, 5)), 240, 0, 376),
    # the right operand is shared by the batch: (24 + 20 + 30)*4
    ("matmul", torch.matmul, (meta(2, 3, 4), meta(4, 5)), 240, 0, 296),
    # a vector is a matrix of one column: 2*3*4*1; (12 + 4 + 3)*4
    ("matmul", torch.matmul, (meta(3, 4), meta(4)), 24, 0, 76),
    # b=2 w=5 h=3, summed c=4, new k=6: 2*2*3*5*4*6; (120 + 72 + 180)*4; h is a batch axis of both
    (
        "einsum",
        lambda a, b: torch.einsum("bhwc,hkc->bhwk", a, b),
        (meta(2, 3, 5, 4), meta(3, 6, 4)),
        1440,
        0,
        1488,
    ),
    # result 5 x 4 x 4, each of 3*2*2 = 12 multiply-adds: 2*80*12; bias 80; (192 + 60 + 5 + 80)*4
    (
        "conv2d",
        lambda x, w, b: F.conv2d(x, w, b, stride=2),
        (meta(1, 3, 8, 8), meta(5, 3, 2, 2), meta(5)),
        1920,
        80,
        1348,
    ),
    # two groups of 2 channels, kernel 3, result 2 x 8 x 6: 2*96*(2*3); (48 + 48 + 96)*4
    ("conv1d", lambda x, w: F.conv1d(x, w, padding=1, groups=2), (meta(2, 4, 6), meta(8, 2, 3)), 1152, 0, 768),
    # two products 2*(2 heads)*3*5*4; 30 scores, each scaled (1) and through softmax (5); (24 + 40 + 40 + 24)*4
    (
        "scaled_dot_product_attention",
        F.scaled_dot_product_attention,
        (meta(1, 2, 3, 4), meta(1, 2, 5, 4), meta(1, 2, 5, 4)),
        480,
        180,
        512,
    ),
    ("add", torch.add, (meta(3, 4), meta(4)), 0, 12, 112),  # the row is stored once: (12 + 4 + 12)*4
    ("add", torch.add, (meta(3, 4, dtype=INDEX), meta(4, dtype=INDEX)), 0, 0, 224),  # integers: bytes, no FLOPs
    ("silu", F.silu, (meta(3, 4),), 0, 60, 96),  # 5 an element: negate, exp, add, divide, multiply
    ("gt", lambda x: x > 0, (meta(3, 4),), 0, 0, 60),  # 48 read, 12 truth values written
    ("where", lambda m, x: torch.where(m, x, 0.0), (meta(3, 4, dtype=torch.bool), meta(3, 4)), 0, 0, 108),
    # 7 an element: mean 1, centre 1, square and sum 2, scale 1, weight 1, bias 1; (12 + 4 + 4 + 12)*4
    ("layer_norm", lambda x, w, b: F.layer_norm(x, (4,), w, b), (meta(3, 4), meta(4), meta(4)), 0, 84, 128),
    ("softmax", lambda x: x.softmax(-1), (meta(3, 4),), 0, 60, 96),  # max, subtract, exp, sum, divide
    ("sum", lambda x: x.sum(-1), (meta(3, 4),), 0, 12, 60),  # (12 + 3)*4
    ("cumsum", lambda x: x.cumsum(0), (meta(3, 4),), 0, 12, 96),
    # 3 indices of 8 bytes, 3 rows of 16 read and written, whatever the table holds
    ("embedding", lambda w, i: F.embedding(i, w), (meta(10, 4), meta(3, dtype=INDEX)), 0, 0, 120),
    ("index", lambda x, i: x[i], (meta(10, 4), meta(3, dtype=INDEX)), 0, 0, 120),
    # the copy: 160 read, 160 written; 24 of indices, 48 of values read, 48 written over it
    ("index_put", lambda x, i, v: x.index_put((i,), v), (meta(10, 4), meta(3, dtype=INDEX), meta(3, 4)), 0, 0, 440),
    # as before, and the 48 bytes that are added to are read
    ("index_add", lambda x, i, v: x.index_add(0, i, v), (meta(10, 4), meta(3, dtype=INDEX), meta(3, 4)), 0, 0, 488),
    # 48 + 12 of the mask + 24 of the source read, 48 copied, 24 overwritten
    ("masked_scatter", torch.masked_scatter, (meta(3, 4), meta(3, 4, dtype=torch.bool), meta(6)), 0, 0, 156),
    # one comparison a key; 48 read, 6 values of 4 bytes and 6 positions of 8 written
    ("topk", lambda x: x.topk(2), (meta(3, 4),), 0, 12, 120),
    ("cat", lambda x, y: torch.cat((x, y)), (meta(3, 4), meta(3, 4)), 0, 0, 192),
    ("pad", lambda x: F.pad(x, (1, 1)), (meta(3, 4),), 0, 0, 120),  # 12 read, 3*6 = 18 written
    ("to", lambda x: x.to(torch.bfloat16), (meta(3, 4),), 0, 0, 72),  # 48 read, 24 written
    ("contiguous", lambda x: x.t().contiguous(), (meta(3, 4),), 0, 0, 96),
    ("contiguous", lambda x: x.expand(3, 4).contiguous(), (meta(1, 4),), 0, 0, 64),  # 4 stored elements to 12
]


@pytest.mark.parametrize(
    ("op", "function", "inputs", "matmul", "vector", "moved"),
    CASES,
    ids=[f"{position}-{case[0]}" for position, case in enumerate(CASES)],
)
def test_cost_of_a_call(
    lowered: Lower,
    *,
    op: str,
    function: Callable[..., object],
    inputs: tuple[Tensor, ...],
    matmul: int,
    vector: int,
    moved: int,
) -> None:
    """One call, one layer: FLOPs in products and elsewhere, and bytes, as worked out beside the case."""
    (leaf,) = lowered(function, *inputs).leaves
    assert leaf.op == f"aten::{op}"
    assert (leaf.layer.matmul_flops(), leaf.layer.vector_flops(), leaf.layer.traffic().bytes) == (matmul, vector, moved)


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("view", lambda x: x.view(4, 3)),
        ("transpose", lambda x: x.transpose(0, 1)),
        ("expand", lambda x: x.expand(2, 3, 4)),
        ("reshape", lambda x: x.reshape(2, 6)),
        ("to", lambda x: x.to(torch.float32)),
        ("dropout", lambda x: F.dropout(x, 0.5, training=False)),
        ("slice", lambda x: x[:, 1:3]),
    ],
)
def test_a_call_that_moves_nothing_is_free_and_counted(
    lowered: Lower, op: str, function: Callable[[Tensor], Tensor]
) -> None:
    """Views, and copies that the layout makes needless, have no leaf; the model counts the call."""
    model = lowered(function, meta(3, 4))
    assert model.leaves == ()
    assert [(item.op, item.calls) for item in model.free][-1] == (f"aten::{op}", 1)


def test_the_same_operator_is_free_or_a_copy_by_layout(lowered: Lower) -> None:
    """reshape of a transposed matrix moves 96 bytes; of a plain one it is free."""
    model = lowered(lambda x: (x.reshape(12), x.t().reshape(12)), meta(3, 4))
    assert [(leaf.op, leaf.layer.traffic().bytes) for leaf in model.leaves] == [("aten::reshape", 96)]
    assert ("aten::reshape", 1) in [(item.op, item.calls) for item in model.free]


def test_dropout_in_training_is_no_free_call(lowered: Lower) -> None:
    """The rule looks at `train`: the same name moves 96 bytes in training."""
    (leaf,) = lowered(lambda x: F.dropout(x, 0.5, training=True), meta(3, 4)).leaves
    assert leaf.layer.traffic().bytes == 96


class Odd(nn.Module):
    """Two modules with operators that have no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Sequential(_Airy())

    def forward(self, x: Tensor) -> Tensor:
        """Run airy_ai twice, in two places, and frexp once."""
        return torch.frexp(self.second(torch.special.airy_ai(self.first(x)))).mantissa


class _Airy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Run airy_ai."""
        return torch.special.airy_ai(x)


def test_missing_operators_are_all_named_in_one_error(lowered: Lower) -> None:
    """Each with its count and the module that runs it first, and the two ways out."""
    with torch.device("meta"):
        model = Odd()
    with pytest.raises(MissingLoweringError) as caught:
        lowered(model, meta(3, 4))
    assert str(caught.value) == (
        "no lowering for 2 ops:\n"
        "  aten::frexp  x1, first in (root)\n"
        "  aten::special_airy_ai  x2, first in (root)\n"
        'add a rule: a function with @dsocr_graph.lowering.lowers("NAME"), in dsocr_graph/lowering/ or in the file of '
        "your model; or run with --allow-unclassified to report them with their bytes and without FLOPs"
    )
    assert isinstance(caught.value, LookupError)


@pytest.mark.usefixtures("own_rules")
def test_a_rule_that_fails_says_where(lowered: Lower) -> None:
    """An operator, its module and what went wrong, not a traceback of the compiler."""

    @lowers("aten::special_airy_ai")
    def broken(call: OpCall) -> BaseLayer:
        """Divide by nothing."""
        return registry.pointwise(call, flops_per_element=1 // 0)

    with pytest.raises(
        LoweringRuleError, match=r"rule of aten::special_airy_ai \(.*broken\) fails on a call in \(root\): Zero"
    ):
        lowered(torch.special.airy_ai, meta(3, 4))


@pytest.mark.usefixtures("own_rules")
@pytest.mark.parametrize(
    ("returned", "said"),
    [(5, "returns 5, of type int"), (Approximation(layer=5, note="a guess"), "returns an Approximation of 5")],  # pyright: ignore[reportArgumentType]
)
def test_a_rule_that_returns_no_layer_is_named(lowered: Lower, returned: Any, said: str) -> None:
    """The operator, the rule's own name, what it returned and what it may return."""

    @lowers("aten::special_airy_ai")
    def odd(call: OpCall) -> Any:
        """Return what was chosen."""
        return returned

    with pytest.raises(
        LoweringRuleError, match=rf"rule of aten::special_airy_ai \(.*odd\) {said}.*; return a layer of"
    ):
        lowered(torch.special.airy_ai, meta(3, 4))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("aten::add.Tensor", "names one overload; .* write 'aten::add'"),
        ("linear", "names no operator; write namespace"),
    ],
)
def test_names_that_no_call_has_take_no_rule(name: str, said: str) -> None:
    """A rule for one overload would never be asked; nor would a name without its namespace."""
    for register in (lowers(name), lambda rule: free(name)):
        with pytest.raises(ValueError, match=said):
            register(lambda call: None)


def test_allowed_unclassified_calls_keep_their_bytes(lowered: Lower) -> None:
    """With the flag they are leaves of the category unclassified: 48 bytes read, 48 or 96 written, no FLOPs."""
    with torch.device("meta"):
        model = lowered(Odd(), meta(3, 4), allow=True)
    odd = [leaf for leaf in model.leaves if leaf.exactness is Exactness.UNCLASSIFIED]
    assert [(leaf.module, leaf.op) for leaf in odd] == [
        ("", "aten::special_airy_ai"),
        ("second.0", "aten::special_airy_ai"),
        ("", "aten::frexp"),
    ]
    for leaf in odd:
        assert leaf.category.value == "unclassified"
        assert leaf.note == "no lowering rule"
        assert (leaf.layer.matmul_flops(), leaf.layer.vector_flops()) == (0, 0)
        moved = 144 if leaf.op == "aten::frexp" else 96  # mantissas of 4 bytes and exponents of 4
        assert (leaf.layer.traffic().bytes, leaf.fused_bytes) == (moved, moved)


@pytest.mark.parametrize(
    ("function", "moved"),
    [
        (lambda x: x.to_dense(), 96),  # a view without an entry: not known to be free, so not free
        (torch.frexp, 48 + 48 + 48),  # mantissas of 4 bytes and exponents of 4
    ],
)
def test_an_unclassified_call_is_never_zero_bytes(
    lowered: Lower, function: Callable[[Tensor], object], moved: int
) -> None:
    """Whatever a call reads and writes counts, also where it only writes."""
    model = lowered(function, meta(3, 4), allow=True)
    (odd,) = [leaf for leaf in model.leaves if leaf.exactness is Exactness.UNCLASSIFIED]
    assert odd.layer.traffic().bytes == moved


@pytest.mark.parametrize("equation", ["ab,bc,cd->ad", "ab,bc->c"])
def test_an_einsum_of_another_form_is_an_error(lowered: Lower, equation: str) -> None:
    """What the rule cannot read off the equation is named with a way out, never guessed."""
    operands = [meta(3, 3) for _ in equation.split(",")]
    with pytest.raises(
        MissingLoweringError, match=r"aten::einsum  x1, first in \(root\): '.*' (has more than two|sums an)"
    ):
        lowered(lambda *x: torch.einsum(equation, *x), *operands)


def test_an_approximation_says_what_it_assumes(lowered: Lower) -> None:
    """A sort is exact in nothing but its shapes: the leaf is marked and the note says why."""
    (leaf,) = lowered(lambda x: x.sort(), meta(3, 4)).leaves
    assert leaf.exactness is Exactness.APPROXIMATED
    assert "passes of the sort depend on the device" in leaf.note


def test_relu_joins_the_kernel_of_its_producer(lowered: Lower) -> None:
    """Fused, the 24 bytes between linear and relu stay on chip.

    linear reads (12 + 8)*4 = 80 and writes 3*2*4 = 24; relu reads 24 and writes 24. Fused, linear does not
    write and relu does not read.
    """
    model = lowered(lambda x, w: F.relu(F.linear(x, w)), meta(3, 4), meta(2, 4))
    assert [(leaf.layer.traffic().bytes, leaf.fused_bytes) for leaf in model.leaves] == [(104, 80), (48, 24)]


def test_a_result_that_is_kept_is_written(lowered: Lower) -> None:
    """When the stage returns what relu reads, linear writes it all the same."""

    def both(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = F.linear(x, w)
        return y, F.relu(y)

    model = lowered(both, meta(3, 4), meta(2, 4))
    assert [(leaf.layer.traffic().bytes, leaf.fused_bytes) for leaf in model.leaves] == [(104, 104), (48, 24)]


@pytest.mark.usefixtures("own_rules")
def test_a_second_rule_for_a_name_is_refused() -> None:
    """Names with a rule and free names take no rule, and are not declared free again."""
    for name in ("aten::linear", "aten::view"):
        with pytest.raises(ValueError, match=f"{name} already has a lowering"):
            lowers(name)(lambda call: None)
        with pytest.raises(ValueError, match=f"{name} already has a lowering"):
            free(name)
    with pytest.raises(KeyError):
        unregister("aten::special_airy_ai")


@pytest.mark.usefixtures("own_rules")
def test_a_rule_can_be_added_and_replaced(lowered: Lower) -> None:
    """An added rule makes an unknown operator known; after unregister another takes its place."""
    assert "aten::special_airy_ai" not in known_operators()

    @lowers("aten::special_airy_ai")
    def airy_ai(call: Any) -> Approximation:
        layer = DataMovement(op="airy_ai", reads=registry.operands(call.reads), writes=registry.operands(call.writes))
        return Approximation(layer=layer, note="a guess")

    (leaf,) = lowered(torch.special.airy_ai, meta(3, 4)).leaves
    assert (leaf.note, leaf.layer.vector_flops()) == ("a guess", 0)
    unregister("aten::special_airy_ai")
    lowers("aten::special_airy_ai")(lambda call: registry.pointwise(call, flops_per_element=4))
    (leaf,) = lowered(torch.special.airy_ai, meta(3, 4)).leaves
    assert (leaf.note, leaf.layer.vector_flops()) == ("", 48)


def test_work_is_named_by_what_it_serves(lowered: Lower) -> None:
    """The same product is linear alone, positional in a function named for positions."""

    def add_rel_pos(x: Tensor, y: Tensor) -> Tensor:
        return x @ y

    model = lowered(lambda x, y: (x @ y, add_rel_pos(x, y)), meta(3, 4), meta(4, 5))
    assert [leaf.category.value for leaf in model.leaves] == ["linear", "positional"]


def test_symbolic_sizes_stay_symbolic(lowered: Lower) -> None:
    """A captured size N keeps its name: 2*N*4*2 FLOPs, bound afterwards to 2*7*8 = 112."""
    from torch.export import Dim

    (leaf,) = lowered(F.linear, meta(3, 4), meta(2, 4), dynamic_shapes=({0: Dim("N")}, None)).leaves
    assert str(leaf.layer.matmul_flops()) == "16*N"
    assert leaf.layer.at(N=7).matmul_flops() == 112


def test_a_leaf_carries_its_call(lowered: Lower) -> None:
    """Operands with layouts, weights as such, and scalars that are not at their default; dims stay open."""
    from torch.export import Dim

    with torch.device("meta"):
        layer = nn.Linear(4, 2)
    (leaf,) = lowered(layer, meta(3, 4), dynamic_shapes=({0: Dim("N")},)).leaves
    assert leaf.signature is not None
    assert leaf.signature.text == "aten::linear.default(input=fp32[N,4], weight=fp32[2,4]w, bias=fp32[2]w)"
    (add,) = lowered(lambda x: torch.add(x, x.t(), alpha=2), meta(4, 4)).leaves
    assert add.signature is not None
    assert add.signature.text == "aten::add.Tensor(self=fp32[4,4], other=fp32[4,4|1,4], alpha=2)"


class Block(nn.Module):
    """x + proj(x), flattened by a view."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[3, 4] -> [3, 4]."""
        return (x + self.proj(x)).view(12).view(3, 4)


def test_a_stage_keeps_the_order_of_its_calls(lowered: Lower) -> None:
    """Folded blocks run one after the other: product, sum, two views, and the same again; views come after leaves."""
    with torch.device("meta"):
        model = lowered(nn.Sequential(Block(), Block()), meta(3, 4))
    (stage,) = model.stages
    assert [(leaf.op, leaf.calls) for leaf in model.leaves] == [("aten::linear", 2), ("aten::add", 2)]
    assert [(item.op, item.calls) for item in model.free] == [("aten::view", 4)]
    assert stage.schedule == (0, 1, 2, 2, 0, 1, 2, 2)


@pytest.mark.parametrize(("kept", "meaning"), [((), "sequence length in tokens"), ((0,), LEGEND["S"])])
def test_a_sequence_is_a_prefill_where_a_cache_is_kept(kept: tuple[int, ...], meaning: str) -> None:
    """An encoder's S is none: the legend says what the model does."""
    module = nn.Linear(4, 4, device="meta")
    stage = StageSpec(
        name="encode",
        description="",
        module=module,
        inputs=(torch.empty(2, 3, 4, device="meta"),),
        dynamic_shapes=[{0: torch.export.Dim("B"), 1: torch.export.Dim("S")}],
        kv_outputs=kept,
    )
    model = lower(group_by_module(capture(module, [stage], name="toy", variant={})))
    assert model.dims["S"] == meaning
    assert model.dims["B"] == "documents processed together (batch)"
