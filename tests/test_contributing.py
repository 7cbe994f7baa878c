"""CONTRIBUTING.md: each of its blocks does what the text around it says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from dsocr_graph.compiling import compile_model
from dsocr_graph.emit.files import write_artefacts
from dsocr_graph.errors import MissingLoweringError
from dsocr_graph.lowering import known_operators, lower, unregister
from dsocr_graph.model_cache import ModelCache
from dsocr_graph.models.registry import Variant
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import CallGraph, group_by_module
from dsocr_graph.tracing import capture
from dsocr_graph.workloads import STANDARD, bind_profile, load_profile
from modelmeter import layers, serialize
from modelmeter.devices.catalog import read_catalog
from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.errors import InvalidDeviceError
from modelmeter.evaluate import evaluate, evaluate_stage
from modelmeter.models.deepseek_ocr import MODEL

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"
MARKED = re.compile(r"^<!-- block: (\w+) -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {name: text for name, _, text in MARKED.findall(PAGE.read_text(encoding="utf-8"))}


def run_block(name: str) -> dict[str, Any]:
    """Run a block of Python and return the names it made."""
    names: dict[str, Any] = {"__name__": f"contributing_{name}"}
    code = compile(BLOCKS[name], f"CONTRIBUTING.md, block {name}", "exec", dont_inherit=True)
    exec(code, names)  # noqa: S102 - our own page
    return names


def test_every_block_has_a_test() -> None:
    """Each block of code on the page is marked, so that one of the tests below runs it."""
    fences = re.findall(r"^```(?:python|toml)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(BLOCKS) == {"rule", "layer", "model", "device", "emitter"}
    assert len(fences) == len(BLOCKS)


class Hypotenuse(nn.Module):
    """Runs the operator of the block."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """[B, 8] and [B, 8] -> [B, 8]."""
        return torch.hypot(a, b)


@pytest.fixture
def hypotenuse() -> CallGraph:
    """Return a captured module that runs hypot on B rows of 8."""
    rows = torch.empty(4, 8, dtype=torch.bfloat16, device="meta")
    B = Dim("B", min=1, max=64)
    stage = StageSpec(
        name="forward",
        description="one call",
        module=Hypotenuse(),
        inputs=(rows, rows.clone()),
        dynamic_shapes={"a": {0: B}, "b": {0: B}},
    )
    return group_by_module(capture(stage.module, [stage], name="toy", variant={}))


@pytest.fixture
def rule() -> Iterator[Mapping[str, Any]]:
    """Run the rule's block, and forget the rule afterwards."""
    yield run_block("rule")
    unregister("aten::hypot")


def test_without_the_rule_the_operator_is_named(hypotenuse: CallGraph) -> None:
    """The operator of the block has no rule yet, and lowering says so."""
    assert "aten::hypot" not in known_operators()
    with pytest.raises(MissingLoweringError, match=r"aten::hypot"):
        lower(hypotenuse)


@pytest.mark.usefixtures("rule")
def test_the_rule_lowers_its_operator(hypotenuse: CallGraph) -> None:
    """With the block's rule the module is lowered: 4 FLOPs per element, two operands read and one written."""
    cost = evaluate_stage(lower(hypotenuse), "forward", B=3).total.cost
    assert cost.vector_flops == 4 * 3 * 8
    assert cost.bytes == 3 * (3 * 8) * 2  # three tensors of 3 x 8 in bf16


@pytest.mark.usefixtures("rule")
def test_a_second_rule_is_refused() -> None:
    """A name has one rule."""
    with pytest.raises(ValueError, match="aten::hypot already has a lowering"):
        run_block("rule")


def test_the_layer_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block's layer has the figures that its docstrings state, in the contract's units, and can be stored."""
    RowScale = run_block("layer")["RowScale"]
    layer = RowScale(rows=symbol("B"), width=1000, dtype=DType.BF16)
    bound = layer.at(B=500)
    assert bound.forward_cuda_core_flops() == pytest.approx(500 * 1000 / 1e12)  # one product per element
    assert bound.forward_tensor_core_flops() == 0
    # x read and y written, 500 x 1000 x 2 bytes each, the scale of 1000 x 2 bytes; 8 bits per byte
    assert bound.forward_cal_io() == pytest.approx((2 * 1_000_000 + 2_000) * 8 / 1e12)
    assert bound.forward_memory_weight() == pytest.approx(2_000 / 2**30)
    assert bound.forward_memory_activation() == pytest.approx(1_000_000 / 2**30)
    assert bound.backward_cuda_core_flops() == 2 * 500 * 1000
    for module in (layers, serialize):
        monkeypatch.setattr(module, "LAYERS", {**layers.LAYERS, "RowScale": RowScale})
    assert serialize.layer_from_json(serialize.layer_to_json(layer)) == layer


def test_the_model_compiles() -> None:
    """The block's model is captured and lowered with B open; its FLOPs are those of two products and a ReLU."""
    named = run_block("model")["MODEL"]
    variant = Variant(base_size=1024, dtype="bf16", attention="sdpa")
    compiled = compile_model(named, variant, store=ModelCache(directory=None))
    model = serialize.model_from_bytes(compiled.model_json, source="block model")
    cost = evaluate_stage(model, "forward", B=5).total.cost
    assert cost.matmul_flops == 2 * 5 * (64 * 128 + 128 * 8)
    assert model.parameters == 64 * 128 + 128 + 128 * 8 + 8
    assert compiled.onnx


def device_table(entry: str) -> str:
    """Return the shipped table of devices with one more entry."""
    shipped = (resources.files("modelmeter.devices") / "devices.toml").read_text(encoding="utf-8")
    return f"{shipped}\n{entry}"


def test_the_device_is_read_and_checked() -> None:
    """The block's device joins the table, in base units."""
    device = read_catalog(device_table(BLOCKS["device"]))["example-141gb"]
    assert device.peak_flops("bf16") == 900e12
    assert device.memory_bandwidth == 4800e9
    assert device.memory_bytes == 141 * 2**30


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('fp16_tflops = { value = 900, source = "datasheet" }', 'fp16_tflops = { value = 1800, source = "datasheet" }'),
        ('bandwidth_gb_per_s = { value = 4800, source = "datasheet" }', "bandwidth_gb_per_s = { value = 4800 }"),
        ('architecture = "hopper"', 'architecture = "unheard-of"'),
    ],
    ids=["sparse peak", "no source", "unknown architecture"],
)
def test_a_wrong_device_is_refused(right: str, wrong: str) -> None:
    """A peak out of ratio, a number without a source and an unknown architecture are errors that name the device."""
    assert right in BLOCKS["device"]
    with pytest.raises(InvalidDeviceError, match=r"example-141gb|Example 141GB"):
        read_catalog(device_table(BLOCKS["device"].replace(right, wrong)))


def test_the_emitter_writes_a_report(tmp_path: Path) -> None:
    """The block's emitter writes one line per category; its FLOPs add up to the report's total."""
    report = evaluate(MODEL.load(), bind_profile(load_profile(STANDARD)))
    (path,) = write_artefacts(tmp_path, {"categories.tsv": lambda: run_block("emitter")["to_tsv"](report)})
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    assert header == "category\tFLOPs\tbytes"
    assert len(lines) == len(report.total.categories)
    assert sum(int(line.split("\t")[1]) for line in lines) == report.total.total.cost.flops


NAMED = re.findall(r"`((?:src|extern|tests|graphs|\.ci)/[\w./-]+)`", PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted(set(NAMED)))
def test_paths_on_the_page_exist(path: str, repo_root: Path) -> None:
    """A path that the page names is there."""
    assert (repo_root / path).exists()
