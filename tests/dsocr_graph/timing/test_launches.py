"""Kernels counted between marks on the device, with made-up events."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsocr_graph.timing import launches, microbench
from dsocr_graph.timing.clocks import CpuClock
from dsocr_graph.timing.launches import count_launches_of_each, kernels_between_marks
from dsocr_graph.timing.microbench import Microbench
from dsocr_graph.timing.operands import OperandMaker
from dsocr_graph.timing.plan import PlannedCall
from modelmeter.dtypes import DType
from modelmeter.signature import Signature, TensorArgument

MARK = "at::cuda::(anonymous namespace)::spin_kernel(long)"


def test_copies_and_what_runs_between_two_runs_do_not_count() -> None:
    """A product and a sum with a copy between them; random numbers for the next run; a run of a fill and a sum."""
    first = [MARK, "sm90_gemm", "Memcpy DtoH", "add_kernel", MARK]
    second = [MARK, "Memset (Device)", "add_kernel", MARK]
    assert kernels_between_marks([*first, "philox", *second]) == (2, 1)
    assert kernels_between_marks([]) == ()


@pytest.mark.parametrize("names", [[MARK], [MARK, "add", MARK, "add", MARK]])
def test_a_mark_without_a_partner_makes_the_counts_worthless(names: list[str]) -> None:
    """The profiler dropped something: it cannot be known what."""
    assert kernels_between_marks(names) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_every_run_gets_its_own_kernels(runs: list[tuple[int, int]]) -> None:
    """Law: whatever runs before each, the counts are those of the runs, in their order."""
    names = [name for before, own in runs for name in [*["other"] * before, MARK, *["own"] * own, MARK]]
    assert kernels_between_marks(names) == tuple(own for _, own in runs)


def test_marks_that_the_profiler_did_not_see_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs and the marks of two: nothing is returned; with those of three, a count each."""

    def seen(runs: int) -> tuple[int, ...] | None:
        def names(run: object, _: object) -> list[str]:
            assert callable(run)
            run()
            return [MARK, "add", MARK] * runs

        monkeypatch.setattr(launches, "_names_on_device", names)
        return count_launches_of_each([lambda: None] * 3, torch.device("cuda", 0))

    monkeypatch.setattr(launches, "_mark", lambda _: None)
    assert seen(2) is None
    assert seen(3) == (1, 1, 1)


@pytest.mark.parametrize(("together", "expected"), [((5, 7), (5, 7)), (None, (3, 3))])
def test_one_by_one_is_the_way_out(
    monkeypatch: pytest.MonkeyPatch, together: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    """Where counting together fails, each call gets a session of its own; both ways run every call."""
    cpu = torch.device("cpu")
    x = TensorArgument(dtype=DType.FP32, shape=(4,), strides=(1,))
    signature = Signature(op="aten::exp", overload="default", arguments={"self": x})
    call = PlannedCall(signature=signature, conditions={}, flops=4, bytes=32, origin="a test")
    operands = OperandMaker([call], cpu, cold_bytes=0, cache_bytes=1 << 20)
    bench = Microbench(operands=operands, clock=CpuClock(threads=1), device=torch.device("cuda"))
    monkeypatch.setattr(microbench, "count_launches_of_each", lambda runs, _: [run() for run in runs] and together)
    monkeypatch.setattr(microbench, "count_launches", lambda run, _: run() or 3)
    assert bench.launches([call, call]) == expected
