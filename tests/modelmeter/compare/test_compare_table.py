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
