"""The table of models at one workload."""

from types import ModuleType

import pytest
from attrs import evolve

import modelmeter
from modelmeter.compare import Metric, MissingWorkloadError, table


def test_each_model_has_a_row_at_its_own_workload(toy: ModuleType) -> None:
    """Labels, models and workloads are the caller's; roles of a row add up to its totals."""
    fp32 = evolve(toy.toy_model(), variant={"dtype": "fp32"})
    workload = toy.toy_workload()
    rows = table(
        {"small": toy.toy_model(), "large": fp32},
        {"small": workload, "large": evolve(workload, name="other")},
        modelmeter.load_device("h200"),
    )
    assert [(row.label, row.model, row.variant["dtype"], row.workload) for row in rows] == [
        ("small", "toy", "bf16", "toy pages"),
        ("large", "toy", "fp32", "other"),
    ]
    for row in rows:
        for metric in (Metric.FLOPS, Metric.BYTES, Metric.TIME, Metric.PARAMETERS, Metric.WEIGHT_BYTES):
            total = sum(figures.get(metric, 0) for figures in row.roles.values())
            assert total == pytest.approx(row.totals[metric], rel=1e-12)


def test_without_a_device_there_are_no_times(toy: ModuleType) -> None:
    """Everything else is there: tokens, KV cache per token and memory."""
    (row,) = table({"toy": toy.toy_model()}, {"toy": toy.toy_workload()})
    assert not {Metric.TIME, Metric.TTFT, Metric.TPOT} & row.totals.keys()
    assert (row.totals[Metric.CONTEXT_TOKENS], row.totals[Metric.KV_PER_TOKEN]) == (10, 8)


def test_a_model_without_a_workload_is_refused(toy: ModuleType) -> None:
    """The message names the model and those that need one."""
    with pytest.raises(MissingWorkloadError, match="no workload for b; give one for each of a, b"):
        table({"a": toy.toy_model(), "b": toy.toy_model()}, {"a": toy.toy_workload()})


def test_a_model_that_does_not_fit_says_so(toy: ModuleType) -> None:
    """4,302 bytes of weights and a peak of 2,100 beside them: 6,402 bytes fit, or a byte less does not."""
    h200, toy_model = modelmeter.load_device("h200"), evolve(toy.toy_model(), load_bytes=4_302)
    for memory, missing in ((6_402, None), (6_401, f"it needs 6.40 kB, {h200.name} has 6.40 kB")):
        (row,) = table({"toy": toy_model}, {"toy": toy.toy_workload()}, evolve(h200, memory_bytes=memory))
        assert row.missing_memory == missing
    assert (row.device, row.times) == (h200.name, "datasheet roofline, not calibrated, unfused traffic")
    (row,) = table({"toy": toy.toy_model()}, {"toy": toy.toy_workload()})
    assert (row.device, row.times, row.missing_memory) == (None, None, None)


def test_what_loading_takes_counts_as_well(toy: ModuleType) -> None:
    """A model that runs in its device's memory and needs more of it while it loads does not fit."""
    h200 = modelmeter.load_device("h200")
    model = evolve(toy.toy_model(), load_bytes=9_000)
    (row,) = table({"toy": model}, {"toy": toy.toy_workload()}, evolve(h200, memory_bytes=8_000))
    assert row.missing_memory == f"it needs 9.00 kB, {h200.name} has 8.00 kB"
