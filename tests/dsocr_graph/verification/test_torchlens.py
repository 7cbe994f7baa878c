"""TorchLens counts the module calls that the graph has, where it is installed."""

import pytest
import torch
from torch import nn

from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.verification.records import Subject
from dsocr_graph.verification.torchlens_calls import torchlens_calls
from dsocr_graph.verification.verify import verify_model

pytest.importorskip("torchlens", reason="TorchLens is optional")


class Stage(nn.Module):
    """Calls a layer of its model twice, and not the model."""

    def __init__(self) -> None:
        super().__init__()
        self.root = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[M, 4] -> [M, 4]."""
        return self.root[1](self.root[0](self.root[0](x)))


def test_calls_are_counted_by_path_in_the_model() -> None:
    """Paths begin at the model, which is itself not called."""
    assert torchlens_calls(Stage(), "root", [torch.ones(2, 4)]) == {"0": 2, "1": 1}


def test_a_verification_has_its_count_beside_that_of_the_hooks() -> None:
    """The root and two modules are compared; the root alone differs, for the same reason as with hooks."""
    with torch.device("meta"):
        module, x = Stage().eval(), torch.empty(2, 4)
    stage = StageSpec(name="forward", description="", module=module, inputs=(x,), root="root")
    (found,) = verify_model(module.root, [stage], name="toy", variant={}).stages
    checks = {check.subject: check for check in found.checks}
    assert checks[Subject.TORCHLENS].compared == 3
    assert [each.module for each in checks[Subject.TORCHLENS].differences] == [""]
    assert found.unexplained == ()
