"""A formula in its forms: each gives the same number."""

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.dims import Dim, distinct_experts, experts_touched, parse, symbol
from modelmeter.errors import DimError
from modelmeter.formulas import Formula

B, S, T = symbol("B"), symbol("S"), symbol("T")


def formula(expression: Dim) -> Formula:
    """Return a formula of bytes."""
    return Formula(quantity="bytes", unit="bytes", expression=expression)


def run_python(source: str, name: str, bindings: Mapping[str, int]) -> float:
    """Return what the function of a source yields."""
    space: dict[str, object] = {}
    exec(source, space)  # noqa: S102 - the source is what is tested
    function: Any = space[name]
    return function(**bindings)


def run_latex(latex: str, bindings: Mapping[str, int]) -> Any:
    r"""Return what the LaTeX of a polynomial yields: \cdot, \frac, powers and brackets, nothing else."""
    text = latex.replace(r"\left(", "(").replace(r"\right)", ")").replace(r"\cdot", "*")
    text = re.sub(r"\\frac\{([^{}]*)\}\{(\d+)\}", r"((\1)/\2)", text)
    text = re.sub(r"\^\{(\d+)\}", r"**\1", text)
    assert "\\" not in text
    sizes: dict[str, Any] = {name: sympy.Integer(size) for name, size in bindings.items()}
    sympify: Any = sympy.sympify  # its overloads know no text
    return sympify(text, locals=sizes)


polynomials = st.lists(
    st.tuples(st.integers(1, 10**9), st.integers(0, 2), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=5
).map(lambda terms: sum(factor * B**b * S**s * T**t for factor, b, s, t in terms))
sizes = st.fixed_dictionaries({"B": st.integers(1, 64), "S": st.integers(1, 8192), "T": st.integers(1, 8192)})


@given(polynomials, sizes)
def test_text_python_latex_and_json_agree(expression: Dim, bindings: dict[str, int]) -> None:
    """Every form of a polynomial gives the integer that the expression gives."""
    made = formula(expression)
    expected = made.at(bindings)
    own = {name: bindings[name] for name in made.dims}
    assert formula(parse(made.text)).at(bindings) == expected
    assert run_python(made.python("cost"), "cost", own) == expected
    assert run_latex(made.latex, bindings) == expected
    document = json.loads(json.dumps(made.document()))
    assert formula(parse(document["expression"])).at(bindings) == expected
    assert document["dims"] == list(made.dims)


@given(polynomials, sizes, st.integers(1, 12))
def test_a_sum_over_steps_is_the_sum_of_the_steps(expression: Dim, bindings: dict[str, int], steps: int) -> None:
    """The closed form is f(T) + f(T + 1) + ... + f(T + n - 1), exactly."""
    made = formula(expression)
    summed = made.summed("T").at({**bindings, "n": steps})
    assert summed == sum(made.at({**bindings, "T": bindings["T"] + step}) for step in range(steps))


def test_a_sum_stays_an_integer_in_python() -> None:
    """T + ... over 10**9 steps from 10**9: n*(2*T + n - 1)/2 = 10**9 * (3 * 10**9 - 1) / 2, beyond a float."""
    source = formula(T).summed("T").python("total")
    assert run_python(source, "total", {"T": 10**9, "n": 10**9}) == 10**9 * (3 * 10**9 - 1) // 2


def test_experts_are_those_of_uniform_routing_in_python() -> None:
    """Two tokens of 6 in 64 touch 64 * (1 - (58/64)**2) = 11.4375 experts; 100 bytes each make 1143.75."""
    made = formula(100 * experts_touched(64, 6, B))
    assert run_python(made.python("read"), "read", {"B": 2}) == pytest.approx(1143.75)
    assert made.at({"B": 2}, routing=lambda experts, top_k, tokens: 12.0) == 1200
    assert distinct_experts.__name__ in made.text
    assert r"\operatorname{distinct\_experts}" in made.latex


def test_the_larger_of_two_is_so_in_python() -> None:
    """Of 2*B and B + 3 the second is larger at B = 2, the first at B = 4."""
    source = formula(sympy.Max(2 * B, B + 3)).python("peak")
    assert [run_python(source, "peak", {"B": size}) for size in (2, 4)] == [5, 8]


def test_what_is_no_polynomial_is_not_summed() -> None:
    """The number of experts has no closed sum."""
    with pytest.raises(DimError, match="no polynomial in T"):
        formula(experts_touched(64, 6, T)).summed("T")


def test_the_shorter_form_is_shown() -> None:
    """2*B*S**2 + 6*B*S is shorter as a product; B*S + 1 is not one."""
    assert formula(2 * B * S**2 + 6 * B * S).text == "2*B*S*(S + 3)"
    assert formula(B * S + 1).text == "B*S + 1"
    assert formula(7).python("seven") == "def seven() -> int:\n    return 7"
