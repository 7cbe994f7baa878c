"""The toy-size model that the tests of timing run: its stages captured once, with weights made once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import attrs
import pytest
import torch

from dsocr_graph.ir import CapturedModel
from dsocr_graph.models.deepseek_ocr import DeepseekOCRForCausalLM
from dsocr_graph.models.deepseek_ocr.running import RunnableModel
from dsocr_graph.models.named_model import NamedModel
from dsocr_graph.models.registry import Variant, model_named
from dsocr_graph.tracing import capture


@attrs.frozen(kw_only=True)
class Tiny:
    """deepseek-ocr-tiny in fp32, for views of 512 and crops of 640 pixels."""

    named: NamedModel
    variant: Variant
    runnable: RunnableModel
    model: DeepseekOCRForCausalLM
    captured: Callable[..., CapturedModel]  # by names of stages


POINTS: dict[str, dict[str, int]] = {
    "vision_global": {},
    "vision_local": {"V": 2, "H": 1},
    "prefill": {"B": 2, "S": 19, "N": 9},
    "decode": {"B": 2, "T": 21},
}


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """Return the toy-size model."""
    named, variant = model_named("deepseek-ocr-tiny"), Variant(base_size=512, dtype="fp32", attention="sdpa")
    assert named.runnable is not None
    runnable = named.runnable(variant, "grouped")
    described, specs = named.build(variant)
    torch.set_num_threads(1)

    def captured(*stages: str) -> CapturedModel:
        parts = [alone(stage) for stage in stages]
        return attrs.evolve(parts[0], graphs=tuple(graph for part in parts for graph in part.graphs))

    @cache
    def alone(stage: str) -> CapturedModel:
        before = logging.root.manager.disable
        logging.disable(logging.DEBUG)  # torch traces each step of an export; pytest would keep it all
        try:
            wanted = [spec for spec in specs if spec.name == stage]
            return capture(described, wanted, name=named.name, variant=variant.facts())
        finally:
            logging.disable(before)

    model = runnable.load(device="cpu", seed=0)
    return Tiny(named=named, variant=variant, runnable=runnable, model=model, captured=captured)
