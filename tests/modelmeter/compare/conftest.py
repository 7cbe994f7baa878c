"""Sides of the toy model for the tests of this folder."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from modelmeter.compare import Side, side_of_report
from modelmeter.evaluate import evaluate


@pytest.fixture
def toy_side(toy: ModuleType) -> Callable[..., Side]:
    """Return a maker of sides: a label, a model (the toy), a workload (the toy's), and what `evaluate` takes."""

    def make(label: str, *, model: Any = None, workload: Any = None, alone: bool = False, **options: Any) -> Side:
        model = toy.toy_model() if model is None else model
        workload = toy.toy_workload() if workload is None else workload
        report = evaluate(model, workload, **options)
        return side_of_report(report, label=label, model=None if alone else model)

    return make
