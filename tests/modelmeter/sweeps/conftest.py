"""A grid over pages-like axes of the shipped model, and of the toy model."""

from types import ModuleType

import pytest

import modelmeter
from modelmeter.devices import load_device
from modelmeter.model import AnalyticModel
from modelmeter.sweeps import Axis, Grid, Program, Section, StageRule

# new - 1 steps of decode: none for one token. Uncropped pages (views 0) have no local views.
RULES = (
    StageRule(stage="vision_local", count="batch*Min(views, 1)", bindings={"V": "views", "H": "rows", "W": "1"}),
    StageRule(stage="vision_global", count="batch"),
    StageRule(stage="prefill", count="1", bindings={"B": "batch", "S": "image + prompt", "N": "image"}),
    StageRule(stage="decode", count="new - 1", bindings={"B": "batch", "T": "image + prompt"}, sweep="T"),
)
AXES = (
    Axis(name="page", columns={"views": (0, 4, 6), "rows": (1, 2, 3), "image": (273, 693, 903)}),
    Axis.of("batch", (1, 2, 7, 64, 300), unit="pages"),
    Axis.of("prompt", (1, 10, 1000)),
    Axis.of("new", (1, 2, 3, 100, 1100)),
)


@pytest.fixture(scope="session")
def shipped() -> AnalyticModel:
    """Return the shipped model."""
    return modelmeter.load("deepseek-ocr", "gundam")


@pytest.fixture(scope="session")
def grid(shipped: AnalyticModel) -> Grid:
    """Return 225 points on each of two devices."""
    program = Program.of(shipped)
    return Grid(
        sections=tuple(
            Section(
                program=program,
                labels={"device": name},
                axes=AXES,
                rules=RULES,
                documents="batch",
                device=load_device(name),
            )
            for name in ("h200", "l4")
        )
    )


@pytest.fixture(scope="session")
def plain_grid(shipped: AnalyticModel) -> Grid:
    """Return the same 225 points without times."""
    return Grid(sections=(Section(program=Program.of(shipped), axes=AXES, rules=RULES, documents="batch"),))


@pytest.fixture(scope="session")
def toy_grid(toy: ModuleType) -> Grid:
    """Return four points of the toy model: a prefill, then three decode steps."""
    rules = (
        StageRule(stage="prefill", count="1", bindings={"B": "B", "S": "S"}),
        StageRule(stage="decode", count="3", bindings={"B": "B", "T": "S"}, sweep="T"),
    )
    axes = (Axis.of("B", (1, 2)), Axis.of("S", (4, 5)))
    return Grid(sections=(Section(program=Program.of(toy.toy_model()), axes=axes, rules=rules, documents="B"),))
