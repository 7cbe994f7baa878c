"""Totals of every shipped variant against the ones kept: the net under a change that should move no number."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from modelmeter.evaluate import StageCost, evaluate_stage
from modelmeter.layers import Linear
from modelmeter.model import COST_FIELDS, AnalyticModel, LeafCost
from modelmeter.models.deepseek_ocr import MODEL
from modelmeter.stored import stored

KEPT = Path(__file__).parent / "totals"

# One document as in the standard run's letter page, and a batch with other sizes that shows a lost factor of B or T.
DIMS: Mapping[str, tuple[Mapping[str, int], ...]] = {
    "vision_global": ({},),
    "vision_local": ({"V": 6, "H": 3}, {"V": 9, "H": 1}),
    "prefill": ({"B": 1, "S": 913, "N": 903}, {"B": 8, "S": 283, "N": 273}),
    "decode": ({"B": 1, "T": 913}, {"B": 8, "T": 8191}),
}


def totals_of(model: AnalyticModel) -> dict[str, object]:
    """Return what a variant costs, as plain numbers; expectations over routers are rounded to whole bytes."""
    return {
        "parameters": model.parameters,
        "parameter_bytes": model.parameter_bytes,
        "buffer_bytes": model.buffer_bytes,
        "load_bytes": model.load_bytes,
        "modules": len(model.modules),
        "stages": {stage.name: _stage(model, stage.name) for stage in model.stages},
    }


def _stage(model: AnalyticModel, name: str) -> dict[str, object]:
    leaves = model.leaves_by_stage[name]
    stage = next(stage for stage in model.stages if stage.name == name)
    return {
        "leaves": len(leaves),
        "calls": sum(leaf.calls for leaf in leaves),
        "free_calls": sum(free.calls for free in model.free if free.stage == name),
        "weight_bytes": stage.weight_bytes,
        "at": {_label(dims): _figures(evaluate_stage(model, name, **dims)) for dims in DIMS[name]},
    }


def _label(dims: Mapping[str, int]) -> str:
    return " ".join(f"{dim}={size}" for dim, size in dims.items()) or "no dims"


def _figures(stage: StageCost) -> dict[str, object]:
    cost, memory = stage.total.cost, stage.memory
    return {
        "matmul_flops": round(cost.matmul_flops),
        "vector_flops": round(cost.vector_flops),
        "tensor_core_flops": round(cost.tensor_core_flops),
        "unfused_bytes": round(cost.bytes),
        "fused_bytes": round(cost.fused_bytes),
        "weight_bytes_read": round(cost.weight_bytes_read),
        "kv_cache_bytes": round(memory.kv_cache_bytes),
        "peak_bytes": round(memory.peak_bytes),
        "peak_at": f"{memory.at} in {memory.module or '(root)'}",
        "flops_by_category": {
            category.value: round(amount.cost.flops) for category, amount in sorted(stage.categories.items())
        },
    }


def difference(kept: str, now: str, name: str) -> str:
    """Return the lines that moved, as a unified diff; empty when none did."""
    lines = difflib.unified_diff(
        kept.splitlines(), now.splitlines(), f"{name} as kept", f"{name} now", lineterm="", n=2
    )
    return "\n".join(lines)


@pytest.mark.parametrize("variant", sorted(MODEL.variants))
def test_totals_are_as_kept(variant: str, update_golden: bool) -> None:
    """A variant's totals are the kept ones; a failure shows which figures moved."""
    path = KEPT / f"{variant}.json"
    now = json.dumps(totals_of(MODEL.load(variant)), indent=2) + "\n"
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(now, encoding="utf-8")
    kept = path.read_text(encoding="utf-8") if path.exists() else ""
    moved = difference(kept, now, f"{variant}.json")
    assert not moved, (
        f"{moved}\n\nIf the it was meant to, run `make golden ARGS=--update-golden`, and say why in CHANGELOG.md"
    )


def moved_costs(model: AnalyticModel) -> list[str]:
    """Return a line per figure of a leaf that its layer's formulas no longer give."""
    return [
        f"{leaf.id}: {name} was {before}, is {now}"
        for leaf in model.leaves
        for name, before, now in zip(
            COST_FIELDS, leaf.cost.texts, LeafCost.of(leaf.layer, stored(leaf.fused_bytes)).texts, strict=True
        )
        if before != now
    ]


def test_a_changed_formula_moves_the_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A formula that changes is seen in every leaf whose layer has it, and in no other."""
    model = MODEL.load()
    lines = moved_costs(model)
    monkeypatch.setattr(Linear, "matmul_flops", lambda layer: 7)
    found = [line for line in moved_costs(model) if ": matmul_flops was" in line and line.endswith("is 7")]
    assert lines == []
    assert len(found) == sum(isinstance(leaf.layer, Linear) for leaf in model.leaves) > 0


@pytest.mark.parametrize("variant", sorted(MODEL.variants))
def test_kept_costs_are_what_the_layers_state(variant: str) -> None:
    """The costs stored with a variant's leaves are those that the layers' formulas give now."""
    moved = moved_costs(MODEL.load(variant))
    assert not moved, "\n".join([*moved, "", "If they were meant to move, run `python graphs/make.py`"])


def test_every_kept_total_is_of_a_shipped_variant() -> None:
    """No totals are kept of a variant that is gone, and every published mode is shipped."""
    assert {path.stem for path in KEPT.glob("*.json")} == set(MODEL.variants)
    assert {"tiny", "small", "base", "large", "gundam"} <= set(MODEL.variants)


def test_a_moved_figure_is_shown() -> None:
    """The message of a failing comparison names the file and shows both values."""
    shown = difference('{\n  "flops": 1\n}', '{\n  "flops": 2\n}', "toy.json")
    assert "--- toy.json as kept" in shown
    assert '-  "flops": 1' in shown
    assert '+  "flops": 2' in shown
    assert difference("same", "same", "toy.json") == ""


def test_totals_by_hand() -> None:
    """Figures that can be worked out on paper stand in the kept totals of the default variant."""
    kept = json.loads((KEPT / f"{MODEL.default}.json").read_text(encoding="utf-8"))
    assert kept["parameters"] == 3_336_106_240
    assert kept["parameter_bytes"] == 2 * 3_336_106_240  # bf16
    prefill = kept["stages"]["prefill"]["at"]["B=1 S=913 N=903"]
    # 12 layers x keys and values x 10 heads x 128 x 2 bytes = 61,440 bytes per token
    assert prefill["kv_cache_bytes"] == 61_440 * 913
    decode = kept["stages"]["decode"]["at"]["B=8 T=8191"]
    assert decode["kv_cache_bytes"] == 61_440 * 8 * 8192
    # one new token over 8,192 cached ones: two products of 2 * 128 FLOPs, 1 for the scale and 5 for the softmax per
    # score; 8,192 scores per head, layer and document
    assert decode["flops_by_category"]["attention"] == (2 * 2 * 128 + 6) * 8192 * 10 * 12 * 8
