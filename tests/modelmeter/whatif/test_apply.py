"""What-ifs of the shipped model: figures by hand, what stays, and laws over the options."""

from __future__ import annotations

import itertools

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

import modelmeter
from modelmeter.devices import load_device
from modelmeter.dim_text import to_text
from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.evaluate import StageCost, evaluate_stage
from modelmeter.layers import Linear, ScaledDotProductAttention
from modelmeter.model import AnalyticModel, Leaf, ModuleNode, Stage
from modelmeter.predict.roofline import RooflineError
from modelmeter.routing import Zipf
from modelmeter.serialize import model_from_json, model_to_json
from modelmeter.whatif import Options, UnknownChoiceError, UnsupportedWhatIfError, WhatIfError, apply

SIZES = {
    "vision_global": {},
    "vision_local": {"V": 4, "H": 2},
    "prefill": {"B": 2, "S": 283, "N": 273},
    "decode": {"B": 2, "T": 283},
}
DTYPES = ("fp32", "fp8", "int8", "int4")
EXPERT_MATRIX = 1280 * 896  # elements of each of the three matrices of one expert
QUANTISED = (
    12 * 4 * 1280 * 1280  # attention of the decoder: 78,643,200
    + 3 * 1280 * 6848  # the dense layer: 26,296,320
    + 11 * (64 + 2) * 3 * EXPERT_MATRIX  # routed and shared experts: 2,497,904,640
    + 1280 * 129_280  # lm_head: 165,478,400
    + 12 * 12 * 768 * 768  # SAM: qkv 3, projection 1, MLP 4 + 4 times 768 * 768 in each of 12 blocks: 84,934,656
    + 24 * 12 * 1024 * 1024  # CLIP, likewise: 301,989,888
    + 2048 * 1280  # projector: 2,621,440
)  # elements of quantised matrices: 3,157,868,544


@pytest.fixture(scope="module", params=["gundam", "gundam-eager"])
def model(request: pytest.FixtureRequest) -> AnalyticModel:
    """Return the shipped model, in both attention implementations."""
    return modelmeter.load("deepseek-ocr", request.param)


@pytest.fixture(scope="module")
def sdpa() -> AnalyticModel:
    """Return the shipped model of the fused attention."""
    return modelmeter.load("deepseek-ocr", "gundam")


def cost(model: AnalyticModel, stage: str) -> StageCost:
    """Return the cost of one execution of a stage."""
    return evaluate_stage(model, stage, **SIZES[stage])


def test_without_options_the_model_is_the_same_object(model: AnalyticModel) -> None:
    """As captured means as captured: no leaf, byte or name changes, and nothing is reported."""
    what_if = apply(model, Options())
    assert what_if.model is model
    assert what_if.changes == ()


def test_options_that_name_the_captured_type_change_nothing(model: AnalyticModel) -> None:
    """The model was captured in bf16, so asking for bf16 everywhere is no what-if."""
    what_if = apply(model, Options(weight_dtype="bf16", activation_dtype="bf16", kv_dtype="bf16"))
    assert what_if.model is model
    assert what_if.changes == ()


# --- the KV cache


@pytest.mark.parametrize(
    ("dtype", "per_token"), [("fp32", 122_880), ("fp8", 30_720), ("int8", 30_720), ("int4", 15_360)]
)
def test_kv_bytes_per_token_follow_the_bits_of_the_cache(model: AnalyticModel, dtype: str, per_token: int) -> None:
    """12 layers * (key + value) * 10 heads * 128 elements = 30,720 elements: 61,440 bytes in bf16, else by the bits."""
    changed = apply(model, Options(kv_dtype=dtype)).model
    assert to_text(changed.stage("prefill").kv_cache_bytes) == f"{per_token}*B*S"
    assert to_text(changed.stage("decode").kv_cache_bytes) == f"{per_token}*B*T + {per_token}*B"


def test_an_int8_cache_moves_three_halves_of_its_tokens_less_in_a_step(model: AnalyticModel) -> None:
    """The copy reads T tokens and writes T + 1, attention reads T + 1: 3*T + 2 tokens of 30,720 bytes less."""
    before, after = cost(model, "decode"), cost(apply(model, Options(kv_dtype="int8")).model, "decode")
    assert before.total.cost.bytes - after.total.cost.bytes == 2 * (3 * 283 + 2) * 30_720
    assert after.total.cost.matmul_flops == before.total.cost.matmul_flops


def test_a_preallocated_cache_is_not_copied(model: AnalyticModel) -> None:
    """A step neither reads nor writes the T old tokens: 2 * T * 61,440 bytes a document less, no buffer twice."""
    what_if = apply(model, Options(kv_growth="preallocated"))
    before, after = cost(model, "decode"), cost(what_if.model, "decode")
    assert before.total.cost.bytes - after.total.cost.bytes == 2 * 2 * 283 * 61_440
    decode = what_if.model.stage("decode")
    assert all(peak.kv_cache_bytes in (0, decode.kv_cache_bytes) for peak in decode.peaks)
    assert [shift.stage for shift in what_if.changes[0].shifts] == ["decode"]


def test_a_model_without_a_cache_says_so() -> None:
    """A KV type of a model that keeps no keys and values names the option to leave alone."""
    model = modelmeter.load("deepseek-ocr")
    blind = evolve(
        model,
        stages=tuple(stage for stage in model.stages if stage.name.startswith("vision")),
        leaves=tuple(leaf for leaf in model.leaves if leaf.stage.startswith("vision")),
    )
    with pytest.raises(UnsupportedWhatIfError, match="leave kv_dtype and kv_growth as captured"):
        apply(blind, Options(kv_dtype="int8"))


def test_a_cache_that_the_leaves_do_not_account_for_is_refused(sdpa: AnalyticModel) -> None:
    """When attention reads other bytes than the stage keeps, nothing is guessed."""
    leaves = tuple(leaf for leaf in sdpa.leaves if not isinstance(leaf.layer, ScaledDotProductAttention))
    with pytest.raises(UnsupportedWhatIfError, match=r"keeps 61440\*B\*S bytes, its attention reads 0"):
        apply(evolve(sdpa, leaves=leaves), Options(kv_dtype="int8"))


def test_routing_of_a_model_without_experts_is_refused() -> None:
    """There is nothing that a router could choose."""
    with pytest.raises(UnsupportedWhatIfError, match="qwen3-8b sends no tokens to experts, so that routing zipf"):
        apply(modelmeter.load("qwen3-8b"), Options(routing=Zipf(exponent=1.1)))


# --- weights


def test_int4_parameters_are_half_a_byte_each_and_their_scales(sdpa: AnalyticModel) -> None:
    """Elements that stay bf16: embedding, convolutions, norms, biases, router; the others take 4 bits + 16/128.

    Of the linear layers only one width is no multiple of 128: down_proj of layer 0, 6,848 = 53.5 * 128, so each of
    its 1,280 rows has half a scale more: 640 scales, 1,280 bytes.
    """
    quantised = apply(sdpa, Options(weight_dtype="int4")).model
    saved = QUANTISED * 2 - (QUANTISED // 2 + QUANTISED // 128 * 2 + 640 * 2)
    assert sdpa.parameter_bytes - quantised.parameter_bytes == saved
    assert quantised.load_bytes == quantised.parameter_bytes + sdpa.buffer_bytes
    assert sum(node.parameter_bytes for node in quantised.modules) == quantised.parameter_bytes


def test_int4_experts_read_their_scales_too(sdpa: AnalyticModel) -> None:
    """One expert matrix in int4: 1,146,880 / 2 + 1,146,880 / 128 * 2 = 591,360 bytes instead of 2,293,760.

    At B = 1 the 11 layers read 6 experts of 3 matrices; all other quantised matrices are read as well.
    """
    before, after = (
        evaluate_stage(each, "decode", B=1, T=1).modules["model.layers.[1-11].mlp.experts"].own.cost.weight_bytes_read
        for each in (sdpa, apply(sdpa, Options(weight_dtype="int4")).model)
    )
    assert before == 11 * 6 * 3 * EXPERT_MATRIX * 2
    assert after == 11 * 6 * 3 * 591_360


def test_a_larger_group_has_fewer_scales(sdpa: AnalyticModel) -> None:
    """Groups of 1,280 along 1,280 or 896 features are one scale a row: 896 + 896 + 1,280 scales an expert."""
    changed = apply(sdpa, Options(weight_dtype="int8", group_size=1280)).model
    experts = evaluate_stage(changed, "decode", B=1, T=1).modules["model.layers.[1-11].mlp.experts"].own.cost
    assert experts.weight_bytes_read == 11 * 6 * (3 * EXPERT_MATRIX + 2 * (896 + 896 + 1280))


def test_weight_only_quantisation_computes_as_before(model: AnalyticModel) -> None:
    """Products of int4 weights run in bf16: no FLOP changes and none leaves the tensor cores."""
    for stage in SIZES:
        before, after = cost(model, stage).total.cost, cost(apply(model, Options(weight_dtype="int4")).model, stage)
        assert after.total.cost.tensor_core_flops == before.tensor_core_flops
        assert after.total.cost.matmul_flops == before.matmul_flops


def test_fp32_weights_double_every_parameter(model: AnalyticModel) -> None:
    """3,336,106,240 parameters of 4 bytes; the script loads fp32 anyhow."""
    changed = apply(model, Options(weight_dtype="fp32")).model
    assert changed.parameter_bytes == 3_336_106_240 * 4
    assert changed.load_bytes == model.load_bytes


# --- activations


def test_fp8_products_run_at_the_fp8_peak(sdpa: AnalyticModel) -> None:
    """The head of a prefill on an H200 is bound by its products; they take as much less as the fp8 peak is higher."""
    device = load_device("h200")
    fp8 = apply(sdpa, Options(weight_dtype="fp8", activation_dtype="fp8")).model
    before, after = (
        evaluate_stage(each, "prefill", device=device, B=16, S=1024, N=900).modules["lm_head"].own.time
        for each in (sdpa, fp8)
    )
    assert before is not None
    assert after is not None
    ratio = device.peak_flops("fp8") / device.peak_flops("bf16")
    assert ratio > 1.9
    assert after.matrix_units == pytest.approx(before.matrix_units / ratio, rel=1e-9)


def test_an_int8_product_names_the_peaks_that_a_device_has(sdpa: AnalyticModel) -> None:
    """No device of the table states an int8 peak, so a roofline says which it has instead of guessing."""
    changed = apply(sdpa, Options(weight_dtype="int8", activation_dtype="int8")).model
    with pytest.raises(RooflineError, match="no peak for 'int8'; it has bf16"):
        evaluate_stage(changed, "decode", device=load_device("h200"), B=1, T=1)


def test_fp32_activations_leave_the_tensor_cores_and_keep_weights_and_cache(model: AnalyticModel) -> None:
    """fp32 without TF32 multiplies on CUDA cores; parameters and KV cache are options of their own."""
    changed = apply(model, Options(activation_dtype="fp32")).model
    before, after = cost(model, "decode"), cost(changed, "decode")
    assert after.total.cost.tensor_core_flops == 0
    assert after.total.cost.cuda_core_flops == before.total.cost.flops
    assert after.memory.kv_cache_bytes == before.memory.kv_cache_bytes
    assert changed.parameter_bytes == model.parameter_bytes


def test_activations_of_a_model_captured_in_fp32_are_refused(sdpa: AnalyticModel) -> None:
    """What is fp32 by design cannot be told there; the message says to compile in the other type."""
    wide = evolve(sdpa, variant={**sdpa.variant, "dtype": "fp32"})
    with pytest.raises(UnsupportedWhatIfError, match="compile it with dtype bf16"):
        apply(wide, Options(activation_dtype="bf16"))


def test_a_model_of_an_unknown_type_is_refused(sdpa: AnalyticModel) -> None:
    """Without a captured type, the tensors to change cannot be told."""
    with pytest.raises(UnsupportedWhatIfError, match="its variant has no dtype; make it in one of bf16, fp16, fp32"):
        apply(evolve(sdpa, variant={}), Options(weight_dtype="int8"))


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        (
            "bf16 and fp32",
            "weights in bf16 and fp32, and which of them .*; make it in one of bf16, fp16, fp32, fp64 and",
        ),
        ("fp8", "captured in fp8, quantised as published; compile it in bf16 and ask for weight_dtype"),
        ("int32", "its variant has dtype int32; make it in one of bf16"),
    ],
)
def test_a_model_of_several_types_or_a_quantised_one_says_what_to_do(
    sdpa: AnalyticModel, dtype: str, remedy: str
) -> None:
    """The message says why and how to get an answer, or which options to leave alone."""
    with pytest.raises(UnsupportedWhatIfError, match=remedy):
        apply(evolve(sdpa, variant={"dtype": dtype}), Options(weight_dtype="int8"))


@pytest.mark.parametrize(("name", "dtype", "size"), [("fp16", DType.FP16, 2), ("fp64", DType.FP64, 8)])
def test_models_in_fp16_and_fp64_take_what_ifs(name: str, dtype: DType, size: int) -> None:
    """A linear layer of 4 to 2 with a bias of 2: 8 elements of a byte in fp8, 2 elements as captured; all 4 in fp32."""
    model = one_linear(name, dtype, size)
    fp8 = apply(model, Options(weight_dtype="fp8")).model
    assert (fp8.parameter_bytes, fp8.stage("forward").weight_bytes) == (8 + 2 * size, 8 + 2 * size)
    wide = apply(model, Options(weight_dtype="fp32", activation_dtype="fp32")).model
    assert wide.parameter_bytes == 10 * 4
    assert wide.leaves[0].layer.traffic().bytes == 10 * 4 + 3 * 4 * 4 + 3 * 2 * 4


def test_fp32_for_every_parameter_is_refused_where_some_have_another_type_already() -> None:
    """Ten parameters of 2 bytes are 20 bytes; a model that says 24 has others beside them."""
    model = evolve(one_linear("fp16", DType.FP16, 2), parameter_bytes=24)
    with pytest.raises(UnsupportedWhatIfError, match="not every parameter of one is fp16"):
        apply(model, Options(weight_dtype="fp32"))


def one_linear(name: str, dtype: DType, size: int) -> AnalyticModel:
    """Return a model of one linear layer of 3 rows, 4 to 2 elements, with a bias."""
    layer = Linear(rows=3, in_features=4, out_features=2, bias=True, dtype=dtype)
    leaf = Leaf(
        id="/linear",
        module="",
        stage="forward",
        op="aten::linear",
        function="forward",
        category=layer.category,
        layer=layer,
        calls=1,
        fused_bytes=layer.traffic().bytes,
    )
    node = ModuleNode(
        id="",
        class_name="Linear",
        parent=None,
        instances=1,
        series=1,
        parallel={},
        calls={"forward": 1},
        parameters=10,
        parameter_bytes=10 * size,
        fan_in=0,
        fan_out=0,
    )
    stage = Stage(name="forward", description="", dims=(), weight_bytes=10 * size, kv_cache_bytes=0, peaks=())
    return AnalyticModel(
        name="one",
        variant={"dtype": name},
        dims={},
        parameters=10,
        parameter_bytes=10 * size,
        load_bytes=10 * size,
        stages=(stage,),
        modules=(node,),
        leaves=(leaf,),
        free=(),
        edges=(),
    )


# --- logits


def test_last_logits_divide_the_heads_work_by_the_positions(model: AnalyticModel) -> None:
    """B*S rows of 1,280 by 129,280 become B rows: 2 * 2 * 1,280 * 129,280 FLOPs; the bf16 and fp32 logits shrink."""
    before, after = (cost(each, "prefill") for each in (model, apply(model, Options(logits="last")).model))
    assert after.modules["lm_head"].own.cost.matmul_flops == 2 * 2 * 1280 * 129_280
    assert before.modules["lm_head"].own.cost.matmul_flops == 283 * after.modules["lm_head"].own.cost.matmul_flops
    # fewer bytes, for 282 positions of 2 documents: hidden state read, logits written, cast and copied
    assert before.total.cost.bytes - after.total.cost.bytes == 282 * 2 * (1280 * 2 + 129_280 * (2 + (2 + 4) + (4 + 4)))
    # 8 bytes less a logit at the peak of the captured model: the cast and its copy
    assert after.memory.peak_bytes < before.memory.peak_bytes


def test_last_logits_leave_a_decode_step_alone(model: AnalyticModel) -> None:
    """A step makes logits for one position of each document already."""
    changed = apply(model, Options(logits="last")).model
    assert changed.leaves_by_stage["decode"] == model.leaves_by_stage["decode"]


def test_a_model_without_logits_over_positions_says_so(toy_model: AnalyticModel) -> None:
    """A head that is followed by no choice of a token cannot be cut."""
    with pytest.raises(UnsupportedWhatIfError, match="leave logits at 'all'"):
        apply(toy_model, Options(logits="last"))


# --- errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"weight_dtype": "int7"},
            UnknownChoiceError,
            "unknown weight_dtype 'int7'.*Known: bf16, fp32, fp8, int4, int8",
        ),
        ({"activation_dtype": "bf-16"}, UnknownChoiceError, "unknown activation_dtype"),
        ({"kv_dtype": ""}, UnknownChoiceError, "unknown kv_dtype"),
        ({"logits": "first"}, UnknownChoiceError, "unknown logits 'first'.*Known: all, last"),
        ({"kv_growth": "paged"}, UnknownChoiceError, "Known: concatenate, preallocated"),
        ({"activation_dtype": "int4"}, WhatIfError, "no unit to multiply it"),
        ({"activation_dtype": "fp8"}, WhatIfError, "not of the captured type; give weight_dtype fp8"),
        ({"activation_dtype": "int8", "weight_dtype": "int4"}, WhatIfError, "not of int4"),
        ({"group_size": 0}, DimError, "whole number of elements from 1 up"),
        ({"group_size": 64, "weight_dtype": "fp8"}, WhatIfError, "is of int8 and int4 weights, not of fp8 ones"),
        ({"routing": "zipf:1"}, WhatIfError, "routing is 'zipf:1', which is no routing model"),
    ],
)
def test_an_impossible_option_names_what_is_possible(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    """Each mistake gets one message with the option and its choices."""
    with pytest.raises(error, match=message):
        Options(**options)  # pyright: ignore[reportArgumentType]


# --- laws


OPTIONS = st.builds(
    Options,
    weight_dtype=st.sampled_from([None, *DTYPES]),
    kv_dtype=st.sampled_from([None, *DTYPES]),
    kv_growth=st.sampled_from(["concatenate", "preallocated"]),
    logits=st.sampled_from(["all", "last"]),
)


@given(options=OPTIONS, tokens=st.integers(1, 2000), batch=st.integers(1, 64))
@settings(max_examples=15, deadline=None)
def test_the_shifts_of_the_changes_are_the_difference_of_two_evaluations(
    options: Options, tokens: int, batch: int
) -> None:
    """What the changes state as formulas adds up to what two evaluations differ by, in every stage with a batch."""
    model = modelmeter.load("deepseek-ocr")
    what_if = apply(model, options)
    for stage, sizes in (("prefill", {"B": batch, "S": tokens, "N": tokens}), ("decode", {"B": batch, "T": tokens})):
        before, after = (evaluate_stage(each, stage, **sizes).total.cost for each in (model, what_if.model))
        shifts = [shift for change in what_if.changes for shift in change.shifts if shift.stage == stage]
        assert after.bytes - before.bytes == pytest.approx(sum(shift.bytes.at(sizes) for shift in shifts), rel=1e-9)
        moved = sum(shift.matmul_flops.at(sizes) for shift in shifts)
        assert after.matmul_flops - before.matmul_flops == moved


@pytest.mark.parametrize("option", ["weight_dtype", "kv_dtype"])
def test_fewer_bits_never_move_or_hold_more(model: AnalyticModel, option: str) -> None:
    """From fp32 over bf16 and int8 to int4, bytes and memory of every stage never grow."""
    models = [apply(model, Options(**{option: dtype})).model for dtype in ("fp32", "bf16", "int8", "int4")]  # pyright: ignore[reportArgumentType]
    for stage in SIZES:
        costs = [cost(each, stage) for each in models]
        for wide, narrow in itertools.pairwise(costs):
            assert narrow.total.cost.bytes <= wide.total.cost.bytes
            assert narrow.total.cost.fused_bytes <= wide.total.cost.fused_bytes
            assert narrow.memory.peak_bytes <= wide.memory.peak_bytes
            assert narrow.memory.weight_bytes <= wide.memory.weight_bytes


def test_fused_bytes_never_exceed_unfused_ones(model: AnalyticModel) -> None:
    """Whatever stays on chip saves traffic, in every type."""
    for options in (Options(weight_dtype="int4", kv_dtype="int8"), Options(weight_dtype="fp8", activation_dtype="fp8")):
        for stage in SIZES:
            total = cost(apply(model, options).model, stage).total.cost
            assert total.fused_bytes <= total.bytes


def test_a_changed_model_is_stored_and_read_back(sdpa: AnalyticModel) -> None:
    """What a what-if sets is in the file: reading gives an equal model, formats of weights included."""
    options = Options(weight_dtype="int4", kv_dtype="int8", kv_growth="preallocated", logits="last")
    changed = apply(sdpa, options).model
    assert model_from_json(model_to_json(changed)) == changed


def test_what_was_changed_is_in_the_variant_and_the_changes_in_words(sdpa: AnalyticModel) -> None:
    """A report tells a what-if from the captured model, and each change says what it assumes."""
    what_if = apply(sdpa, Options(weight_dtype="int4", logits="last", routing=Zipf(exponent=1.1)))
    assert what_if.model.variant == {**sdpa.variant, "weight_dtype": "int4", "logits": "last"}
    assert [change.option for change in what_if.changes] == ["weight_dtype", "logits", "routing"]
    assert "one bf16 scale for each 128 elements" in what_if.changes[0].text
    assert "dequantising is not counted" in what_if.changes[0].text
    assert what_if.routing(64, 6, 1) == pytest.approx(6)


def test_changed_leaves_have_no_captured_signature(sdpa: AnalyticModel) -> None:
    """No kernel was captured for int4 weights, so no timed call can be mistaken for one; the others keep theirs."""
    changed = apply(sdpa, Options(weight_dtype="int4")).model
    unlike = [new for old, new in zip(sdpa.leaves, changed.leaves, strict=True) if new is not old]
    assert unlike
    assert all(leaf.signature is None for leaf in unlike)
    assert sum(leaf.signature is None for leaf in changed.leaves) == len(unlike)
