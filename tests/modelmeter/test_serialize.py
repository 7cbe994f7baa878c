"""Models as JSON: round trips, schema, quick and lazy reading, clear errors."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from attrs import evolve

from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.evaluate import evaluate
from modelmeter.expert_counts import distinct_experts
from modelmeter.json_text import read_schema
from modelmeter.layers import Child, Linear, Module, Operand, ScaledDotProductAttention
from modelmeter.model import COST_FIELDS, LeafCost
from modelmeter.models.deepseek_ocr import MODEL
from modelmeter.serialize import (
    MissingModelFileError,
    ModelFileError,
    compress,
    layer_from_json,
    layer_to_json,
    model_from_bytes,
    model_from_json,
    model_to_json,
    read_model,
)
from modelmeter.stored import StoredDim


def test_round_trip(toy: ModuleType) -> None:
    """Written and read, a model is the same, and written again it is the same text."""
    model = toy.toy_model()
    text = model_to_json(model)
    again = model_from_json(text)
    assert again == model
    assert model_to_json(again) == text
    assert text.endswith("}\n")


def test_calls_and_their_order_round_trip(toy: ModuleType) -> None:
    """Signatures and schedules come back as they were, a schedule on one line."""
    model = toy.scheduled_toy_model()
    text = model_to_json(model)
    again = model_from_json(text)
    assert again == model
    assert model_to_json(again) == text
    assert again.leaves[0].signature == model.leaves[0].signature
    assert '   "schedule": [4, 0, 1, 4, 0, 1, 4, 2, 3]\n' in text
    jsonschema.validate(json.loads(text), read_schema("model"))


@pytest.mark.parametrize(
    "schedule",
    [
        [4, 0, 1, 4, 0, 1, 4, 2],  # the head is missing
        [4, 0, 1, 4, 0, 1, 4, 2, 3, 3],  # it runs twice
        [4, 0, 1, 4, 0, 1, 4, 2, 5],  # no such record
    ],
)
def test_a_schedule_that_is_not_the_counts_is_refused(toy: ModuleType, schedule: list[int]) -> None:
    """Each call runs as often as its record says, and nothing else does."""
    document = json.loads(model_to_json(toy.scheduled_toy_model()))
    document["stages"][0]["schedule"] = schedule
    with pytest.raises(ModelFileError, match="the schedule of stage 'prefill' does not run each call as often"):
        model_from_json(json.dumps(document))


def test_order_of_mappings_means_nothing(toy: ModuleType) -> None:
    """Variants given in another order make the same text."""
    model = toy.toy_model()
    turned = evolve(model, variant=dict(reversed(model.variant.items())))
    assert list(turned.variant) != list(model.variant)
    assert model_to_json(turned) == model_to_json(model)


def test_one_leaf_a_line(toy: ModuleType) -> None:
    """A changed leaf is one changed line."""
    lines = model_to_json(toy.toy_model()).splitlines()
    assert sum(line.startswith('  {"id": ') and '"layer"' in line for line in lines) == len(toy.toy_model().leaves)


def test_shipped_schema_describes_it(toy: ModuleType) -> None:
    """The model is valid, and an unknown key is not."""
    schema = read_schema("model")
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(model_to_json(toy.toy_model()))
    jsonschema.validate(document, schema)
    document["leaves"][0]["cost"]["gold"] = 1
    with pytest.raises(jsonschema.ValidationError, match="gold"):
        jsonschema.validate(document, schema)


def test_cost_in_the_file_is_what_the_layer_states(toy: ModuleType) -> None:
    """For every leaf, read costs equal those of the layer built from the file."""
    model = model_from_json(model_to_json(toy.toy_model()))
    for leaf in model.leaves:
        stated = LeafCost.of(leaf.layer, leaf.cost.fused_bytes)
        assert leaf.cost == stated, leaf.id


@pytest.mark.parametrize("variant", ["tiny", "small", "base", "large", "gundam", "gundam-eager"])
def test_shipped_models_keep_the_law(variant: str) -> None:
    """Shipped models are valid, and their costs are those their layers state."""
    model = MODEL.load(variant)
    jsonschema.validate(json.loads(model_to_json(model)), read_schema("model"))
    for leaf in model.leaves:
        assert leaf.cost == LeafCost.of(leaf.layer, leaf.cost.fused_bytes), leaf.id


def test_a_dozen_lines_recompute_the_totals(toy: ModuleType) -> None:
    """FLOPs and bytes of the workload from the file alone, with json and eval, as the schema says."""
    report = evaluate(toy.toy_model(), toy.toy_workload())
    document = json.loads(model_to_json(toy.toy_model()))
    tools = {"distinct_experts": lambda e, k, t: e * (1 - (1 - k / e) ** t), "floor": math.floor}
    runs = [("prefill", {"B": 2, "S": 5}), *(("decode", {"B": 2, "T": t}) for t in (5, 6, 7))]
    flops = moved = 0
    for stage, sizes in runs:
        for leaf in document["leaves"]:
            if leaf["stage"] == stage:
                cost = {key: eval(str(text), {**tools, **sizes}) for key, text in leaf["cost"].items()}  # noqa: S307 - our own file
                flops += leaf["calls"] * (cost["matmul_flops"] + cost["vector_flops"])
                moved += leaf["calls"] * cost["bytes"]
    assert flops == report.total.total.cost.flops
    assert moved == pytest.approx(report.total.total.cost.bytes)


def _large(toy: ModuleType, leaves: int) -> str:
    """Return a model of many leaves with different costs."""
    document = json.loads(model_to_json(toy.toy_model()))
    first = document["leaves"][0]
    document["leaves"] = [
        {
            **first,
            "id": f"{first['module']}/prefill.{i}",
            "layer": {**first["layer"], "in_features": i + 1},
            "cost": dict.fromkeys(COST_FIELDS, f"{i + 1}*B*S + {i}*S"),
        }
        for i in range(leaves)
    ]
    return json.dumps(document)


def test_1500_leaves_read_in_a_moment(toy: ModuleType) -> None:
    """Reading 1,500 leaves takes less than 0.3 s: the best of three, as the machine may be busy."""
    text = _large(toy, 1500)

    def seconds() -> float:
        start = time.perf_counter()
        model_from_json(text)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.3


def test_reading_and_evaluating_build_no_expression(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read model is evaluated from text; its layers and expressions are made only when asked for."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} was parsed")

    report = evaluate(toy.toy_model(), toy.toy_workload())
    text = model_to_json(toy.toy_model())
    monkeypatch.setattr("modelmeter.stored.parse", refuse)
    monkeypatch.setattr("modelmeter.serialize.parse", refuse)
    model = model_from_json(text)
    assert evaluate(model, toy.toy_workload()) == report
    with pytest.raises(AssertionError, match="was parsed"):
        _ = model.leaves[0].fused_bytes


def test_evaluating_a_file_needs_no_torch(toy: ModuleType, tmp_path: Path) -> None:
    """A process that reads and evaluates a model imports neither torch nor networkx."""
    path = tmp_path / "model.json"
    path.write_text(model_to_json(toy.toy_model()))
    code = (
        "import sys; from modelmeter.serialize import read_model; from modelmeter.evaluate import evaluate_stage\n"
        f"print(evaluate_stage(read_model({str(path)!r}), 'prefill', B=2, S=5).total.cost.flops)\n"
        "assert not {'torch', 'networkx', 'dsocr_graph'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3680\n"


def test_gzip_is_read_and_deterministic(toy: ModuleType, tmp_path: Path) -> None:
    """Equal texts compress to equal bytes, and files of either kind are read."""
    text = model_to_json(toy.toy_model())
    assert compress(text) == compress(text)
    assert compress(text)[4:8] == bytes(4)  # gzip's time stamp
    (tmp_path / "model.json.gz").write_bytes(compress(text))
    assert read_model(tmp_path / "model.json.gz") == toy.toy_model()


def test_composites_and_operands_round_trip() -> None:
    """Nested layers, operands and calls come back as they were."""
    attention = ScaledDotProductAttention(
        batch=symbol("B"),
        heads=2,
        kv_heads=2,
        query_length=4,
        key_length=4,
        head_dim=8,
        value_head_dim=8,
        causal=False,
        mask=Operand(elements=16, dtype=DType.BF16),
        dtype=DType.BF16,
    )
    experts = distinct_experts(8, 2, symbol("B"))
    linear = Linear(rows=symbol("B"), in_features=4, out_features=2, bias=False, dtype=DType.FP32)
    whole = Module(children=(Child(layer=attention), Child(layer=linear, calls=experts)), peak_activation_bytes=7)
    document = layer_to_json(whole)
    assert json.loads(json.dumps(document)) == document
    assert layer_from_json(document) == whole


def test_stored_dims_compare_by_value() -> None:
    """The same dim as text and as expression is equal; another is not."""
    assert StoredDim(text="2*B*S") == StoredDim(2 * symbol("S") * symbol("B"))
    assert StoredDim(text="2*B*S") != StoredDim(7)
    assert StoredDim(text="3").value == 3


def _document(toy: ModuleType) -> Any:
    return json.loads(model_to_json(toy.toy_model()))


def test_truncated_text_is_refused(toy: ModuleType) -> None:
    """A file that was cut off is no model."""
    text = model_to_json(toy.toy_model())
    with pytest.raises(ModelFileError, match=r"half\.json is no JSON or cut off") as caught:
        model_from_json(text[: len(text) // 2], source="half.json")
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("text", ["", "not JSON", "[1, 2]", "{}", "[" * 100_000])
def test_other_text_is_refused(text: str) -> None:
    """What is no JSON object with a schema version is no model."""
    with pytest.raises(ModelFileError, match="the text"):
        model_from_json(text)


def test_limits_are_kept_and_left_out_where_there_are_none(toy: ModuleType) -> None:
    """A model without limits reads as before there were any."""
    plain = toy.toy_model()
    assert '"limits"' not in model_to_json(plain)
    limited = evolve(plain, limits={"S": 8192})
    assert model_from_json(model_to_json(limited)).limits == {"S": 8192}


@pytest.mark.parametrize("version", [1, "2", None, True])
def test_another_schema_version_is_refused(toy: ModuleType, version: object) -> None:
    """The message names both versions."""
    document = {**_document(toy), "schema_version": version}
    with pytest.raises(ModelFileError, match=r"has schema_version .*, this release reads 2"):
        model_from_json(json.dumps(document))


def _change_leaf(document: Any, **changes: object) -> None:
    document["leaves"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("leaves"), "leaves"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.update(parameters="many"), "'many' is no int"),
        (lambda d: d["leaves"][0].pop("op"), "a leaf has the keys"),
        (lambda d: _change_leaf(d, layer={"type": "Magic"}), "unknown type 'Magic'; known are .*Linear"),
        (lambda d: _change_leaf(d, cost={}), "its cost must have the keys"),
        (lambda d: _change_leaf(d, calls=1.5), "calls is 1.5, not a positive integer"),
        (lambda d: _change_leaf(d, calls=-1), "calls is -1, not a positive integer"),
        (lambda d: d["leaves"].append(d["leaves"][0]), "two leaf records"),
        (lambda d: d["leaves"][0]["cost"].update(bytes=-7), "bytes must not be negative"),
        (lambda d: d["leaves"][0]["layer"].update(dtype="bf17"), "dtype 'bf17'; known are .*bf16"),
        (lambda d: _change_leaf(d, module=["x"]), "module must be text"),
        (lambda d: _change_leaf(d, module="nowhere"), "module 'nowhere' of stage 'prefill'"),
        (lambda d: _change_leaf(d, category="magic"), "magic"),
        (lambda d: d["leaves"][0]["cost"].update(bytes=[1]), "is no dim"),
        (lambda d: _change_leaf(d, signature="aten::linear"), "its signature must be an object or null"),
        (lambda d: d["modules"][1].update(parent="nowhere"), "no parent 'nowhere'"),
        (lambda d: d["modules"][1].update(parent=None), "exactly one module"),
    ],
)
def test_what_is_wrong_is_said(toy: ModuleType, change: Any, message: str) -> None:
    """Each defect has a message that names it and the file."""
    document = _document(toy)
    change(document)
    with pytest.raises(ModelFileError, match=f"(?s)the text is no model: .*{message}"):
        model_from_json(json.dumps(document))


def test_a_broken_layer_is_said_when_it_is_built(toy: ModuleType) -> None:
    """A field that the class does not have is an error that shows the layer."""
    document = _document(toy)
    document["leaves"][0]["layer"]["colour"] = "red"
    model = model_from_json(json.dumps(document))
    with pytest.raises(ModelFileError, match="colour"):
        _ = model.leaves[0].layer


def test_a_text_that_is_no_arithmetic_is_refused(toy: ModuleType) -> None:
    """Expressions of a file are arithmetic only; nothing else is ever run."""
    document = _document(toy)
    document["leaves"][0]["cost"]["bytes"] = "__import__('os').getcwd()"
    model = model_from_json(json.dumps(document))
    with pytest.raises(ValueError, match=r"is no expression in dims|unknown function"):
        evaluate(model, toy.toy_workload())


def test_missing_and_damaged_files(tmp_path: Path, toy: ModuleType) -> None:
    """A file that is not there, a directory, and a damaged gzip each have their message."""
    with pytest.raises(MissingModelFileError, match="No such file") as caught:
        read_model(tmp_path / "none.json")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(MissingModelFileError, match="directory"):
        read_model(tmp_path)
    with pytest.raises(ModelFileError, match="cut off or damaged"):
        model_from_bytes(compress(model_to_json(toy.toy_model()))[:100], source="x.gz")
