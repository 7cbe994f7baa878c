"""TorchLens counts module calls beside the hooks: a stand-in of it, and the package itself where it is installed."""

import argparse
import sys
from collections.abc import Callable, Generator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from dsocr_graph import cli_verify
from dsocr_graph.models.registry import NamedModel
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.verification import torchlens_calls as adapter
from dsocr_graph.verification.records import StageVerification, Subject
from dsocr_graph.verification.torchlens_calls import TorchLensError, Use, torchlens_calls, torchlens_trace
from dsocr_graph.verification.verify import verify_model

# What TorchLens 2.36 gives of a trace that the adapter reads: the modules that ran, the outermost as "self".
STAND_IN = """
from collections import Counter
from types import SimpleNamespace

def trace(module, inputs):
    calls = Counter()
    hooks = [
        each.register_forward_hook(lambda *_, path=path: calls.update([path or "self"]))
        for path, each in module.named_modules()
    ]
    module(*inputs)
    for hook in hooks:
        hook.remove()
    return SimpleNamespace(modules=[SimpleNamespace(address=path, num_calls=count) for path, count in calls.items()])
"""


class Stage(nn.Module):
    """Calls a layer of its model twice, and not the model."""

    def __init__(self) -> None:
        super().__init__()
        self.root = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[M, 4] -> [M, 4]."""
        return self.root[1](self.root[0](self.root[0](x)))


def verified(use: Use) -> StageVerification:
    """Verify the stage on two rows."""
    with torch.device("meta"):
        module, x = Stage().eval(), torch.empty(2, 4)
    stage = StageSpec(name="forward", description="", module=module, inputs=(x,), root="root")
    (found,) = verify_model(module.root, [stage], name="toy", variant={}, torchlens=use).stages
    return found


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Let Python find a package of the name with some source, and nothing that was imported before."""
    (folder / "torchlens.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    # Set before it is taken away, so that undoing takes away too what is imported in between.
    monkeypatch.setitem(sys.modules, "torchlens", sys.modules.get("torchlens", adapter))
    del sys.modules["torchlens"]


@pytest.fixture(params=["stand-in", "installed"])
def torchlens(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[None, None, None]:
    """Provide the stand-in, or the package itself."""
    if request.param == "stand-in":
        install(tmp_path, monkeypatch, STAND_IN)
    elif find_spec("torchlens") is None:
        pytest.skip("TorchLens is optional")
    yield
    if request.param == "stand-in":
        sys.modules.pop("torchlens", None)


@pytest.mark.usefixtures("torchlens")
def test_calls_are_counted_by_path_in_the_model() -> None:
    """Paths begin at the model, which is itself not called."""
    trace = torchlens_trace("on")
    assert trace is not None
    assert torchlens_calls(trace, Stage(), "root", [torch.ones(2, 4)]) == {"0": 2, "1": 1}
    assert torchlens_calls(trace, Stage(), "", [torch.ones(2, 4)])[""] == 1


@pytest.mark.usefixtures("torchlens")
def test_a_verification_has_its_count_beside_that_of_the_hooks() -> None:
    """The root and two modules are compared; the root alone differs, for the same reason as with hooks."""
    found = verified("auto")
    checks = {check.subject: check for check in found.checks}
    assert checks[Subject.TORCHLENS].compared == 3
    assert [each.module for each in checks[Subject.TORCHLENS].differences] == [""]
    assert found.unexplained == ()


@pytest.mark.usefixtures("torchlens")
def test_it_can_be_left_out() -> None:
    """Switched off, hooks alone count, wherever it is installed."""
    assert Subject.TORCHLENS not in {check.subject for check in verified("off").checks}


def test_without_it_hooks_alone_count_unless_it_is_asked_for(
    toy_model: Callable[..., NamedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is not installed "auto" counts without it; asked for, the message says how to get it, or do without."""
    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    assert torchlens_trace("auto") is None
    with pytest.raises(
        TorchLensError, match=r"not installed: run `pip install .*, or count by hooks .*--torchlens off"
    ):
        torchlens_trace("on")
    toy_model()
    parser = argparse.ArgumentParser()
    cli_verify.add_parser(parser.add_subparsers())
    options = parser.parse_args(["verify", "--model", "toy", "--torchlens", "on"])
    with pytest.raises(ImportError, match="TorchLens is asked for and not installed"):
        options.run(options)


def test_one_that_is_too_old_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchLens 2.2 has no `trace`: the message names its version and what to do."""
    install(tmp_path, monkeypatch, '__version__ = "2.2.1"')
    with pytest.raises(TorchLensError, match=r"TorchLens 2\.2\.1 has no `trace`.*dsocr-graph\[torchlens\]"):
        torchlens_trace("auto")
    sys.modules.pop("torchlens", None)
