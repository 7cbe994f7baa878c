"""Models that users bring: inputs and dims of any module, and factories named on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from dsocr_graph.compiling import compile_user_model
from dsocr_graph.errors import CaptureError, FactoryError, ModelInputError
from dsocr_graph.lowering import lower
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.models.user_model import UserModel, load_factory, stage_of, user_model
from dsocr_graph.scopes import group_by_module
from dsocr_graph.subjects import points_workload
from dsocr_graph.timing.plan import parse_point
from dsocr_graph.tracing import capture
from modelmeter import AnalyticModel
from modelmeter.evaluate import evaluate, evaluate_stage
from modelmeter.model import SizeLimitError
from modelmeter.serialize import model_from_bytes, model_to_json


class Scaled(nn.Module):
    """y = linear(x) * scale, plus the sum of the extras."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: float = 2.0, extras: tuple[Tensor, ...] = ()) -> Tensor:
        """[B, S, 4] -> [B, S, 2]."""
        return self.linear(x) * scale + sum(extras, torch.zeros(()))


class Joined(nn.Module):
    """The sum of any number of tensors."""

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """[B, 4] each."""
        return sum(others, x)


class KeywordOnly(nn.Module):
    """A forward that capture cannot call."""

    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        """[B, 4] each."""
        return x * mask


def compiled(module: nn.Module, *stages: StageSpec, allow_partial: bool = False) -> AnalyticModel:
    """Capture, group and lower."""
    return lower(group_by_module(capture(module, stages, name="toy", variant={}, allow_partial=allow_partial)))


def test_named_dims_stay_symbolic() -> None:
    """One linear [B, S, 4] -> [B, S, 2]: 2 x 4 x 2 x B x S FLOPs, at sizes that the example did not have."""
    model = user_model(Scaled(), {"x": torch.empty(2, 3, 4)}, dims={"x": {0: "B", 1: "S"}})
    assert model.name == "Scaled"
    assert model.sizes == {"forward": {"B": 2, "S": 3}}
    analytic = compiled(model.module, *model.stages)
    assert evaluate_stage(analytic, "forward", B=7, S=5).total.cost.matmul_flops == 2 * 4 * 2 * 7 * 5


def test_a_module_in_training_mode_is_put_into_evaluation_mode() -> None:
    """Costs are of inference."""
    assert not user_model(nn.Dropout(0.5), torch.empty(2)).module.training


@pytest.mark.parametrize(
    ("module", "dtype"),
    [
        (nn.Linear(2, 2, dtype=torch.float64), "fp64"),
        (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8, dtype=torch.bfloat16)), "bf16 and fp32"),
        (nn.Sequential(nn.LayerNorm(8), nn.Linear(1, 2, dtype=torch.bfloat16)), "fp32 and bf16"),
    ],
)
def test_the_types_of_the_weights_are_named_that_of_most_elements_first(module: nn.Module, dtype: str) -> None:
    """A report always says what variant it is of, mixed types included."""
    assert user_model(module, torch.empty(2, 2)).facts == {"dtype": dtype}


def test_a_model_without_weights_has_no_type() -> None:
    """Its tensors have the types of its inputs."""
    assert user_model(nn.ReLU(), torch.empty(2, 2)).facts == {"weights": "none"}


def test_tensors_inside_an_input_have_dims_of_their_own() -> None:
    """A tuple of tensors takes a tuple of mappings; one name is one size wherever it stands."""
    inputs = {"x": torch.empty(2, 3, 4), "extras": (torch.empty(3, 2), torch.empty(2))}
    stage = stage_of(Scaled(), inputs, dims={"x": {0: "B", -2: "S"}, "extras": ({0: "S"}, None)})
    assert stage.inputs[1] == 2.0  # an argument between, by its default
    analytic = compiled(stage.module, stage)
    assert analytic.stage("forward").dims == ("B", "S")


class Summed(nn.Module):
    """The sum of what a list and a mapping hold."""

    def forward(self, parts: list[Tensor], named: dict[str, Tensor]) -> Tensor:
        """[B, 4] each."""
        return sum(parts, named["x"])


def test_lists_and_mappings_of_tensors_are_captured() -> None:
    """Three tensors of B x 4 elements: two additions of 4 B."""
    x = torch.empty(3, 4)
    dims = [[{0: "B"}, {0: "B"}], {"x": {0: "B"}}]
    model = user_model(Summed(), [[x, x.clone()], {"x": x.clone()}], dims=dims)
    assert model.sizes == {"forward": {"B": 3}}
    analytic = compiled(model.module, *model.stages)
    assert evaluate_stage(analytic, "forward", B=10).total.cost.vector_flops == 2 * 4 * 10


@pytest.mark.parametrize("wrong", [{"y": {0: "B"}}, [{0: "B"}]])
def test_dims_of_a_mapping_have_its_keys(wrong: object) -> None:
    """A key that the input does not have, or a list, would say nothing."""
    x = torch.empty(3, 4)
    with pytest.raises(ModelInputError, match=r"dims of named are .*among those of the input, 'x'"):
        user_model(Summed(), [[x], {"x": x}], dims=[None, wrong])


def test_variable_arguments_are_captured() -> None:
    """`*others` are given in order, their dims too."""
    x = torch.empty(3, 4)
    model = user_model(Joined(), [x, x.clone(), x.clone()], dims=[{0: "B"}, {0: "B"}, {0: "B"}])
    assert model.sizes == {"forward": {"B": 3}}
    # Two additions of 4 B elements.
    analytic = compiled(model.module, *model.stages)
    assert evaluate_stage(analytic, "forward", B=10).total.cost.vector_flops == 2 * 4 * 10


class Paired(nn.Module):
    """A linear layer on the sums of two rows each."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """[2 * N, 4], and [N, 4] each -> [N, 2]."""
        return self.linear(sum(others, x.reshape(-1, 2, 4).sum(1)))


@pytest.mark.parametrize("label", ["2*N", "2 * N", 2 * Dim("T", max=64)])
@pytest.mark.parametrize("beside", [False, True])
def test_a_size_may_be_a_multiple_of_another(label: Any, beside: bool) -> None:
    """Ten rows are five pairs: 2 x N x 4 x 2 FLOPs, whether something else has N rows or not, before or after."""
    name = "N" if isinstance(label, str) else "T"
    inputs = [torch.empty(10, 4), *([torch.empty(5, 4)] if beside else [])]
    model = user_model(Paired(), inputs, dims=[{0: label}, {0: name}][: len(inputs)])
    assert model.sizes == {"forward": {name: 5}}
    assert model.limits == ({} if name == "N" else {"T": 64})
    analytic = compiled(model.module, *model.stages)
    assert analytic.stage("forward").dims == (name,)
    (linear,) = [leaf for leaf in analytic.leaves if leaf.op == "aten::linear"]
    assert str(linear.layer.matmul_flops()) == f"16*{name}"
    (summed,) = [leaf for leaf in analytic.leaves if leaf.op == "aten::sum"]
    assert str(summed.layer.traffic().bytes) == f"48*{name}"  # 2 x 4 x 4 bytes read, 4 x 4 written


def test_a_size_may_be_one_more_than_a_multiple() -> None:
    """Seven rows of three pairs and one: 2 x N + 1 rows of the layer, 16 FLOPs each."""
    model = user_model(nn.Linear(4, 2), torch.empty(7, 4), dims={"input": {0: "2*N + 1"}})
    assert model.sizes == {"forward": {"N": 3}}
    (leaf,) = compiled(model.module, *model.stages).leaves
    assert str(leaf.layer.matmul_flops()) == "32*N + 16"


@pytest.mark.parametrize(
    ("inputs", "dims", "message"),
    [
        ([torch.empty(3, 3, 4)], {"x": {0: "2*B"}}, r"x has size 3 where 2\*B is declared, which it is for no B"),
        ([torch.empty(2, 3, 4)], {"x": {0: "2*B"}}, "dim 'B' has size 1 in the example input x; .*below 2 for a const"),
        ([torch.empty(4, 3, 4)], {"x": {0: "2*B", 1: "B"}}, "'B' has size 2 in the example input x and 3 in x"),
        ([torch.empty(4, 3, 4)], {"x": {0: "B/2"}}, r"axis 0 of x is 'B/2'; .* such as '2\*N \+ 1'"),
        ("x", None, "inputs of Scaled are a str; give a tensor"),
        ({"y": torch.empty(2)}, None, "its arguments are x, scale, extras"),
        ([torch.empty(2, 3, 4)], {"y": {0: "B"}}, "dims are declared for y, which is no input; the inputs are x"),
        ([torch.empty(2, 3, 4)], [{0: "B"}, None], "dims are declared for 2 inputs of 1"),
        ([torch.empty(2, 3, 4)], {"x": {3: "B"}}, "dims of x name axis 3; it has 3 axes"),
        ([torch.empty(2, 3, 4)], {"x": {0: 2}}, "a dim's name is a word"),
        ([torch.empty(2, 3, 4)], {"x": {0: "2B"}}, "the dim of axis 0 of x is '2B'; call it 'B', for "),
        ([torch.empty(2, 3, 4)], {"x": {0: "lambda"}}, "'lambda' cannot name a dim: .* no Python keyword"),
        ([torch.empty(2, 3, 4)], {"x": {0: "Max"}}, "'Max' cannot name a dim: .*none of .*'Max'"),
        ([torch.empty(2, 3, 4)], {"x": {0: "_B"}}, "'_B' cannot name a dim: .*starts with a letter"),
        ([torch.empty(2, 3, 4)], {"x": {0: "B", 1: "B"}}, "'B' has size 2 in the example input x and 3 in x"),
        ([torch.empty(2, 3, 4), 1.0, ()], {"extras": {0: "B"}}, "declared for extras, which is empty in the example"),
        ([torch.empty(2, 3, 4)], {"x": {0: "A", -3: "B"}}, "dims of x name axis 0 twice"),
        ([torch.empty(2, 3, 4)], {"x": "B"}, "write a mapping from axis to name"),
        ([torch.empty(1, 3, 4)], {"x": {0: "B"}}, "dim 'B' has size 1 .*give an example of 2 or more"),
        ([torch.empty(2, 3, 4), 1.0], [None, {0: "B"}], "declared for scale, which is a float and no tensor"),
        ([torch.empty(2, 3, 4)], "B", "dims are a str; give a mapping"),
        ([1, 2, 3, 4], None, "4 inputs are given for Scaled.forward, which takes x, scale, extras"),
        (
            [torch.empty(2, 3, 4), 1.0, (torch.empty(2),)],
            [None, None, ({0: "B"}, None)],
            "dims of extras have 2 entries for 1 tensors",
        ),
    ],
)
def test_inputs_and_dims_that_do_not_fit_are_refused(inputs: object, dims: object, message: str) -> None:
    """The message names the argument and what fits."""
    with pytest.raises(ModelInputError, match=message):
        user_model(Scaled(), inputs, dims=dims)


@pytest.mark.parametrize("name", ["S", "N", "E", "I", "Q", "O", "pi", "oo", "beta", "zeta", "gamma", "test", "stage"])
def test_a_dim_may_be_called_what_sympy_has_a_meaning_for(name: str) -> None:
    """A name is never read as sympy's constants and functions: 2 x 4 x 2 FLOPs a row, whatever rows are called."""
    model = user_model(nn.Linear(4, 2), torch.empty(3, 4), dims={"input": {0: name}})
    analytic = model_from_bytes(model_to_json(compiled(model.module, *model.stages)).encode(), source="the test")
    (stage,) = analytic.stages
    assert stage.dims == (name,)
    point = parse_point(f"forward:{name}=10")
    workload = points_workload([point])
    assert evaluate(analytic, workload).total.total.cost.matmul_flops == 2 * 4 * 2 * 10


def test_a_dim_that_the_model_bounds_is_given_with_its_bound() -> None:
    """A table of 16 positions, cut to the length of the input: S may be 16 at most, which a plain name does not say."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(16))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table[: x.shape[0]]

    bounded, plain = (user_model(Positions(), torch.empty(5), dims=[{0: S}]) for S in (Dim("S", min=1, max=16), "S"))
    assert evaluate_stage(compiled(bounded.module, *bounded.stages), "forward", S=9).total.cost.vector_flops == 9
    with pytest.raises(CaptureError, match=r"(?s)S = Dim\('S', max=16\).*torch.export.Dim\(NAME, max=SIZE\)"):
        compiled(plain.module, *plain.stages)


def test_a_size_beyond_the_bound_of_its_dim_is_refused() -> None:
    """B to 16 by its Dim, S by name alone: 16 rows are answered, 17 are not, and S has no bound."""
    model = user_model(nn.Linear(4, 2), torch.empty(3, 5, 4), dims={"input": {0: Dim("B", min=1, max=16), 1: "S"}})
    assert model.limits == {"B": 16}
    made = model_from_bytes(compile_user_model(model).model_json, source="the model")
    assert evaluate_stage(made, "forward", B=16, S=200_000).total.cost.matmul_flops == 2 * 16 * 200_000 * 4 * 2
    with pytest.raises(SizeLimitError, match="runs at B = 17; Linear has room for B up to 16"):
        evaluate(made, points_workload([parse_point("forward:B=17,S=5")]))


def test_a_bound_of_one_stage_alone_bounds_no_other() -> None:
    """S to 8 in one and to 16 in the other: 16; free in the other: no bound. A Dim without a maximum has none."""
    narrow, wide, free, endless = (
        stage_of(nn.Linear(4, 2), torch.empty(3, 4), dims=[{0: S}], name=name)
        for name, S in (("a", Dim("S", max=8)), ("b", Dim("S", max=16)), ("c", "S"), ("d", Dim("S")))
    )
    for other, limits in ((wide, {"S": 16}), (free, {}), (endless, {})):
        assert UserModel(name="two", module=nn.Linear(4, 2), stages=(narrow, other)).limits == limits


def test_a_dim_that_no_operator_reads_is_a_dim_all_the_same() -> None:
    """The second input is not used: its rows cost nothing, and a point names them or not as it names others."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.linear(x)

    model = user_model(First(), [torch.empty(3, 4), torch.empty(5, 4)], dims=[{0: "B"}, {0: "C"}])
    analytic = compiled(model.module, *model.stages)
    assert analytic.stage("forward").dims == ("B", "C")
    assert evaluate_stage(analytic, "forward", B=10, C=7).total.cost.matmul_flops == 2 * 4 * 2 * 10


def test_arguments_by_keyword_only_are_refused() -> None:
    """torch.export is given arguments in order."""
    with pytest.raises(ModelInputError, match="takes mask by keyword only"):
        user_model(KeywordOnly(), {"x": torch.empty(2, 4), "mask": torch.empty(2, 4)})


# --- factories

FACTORY = """
import torch
from torch import nn

def plain():
    return nn.Linear(4, 2, device="meta"), torch.empty(3, 4, device="meta")

def symbolic():
    return nn.Linear(4, 2, device="meta"), torch.empty(3, 4, device="meta"), {"input": {0: "B"}}

def wrong():
    return nn.Linear(4, 2)

def short():
    return (1, 2)

def failing():
    raise RuntimeError("no such file")

NUMBER = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of factories in the working directory."""
    name = f"factories_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_factory_may_return_a_tuple(factories: str) -> None:
    """(module, inputs), and dims where sizes stay symbolic."""
    assert load_factory(f"{factories}:plain").sizes == {"forward": {}}
    assert load_factory(f"{factories}:symbolic").sizes == {"forward": {"B": 3}}


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("wrong", "returned a Linear; return \\(module, inputs\\)"),
        ("short", "returned a tuple of \\(int, int\\)"),
        ("failing", "failed: RuntimeError: no such file"),
        ("absent", "has no factory 'absent'; its functions: plain, symbolic, wrong, short, failing"),
        ("NUMBER", "has no factory 'NUMBER'"),
    ],
)
def test_factories_that_make_no_model_are_refused(factories: str, factory: str, message: str) -> None:
    """The message says what came instead, or which there are."""
    with pytest.raises(FactoryError, match=message):
        load_factory(f"{factories}:{factory}")


@pytest.mark.parametrize(("text", "message"), [("torch", "names no factory"), ("no.such.module:make", "run from")])
def test_texts_that_name_no_factory_are_refused(text: str, message: str) -> None:
    """A factory is named as package.module:factory."""
    with pytest.raises(FactoryError, match=message):
        load_factory(text)


# --- partial models


class Branching(nn.Module):
    """Two stages, one of which depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4]."""
        return self.linear(x)


class Deciding(nn.Module):
    """Runs a module if its input is large."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4]."""
        return self.inner(x) if x.sum() > 0 else x


def two_stages() -> tuple[nn.Module, StageSpec, StageSpec]:
    """A model, a stage that can be captured and one that cannot."""
    root = Deciding(Branching())
    x = torch.empty(2, 4)
    good = StageSpec(name="good", description="", module=root.inner, inputs=(x,))
    return root, good, stage_of(root, x, name="bad")


def test_a_stage_that_cannot_be_captured_is_an_error() -> None:
    """No partial model by default; the error names the stage, and knows whether there are others."""
    root, good, bad = two_stages()
    for stages in ([good, bad], [bad]):
        with pytest.raises(CaptureError, match=r"stage 'bad' cannot be captured") as caught:
            compiled(root, *stages)
        assert caught.value.other_stages is (len(stages) > 1)


def test_a_partial_model_says_so() -> None:
    """The variant says without which stage it is, the provenance why."""
    root, good, bad = two_stages()
    model = compiled(root, good, bad, allow_partial=True)
    assert [stage.name for stage in model.stages] == ["good"]
    assert model.variant == {"partial": "without bad"}
    assert "Deciding" in model.provenance["why without bad"]


def test_a_model_without_any_stage_is_an_error() -> None:
    """A report of nothing would mislead."""
    root, _, bad = two_stages()
    with pytest.raises(CaptureError, match="stage 'bad'"):
        compiled(root, bad, allow_partial=True)
