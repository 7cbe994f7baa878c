"""The standard workload on GPUs known from measured tables only, and what share of each figure rests on them.

Needs the extra `tables`. Prints a table and writes benchmarks/results/engines.json and .md.

    python benchmarks/accuracy/engines.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import modelmeter
from dsocr_graph.emit.markdown_table import table
from dsocr_graph.workloads import STANDARD, bind_profile, load_profile
from modelmeter.evaluate import evaluate
from modelmeter.model import AnalyticModel
from modelmeter.predict import Engine, Method
from modelmeter.units import format_seconds
from modelmeter.workload import Workload

RESULTS = Path(__file__).parents[1] / "results"
DEVICES = ("h200", "h100-sxm", "a100-80gb-sxm", "l40s", "b200")
ORIGINS = {
    "measured": (Method.EXACT, Method.BRACKET),
    "by measured efficiency": (Method.BLEND, Method.HOLD),
    "by rates": (Method.PHYSICAL,),
}


def main() -> int:
    """Predict, print and write."""
    model, workload = modelmeter.load("deepseek-ocr"), bind_profile(load_profile(STANDARD))
    found = {device: prediction(model, workload, device) for device in DEVICES}
    text = markdown(found)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "engines.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "engines.md").write_text(text, encoding="utf-8")
    return 0


def prediction(model: AnalyticModel, workload: Workload, device: str) -> dict[str, object]:
    """Return the workload's time on a device, its bound, and the shares of its time by family and origin."""
    spec = modelmeter.load_device(device)
    engine = Engine.on(spec, physical=True)
    time = evaluate(model, workload, time_model=engine).total.total.time
    bound = evaluate(model, workload, device=spec, fused=True).total.total.time
    assert time is not None
    assert bound is not None
    statement = engine.statement(model, workload)
    whole = sum(share.seconds for share in statement)
    families = sorted({share.family for share in statement})
    shares = {
        family: {
            origin: round(sum(s.seconds for s in statement if s.family == family and s.method in methods) / whole, 4)
            for origin, methods in ORIGINS.items()
        }
        for family in families
    }
    return {
        "seconds": round(time.seconds, 4),
        "p10": round(time.p10 or 0.0, 4),
        "p90": round(time.p90 or 0.0, 4),
        "roofline_seconds": round(bound.seconds, 4),
        "shares": shares,
    }


def markdown(found: dict[str, dict[str, object]]) -> str:
    """Return the predictions as Markdown: a row per device, then what they rest on by family of operators."""
    rows: list[list[str]] = []
    families: list[list[str]] = []
    for device, entry in found.items():
        shares = entry["shares"]
        assert isinstance(shares, dict)
        whole = {origin: sum(share[origin] for share in shares.values()) for origin in ORIGINS}
        seconds, low, high, bound = (float(str(entry[key])) for key in ("seconds", "p10", "p90", "roofline_seconds"))
        times = [format_seconds(seconds), f"{format_seconds(low)}-{format_seconds(high)}", format_seconds(bound)]
        rows.append([device, *times, *(f"{part:.1%}" for part in whole.values())])
        families += [
            [device, family, *(f"{share[origin]:.1%}" for origin in ORIGINS)] for family, share in shares.items()
        ]
    head = table(["device", "predicted", "p10-p90", "fused roofline", *ORIGINS], rows)
    parts = table(["device", "family", *ORIGINS], families, left=2)
    method = (
        "Time under the runtime `engine`, vLLM's kernels, bf16, and the share of it that is measured (this call, or "
        "between two sizes), goes by the efficiency of the nearest measured calls, or by rates alone. Made by `python "
        "benchmarks/accuracy/engines.py`; nothing here was checked on a GPU."
    )
    title, by_family = f"# {STANDARD} by inference engines", "By family of operators, shares of the device's time:"
    return "\n\n".join([title, method, head, by_family, parts]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
