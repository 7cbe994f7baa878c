"""Verification of modules as they are written: shared, stateful, hooked, with torch's attention or with messages."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.models.user_model import user_model
from dsocr_graph.verification.records import Difference, Reason, StageVerification, Subject
from dsocr_graph.verification.stage_task import NotReplayableError, StageRunError
from dsocr_graph.verification.verify import verify_model


class Block(nn.Module):
    """A layer, an activation and what a body makes of both."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.activation = activation or nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Run both."""
        return self.activation(self.layer(x))


class Model(nn.Module):
    """Parts by name, and the code that runs them."""

    def __init__(self, run: Callable[[Any, Tensor], object], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.run = run

    def forward(self, x: Tensor) -> object:
        """Run the code."""
        return self.run(self, x)


def verified(model: nn.Module, x: Tensor | None = None, **options: Any) -> StageVerification:
    """Verify a model on three rows of four, or on an input."""
    given = user_model(model, torch.ones(3, 4) if x is None else x)
    (found,) = verify_model(given.module, given.stages, name="toy", variant={}, **options).stages
    return found


def differences(found: StageVerification, subject: Subject) -> list[Difference]:
    """Return the differences of one subject."""
    return [difference for check in found.checks if check.subject is subject for difference in check.differences]


def reasons(found: StageVerification) -> set[Reason | None]:
    """Return the reasons of all differences."""
    return {difference.reason for check in found.checks for difference in check.differences}


# --- modules under several paths


def in_turn(*names: str) -> Callable[[Any, Tensor], Tensor]:
    """Return code that runs parts one after the other."""

    def run(model: Any, x: Tensor) -> Tensor:
        for name in names:
            x = model.get_submodule(name)(x)
        return x

    return run


def shared_layers() -> nn.Module:
    """Return one block in a list three times."""
    return nn.Sequential(*[Block()] * 3)


def shared_activation() -> nn.Module:
    """Return two blocks with one activation."""
    activation = nn.GELU()
    return nn.Sequential(Block(activation), Block(activation))


def shared_by_name() -> nn.Module:
    """Return a block under three names, called by each and by one of them twice."""
    block = Block()
    return Model(in_turn("a", "b", "a", "c"), a=block, b=block, c=block, d=Block())


@pytest.mark.parametrize("make", [shared_layers, shared_activation, shared_by_name])
def test_a_shared_module_is_compared_under_all_its_paths(make: Callable[[], nn.Module]) -> None:
    """Hooks see the module, the graph has the path of each call: together they agree in calls, edges and FLOPs."""
    assert reasons(verified(make())) == set()


def test_a_shared_module_is_counted_once() -> None:
    """The root, the block in the list, its layer and its activation: 4 rows; 3 * 2*3*4*4 = 288 FLOPs."""
    found = verified(shared_layers())
    compared = {check.subject: check.compared for check in found.checks}
    assert (compared[Subject.CALLS], compared[Subject.EDGES], compared[Subject.FLOPS]) == (4, 3, 5)
    assert found.flops == 288


def test_one_more_call_of_a_shared_module_is_unexplained() -> None:
    """Captured with four calls and run with five, the block and what is in it differ without a reason."""
    model, more = shared_by_name(), shared_by_name()
    more.run = in_turn("a", "b", "a", "c", "a")  # pyright: ignore[reportAttributeAccessIssue]
    found = differences(verified(model, instead={"forward": more}), Subject.CALLS)
    assert [(each.module, each.run, each.graph, each.reason) for each in found] == [
        ("a", "5", "4", None),
        ("a.layer", "5", "4", None),
        ("a.activation", "5", "4", None),
    ]


def test_flops_of_a_module_called_from_elsewhere_have_the_reason_of_the_edge() -> None:
    """A block that calls a layer beside it takes 2 * 96 FLOPs in the run; the graph files 96 of them elsewhere."""
    beside = nn.Linear(4, 4)
    block = Block()
    block.activation = Model(lambda _, x: beside(x))
    model = Model(in_turn("block"), block=block, beside=beside)
    found = verified(model)
    assert {(each.module, each.run, each.graph) for each in differences(found, Subject.FLOPS)} == {
        ("block", "192", "96"),
        ("block.activation", "96", "0"),
    }
    assert reasons(found) == {Reason.ELSEWHERE, Reason.NO_OPERATOR}  # what stands for the activation runs none itself


# --- state


class Counting(nn.Module):
    """Counts its calls in buffers, one of them assigned and one not kept, and in a number."""

    added: Tensor
    assigned: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("added", torch.zeros(()))
        self.register_buffer("assigned", torch.zeros(()), persistent=False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Scale by the counts."""
        self.calls += 1
        self.added.add_(1)
        self.assigned = self.assigned + 1
        return x * self.added * self.assigned * self.calls


def test_each_run_begins_with_the_same_state() -> None:
    """Results and buffers agree; that the graph copies to the buffer which the code assigns has its reason."""
    model = Counting()
    found = verified(model)
    assert found.unexplained == ()
    assert [(each.what, each.reason) for each in differences(found, Subject.OPERATORS)] == [
        ("aten::copy_", Reason.WRITTEN_BACK)
    ]
    (results,) = (check for check in found.checks if check.subject is Subject.RESULTS)
    assert (results.compared, results.differences) == (3, ())
    assert (model.calls, model.added.item(), model.assigned.item()) == (0, 0, 0)


def test_a_buffer_left_otherwise_is_unexplained() -> None:
    """Where the run adds 2 and the graph 1, the buffer differs, and the copy has no reason."""

    class Other(Counting):
        def forward(self, x: Tensor) -> Tensor:
            made = super().forward(x)
            if not torch.compiler.is_compiling():
                self.assigned = self.assigned + 1
            return made

    found = verified(Other())
    assert [each.what for each in differences(found, Subject.RESULTS)] == ["buffer assigned"]
    assert ("aten::copy_", None) in [(each.what, each.reason) for each in differences(found, Subject.OPERATORS)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)).train(),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.5)).train(),
    ],
)
def test_a_model_in_training_agrees(make: Callable[[], nn.Module]) -> None:
    """Running means are as before, and random operators draw the same numbers, in the run and in the replay."""
    model, x = make(), torch.ones(2, 3, 6, 6)
    stage = StageSpec(name="forward", description="", module=model, inputs=(x,))
    (found,) = verify_model(model, [stage], name="toy", variant={}).stages
    assert reasons(found) == set()


# --- attention of torch.nn


def attention() -> nn.Module:
    """Return attention whose weights are wanted as well, which runs other operators."""
    return Model(lambda model, x: model.own(x, x, x), own=nn.MultiheadAttention(8, 2, batch_first=True))


def encoder() -> nn.Module:
    """Return two layers of an encoder."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)


@pytest.mark.parametrize("make", [attention, encoder])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_of_torch_runs_as_it_was_captured(make: Callable[[], nn.Module], device: str) -> None:
    """The graph has the single operators of attention; so has the run, though torch would fuse them."""
    with torch.device(device):
        model, x = make(), torch.ones(2, 5, 8)
    found = verified(model, x)
    assert reasons(found) == set()
    assert ["torch's fused attention is off" in note for note in found.notes] == [True]


def fused(model: Any, x: Tensor) -> Tensor:
    """Run attention by torch's fused operator, then by its module."""
    own = model.own
    weights = (own.in_proj_weight, own.in_proj_bias, own.out_proj.weight, own.out_proj.bias)
    made, _ = torch._native_multi_head_attention(x, x, x, 8, 2, *weights)  # pyright: ignore[reportPrivateUsage]
    return model.own(made, made, made)[0]


def test_fused_attention_of_the_run_alone_is_explained() -> None:
    """Where the graph has the fused operator, torch may choose it, and does in a module that was captured without."""
    model = Model(fused, own=nn.MultiheadAttention(8, 2, batch_first=True)).eval()
    found = verified(model, torch.ones(2, 5, 8), allow_unclassified=True)
    inside = [each for each in differences(found, Subject.OPERATORS) if each.module == "own"]
    assert ("aten::_native_multi_head_attention", "1", "0") in [(each.what, each.run, each.graph) for each in inside]
    assert {each.reason for each in inside} == {Reason.RUN_FUSED}


# --- hooks, messages and what reads values


def test_operators_of_forward_hooks_are_those_of_the_caller() -> None:
    """One hook before a layer and one after it: the graph has their operators in the caller, and so has the run."""
    layer = nn.Linear(4, 4)
    layer.register_forward_pre_hook(lambda _, given: (given[0].sin(),))
    layer.register_forward_hook(lambda _module, _given, made: made.cos())
    assert reasons(verified(Model(in_turn("layer"), layer=layer))) == set()


def test_a_message_is_told_from_constants() -> None:
    """Written into a text, a tensor is detached and read back: both are of the message, the constant is not."""

    def run(_: Any, x: Tensor) -> Tensor:
        most = x.max() * torch.tensor(2.0)
        if not torch.compiler.is_compiling():
            f"{most}"  # pyright: ignore[reportUnusedExpression] - as a check writes it
        return x * most

    found = differences(verified(Model(run)), Subject.OPERATORS)
    assert [(each.what, each.run, each.graph, each.reason) for each in found] == [
        ("aten::_local_scalar_dense, for a message", "1", "0", Reason.MESSAGE),
        ("aten::detach, for a message", "1", "0", Reason.MESSAGE),
        ("aten::lift_fresh", "1", "0", Reason.CONSTANT),
        ("aten::lift_fresh_copy", "0", "1", Reason.CONSTANT),
    ]


def test_a_tensor_that_is_detached_is_no_constant() -> None:
    """What the run alone detaches was made by operators: there is no reason."""

    def run(_: Any, x: Tensor) -> Tensor:
        return x * 2 if torch.compiler.is_compiling() else (x * 2).detach()

    found = verified(Model(run))
    assert [(each.what, each.reason) for each in found.unexplained] == [("aten::detach", None)]


def test_a_value_that_python_reads_is_explained() -> None:
    """A check of values runs in the run alone."""

    def run(_: Any, x: Tensor) -> Tensor:
        most = x.max()
        if not torch.compiler.is_compiling() and most < 0:
            raise ValueError
        return x * most

    found = differences(verified(Model(run)), Subject.OPERATORS)
    assert [(each.what, each.reason) for each in found if each.what != "aten::lt"] == [
        ("aten::_local_scalar_dense", Reason.READ_BACK)
    ]


# --- code around the model


class Stage(nn.Module):
    """Runs a model in some way."""

    def __init__(self, root: nn.Module, run: Callable[[Any, Tensor], object]) -> None:
        super().__init__()
        self.root = root
        self.run = run

    def forward(self, x: Tensor) -> object:
        """Run the model."""
        return self.run(self.root, x)


class Cutting(nn.Linear):
    """A layer of four, and a method that cuts its input."""

    def cut(self, x: Tensor) -> Tensor:
        """Leave out all but the first four columns."""
        return x[:, :4] + 1


def in_method(root: Any, x: Tensor) -> Tensor:
    """Read the input of eight columns in a method of the model."""
    return root(root.cut(x))


def beside(root: Any, x: Tensor) -> Tensor:
    """Read it in the stage's own code."""
    return root(x[:, :4] + 1)


def nowhere(root: Any, x: Tensor) -> Tensor:
    """Read it in the captured graph alone."""
    return beside(root, x) if torch.compiler.is_compiling() else root(torch.ones(x.shape[0], 4))


@pytest.mark.parametrize(("run", "reason"), [(in_method, Reason.METHOD), (beside, Reason.AROUND), (nowhere, None)])
def test_what_the_model_reads_outside_its_call_is_told_by_where(
    run: Callable[[Any, Tensor], Tensor], reason: Reason | None
) -> None:
    """The graph files 3 x 8 under the model, whose call gets 3 x 4; whether a method read it was looked at."""
    root, x = Cutting(4, 4).eval(), torch.ones(3, 8)
    stage = StageSpec(name="forward", description="", module=Stage(root, run), inputs=(x,), root="root")
    (found,) = verify_model(root, [stage], name="toy", variant={}).stages
    told = [(each.what, each.reason) for each in differences(found, Subject.SHAPES)]
    assert ("reads [3, 8] float32", reason) in told


def test_a_model_of_which_parts_are_called_is_told_so() -> None:
    """The stage calls a part of the model, and no method of it: the model is not called."""
    root, x = nn.Sequential(nn.Linear(4, 4)).eval(), torch.ones(3, 4)
    stage = StageSpec(
        name="forward", description="", module=Stage(root, lambda root, x: root[0](x)), inputs=(x,), root="root"
    )
    (found,) = verify_model(root, [stage], name="toy", variant={}).stages
    assert [(each.module, each.reason) for each in differences(found, Subject.CALLS)] == [("", Reason.PARTS)]


def test_a_module_of_which_only_a_shared_part_runs_elsewhere_is_unexplained() -> None:
    """Captured with two blocks and run with one: the other's activation is the first one's, and runs in that alone."""
    both: list[nn.Module] = []
    for names in (("a", "b"), ("a",)):
        activation = nn.GELU()
        both.append(Model(in_turn(*names), a=Block(activation), b=Block(activation)))
    found = verified(both[0], instead={"forward": both[1]})
    assert [(each.module, each.run, each.graph, each.reason) for each in differences(found, Subject.CALLS)] == [
        ("a.activation", "1", "2", None),
        ("b", "0", "1", None),
        ("b.layer", "0", "1", None),
    ]


# --- models that do not run everywhere


def test_flops_are_counted_where_the_model_runs() -> None:
    """A constant on the CPU cannot meet tensors on meta: 2*3*4*4 = 96 FLOPs are counted on the CPU."""
    model = Model(lambda model, x: model.layer(x) + torch.tensor([1.0, 2.0, 3.0, 4.0]), layer=nn.Linear(4, 4))
    found = verified(model)
    assert (found.flops, differences(found, Subject.FLOPS)) == (96, [])


def test_attention_is_counted_on_the_cpu() -> None:
    """There it is one kernel: two products of 2*2*5*5*8 FLOPs each, heads together, counted as on meta."""

    def run(_: Any, x: Tensor) -> Tensor:
        x = x * torch.tensor([1.0, 2.0])[:, None, None, None]  # keeps the model from meta
        return nn.functional.scaled_dot_product_attention(x, x, x)

    found = verified(Model(run), torch.ones(2, 1, 5, 8))
    assert (found.flops, differences(found, Subject.FLOPS)) == (2 * 2 * 2 * 5 * 5 * 8, [])


def test_a_stage_that_fails_as_it_runs_is_an_error() -> None:
    """The error names the sizes and what the model's code raised."""

    def run(_: Any, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and not x.is_meta:
            raise IndexError("no such row")
        return x + 1

    with pytest.raises(StageRunError, match=r"forward was captured and fails when it runs.*IndexError: no such row"):
        verified(Model(run))


def test_ids_past_a_table_are_told_where_a_stage_fails() -> None:
    """A configuration whose image token is 3 and whose vocabulary has rows 0 to 2: no other sizes would help."""
    expected = r"input holds 3, and aten::embedding takes ids from 0 to 2 there: let the model have as many rows"
    with pytest.raises(StageRunError, match=expected) as found:
        verified(nn.Embedding(3, 4), torch.zeros(2, 5, dtype=torch.int64), fit=lambda _, ids: [ids[0].fill_(3)])
    assert "--points" not in str(found.value)


def test_attention_by_a_higher_order_operator_is_refused_before_it_runs() -> None:
    """Neither the run nor the replay can be watched: the message names the operator, its module and what to do."""
    inner = Model(lambda _, x: flex_attention(x, x, x))
    expected = r"'forward' calls flex_attention in module inner, and cannot be verified.*scaled_dot_product_attention"
    with pytest.raises(NotReplayableError, match=expected):
        verified(Model(in_turn("inner"), inner=inner), torch.ones(1, 2, 128, 16))


# --- complex numbers


def complex_rows(*shape: int) -> Tensor:
    """Return complex ones."""
    return torch.ones(shape, dtype=torch.complex64)


def products_of_two_kinds() -> nn.Module:
    """Return a complex layer, and a real one of its real part."""
    layers = {"one": nn.Linear(4, 4, dtype=torch.complex64), "two": nn.Linear(4, 4)}
    return Model(lambda model, x: model.two(model.one(x).real), **layers)


@pytest.mark.parametrize(
    ("make", "flops"),
    [
        (lambda: nn.Linear(4, 4, dtype=torch.complex64), 8 * 3 * 4 * 4),
        (products_of_two_kinds, 8 * 3 * 4 * 4 + 2 * 3 * 4 * 4),
        (lambda: Model(lambda _, x: x @ x.mT), 8 * 3 * 4 * 3),
        (lambda: Model(lambda _, x: torch.einsum("ij,kj->ik", x, x)), 8 * 3 * 4 * 3),
    ],
)
def test_complex_products_are_counted_as_four_real_ones(make: Callable[[], nn.Module], flops: int) -> None:
    """A multiply-add of complex numbers is 8 FLOPs in the run as in the model; a real one beside it stays 2."""
    found = verified(make(), complex_rows(3, 4))
    assert (found.flops, differences(found, Subject.FLOPS)) == (flops, [])


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: nn.Conv2d(2, 3, 2, dtype=torch.complex64), complex_rows(1, 2, 4, 4)),
        (lambda: nn.ConvTranspose1d(4, 2, 3, groups=2, dtype=torch.complex64), complex_rows(1, 4, 5)),
    ],
)
def test_a_complex_convolution_runs_as_three_real_ones(make: Callable[[], nn.Module], x: Tensor) -> None:
    """Three products of the four that the model counts: the run's figure is 3/4 of the graph's, with its reason."""
    found = differences(verified(make(), x), Subject.FLOPS)
    assert {each.reason for each in found} == {Reason.THREE_PRODUCTS}
    for each in found:
        ran, said = (int(text.replace(",", "")) for text in (each.run, each.graph))
        assert ran * 4 == said * 3


def test_a_complex_convolution_is_no_excuse_for_other_flops() -> None:
    """What the run has beside it and the graph has not, a product of 2*2*2*2 = 16 FLOPs, leaves the sum unexplained."""

    def run(model: Any, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            x = x + (torch.ones(2, 2, device=x.device) @ torch.ones(2, 2, device=x.device)).sum()
        return model.conv(x)

    model = Model(run, conv=nn.Conv1d(2, 2, 2, dtype=torch.complex64))
    found = differences(verified(model, complex_rows(1, 2, 4)), Subject.FLOPS)
    assert {each.what: each.reason for each in found if not each.module} == {"in all": None, "in the module": None}
    assert [each.reason for each in found if each.module == "conv"] == [Reason.THREE_PRODUCTS]


def test_three_products_and_what_the_counter_does_not_know_are_told_together() -> None:
    """A complex convolution of 8*4*2*3 = 192 FLOPs runs as 144; torch's counter has none of the product of a vector."""
    model = Model(lambda model, x: model.conv(x)[0] @ x[0, 0, :3], conv=nn.Conv1d(2, 2, 2, dtype=torch.complex64))
    found = differences(verified(model, complex_rows(1, 2, 4)), Subject.FLOPS)
    assert {(each.module, each.run, each.graph, each.reason) for each in found} == {
        ("", "144", "240", Reason.UNCOUNTED),  # 8*2*3 = 48 of the vector
        ("conv", "144", "192", Reason.THREE_PRODUCTS),
    }
