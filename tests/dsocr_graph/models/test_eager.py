"""Eager modules: what is scripted, compiled, exported, replicated or no module at all is refused, with what to give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from dsocr_graph.errors import ModelInputError
from dsocr_graph.models.eager import eager
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.models.user_model import stage_of
from dsocr_graph.subjects import subject_of
from dsocr_graph.tracing.exporting import exported

X = torch.ones(3, 4)


def in_place() -> nn.Module:
    """Return a module compiled by its own method."""
    module = nn.Linear(4, 2)
    module.compile()
    return module


OTHERS: dict[str, tuple[Callable[[], object], str]] = {
    "scripted": (lambda: torch.jit.script(nn.Linear(4, 2)), "the model is scripted .*give the nn.Module it was made"),
    "traced": (lambda: torch.jit.trace(nn.Linear(4, 2), X), "the model is scripted or traced by torch.jit"),
    "compiled": (lambda: torch.compile(nn.Linear(4, 2)), "compiled by torch.compile .*its attribute _orig_mod"),
    "in place": (in_place, "compiled in place by its method compile .*leave that call out"),
    "replicated": (lambda: nn.DataParallel(nn.Linear(4, 2)), "replicated over devices .*its attribute module"),
    "exported": (lambda: torch.export.export(nn.Linear(4, 2), (X,)), "an ExportedProgram, .*give the nn.Module"),
    "list": (
        lambda: nn.ModuleList([nn.Linear(4, 2)]),
        "the model is a ModuleList, which has no forward .*nn.Sequential",
    ),
    "class": (lambda: nn.Linear, "the model is the class Linear; give an nn.Module"),
    "function": (lambda: torch.relu, "the model is a builtin_function_or_method; give an nn.Module"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", list(OTHERS))
def test_what_is_no_eager_module_is_refused(kind: str) -> None:
    """As a subject, with inputs or without, and as a stage: never an AttributeError of torch's."""
    make, message = OTHERS[kind]
    other = make()
    for attempt in (
        lambda: subject_of(other, X),  # pyright: ignore[reportArgumentType]
        lambda: subject_of(other),  # pyright: ignore[reportArgumentType]
        lambda: stage_of(other, X),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(ModelInputError, match=message):
            attempt()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_part_of_a_model_is_named() -> None:
    """The second of two layers is scripted; a stage made by hand is looked at as well."""
    model = nn.Sequential(nn.ReLU(), torch.jit.script(nn.Linear(4, 2)))
    with pytest.raises(ModelInputError, match="module 1 of the model is scripted"):
        exported(StageSpec(name="forward", description="", module=model, inputs=(X,)), model)


def test_an_eager_module_is_returned() -> None:
    """As it is."""
    module = nn.Sequential(nn.Linear(4, 2))
    assert eager(module) is module
