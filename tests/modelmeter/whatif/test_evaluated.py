"""Effects of what-ifs on a workload: they add up, they are written and read, a histogram must be of the model."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelmeter
from modelmeter.evaluate import evaluate
from modelmeter.json_text import read_schema
from modelmeter.reports import report_from_json
from modelmeter.routing import FEWEST, MOST, UNIFORM, Histogram, RoutingError, Zipf
from modelmeter.whatif import Options, apply, evaluate_what_if
from modelmeter.workload import StageRun, Workload, WorkloadItem

MODEL = modelmeter.load("deepseek-ocr")


def workload(batch: int, steps: int) -> Workload:
    """Return a page without crops: a prefill of 283 tokens and some steps."""
    prefill = StageRun(stage="prefill", count=1, bindings={"B": batch, "S": 283, "N": 273})
    decode = StageRun(stage="decode", count=steps, bindings={"B": batch, "T": 283}, sweep="T")
    return Workload(name="page", items=(WorkloadItem(name="page", documents=batch, runs=(prefill, decode)),))


@settings(deadline=None, max_examples=12)
@given(
    options=st.builds(
        Options,
        weight_dtype=st.sampled_from([None, "fp8", "int4"]),
        kv_dtype=st.sampled_from([None, "fp8"]),
        logits=st.sampled_from(["all", "last"]),
        kv_growth=st.sampled_from(["concatenate", "preallocated"]),
    ),
    batch=st.integers(1, 16),
    steps=st.integers(1, 50),
)
def test_effects_add_up_to_the_difference(options: Options, batch: int, steps: int) -> None:
    """Under uniform routing, where quantising does not change which experts are read."""
    page = workload(batch, steps)
    before, after = evaluate(MODEL, page).total.total.cost, evaluate_what_if(apply(MODEL, options), page)
    now = after.total.total.cost
    for figure in ("matmul_flops", "bytes", "weight_bytes_read"):
        effects = sum(getattr(effect, figure) for effect in after.what_ifs)
        assert effects == pytest.approx(getattr(now, figure) - getattr(before, figure), rel=1e-9, abs=1)


@pytest.mark.parametrize("routing", [Zipf(exponent=1.2), FEWEST, MOST])
def test_routing_adds_what_it_reads_more(routing: Zipf) -> None:
    """Its effect is the difference to uniform routing, all of it parameters."""
    page = workload(8, 3)
    report = evaluate_what_if(apply(MODEL, Options(routing=routing)), page)
    (effect,) = report.what_ifs
    assert effect.option == "routing"
    assert effect.bytes == pytest.approx(report.total.total.cost.bytes - evaluate(MODEL, page).total.total.cost.bytes)
    assert effect.weight_bytes_read == pytest.approx(effect.bytes)
    assert (effect.bytes > 0) == (routing is MOST)
    assert report.routing == routing.name


def test_effects_are_part_of_the_file() -> None:
    """A report with what-ifs reads back equal and is as the schema says; one without does not mention them."""
    report = evaluate_what_if(apply(MODEL, Options(kv_dtype="int8", routing=MOST)), workload(2, 2))
    document = json.loads(report.to_json())
    assert [each["option"] for each in document["what_ifs"]] == ["kv_dtype", "routing"]
    jsonschema.validate(document, read_schema("report"))
    assert report_from_json(report.to_json()) == report
    plain = evaluate_what_if(apply(MODEL, Options(routing=UNIFORM)), workload(2, 2))
    assert plain == evaluate(MODEL, workload(2, 2))
    assert "what_ifs" not in json.loads(plain.to_json())


def test_a_histogram_of_another_model_is_refused() -> None:
    """A histogram read without a model is checked when it is applied to one."""
    histogram = Histogram(source="counts.json", counts={"layers.0": (1,) * 64})
    with pytest.raises(RoutingError, match=r"counts.json is of other layers than deepseek-ocr: it has layers.0 too"):
        apply(MODEL, Options(routing=histogram))


def test_options_say_which_of_them_change_calls() -> None:
    """A type that is the captured one changes none, nor does routing; what is in force keeps its value."""
    options = Options(weight_dtype="fp32", kv_dtype="bf16", kv_growth="preallocated", routing=MOST)
    assert options.changing("bf16") == {"weight_dtype": "fp32", "kv_growth": "preallocated"}
    assert options.changing("fp32") == {"kv_dtype": "bf16", "kv_growth": "preallocated"}
