"""Export errors: each kind of reason has its own message, with the place in the model that it came from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from dsocr_graph.errors import CaptureError
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.tracing.export_errors import require_inputs
from dsocr_graph.tracing.exporting import exported

VALUES = "a shape or a branch depends on the values of tensors"
ADVICE_ON_VALUES = "change that module so that none does"


class Gate(nn.Module):
    """Runs a function on its input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


class Product(nn.Module):
    """x @ y."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """[n, k] and [k, m] -> [n, m]."""
        return x @ y


def refusal(
    module: nn.Module, *inputs: object, name: str = "forward", dims: object = None, configured: bool = False
) -> str:
    """Return what the error of a stage's export says."""
    stage = StageSpec(
        name=name, description="", module=module, inputs=inputs, dynamic_shapes=dims, configured=configured
    )
    with pytest.raises(CaptureError) as caught:
        exported(stage, module)
    return str(caught.value)


def scaled_then(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a model that runs a linear layer, then a function."""
    return nn.Sequential(nn.Linear(4, 4, device="meta"), Gate(function))


def meta(*shape: int) -> Tensor:
    """Return a tensor without data."""
    return torch.empty(*shape, device="meta")


def test_a_missing_argument_is_said_to_be_missing() -> None:
    """Nothing ran: the message has forward's arguments, no module inside, no operator, no values of tensors."""
    said = refusal(Product(), meta(3, 4), name="prefill")
    assert said == (
        "stage 'prefill' cannot be captured: 1 example input does not fit Product.forward: missing a required "
        "argument: 'y'; its arguments are x, y. Give an example of each without a default, in order"
    )


def test_an_argument_too_many_is_said_to_be_left_over() -> None:
    """As for one that is missing."""
    with pytest.raises(
        CaptureError, match=r"2 example inputs do not fit Linear.forward: too many positional arguments"
    ):
        require_inputs(
            StageSpec(name="forward", description="", module=nn.Linear(4, 2), inputs=(torch.ones(3, 4), torch.ones(1)))
        )


def test_inputs_of_a_wrong_shape_name_the_operator_that_refuses_them() -> None:
    """[3, 5] into a layer of 4: the second layer is the place, its operator the one, the first layer's is not named."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 2, device="meta"))
    said = refusal(model, meta(3, 5))
    first, place, reason, advice = said.splitlines()
    assert first == "stage 'forward' cannot be captured: its forward fails on the example inputs, float32[3, 5]"
    assert place == "  in module 1 (Linear), function forward, operator linear"
    assert "[3, 5]" in reason
    assert "[4, 2]" in reason  # the layer's weight
    assert advice == "  give inputs that the module runs on, or correct the module"


def test_inputs_of_a_configured_stage_are_no_fault_of_the_users() -> None:
    """Who gives a configuration can give no inputs: the advice is to report it."""
    advice = refusal(nn.Linear(4, 2, device="meta"), meta(3, 5), configured=True).splitlines()[-1]
    assert advice.startswith("  that is a fault of how dsocr_graph describes such models, not of the configuration")


def test_an_error_between_operators_names_no_operator() -> None:
    """The linear layer before it is done: neither it nor its operator raised anything."""

    def wrong(x: Tensor) -> Tensor:
        raise KeyError(f"no entry for {x.shape[0]}")

    said = refusal(scaled_then(wrong), meta(3, 4))
    assert "  in module 1 (Gate), function wrong\n" in said
    assert "KeyError: 'no entry for 3'" in said
    assert "linear" not in said


def test_a_branch_on_values_is_told_apart() -> None:
    """The operator that asks for the value is the one, and what torch could not decide is there."""
    said = refusal(scaled_then(lambda x: x + 1 if x.sum() > 0 else x), meta(3, 4))
    first, place, reason, advice = said.splitlines()  # no graph, no lines of files
    assert first.endswith(VALUES)
    assert place == "  in module 1 (Gate), function forward, operator __bool__"
    assert reason.startswith("  GuardOnDataDependentSymNode: Could not guard on data-dependent expression")
    assert advice.startswith(f"  {ADVICE_ON_VALUES}")


def test_torch_says_nothing_beside_the_error(caplog: pytest.LogCaptureFixture) -> None:
    """Its log looks for code of the user's, and finds none, wherever a branch depends on values."""
    with caplog.at_level("WARNING"):
        refusal(scaled_then(lambda x: x if x.sum() > 0 else -x), meta(3, 4))
    assert not caplog.records


def test_weights_that_a_module_assigns_to_itself_are_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    """`nn.LSTM` keeps its flattened weights so; the user can do nothing about it, and the cost does not change."""
    module = nn.LSTM(4, 8, batch_first=True, device="meta")
    inputs = (meta(2, 5, 4),)
    exported(StageSpec(name="forward", description="", module=module, inputs=inputs), module)
    assert not [warning for warning in recwarn if "assigned during export" in str(warning.message)]


def test_a_branch_on_an_item_names_the_module_whose_python_asks() -> None:
    """Comparing the number that `item` returned is no operator of torch."""
    said = refusal(scaled_then(lambda x: x + 1 if x.sum().item() > 0 else x), meta(3, 4))
    assert VALUES in said
    assert "  in module 1 (Gate), function forward\n" in said


def test_a_dim_that_the_model_fixes_is_named_with_the_operator_that_fixes_it() -> None:
    """A view to three rows: B is 3 ever after; the layers before and after it are not to blame."""
    model = nn.Sequential(nn.ReLU(), Gate(lambda x: x.reshape(3, 2, 2)), nn.ReLU())
    said = refusal(model, meta(3, 4), dims=({0: Dim("B", min=1, max=64)},))
    first, place, *reason, advice = said.splitlines()
    assert first == "stage 'forward' cannot be captured: the model fixes B to 3"
    assert place == "  in module 1 (Gate), function forward, operator reshape"
    assert "B = 3" in " ".join(reason)  # what torch suggests
    assert advice.startswith("  declare no dim there (leave B out of dims), or change that module")
    assert "values of tensors" not in said


def test_dims_that_have_to_be_equal_are_said_to_be() -> None:
    """Adding [S, 4] and [T, 4] makes S and T one: what torch suggests is in the message."""
    shapes = ({0: Dim("S", min=2, max=64)}, {0: Dim("T", min=2, max=64)})
    said = refusal(Sum(), meta(5, 4), meta(5, 4), dims=shapes)
    assert "the dims that it declares are not as free as declared" in said
    assert "The values of T = L['y'].size()[0] and S = L['x'].size()[0] must always be equal." in said
    assert "operator" not in said  # none of them is to blame, the last one least
    assert "one name for sizes that are always equal" in said


def test_dims_of_a_configured_model_are_not_the_fault_of_its_user() -> None:
    """The same refusal where the stage follows from a config.json: nobody who gives that declares dims."""
    shapes = ({0: Dim("S", min=2, max=64)}, {0: Dim("T", min=2, max=64)})
    said = refusal(Sum(), meta(5, 4), meta(5, 4), dims=shapes, configured=True)
    assert "must always be equal" in said
    assert "declare them as torch says" not in said
    assert "that is a fault of how dsocr_graph describes such models, not of the configuration: report it" in said


class Sum(nn.Module):
    """x + y."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """[n, k] each."""
        return x + y


def test_dims_that_do_not_fit_the_inputs_are_told_apart() -> None:
    """Dims for two tensors where there is one, and for an argument of another name."""
    said = refusal(nn.ReLU(), meta(3, 4), dims=({0: Dim("B")}, {0: Dim("B")}))
    assert "it declares dims for 2 inputs and has 1" in said
    said = refusal(nn.ReLU(), meta(3, 4), dims={"rows": {0: Dim("B")}})
    assert "the dims that it declares do not fit its inputs" in said
    assert "['input']" in said  # the name of forward's argument


def test_what_runs_but_cannot_be_traced_is_told_apart() -> None:
    """The inputs are right, and torch.export refuses an output of a class of its own."""

    class Own:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    class Wrapping(nn.Module):
        def forward(self, x: Tensor) -> Own:
            return Own(x * 2)

    said = refusal(Wrapping(), meta(3, 4))
    assert "its forward runs on the example inputs, and torch.export cannot follow it" in said


class Packed(nn.Module):
    """An LSTM on sequences of 5, 3 and 2 steps, packed."""

    def __init__(self, device: str, features: int = 4) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, 4, batch_first=True, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """[3, 5, features] -> [10, 4]."""
        return self.lstm(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3, 2]), batch_first=True))[0].data


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_depends_on_values_and_runs_is_not_said_to_fail(device: str) -> None:
    """Packed sequences: their sizes are the values of the lengths; the inputs are right."""
    said = refusal(Packed(device), torch.ones(3, 5, 4, device=device))
    first, *_, advice = said.splitlines()
    assert first.endswith(
        "runs on the example inputs, and torch.export cannot follow it: it depends on the values of tensors"
    )
    assert advice.strip().startswith(ADVICE_ON_VALUES)


def test_what_depends_on_values_and_fails_is_said_to_fail() -> None:
    """Packed sequences of 3 features for a layer of 4."""
    said = refusal(Packed("cpu"), torch.ones(3, 5, 3))
    assert "its forward fails on the example inputs, float32[3, 5, 3]" in said


def test_a_module_that_is_run_to_see_leaves_the_random_numbers_alone() -> None:
    """What the user draws next is as without the error; the module draws itself."""
    model, x = nn.Sequential(nn.Dropout(), Packed("cpu")), torch.ones(3, 5, 4)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    refusal(model, x)
    assert torch.equal(torch.rand(4), expected)


def test_a_module_of_many_parameters_is_not_run_to_see() -> None:
    """2**24 + 1 numbers beside the layer: whether its forward runs is then not said."""
    module = Packed("cpu")
    module.register_buffer("table", torch.zeros(2**24 + 1, dtype=torch.uint8))
    calls: list[bool] = []
    module.register_forward_pre_hook(lambda *_: calls.append(True))
    said = refusal(module, torch.ones(3, 5, 4))
    assert "torch.export cannot follow its forward: it depends on the values of tensors" in said
    assert len(calls) == 2  # the export, and one on fake tensors


def test_an_operator_without_a_kernel_for_no_data_is_told_apart() -> None:
    """A custom operator that registers no fake: the way out is to register one."""

    @torch.library.custom_op("test_export_errors::opaque", mutates_args=())
    def opaque(x: Tensor) -> Tensor:
        return x.clone()

    said = refusal(scaled_then(opaque), meta(3, 4))
    assert "has no implementation for tensors without data" in said
    assert "torch.library.register_fake" in said
    assert "in module 1 (Gate)" in said


def test_a_module_without_a_forward_is_no_missing_kernel() -> None:
    """A list of layers that is called as one; the module that calls it is the place."""
    model = nn.Sequential(nn.ModuleList([nn.Linear(4, 4, device="meta")]))
    said = refusal(model, meta(3, 4))
    assert "a module is called that has no forward, such as an nn.ModuleList" in said
    assert "  in module (root) (Sequential), function forward\n" in said
    assert "call its parts there" in said
    assert "register_fake" not in said


def test_what_a_model_leaves_unimplemented_is_no_missing_kernel() -> None:
    """Code of the user's raises NotImplementedError: its forward fails, and no operator is to blame."""

    def unfinished(x: Tensor) -> Tensor:
        raise NotImplementedError("later")

    said = refusal(scaled_then(unfinished), meta(3, 4))
    assert "its forward fails on the example inputs" in said
    assert "in module 1 (Gate), function unfinished" in said


def test_an_error_of_a_second_stage_names_nothing_of_the_first() -> None:
    """A stage that went well leaves no operator behind for the next one's message."""
    model = nn.Sequential(nn.Softmax(-1), nn.Linear(4, 2, device="meta"))
    exported(StageSpec(name="one", description="", module=model, inputs=(meta(3, 4),)), model)
    said = refusal(model, name="two")
    assert said.startswith("stage 'two' cannot be captured: 0 example inputs do not fit Sequential.forward")
    assert "linear" not in said
    assert "softmax" not in said


def test_long_inputs_are_counted() -> None:
    """Seven tensors: six by shape and one more."""

    class Join(nn.Module):
        def forward(self, *x: Tensor) -> Tensor:
            return torch.cat(x) @ x[0]

    assert "float32[2, 3], float32[2, 3] and 1 more" in refusal(Join(), *(meta(2, 3) for _ in range(7)))


def test_of_a_large_module_that_is_not_run_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it runs on data is not known: neither that it does nor that it fails is said."""
    monkeypatch.setattr("dsocr_graph.tracing.export_errors._MOST_ELEMENTS", 8)
    module = nn.Sequential(nn.Linear(4, 4), Gate(lambda x: torch.from_numpy(x.numpy())))
    said = refusal(module, torch.ones(3, 4))
    assert "torch.export cannot follow its forward on the example inputs, float32[3, 4]" in said
    assert "see that the module runs on them" in said
