"""Workloads: what runs, how often, at which dims."""

from __future__ import annotations

import pytest

from modelmeter.errors import ModelMeterError
from modelmeter.workload import InvalidWorkloadError, StageRun, Workload, WorkloadItem

RUN = StageRun(stage="prefill", count=1, bindings={"B": 1, "S": 283})
ITEM = WorkloadItem(name="page", documents=1, runs=(RUN,))


def test_equal_runs_are_equal_and_keep_what_they_were_given() -> None:
    """A run copies its bindings: changing the dict that was given changes nothing."""
    bindings = {"B": 1, "T": 913}
    run = StageRun(stage="decode", count=3, bindings=bindings, sweep="T")
    bindings["T"] = 5
    assert run.bindings == {"B": 1, "T": 913}
    assert run == StageRun(stage="decode", count=3, bindings={"T": 913, "B": 1}, sweep="T")


def test_a_stage_may_have_no_dims() -> None:
    """Empty bindings are allowed, lists become tuples, facts default to none."""
    run = StageRun(stage="vision_global", count=2, bindings={})
    item = WorkloadItem(name="page", documents=2, runs=[run])
    assert item.runs == (run,)
    assert Workload(name="w", items=[item]).items == (item,)
    assert (item.facts, run.sweep) == ({}, None)


@pytest.mark.parametrize("bad", [0, -3, 1.0, float("nan"), True, "2", None])
def test_counts_and_sizes_are_whole_numbers_from_one(bad: object) -> None:
    """Counts, documents and dims share one rule, and the error says where the number stands."""
    with pytest.raises(InvalidWorkloadError, match=r"StageRun\('s'\)\.count is .*expected a whole number"):
        StageRun(stage="s", count=bad, bindings={})
    with pytest.raises(InvalidWorkloadError, match=r"StageRun\('s'\)\.bindings\['B'\] is .*expected a whole number"):
        StageRun(stage="s", count=1, bindings={"B": bad})
    with pytest.raises(InvalidWorkloadError, match=r"WorkloadItem\('p'\)\.documents is .*expected a whole number"):
        WorkloadItem(name="p", documents=bad, runs=(RUN,))


@pytest.mark.parametrize("bad", ["", "  ", None, 5])
def test_names_are_text(bad: object) -> None:
    """A blank stage or name is refused."""
    with pytest.raises(InvalidWorkloadError, match=r"StageRun\.stage is .*; expected text that is not blank"):
        StageRun(stage=bad, count=1, bindings={})
    with pytest.raises(InvalidWorkloadError, match=r"WorkloadItem\.name is"):
        WorkloadItem(name=bad, documents=1, runs=(RUN,))
    with pytest.raises(InvalidWorkloadError, match=r"Workload\.name is"):
        Workload(name=bad, items=(ITEM,))


@pytest.mark.parametrize("dim", ["", "2B", "B T", 3])
def test_dims_have_names(dim: object) -> None:
    """A dim is named as a variable is."""
    with pytest.raises(InvalidWorkloadError, match="names a dim"):
        StageRun(stage="s", count=1, bindings={dim: 1})


def test_a_sweep_needs_a_start() -> None:
    """The swept dim has to be among the bindings; the error lists them."""
    with pytest.raises(InvalidWorkloadError, match=r"sweeps 'T', which has no start; its bindings are \['B'\]"):
        StageRun(stage="decode", count=3, bindings={"B": 1}, sweep="T")


def test_nothing_to_run_is_an_error() -> None:
    """An item has runs and a workload has items."""
    with pytest.raises(InvalidWorkloadError, match=r"WorkloadItem\('p'\) runs no stage"):
        WorkloadItem(name="p", documents=1, runs=())
    with pytest.raises(InvalidWorkloadError, match=r"Workload\('w'\) has no items"):
        Workload(name="w", items=())


def test_item_names_are_unique() -> None:
    """Reports are keyed by item, so a name stands once."""
    with pytest.raises(InvalidWorkloadError, match=r"Workload\('w'\) has items of one name: \['page'\]"):
        Workload(name="w", items=(ITEM, ITEM))


@pytest.mark.parametrize("fact", [float("nan"), float("inf"), True, None, [1]])
def test_facts_are_finite_numbers_or_text(fact: object) -> None:
    """A fact goes into reports as it is, so it has to be plain."""
    for make in (
        lambda facts: WorkloadItem(name="p", documents=1, runs=(RUN,), facts=facts),
        lambda facts: Workload(name="p", items=(ITEM,), facts=facts),
    ):
        with pytest.raises(InvalidWorkloadError, match=r"\('p'\)\.facts\['x'\] is") as caught:
            make({"x": fact})
        assert isinstance(caught.value, ModelMeterError)
