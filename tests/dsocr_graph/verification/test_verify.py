"""Verification of toy models: what agrees, each reason for a difference, and differences without one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from dsocr_graph.errors import OptionError
from dsocr_graph.models.deepseek_ocr.ops import grouped_linear
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.timing.plan import Point
from dsocr_graph.verification.records import Difference, Reason, StageVerification, Subject
from dsocr_graph.verification.verify import verify_model


class Model(nn.Module):
    """Two linear layers under a root whose forward is given."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 2, bias=False)
        self.rest = nn.Identity()
        self.body = body

    def forward(self, x: Tensor) -> object:
        """Run the body."""
        return self.body(self, x)

    def method(self, x: Tensor) -> Tensor:
        """Run a layer outside forward."""
        return self.first(x).relu()


def chain(model: Any, x: Tensor) -> Tensor:
    """Run one layer after the other."""
    return model.second(model.first(x))


def verified(
    body: Callable[[Any, Tensor], object],
    instead: Callable[[Any, Tensor], object] | None = None,
    *,
    batch: int = 3,
    **options: Any,
) -> StageVerification:
    """Verify a model on three rows or as many as given, or capture it with one body and run it with another."""
    with torch.device("meta"):
        model, x = Model(body).eval(), torch.empty(3, 4)
    axes = {"x": {0: Dim("B", min=1, max=64)}}
    stage = StageSpec(name="forward", description="", module=model, inputs=(x,), dynamic_shapes=axes, **options)
    other = {} if instead is None else {"forward": Model(instead).eval()}
    points = [Point(stage="forward", bindings={"B": batch})]
    (found,) = verify_model(model, [stage], name="toy", variant={}, instead=other, points=points).stages
    return found


def differences(found: StageVerification, subject: Subject) -> list[Difference]:
    """Return the differences of one subject."""
    return [difference for check in found.checks if check.subject is subject for difference in check.differences]


def reasons(found: StageVerification) -> set[Reason | None]:
    """Return the reasons of all differences."""
    return {difference.reason for check in found.checks for difference in check.differences}


def test_a_plain_model_agrees_in_everything() -> None:
    """Two layers: 3 called modules, 2 edges, 2*3*4*4 + 2*3*4*2 = 144 FLOPs, one result, and no difference."""
    found = verified(chain)
    compared = {check.subject: check.compared for check in found.checks if check.subject is not Subject.TORCHLENS}
    assert found.bindings == {"B": 3}
    assert found.flops == 144
    assert reasons(found) == set()
    assert compared == {
        Subject.CALLS: 3,
        Subject.EDGES: 2,
        # Each layer reads one tensor, passes one on and returns one; so does the root.
        Subject.SHAPES: 9,
        Subject.SIZES: 2,
        Subject.OPERATORS: 4,  # t and mm of each layer
        Subject.RESULTS: 1,
        Subject.FLOPS: 4,  # in all, and of the root and the two layers
    }


def test_a_composite_operator_is_told_by_what_it_runs_as() -> None:
    """A linear layer without bias on two axes is a transposition and a product; a relu is itself."""
    found = verified(lambda model, x: chain(model, x).relu())
    told = {each.op: (dict(each.runs), each.calls) for each in found.decompositions}
    assert told == {"aten::linear": ({"aten::t": 1, "aten::mm": 1}, 2), "aten::relu": ({"aten::relu": 1}, 1)}
    assert {each.op: each.why.split(":")[0] for each in found.decompositions} == {
        "aten::linear": "composite",
        "aten::relu": "itself",
    }


def test_a_call_that_returns_its_argument_is_no_tensor_of_its_own() -> None:
    """A cast to the same type gives the argument another name in the graph; the module that casts passes nothing on."""

    class Casts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float() + 1

    def body(model: Any, x: Tensor) -> Tensor:
        rows = model.first(x)
        return model.rest(rows) * rows

    with torch.device("meta"):
        model, x = Model(body).eval(), torch.empty(3, 4)
    model.rest = Casts()  # pyright: ignore[reportAttributeAccessIssue]
    stage = StageSpec(name="forward", description="", module=model, inputs=(x,))
    (found,) = verify_model(model, [stage], name="toy", variant={}).stages
    assert reasons(found) == set()
    (cast,) = (each for each in found.decompositions if each.op == "aten::to")
    assert cast.why == "dispatches nothing: it returns its input"


def test_a_module_without_operators_is_explained() -> None:
    """An identity is called in the run, and the graph holds nothing of it."""
    found = verified(lambda model, x: chain(model, model.rest(x)))
    assert [(each.module, each.run, each.graph) for each in differences(found, Subject.CALLS)] == [("rest", "1", "0")]
    assert reasons(found) == {Reason.NO_OPERATOR}


def test_a_module_called_from_elsewhere_is_explained() -> None:
    """A module that another one calls, without containing it, is filed under its own path."""

    class Caller(nn.Module):
        def __init__(self, other: nn.Module) -> None:
            super().__init__()
            self.others = [other]  # a plain list: not a submodule

        def forward(self, x: Tensor) -> Tensor:
            return self.others[0](x).relu()

    with torch.device("meta"):
        model, x = Model(lambda model, x: model.rest(x)).eval(), torch.empty(3, 4)
    model.rest = Caller(model.first)  # pyright: ignore[reportAttributeAccessIssue]
    stage = StageSpec(name="forward", description="", module=model, inputs=(x,))
    (found,) = verify_model(model, [stage], name="toy", variant={}).stages
    assert [(each.module, each.what, each.run, each.graph) for each in differences(found, Subject.EDGES)] == [
        ("first", "called by (root)", "0", "1"),
        ("first", "called by rest", "1", "0"),
    ]
    assert {each.reason for each in differences(found, Subject.EDGES)} == {Reason.ELSEWHERE}


def test_a_tensor_that_a_module_holds_is_explained() -> None:
    """A module that reads a tensor from a list, not from its arguments, reads it in the run as well."""

    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            return x + self.held.pop()

    def body(model: Any, x: Tensor) -> Tensor:
        model.rest.held.append(model.second(x).sum(dim=1, keepdim=True))
        return model.rest(model.first(x))

    with torch.device("meta"):
        model, x = Model(body).eval(), torch.empty(3, 4)
    model.rest = Holds()  # pyright: ignore[reportAttributeAccessIssue]
    stage = StageSpec(name="forward", description="", module=model, inputs=(x,))
    (found,) = verify_model(model, [stage], name="toy", variant={}).stages
    assert [(each.module, each.what, each.reason) for each in differences(found, Subject.SHAPES)] == [
        ("rest", "reads [3, 1] float32", Reason.HELD)
    ]


def test_a_constant_assigned_to_a_part_is_explained() -> None:
    """The run fills a part of a tensor, the graph makes a scalar, expands it and copies it there."""

    def body(model: Any, x: Tensor) -> Tensor:
        row = torch.full((1, 4), -1, device=x.device)
        row[:, :2] = 0
        return model.first(x) + row

    found = verified(body)
    operators = {each.what: (each.run, each.graph) for each in differences(found, Subject.OPERATORS)}
    assert operators["aten::fill_"] == ("1", "0")
    assert operators["aten::copy_"] == ("0", "1")
    assert reasons(found) == {Reason.ASSIGNED, Reason.CONSTANT}  # 0 becomes a tensor as well


def put_by_index(model: Any, x: Tensor) -> Tensor:
    """Put the rows in the place of what a layer made of them."""
    rows = model.first(x)
    rows[torch.arange(x.shape[0], device=x.device)] = x
    return model.second(rows)


def put_by_index_and_view(model: Any, x: Tensor) -> Tensor:
    """Do the same and look at the result in another shape."""
    return put_by_index(model, x).view(-1)


@pytest.mark.parametrize(("batch", "expected"), [(1, [("aten::view", "1", "0", Reason.SHORTENED)]), (2, [])])
def test_a_value_of_one_row_put_by_index_is_explained(batch: int, expected: list[tuple[str, ...]]) -> None:
    """A run puts [4], not [1, 4], which it views first; of two rows nothing is dropped."""
    found = verified(put_by_index, batch=batch)
    told = [(each.what, each.run, each.graph, each.reason) for each in differences(found, Subject.OPERATORS)]
    assert told == expected


def test_a_view_more_than_there_are_values_of_one_row_is_unexplained() -> None:
    """One value of one row, two views: the reason would explain one of them, so it is given for none."""
    found = verified(put_by_index, put_by_index_and_view, batch=1)
    (view,) = [each for each in differences(found, Subject.OPERATORS) if each.what == "aten::view"]
    assert (view.run, view.graph, view.reason) == ("2", "0", None)


def test_a_root_entered_by_a_method_is_explained() -> None:
    """A stage that calls a method of the model never calls the model."""

    class Stage(nn.Module):
        def __init__(self, root: Model) -> None:
            super().__init__()
            self.root = root

        def forward(self, x: Tensor) -> Tensor:
            return self.root.method(x)

    with torch.device("meta"):
        model, x = Model(chain).eval(), torch.empty(3, 4)
    stage = StageSpec(name="forward", description="", module=Stage(model), inputs=(x,), root="root")
    (found,) = verify_model(model, [stage], name="toy", variant={}).stages
    assert [(each.module, each.run, each.graph) for each in differences(found, Subject.CALLS)] == [("", "0", "1")]
    assert reasons(found) == {Reason.METHOD}


def scaled(*values: float) -> Callable[[Any, Tensor], Tensor]:
    """Return a body that multiplies by constants."""
    return lambda model, x: chain(model, x) * torch.tensor(values, device=x.device)


def test_constants_of_the_code_are_explained() -> None:
    """A tensor made of numbers is lifted out of the graph; a replay has the values that the run made."""
    found = verified(scaled(2.0, 3.0))
    assert {each.reason for each in differences(found, Subject.OPERATORS)} == {Reason.CONSTANT}
    assert differences(found, Subject.RESULTS) == []
    assert found.unexplained == ()


def test_constants_that_nobody_knows_are_explained() -> None:
    """A list's tensor is in the graph by name alone, and made by no code that runs: zeros stand for it."""
    held = [torch.tensor([2.0, 3.0])]
    model, x = Model(lambda model, x: chain(model, x) * held[0]).eval(), torch.ones(3, 4)
    stage = StageSpec(name="forward", description="", module=model, inputs=(x,))
    (found,) = verify_model(model, [stage], name="toy", variant={}).stages
    assert [each.reason for each in differences(found, Subject.RESULTS)] == [Reason.LOST_CONSTANTS]


def test_a_cache_beside_the_tensors_is_explained() -> None:
    """What a layer puts into an object, not its result, passes on as KV cache."""
    found = verified(lambda model, x: (model.second(x), model.rest(x) + 1), kv_outputs=(1,))
    assert reasons(found) == {Reason.NO_OPERATOR}  # the root returns it; nothing else holds it

    class Caching(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            made = super().forward(input)
            held.append(made * 2)
            return made

    held: list[Tensor] = []

    def body(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        held.clear()
        return model.rest(x), held[0]

    with torch.device("meta"):
        model, x = Model(body).eval(), torch.empty(3, 4)
        model.rest = Caching(4, 7)  # pyright: ignore[reportAttributeAccessIssue]
    stage = StageSpec(name="forward", description="", module=model, inputs=(x,), kv_outputs=(1,))
    (found,) = verify_model(model, [stage], name="toy", variant={}).stages
    # The layer returns a tensor of the same shape, so that shapes alone cannot tell them apart.
    assert found.unexplained == ()


class Experts(nn.ModuleList):
    """Two experts of 4 to 2, run by one grouped product, or one by one."""

    def __init__(self, *, loop: bool) -> None:
        super().__init__(nn.Linear(4, 2, bias=False) for _ in range(2))
        self.loop = loop

    def forward(self, rows: Tensor) -> Tensor:
        """[M, 4] -> [M, 2]; the last row goes to the second expert, the others to the first."""
        if self.loop:
            return torch.cat([self[0](rows[:-1]), self[1](rows[-1:])])
        weight = torch.stack([expert.weight for expert in self])  # pyright: ignore[reportArgumentType, reportCallIssue]
        ends = torch.arange(1, 3, device=rows.device, dtype=torch.int32) + (rows.shape[0] - 2)
        return grouped_linear(rows, weight, ends, experts_per_token=1)


def test_a_loop_over_experts_is_explained() -> None:
    """Experts that run one by one are called; the graph has their grouped product, of 2*3*4*2 = 48 FLOPs either way."""

    def build(*, loop: bool) -> Model:
        model = Model(lambda model, x: model.rest(x)).eval()
        model.rest = Experts(loop=loop)  # pyright: ignore[reportAttributeAccessIssue]
        return model

    with torch.device("meta"):
        model, x = build(loop=False), torch.empty(3, 4)
    stage = StageSpec(name="forward", description="", module=model, inputs=(x,))
    instead = {"forward": build(loop=True)}
    (found,) = verify_model(model, [stage], name="toy", variant={}, instead=instead).stages
    assert [(each.module, each.run, each.graph) for each in differences(found, Subject.CALLS)] == [
        ("rest.[0-1]", "2", "0")
    ]
    assert found.flops == 48
    assert reasons(found) == {Reason.LOOP}


@pytest.mark.parametrize(
    ("instead", "subject", "expected"),
    [
        (lambda model, x: chain(model, x).relu(), Subject.OPERATORS, ("", "aten::relu", "1", "0")),
        (lambda model, x: chain(model, model.first(x)), Subject.CALLS, ("first", "calls", "2", "1")),
        (lambda model, x: chain(model, model.first(x)), Subject.EDGES, ("first", "called by (root)", "2", "1")),
        (lambda model, x: chain(model, x[:2]), Subject.SHAPES, ("second", "reads [3, 4] float32", "no", "yes")),
        (lambda model, x: chain(model, x[:2]), Subject.SHAPES, ("second", "returns [2, 2] float32", "yes", "no")),
    ],
)
def test_a_run_that_does_something_else_is_unexplained(
    instead: Callable[[Any, Tensor], object], subject: Subject, expected: tuple[str, ...]
) -> None:
    """One more operator or call, or other sizes than were captured, have no reason."""
    found = verified(chain, instead)
    told = [(each.module, each.what, each.run, each.graph) for each in differences(found, subject)]
    assert expected in told
    assert found.unexplained


def test_sizes_are_those_of_the_point() -> None:
    """At B = 5 the layers do 2*5*4*4 + 2*5*4*2 = 240 FLOPs; an unnamed stage is left out."""
    with torch.device("meta"):
        model, x = Model(chain).eval(), torch.empty(3, 4)
    axes = {"x": {0: Dim("B", min=1, max=64)}}
    stages = [
        StageSpec(name=name, description="", module=model, inputs=(x,), dynamic_shapes=axes) for name in ("one", "two")
    ]
    found = verify_model(model, stages, name="toy", variant={}, points=[Point(stage="two", bindings={"B": 5})])
    assert [(stage.stage, stage.flops, stage.unexplained) for stage in found.stages] == [("two", 240, ())]


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (Point(stage="three", bindings={}), "unknown stage 'three'; the stages are forward"),
        (Point(stage="forward", bindings={"T": 5}), "stage forward has the dims none; given are T"),
    ],
)
def test_points_that_do_not_fit_are_refused(point: Point, message: str) -> None:
    """The error names the stages, or the dims, that there are."""
    with torch.device("meta"):
        model, x = Model(chain).eval(), torch.empty(3, 4)
    stage = StageSpec(name="forward", description="", module=model, inputs=(x,))
    with pytest.raises(OptionError, match=message):
        verify_model(model, [stage], name="toy", variant={}, points=[point])


def test_a_model_with_weights_is_verified_as_it_is() -> None:
    """A module on the CPU keeps its weights and agrees as well."""
    model, x = Model(chain).eval(), torch.ones(3, 4)
    before = model.first.weight.clone()
    (found,) = verify_model(
        model, [StageSpec(name="forward", description="", module=model, inputs=(x,))], name="toy", variant={}
    ).stages
    assert reasons(found) == set()
    assert found.flops == 144
    assert torch.equal(model.first.weight, before)
