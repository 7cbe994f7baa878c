"""What the tests of the pipeline share: a toy model by name, the command line in a process, one cold standard run."""

import fcntl
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

from dsocr_graph.ir import CapturedModel
from dsocr_graph.models import registry
from dsocr_graph.models.named_model import NamedModel
from dsocr_graph.models.registry import Variant
from dsocr_graph.models.stage_spec import StageSpec

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@attrs.frozen(kw_only=True)
class StandardRun:
    """The files of a run, and the cache it left."""

    out: Path
    cache: Path


@pytest.fixture(scope="session")
def process_environment(repo_root: Path) -> Callable[..., dict[str, str]]:
    """Return a maker of environments in which a process of any directory finds both packages."""

    def make(**changes: str) -> dict[str, str]:
        places = [str(repo_root / "src"), str(repo_root / "extern"), os.environ.get("PYTHONPATH", "")]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), **changes}

    return make


@pytest.fixture(scope="session")
def python(process_environment: Callable[..., dict[str, str]]) -> Command:
    """Return a runner of Python in a process of its own: arguments, directory, variables."""

    def run(*arguments: object, cwd: Path, timeout: float = 200, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=process_environment(**variables),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def standard_run(python: Command, tmp_path_factory: pytest.TempPathFactory) -> StandardRun:
    """Return the standard run of the full-size model, captured cold by one of the test processes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the processes of one run share it
    home = folder / "standard-run"
    home.mkdir(exist_ok=True)
    made = StandardRun(out=home / "out", cache=home / "cache")
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the second process waits for the first one's files
        if not made.out.exists():
            settings = {"PYTHONHASHSEED": "1", "DSOCR_GRAPH_CACHE": str(made.cache)}
            result = python("-m", "dsocr_graph.analyze", "--out", "out", cwd=home, **settings)
            assert result.returncode == 0, result.stderr
            assert "capturing decode" in result.stderr  # a cold one
    return made


@pytest.fixture(scope="session")
def captured() -> Callable[..., CapturedModel]:
    """Return a function that captures a module, or a function as the forward of one, on inputs on `meta`."""
    import torch
    from torch import nn

    from dsocr_graph.tracing import capture

    class Function(nn.Module):
        def __init__(self, function: Callable[..., object]) -> None:
            super().__init__()
            self.function = function

        def forward(self, *inputs: object) -> object:
            """Call the function."""
            return self.function(*inputs)

    def capture_it(
        what: Callable[..., object], *inputs: object, stage: str = "forward", **options: Any
    ) -> CapturedModel:
        module = what if isinstance(what, nn.Module) else Function(what)
        if module is not what and "dynamic_shapes" in options:
            options["dynamic_shapes"] = (options["dynamic_shapes"],)  # those of *inputs
        spec = StageSpec(name=stage, description="", module=module.eval(), inputs=inputs, **options)
        with torch.device("meta"):
            return capture(module, [spec], name="toy", variant={})

    return capture_it


@pytest.fixture(scope="session")
def page_makers() -> ModuleType:
    """Return the makers of PDFs and PNGs that the tests of the workloads have."""
    path = Path(__file__).parent / "workloads" / "conftest.py"
    spec = importlib.util.spec_from_file_location("page_makers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy_model(monkeypatch: pytest.MonkeyPatch) -> Callable[..., NamedModel]:
    """Return a function that registers a model of one linear layer and an operator of choice, under the name toy."""
    import torch
    from torch import nn
    from torch.export import Dim

    class Toy(nn.Module):
        def __init__(self, extra: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            self.proj = nn.Linear(4, 2, bias=False)
            self.extra = extra

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Run the layer, then the operator."""
            return self.extra(self.proj(x))

    def build(extra: Callable[[torch.Tensor], torch.Tensor]) -> tuple[nn.Module, tuple[StageSpec, ...]]:
        def dim(name: str) -> Dim:
            return Dim(name, min=1, max=4096)

        with torch.device("meta"):
            model = Toy(extra).eval()
            inputs = torch.empty(3, 5, 4)
        axes = {
            "vision_global": None,
            "vision_local": {0: dim("H"), 1: dim("W")},
            "prefill": {0: dim("B"), 1: dim("S")},
            "decode": {0: dim("B"), 1: dim("T")},
        }
        return model, tuple(
            StageSpec(
                name=stage,
                description=stage,
                module=model,
                inputs=(inputs,),
                dynamic_shapes=None if dims is None else {"x": dims},
                aliases={"W": "V/H"},
            )
            for stage, dims in axes.items()
        )

    def register(extra: Callable[[torch.Tensor], torch.Tensor] = torch.relu) -> NamedModel:
        def config(variant: Variant) -> dict[str, object]:
            return {"extra": getattr(extra, "__name__", ""), "base": variant.base_size}

        named = NamedModel(
            name="toy",
            description="one layer",
            source="this test",
            variant=registry.MODELS["deepseek-ocr"].variant,
            workload=registry.MODELS["deepseek-ocr"].workload,
            config=config,
            build=lambda variant: build(extra),
        )
        monkeypatch.setattr(registry, "MODELS", {**registry.MODELS, "toy": named})
        return named

    return register
