"""A formula in its forms: each gives the same number."""

import json
from collections.abc import Callable, Mapping

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.dim_text import parse, to_text
from modelmeter.dims import Dim, symbol
from modelmeter.errors import DimError
from modelmeter.expert_counts import distinct_experts, experts_touched
from modelmeter.formulas import Formula

Evaluator = Callable[[str, Mapping[str, int]], float]

B, S, T = symbol("B"), symbol("S"), symbol("T")


def formula(expression: Dim) -> Formula:
    """Return a formula of bytes."""
    return Formula(quantity="bytes", unit="bytes", expression=expression)


polynomials = st.lists(
    st.tuples(st.integers(1, 10**9), st.integers(0, 2), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=5
).map(lambda terms: sum(factor * B**b * S**s * T**t for factor, b, s, t in terms))
rounded = st.tuples(polynomials, st.integers(1, 999), st.sampled_from(["ceiling", "floor"]), polynomials).map(
    lambda parts: parse(f"Max({to_text(parts[0])}, 3*{parts[2]}(({to_text(parts[3])})/{parts[1]}))")
)
sizes = st.fixed_dictionaries({"B": st.integers(1, 64), "S": st.integers(1, 8192), "T": st.integers(1, 8192)})


@given(polynomials | rounded, sizes)
def test_text_python_latex_and_json_agree(
    run_python: Evaluator, run_latex: Evaluator, expression: Dim, bindings: dict[str, int]
) -> None:
    """Every form of an expression gives the integer that the expression gives, where that is one."""
    made = formula(expression)
    expected = made.at(bindings)
    own = {name: bindings[name] for name in made.dims}
    assert formula(parse(made.text)).at(bindings) == expected
    assert run_python(made.python("cost"), own) == expected
    assert run_latex(made.latex, bindings) == expected
    assert Formula.from_document(json.loads(json.dumps(made.document()))) == made


@given(polynomials, sizes, st.integers(1, 12))
def test_a_sum_over_steps_is_the_sum_of_the_steps(expression: Dim, bindings: dict[str, int], steps: int) -> None:
    """The closed form is f(T) + f(T + 1) + ... + f(T + n - 1), exactly."""
    made = formula(expression)
    summed = made.summed("T").at({**bindings, "n": steps})
    assert summed == sum(made.at({**bindings, "T": bindings["T"] + step}) for step in range(steps))


def test_a_sum_stays_an_integer_in_python(run_python: Evaluator) -> None:
    """T + ... over 10**9 steps from 10**9: n*(2*T + n - 1)/2 = 10**9 * (3 * 10**9 - 1) / 2, beyond a float."""
    source = formula(T).summed("T").python("total")
    assert run_python(source, {"T": 10**9, "n": 10**9}) == 10**9 * (3 * 10**9 - 1) // 2


def test_experts_are_those_of_uniform_routing_in_python(run_python: Evaluator) -> None:
    """Two tokens of 6 in 64 touch 64 * (1 - (58/64)**2) = 11.4375 experts; 100 bytes each make 1143.75."""
    made = formula(100 * experts_touched(64, 6, B))
    assert run_python(made.python("read"), {"B": 2}) == pytest.approx(1143.75)
    assert made.at({"B": 2}, routing=lambda experts, top_k, tokens: 12.0) == 1200
    assert distinct_experts.__name__ in made.text
    assert r"\operatorname{distinct\_experts}" in made.latex


def test_the_larger_of_two_is_so_in_python(run_python: Evaluator) -> None:
    """Of 2*B and B + 3 the second is larger at B = 2, the first at B = 4."""
    source = formula(sympy.Max(2 * B, B + 3)).python("peak")
    assert [run_python(source, {"B": size}) for size in (2, 4)] == [5, 8]


def test_all_experts_are_touched_where_each_token_takes_all(run_python: Evaluator) -> None:
    """Of 8 experts a token that chooses 8 touches 8; the general formula would take the logarithm of 0."""
    assert run_python(formula(100 * experts_touched(8, 8, B)).python("read"), {"B": 3}) == 800


@pytest.mark.parametrize(
    ("text", "line", "value"),
    [
        ("B*ceiling(T/16)", "return B*(-((-T) // 16))", 3 * (2**60 // 16 + 1)),  # 2**60 + 1 tokens: one more block
        ("floor((T + 1)/2)", "return ((T + 1) // 2)", 2**59 + 1),
        ("2*Max(T/2, B/3 + 1)", "return max(2*B + 6, 3*T) // 3", 2**60 + 1),
        ("Min(B, Max(T, 7))", "return min(B, max(7, T))", 3),
    ],
)
def test_rounding_and_the_larger_and_smaller_are_integers_in_python(
    text: str, line: str, value: int, run_python: Evaluator
) -> None:
    """At B = 3 and T = 2**60 + 1, which no float holds, every digit is right."""
    source = formula(parse(text)).python("count")
    assert source.splitlines()[-1].strip() == line
    bindings = {name: size for name, size in (("B", 3), ("T", 2**60 + 1)) if f"{name}: int" in source}
    assert run_python(source, bindings) == value


def test_a_document_without_its_expression_is_refused() -> None:
    """What is missing is named, and where a whole document comes from."""
    with pytest.raises(DimError, match=r"has no expression; it needs quantity, unit, expression: write it by"):
        Formula.from_document({"quantity": "bytes", "unit": "bytes"})


def test_what_is_no_polynomial_is_not_summed() -> None:
    """The number of experts has no closed sum."""
    with pytest.raises(DimError, match="no polynomial in T"):
        formula(experts_touched(64, 6, T)).summed("T")


def test_the_shorter_form_is_shown() -> None:
    """2*B*S**2 + 6*B*S is shorter as a product; B*S + 1 is not one."""
    assert formula(2 * B * S**2 + 6 * B * S).text == "2*B*S*(S + 3)"
    assert formula(B * S + 1).text == "B*S + 1"
    assert formula(7).python("seven") == "def seven() -> int:\n    return 7"
