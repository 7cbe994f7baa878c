"""Draws: errors that calls share, equal wherever they are asked for."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.predict.draws import COUNT, log_errors, run_order


@given(st.text(max_size=40))
def test_draws_are_standard_normal_by_their_moments(group: str) -> None:
    """Law: mean 0 and standard deviation 1 for every group, so that no group shifts a prediction."""
    errors = log_errors(group)
    assert errors.shape == (COUNT,)
    assert float(errors.mean()) == pytest.approx(0, abs=1e-12)
    assert float(errors.std()) == pytest.approx(1)


@given(st.text(max_size=40))
def test_runs_are_ordered_by_their_error(group: str) -> None:
    """Law: every run has a place of its own, and errors ascend with it."""
    order = run_order(group)
    assert sorted(order) == list(range(COUNT))
    assert np.all(np.diff(log_errors(group)[np.argsort(order)]) > 0)


def test_groups_err_apart() -> None:
    """The correlation of two groups is that of 64 independent draws: below 4 / sqrt(64) = 0.5."""
    assert abs(np.corrcoef(log_errors("gemm 1280"), log_errors("gemm 1281"))[0, 1]) < 0.5


def test_another_process_draws_the_same() -> None:
    """Python's own hash of a text differs from process to process; the draws do not."""
    code = "from modelmeter.predict.draws import log_errors; print(log_errors('gemm 1280')[:3].tolist())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(log_errors("gemm 1280")[:3].tolist())


def test_draws_cannot_be_written_to() -> None:
    """The same array is handed to everybody."""
    with pytest.raises(ValueError, match="read-only"):
        log_errors("gemm 1280")[0] = 0.0
    with pytest.raises(ValueError, match="read-only"):
        run_order("gemm 1280")[0] = 0
