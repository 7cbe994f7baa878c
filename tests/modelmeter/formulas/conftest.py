"""Evaluators of a formula's written forms, which know nothing of sympy."""

import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import pytest

from modelmeter.expert_counts import uniform_routing

Evaluator = Callable[[str, Mapping[str, int]], float]


@pytest.fixture(scope="session")
def run_python() -> Evaluator:
    """Return an evaluator of the source of one function."""

    def run(source: str, bindings: Mapping[str, int]) -> float:
        space: dict[str, Any] = {}
        exec(source, space)  # noqa: S102 - the source is what is tested
        (function,) = (value for name, value in space.items() if name != "__builtins__")
        return function(**bindings)

    return run


@pytest.fixture(scope="session")
def run_latex() -> Evaluator:
    r"""Return an evaluator of LaTeX with \cdot, \frac, powers, brackets and a formula's functions, nothing else."""

    def run(latex: str, bindings: Mapping[str, int]) -> float:
        sizes = {name: Fraction(size) for name, size in bindings.items()}
        value: Any = eval(_from_latex(latex), {"__builtins__": {}}, {**sizes, **_FUNCTIONS})  # noqa: S307 - our own text
        return int(value) if int(value) == value else float(value)

    return run


_FUNCTIONS = {"floor": math.floor, "ceil": math.ceil, "max": max, "min": min, "Fraction": Fraction}
_FUNCTIONS["distinct_experts"] = lambda *sizes: uniform_routing(*map(int, sizes))


def _from_latex(latex: str) -> str:
    text = re.sub(r"\{(\\left\(.*?\\right\))\}", r"\1", latex)  # sympy puts the arguments of a function in braces
    text = text.replace(r"\operatorname{distinct\_experts}", "distinct_experts").replace(r"\cdot", "*")
    text = re.sub(r"\^\{(\d+)\}", r"**\1", text)
    text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"(Fraction(\1)/(\2))", text)
    text = re.sub(r"\\left\\l(floor|ceil)\{", r"\1(", text)
    text = re.sub(r"\}\\right\\r(floor|ceil)", ")", text)
    text = text.replace(r"\left", "").replace(r"\right", "").replace(r"\max", "max").replace(r"\min", "min")
    assert "\\" not in text, f"LaTeX that the formulas are not expected to use: {latex}"
    return text
