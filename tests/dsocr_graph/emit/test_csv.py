"""modules.csv: one row per module and stage, units in the header, numbers as in the report."""

from __future__ import annotations

import csv
import io
from types import ModuleType

import pytest

from dsocr_graph.emit.csv_table import to_csv
from modelmeter.devices import load_device
from modelmeter.evaluate import evaluate


def _rows(toy: ModuleType, *, device: bool = False) -> list[dict[str, str]]:
    report = evaluate(toy.toy_model(), toy.toy_workload(), device=load_device("h200") if device else None)
    return list(csv.DictReader(io.StringIO(to_csv(report))))


def test_one_row_per_module_and_stage(toy: ModuleType) -> None:
    """Rows are the modules that ran in each stage; the spare module is in none."""
    keys = [(row["stage"], row["module"]) for row in _rows(toy)]
    assert len(keys) == len(set(keys))
    assert ("prefill", "lm_head") in keys
    assert ("decode", "lm_head") not in keys
    assert not any(module == "model.spare" for _, module in keys)


def test_own_amounts_add_up_to_the_root(toy: ModuleType) -> None:
    """Own FLOPs of a stage's modules sum to the root's inclusive ones: 3680 in prefill, 4608 in decode."""
    rows = _rows(toy)
    for stage, flops in (("prefill", 3680), ("decode", 4608)):
        own = sum(int(row["own flops [FLOPs]"]) for row in rows if row["stage"] == stage)
        root = next(row for row in rows if row["stage"] == stage and row["parent"] == "" and row["class"] == "Toy")
        assert own == flops == int(root["inclusive flops [FLOPs]"])


def test_a_row_by_hand(toy: ModuleType) -> None:
    """The folded layers' linear: two calls of 640 FLOPs and 304 bytes."""
    row = next(r for r in _rows(toy) if (r["stage"], r["module"]) == ("prefill", "model.layers.[0-1].up"))
    assert row["class"] == "Linear"
    assert row["instances"] == "2"
    assert row["own calls [calls]"] == "2"
    assert row["own matmul_flops [FLOPs]"] == "1280"
    assert row["own bytes [bytes]"] == "608"


def test_times_only_with_a_device(toy: ModuleType) -> None:
    """A column of seconds and one of what bounds them appear with a device."""
    assert not any("time" in name for name in _rows(toy)[0])
    timed = _rows(toy, device=True)
    row = next(r for r in timed if (r["stage"], r["module"]) == ("prefill", "lm_head"))
    # 1120 bytes at 4.8 TB/s are longer than 1440 FLOPs at 66.9 TFLOP/s
    assert float(row["own time [s]"]) == pytest.approx(1120 / 4.8e12)
    assert row["own bound by"] == "memory"


def test_every_amount_names_its_unit(toy: ModuleType) -> None:
    """Headers of numbers end in a unit in brackets."""
    names = list(_rows(toy)[0])
    assert names[:5] == ["stage", "module", "class", "parent", "instances"]
    assert all(name.endswith("]") for name in names[5:])


def test_predicted_times_have_an_interval(toy: ModuleType) -> None:
    """The wrapper runs three views in a prefill, 1.5 s of the host; its products below take 0.6 to 1.4 times 9 s."""
    report = evaluate(toy.scheduled_toy_model(), toy.toy_workload(), time_model=toy.ToyClock())
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    row = next(r for r in rows if (r["stage"], r["module"]) == ("prefill", "model"))
    assert [float(row[f"own time{end} [s]"]) for end in ("", " p10", " p90")] == [1.5, 1.5, 1.5]
    assert row["own bound by"] == "host"
    assert [float(row[f"inclusive time{end} [s]"]) for end in ("", " p10", " p90")] == [
        10.5,
        pytest.approx(1.5 + 0.6 * 9),
        pytest.approx(1.5 + 1.4 * 9),
    ]
    assert not any("p10" in name for name in _rows(toy, device=True)[0])
