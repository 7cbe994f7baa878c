"""Stages of the full-size model, captured once for all tests that look at them."""

import logging
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path

import attrs
import pytest
import torch

from dsocr_graph.ir import CapturedModel
from dsocr_graph.lowering import lower
from dsocr_graph.models.deepseek_ocr import DeepseekOCRConfig, DeepseekOCRForCausalLM
from dsocr_graph.models.registry import Variant, model_named
from dsocr_graph.scopes import CallGraph, group_by_module
from dsocr_graph.tracing import capture
from modelmeter.model import AnalyticModel


@attrs.frozen(kw_only=True)
class Compiled:
    """Some stages of one variant, at every step of the compiler."""

    captured: CapturedModel
    grouped: CallGraph
    analytic: AnalyticModel


Compile = Callable[..., Compiled]


@pytest.fixture(scope="session")
def compile_stages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Return a compiler of some stages of a variant; each is captured once, by one of the test processes."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        folder = folder.parent  # the processes of one run share it

    @cache
    def compile_them(*stages: str, base: int = 1024, attention: str = "sdpa", dtype: str = "bf16") -> Compiled:
        variant = Variant(base_size=base, dtype=dtype, attention=attention)
        parts = [_captured(folder, variant, stage) for stage in stages]
        captured = attrs.evolve(parts[0], graphs=tuple(graph for part in parts for graph in part.graphs))
        grouped = group_by_module(captured)
        return Compiled(captured=captured, grouped=grouped, analytic=lower(grouped))

    return compile_them


def _captured(folder: Path, variant: Variant, stage: str) -> CapturedModel:
    path = folder / f"{variant.name}-{stage}.pickle"
    if not path.exists():
        model, specs = model_named("deepseek-ocr").build(variant)
        wanted = [spec for spec in specs if spec.name == stage]
        before = logging.root.manager.disable
        logging.disable(logging.DEBUG)  # torch traces each step of an export; pytest would keep it all
        try:
            captured = capture(model, wanted, name="deepseek-ocr", variant=variant.facts())
        finally:
            logging.disable(before)
        written = folder / f"{path.name}-{id(captured)}"
        written.write_bytes(pickle.dumps(captured))
        written.replace(path)
    return pickle.loads(path.read_bytes())


@pytest.fixture(scope="session")
def full_size() -> Callable[..., DeepseekOCRForCausalLM]:
    """Return a maker of the full-size model on `meta`, in bf16; made once per kind of attention."""

    @cache
    def make(attention: str = "sdpa", dtype: torch.dtype = torch.bfloat16) -> DeepseekOCRForCausalLM:
        config = DeepseekOCRConfig().with_implementations(attn_implementation=attention)
        with torch.device("meta"):
            return DeepseekOCRForCausalLM(config).eval().to(dtype)

    return make
