"""Recompute a run's FLOPs and bytes from its files alone: python recompute_totals.py model.json report.json."""

# ruff: noqa: S307 - the expressions are those of our own file
import json
import sys
from collections import Counter
from pathlib import Path

model, report = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3])
tools = {"distinct_experts": lambda E, k, T: E * (1 - (1 - k / E) ** T)}  # uniform choice of experts
costs = {stage["name"]: Counter() for stage in model["stages"]}  # (figure, expression) -> calls in one execution
for leaf in model["leaves"]:
    for figure in ("matmul_flops", "vector_flops", "bytes"):
        costs[leaf["stage"]][figure, compile(str(leaf["cost"][figure]), "cost", "eval")] += leaf["calls"]
totals = Counter()
for run in (run for item in report["items"] for run in item["runs"]):
    for step in range(run["count"]):  # a decode step sees one cached token more than the step before
        sizes = {**tools, **run["bindings"], **({run["sweep"]: run["bindings"][run["sweep"]] + step} if run["sweep"] else {})}
        for (figure, expression), calls in costs[run["stage"]].items():
            totals[figure] += calls * eval(expression, {}, sizes)
print(json.dumps({"flops": totals["matmul_flops"] + totals["vector_flops"], "bytes": totals["bytes"]}))
