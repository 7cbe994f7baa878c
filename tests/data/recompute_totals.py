"""Recompute a run's FLOPs and bytes from its files alone: python recompute_totals.py model.json report.json."""

import json
import sys
from collections import Counter
from pathlib import Path

model, report = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3])
tools = {"distinct_experts": lambda E, k, T: E * (1 - (1 - k / E) ** T)}  # every expert is as likely
calls = {stage["name"]: Counter() for stage in model["stages"]}  # of each expression, in one execution of a stage
for leaf in model["leaves"]:
    for figure in ("matmul_flops", "vector_flops", "bytes"):
        calls[leaf["stage"]][figure, compile(str(leaf["cost"][figure]), "cost", "eval")] += leaf["calls"]
totals = Counter()
for run in (run for item in report["items"] for run in item["runs"]):
    for step in range(run["count"]):  # a decode step finds one cached token more than the one before
        sizes = {name: size + step * (name == run["sweep"]) for name, size in run["bindings"].items()}
        for (figure, expression), number in calls[run["stage"]].items():
            totals[figure] += number * eval(expression, tools, sizes)  # noqa: S307 - the file is our own
print(json.dumps({"flops": totals["matmul_flops"] + totals["vector_flops"], "bytes": totals["bytes"]}))
