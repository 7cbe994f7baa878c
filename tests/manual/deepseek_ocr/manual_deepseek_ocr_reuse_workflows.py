"""Five ways to use the results elsewhere: none of them captures anything or imports torch.

    python tests/manual/deepseek_ocr/manual_deepseek_ocr_reuse_workflows.py
    python tests/manual/deepseek_ocr/manual_deepseek_ocr_reuse_workflows.py --graphs reports/base-batch-8 --device h100

1. What-ifs on the shipped model: batch and cached tokens of a decode step.
2. Layers by themselves, through the contract and in its units.
3. The call graph in networkx: the heaviest path from the root down.
4. Totals again from model.json and report.json with nothing but json.
5. modules.csv: the modules that move most bytes by themselves.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx as nx

import modelmeter
from modelmeter import DeviceSpec
from modelmeter.evaluate import evaluate_stage
from modelmeter.units import format_bytes, format_flops, format_seconds

GRAPHS = Path(__file__).parents[3] / "graphs" / "deepseek-ocr"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all five; exit status 1 when the totals that were worked out again are not the report's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=Path, default=GRAPHS, help="artefacts of an analysis (default: %(default)s)")
    parser.add_argument("--device", default="h200", help="default: %(default)s")
    options = parser.parse_args(arguments)
    decode_what_ifs(modelmeter.load_device(options.device))
    layers_by_themselves()
    heaviest_path(options.graphs / "callgraph.graphml")
    agrees = recomputed_totals(options.graphs / "model.json", options.graphs / "report.json")
    largest_movers(options.graphs / "modules.csv")
    return 0 if agrees else 1


def decode_what_ifs(device: DeviceSpec) -> None:
    """Print a decode step for some batches and cached tokens; weights are read once for the whole batch."""
    model = modelmeter.load("deepseek-ocr")
    print(f"1. A decode step on {device.name}, datasheet roofline")
    for cached in (913, 8191):
        for batch in (1, 8, 64):
            step = evaluate_stage(model, "decode", B=batch, T=cached, device=device)
            assert step.total.time is not None, "evaluated with a device"
            seconds = step.total.time.seconds
            print(
                f"   B={batch:<3} T={cached:<5} {format_flops(step.total.cost.flops):>11}"
                f" {format_bytes(step.total.cost.bytes):>9} {format_seconds(seconds):>8}"
                f"  at most {batch / seconds:,.0f} tokens/s"
            )


def layers_by_themselves() -> None:
    """Print the contract's figures of the heaviest layers of a prefill, at one document of 913 tokens."""
    model = modelmeter.load("deepseek-ocr")
    bound = [(leaf, leaf.layer.at(B=1, S=913, N=903)) for leaf in model.leaves_by_stage["prefill"]]
    heaviest = sorted(bound, key=lambda pair: -pair[0].calls * float(pair[1].matmul_flops()))[:4]
    print("2. The heaviest layers of prefill, one call each")
    for leaf, layer in heaviest:
        print(
            f"   {leaf.id}: {type(layer).__name__}, {leaf.calls} calls,"
            f" {layer.forward_tensor_core_flops():.4f} TFLOPs, {layer.forward_cal_io():.5f} Tb,"
            f" {layer.forward_arithmetic_intensity():.1f} FLOPs/bit; backward"
            f" {layer.backward_cal_io():.5f} Tb"
        )


def heaviest_path(path: Path) -> None:
    """Print where the FLOPs go, module by module downwards, from the GraphML file alone."""
    graph = nx.read_graphml(path)
    below: dict[str, list[str]] = {}
    for parent, child, kind in graph.edges(data="kind"):
        if kind == "contains" and graph.nodes[child]["kind"] == "module":
            below.setdefault(parent, []).append(child)
    (node,) = set(below) - {child for children in below.values() for child in children}
    print(f"3. The heaviest path of {graph.number_of_nodes()} nodes and {graph.number_of_edges()} edges")
    while True:
        facts = graph.nodes[node]
        print(f"   {node}: {facts['class']}, {format_flops(facts['flops_inclusive'])}")
        children = below.get(node, [])
        if not children:
            return
        node = max(children, key=lambda child: graph.nodes[child]["flops_inclusive"])


def recomputed_totals(model_file: Path, report_file: Path) -> bool:
    """Work out a report's FLOPs and bytes from the model's texts, step by step; tell whether they agree."""
    model: dict[str, Any] = json.loads(model_file.read_text(encoding="utf-8"))
    report: dict[str, Any] = json.loads(report_file.read_text(encoding="utf-8"))
    names = {
        "__builtins__": {},
        "distinct_experts": lambda experts, chosen, tokens: experts * (1 - (1 - chosen / experts) ** tokens),
        "floor": math.floor,
        "ceiling": math.ceil,
        "Max": max,
        "Min": min,
    }
    texts: dict[str, dict[str, str]] = {}  # stage -> key of a cost -> one expression for the whole stage
    for stage in model["stages"]:
        leaves = [leaf for leaf in model["leaves"] if leaf["stage"] == stage["name"]]
        texts[stage["name"]] = {
            key: " + ".join(f"{leaf['calls']} * ({leaf['cost'][key]})" for leaf in leaves if leaf["cost"][key] != 0)
            for key in ("matmul_flops", "vector_flops", "bytes")
        }
    sums = dict.fromkeys(("matmul_flops", "vector_flops", "bytes"), 0.0)
    for run in (run for item in report["items"] for run in item["runs"]):
        for key, text in texts[run["stage"]].items():
            code = compile(text, f"{run['stage']} {key}", "eval")
            for step in range(run["count"]):
                sizes = dict(run["bindings"])
                if run["sweep"]:
                    sizes[run["sweep"]] += step
                sums[key] += eval(code, names, sizes)  # noqa: S307 - expressions of our own file, no builtins
    total = report["total"]["total"]
    print("4. Totals from json alone")
    agrees = True
    for key, value in sums.items():
        same = math.isclose(value, total[key], rel_tol=1e-9)
        agrees = agrees and same
        print(f"   {key}: {value:,.0f}, the report says {total[key]:,.0f}{'' if same else '  DIFFERS'}")
    return agrees


def largest_movers(path: Path) -> None:
    """Print the modules whose own operators move most bytes, from the CSV file alone."""
    moved: dict[str, float] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            name = row["module"] or "(root)"
            moved[name] = moved.get(name, 0) + float(row["own bytes [bytes]"])
    print("5. Modules that move most bytes by themselves")
    for name, count in sorted(moved.items(), key=lambda pair: -pair[1])[:5]:
        print(f"   {name}: {format_bytes(count)}")


if __name__ == "__main__":
    sys.exit(main())
