"""Export the four stages and run what was exported: it must give what the model itself gives.

    python tests/manual/deepseek_ocr/manual_deepseek_ocr_model_export.py
    python tests/manual/deepseek_ocr/manual_deepseek_ocr_model_export.py --full --dtype bf16 --stages decode

Each stage of the tiny configuration is exported once with symbolic dims, on random weights. The exported program then
runs on the CPU at sizes other than the ones it was exported at. With --full the published configuration is taken:
3.3 billion parameters, 6.7 GB in bf16 and 13.4 GB in fp32, and minutes on a few cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dsocr_graph.models.deepseek_ocr import (
    STAGES,
    DeepseekOCRConfig,
    DeepseekOCRForCausalLM,
    StageModule,
    dynamic_shapes,
    initialize,
    stage_inputs,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}  # relative to the largest value: sums may be ordered otherwise

# Sizes at the export, and others to run at. Pixels are fixed by the export.
PIXELS = {"base": 256, "view": 128}
EXPORTED: Mapping[str, int] = {"H": 2, "W": 3, "G": 21, "B": 2, "S": 24, "N": 14, "T": 24}
OTHERS: Sequence[Mapping[str, int]] = (
    {"H": 1, "W": 2, "G": 21, "B": 1, "S": 11, "N": 7, "T": 5},
    {"H": 3, "W": 3, "G": 21, "B": 3, "S": 40, "N": 33, "T": 61},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, run, compare; exit status 1 when an exported program gives something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the published configuration instead of the tiny one")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="default: %(default)s")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa", help="default: %(default)s")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="default: all")
    options = parser.parse_args(arguments)
    config = DeepseekOCRConfig() if options.full else DeepseekOCRConfig.tiny(initializer_range=0.2)
    config = config.with_implementations(attn_implementation=options.attention, moe_implementation="grouped")
    dtype = DTYPES[options.dtype]
    with torch.device("meta"):
        model = DeepseekOCRForCausalLM(config).to(dtype)
    initialize(model.to_empty(device="cpu").eval())
    worst = 0.0
    print(f"{'stage':15}{'nodes':>7}{'export':>9}  {'largest relative difference at other sizes'}")
    with torch.no_grad():
        for stage in options.stages:
            nodes, seconds, found = check_stage(model, stage, dtype)
            print(f"{stage:15}{nodes:7,}{seconds:7.1f} s  {', '.join(f'{value:.1e}' for value in found)}")
            worst = max(worst, *found)
    if worst > TOLERANCE[options.dtype]:
        print(f"FAILED: {worst:.1e} is more than {TOLERANCE[options.dtype]:.0e}", file=sys.stderr)
        return 1
    print(f"every exported stage gives what the model gives (within {TOLERANCE[options.dtype]:.0e})")
    return 0


def check_stage(model: DeepseekOCRForCausalLM, stage: str, dtype: torch.dtype) -> tuple[int, float, list[float]]:
    """Return the nodes of a stage's export, the seconds it took, and the differences at each of the other sizes."""
    module = StageModule(model, stage)
    inputs = stage_inputs(model.config, stage, "cpu", dtype, **PIXELS, **EXPORTED)
    start = time.perf_counter()
    program = torch.export.export(
        module, inputs, dynamic_shapes=dynamic_shapes(stage, model.config), strict=False
    ).module()
    seconds = time.perf_counter() - start
    found: list[float] = []
    for seed, sizes in enumerate(OTHERS, start=1):
        other = stage_inputs(model.config, stage, "cpu", dtype, seed=seed, **PIXELS, **sizes)
        # The cache grows in place of the one passed in: each side gets tensors of its own.
        expected = tree_leaves(module(*(tensor.clone() for tensor in other)))
        actual = tree_leaves(program(*(tensor.clone() for tensor in other)))
        assert len(expected) == len(actual), f"{stage}: {len(actual)} results, {len(expected)} expected"
        found.append(max(difference(*pair) for pair in zip(actual, expected, strict=True)))
    return len(program.graph.nodes), seconds, found


def difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest value; infinity for other shapes or types."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return float("inf")
    scale = max(expected.abs().max().item(), 1e-30)
    return (actual.double() - expected.double()).abs().max().item() / scale


if __name__ == "__main__":
    sys.exit(main())
