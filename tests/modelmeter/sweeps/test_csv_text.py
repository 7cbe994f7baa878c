"""Lines of CSV are those of Python's csv module, byte for byte."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.sweeps.csv_text import csv_lines

rows = st.integers(1, 30)


def by_csv_module(*columns: list[object]) -> bytes:
    """Return what the csv module writes; NaN is empty."""
    text = io.StringIO()
    plain = [["" if value != value else value for value in column] for column in columns]  # noqa: PLR0124 - NaN
    csv.writer(text, lineterminator="\n").writerows(zip(*plain, strict=True))
    return text.getvalue().encode()


@given(data=st.data(), count=rows)
def test_any_numbers_and_labels(data: st.DataObject, count: int) -> None:
    """Integers of 64 bits, floats of any size, NaN and labels with commas, quotes and other letters."""
    sized = {"min_size": count, "max_size": count}
    integers = data.draw(st.lists(st.integers(-(2**63) + 1, 2**63 - 1), **sized))
    floats = data.draw(st.lists(st.floats(), **sized))
    whole = data.draw(st.lists(st.integers(-(10**16), 10**16).map(float), **sized))
    labels = data.draw(st.lists(st.sampled_from(["", "a", "b,c", 'say "x"', "Gr\u00f6\u00dfe", "a\nb"]), **sized))
    found = csv_lines([np.array(integers), np.array(floats), np.array(whole), np.array(labels, dtype=object)])
    assert found == by_csv_module(integers, floats, whole, labels)


@pytest.mark.parametrize("edge", [0, 1, 9, 10, 9_999, 10_000, 10_001, 99_999_999, 100_000_000, 10**15 - 1, 10**15])
def test_numbers_where_digits_are_carried(edge: int) -> None:
    """Zeros within a number stay, those before it do not; as an integer, as a whole float and as -0.0."""
    integers, floats = [edge, -edge, edge + 7], [float(edge), -float(edge), edge + 7.0]
    assert csv_lines([np.array(integers), np.array(floats)]) == by_csv_module(integers, floats)
