"""derived_plan: the division of shipped models follows from their structure; shares, exchanges and limits by hand."""

from collections.abc import Callable

import pytest
from attrs import evolve

import modelmeter
from modelmeter.devices import DeviceSpec
from modelmeter.evaluate import evaluate
from modelmeter.layers import Linear
from modelmeter.model import AnalyticModel, Leaf
from modelmeter.parallel import (
    CollectiveReport,
    Layout,
    LayoutError,
    MissingPlanError,
    ParallelReport,
    Role,
    derived_plan,
    distribute,
)
from modelmeter.registry import available
from modelmeter.signature import TensorArgument
from modelmeter.workload import StageRun, Workload, WorkloadItem

QWEN_LAYER = "model.layers.[0-35]"
# 36 layers of two norms of 4,096 and two of a head's 128, and the last norm, in bf16.
QWEN_REPLICATED_BYTES = (36 * (2 * 4096 + 2 * 128) + 4096) * 2
MLA_LAYER = "model.layers.[3-60]"


@pytest.fixture(scope="module")
def qwen() -> AnalyticModel:
    """Return Qwen3-8B: 36 layers, 32 heads and 8 of keys and values, 4,096 features."""
    return modelmeter.load("qwen3-8b")


@pytest.fixture(scope="module")
def deepseek() -> AnalyticModel:
    """Return DeepSeek-V3: 61 layers of latent attention with 128 heads, 58 of them with 256 experts, 8 per token."""
    return modelmeter.load("deepseek-v3")


def runs(*stages: StageRun, documents: int = 2) -> Workload:
    """Return a workload of some runs."""
    return Workload(name="runs", items=(WorkloadItem(name="batch", documents=documents, runs=stages),))


def tokens(batch: int) -> Workload:
    """Return a prefill of 100 tokens and a step after them, of a decoder without an encoder."""
    return runs(
        StageRun(stage="prefill", count=1, bindings={"B": batch, "S": 100}),
        StageRun(stage="decode", count=1, bindings={"B": batch, "T": 100}),
        documents=batch,
    )


# Every stage of each shipped model once, for two documents.
SHIPPED: dict[str, Workload] = {
    "deepseek-ocr": runs(
        StageRun(stage="vision_global", count=2, bindings={}),
        StageRun(stage="vision_local", count=2, bindings={"V": 6, "H": 3, "W": 2}),
        StageRun(stage="prefill", count=1, bindings={"B": 2, "S": 913, "N": 903}),
        StageRun(stage="decode", count=1, bindings={"B": 2, "T": 913}),
    ),
    "deepseek-ocr-2": runs(
        StageRun(stage="vision_global", count=2, bindings={}),
        StageRun(stage="vision_local", count=2, bindings={"V": 2}),
        StageRun(stage="prefill", count=1, bindings={"B": 2, "S": 600, "N": 500}),
        StageRun(stage="decode", count=1, bindings={"B": 2, "T": 600}),
    ),
    "deepseek-v3": tokens(2),
    "got-ocr2": runs(
        StageRun(stage="vision", count=2, bindings={"V": 1}),
        StageRun(stage="prefill", count=1, bindings={"B": 2, "S": 300, "N": 256}),
        StageRun(stage="decode", count=1, bindings={"B": 2, "T": 300}),
    ),
    "qwen3-30b-a3b": tokens(2),
    "qwen3-8b": tokens(2),
    "qwen3-vl-8b": runs(
        StageRun(stage="vision", count=2, bindings={"N": 256}),
        StageRun(stage="prefill", count=1, bindings={"B": 2, "S": 300, "N": 256}),
        StageRun(stage="decode", count=1, bindings={"B": 2, "T": 300}),
    ),
    "siglip-so400m-patch14-384": runs(StageRun(stage="encode", count=1, bindings={"B": 2})),
    "whisper-large-v3": runs(
        StageRun(stage="encode", count=1, bindings={"B": 2}),
        StageRun(stage="prefill", count=1, bindings={"B": 2, "S": 4}),
        StageRun(stage="decode", count=1, bindings={"B": 2, "T": 4}),
    ),
}


def exchange(report: ParallelReport, stage: str, what: str) -> CollectiveReport:
    """Return the only exchange of a kind in a stage."""
    (found,) = [each for each in report.collectives if (each.stage, each.what) == (stage, what)]
    return found


def changed(model: AnalyticModel, suffix: str, change: Callable[[Leaf], Leaf | None]) -> AnalyticModel:
    """Return a model in which some leaves are others, or are not there."""
    leaves = [change(leaf) if leaf.id.endswith(suffix) else leaf for leaf in model.leaves]
    return evolve(model, leaves=tuple(leaf for leaf in leaves if leaf is not None))


# --- laws of every shipped model


def test_every_shipped_model_is_named_here() -> None:
    """The laws below leave no model out."""
    assert set(SHIPPED) == {name for name in available() if not name.startswith("test-")}


@pytest.mark.parametrize("name", SHIPPED)
def test_one_device_is_evaluate(name: str, device: DeviceSpec) -> None:
    """Costs, time and weights are those of a report of the model."""
    model = modelmeter.load(name)
    report = distribute(model, SHIPPED[name], Layout(), device=device)
    whole = evaluate(model, SHIPPED[name], device=device)
    assert whole.total.total.time is not None
    assert report.cost == whole.total.total.cost
    assert report.seconds == pytest.approx(whole.total.total.time.seconds, rel=1e-9)
    assert sum(part.weight_bytes for part in report.parts) == model.parameter_bytes


# FLOPs that a second rank adds: Whisper's biases of 1,280 after sums, three in each of 32 layers, for 10 tokens.
ADDED = {"whisper-large-v3": 32 * 3 * 1280 * 10}


@pytest.mark.parametrize("name", [name for name in SHIPPED if not name.startswith("siglip")])
def test_two_tensor_ranks_share_what_one_device_does(name: str, device: DeviceSpec) -> None:
    """Twice a rank's divided FLOPs are those of one device, and both hold the replicated weights."""
    model = modelmeter.load(name)
    one = distribute(model, SHIPPED[name], Layout(), device=device).parts[-1]
    half = distribute(model, SHIPPED[name], Layout(tensor=2), device=device).parts[-1]
    assert half.repeated.flops == one.repeated.flops < 0.1 * one.cost.flops
    divided = one.cost.flops - one.repeated.flops
    assert 2 * (half.cost.flops - half.repeated.flops) == divided + ADDED.get(name, 0)
    assert 2 * half.weight_bytes - half.replicated_weight_bytes == one.weight_bytes


# --- a dense decoder, by hand


def test_a_tensor_rank_of_qwen3_8b_has_half_of_it(qwen: AnalyticModel, device: DeviceSpec) -> None:
    """8,190,735,360 parameters in bf16: half of all but the norms; keys and values of 4 of 8 heads.

    After the step 2 documents of 101 tokens each have 2 x 8 x 128 elements in 36 layers; a rank keeps half of them.
    """
    (part,) = distribute(qwen, tokens(2), Layout(tensor=2), device=device).parts
    assert part.replicated_weight_bytes == QWEN_REPLICATED_BYTES
    assert 2 * part.weight_bytes == 8_190_735_360 * 2 + QWEN_REPLICATED_BYTES
    assert part.kv_cache_bytes == 2 * 101 * 36 * 2 * 8 * 128 * 2 // 2


def test_qwen3_8b_reduces_twice_per_layer(qwen: AnalyticModel, device: DeviceSpec) -> None:
    """2 documents of 100 tokens: after attention and MLP of 36 layers 200 x 4,096 bf16 elements are summed."""
    report = distribute(qwen, tokens(2), Layout(tensor=2), device=device)
    message = 200 * 4096 * 2
    for what in ("attention output", "MLP output"):
        found = exchange(report, "prefill", what)
        assert (found.operation, found.ranks, found.calls, found.bytes) == ("all-reduce", 2, 36, 36 * message)
        assert found.sent_bytes == 36 * message  # 2(p - 1)/p = 1 with two ranks
    assert exchange(report, "prefill", "embeddings").bytes == message
    assert exchange(report, "decode", "logits").bytes == 2 * 151936 * 2
    assert {each.what for each in report.collectives} == {"embeddings", "attention output", "MLP output", "logits"}


def test_norms_of_a_head_go_with_it(qwen: AnalyticModel) -> None:
    """The norms of queries and keys run on the heads that a rank has, the layer's own norms on every rank."""
    plan = derived_plan(qwen)
    assert plan.role("decode", f"{QWEN_LAYER}.self_attn.k_norm/rsqrt") is Role.INNER
    assert plan.role("decode", f"{QWEN_LAYER}.input_layernorm/rsqrt") is Role.REPLICATED
    assert plan.cache is Role.INNER


def test_every_tensor_rank_needs_a_head_of_keys(qwen: AnalyticModel, device: DeviceSpec) -> None:
    """16 ranks divide 32 heads but not 8 of keys, which are not kept twice: refused, with the degrees that go."""
    with pytest.raises(LayoutError, match=r"tensor=16 does not divide the 8 heads of .*k_proj/linear; .* 1, 2, 4, 8$"):
        distribute(qwen, tokens(2), Layout(tensor=16), device=device)


# --- latent attention and experts, by hand


def test_a_latent_is_kept_by_every_tensor_rank(deepseek: AnalyticModel, device: DeviceSpec) -> None:
    """512 + 64 elements of each token and layer have no heads: 8 ranks keep as much as one, and the report says so."""
    plan = derived_plan(deepseek)
    attention = f"{MLA_LAYER}.self_attn"
    roles = {name: plan.role("decode", f"{attention}.{name}/linear") for name in ("q_a_proj", "q_b_proj", "kv_b_proj")}
    assert roles == {"q_a_proj": Role.REPLICATED, "q_b_proj": Role.COLUMN, "kv_b_proj": Role.COLUMN}
    assert plan.role("decode", f"{attention}.kv_a_proj_with_mqa/linear") is Role.REPLICATED
    assert plan.role("decode", f"{attention}/cat.2") is Role.REPLICATED  # of the latent with the new one
    report = distribute(deepseek, tokens(2), Layout(tensor=8), device=device)
    (one,) = distribute(deepseek, tokens(2), Layout(), device=device).parts
    assert report.parts[0].kv_cache_bytes == one.kv_cache_bytes == 2 * 101 * 61 * 576 * 2
    assert "Every tensor rank keeps the whole KV cache" in "\n".join(report.assumptions)


def test_eight_expert_ranks_of_deepseek_v3(deepseek: AnalyticModel, device: DeviceSpec) -> None:
    """8 replicas of 2 documents each: a step sends 2 x 8 rows of 7,168 bf16 elements to the experts of 58 layers.

    A rank holds 32 of 256 experts of 3 x 7,168 x 2,048 elements in 58 layers, and all else.
    """
    report = distribute(deepseek, tokens(16), Layout(data=8, expert=8), device=device)
    for what in ("expert dispatch", "expert combine"):
        found = exchange(report, "decode", what)
        assert (found.operation, found.ranks, found.calls) == ("all-to-all", 8, 58)
        assert found.bytes == 58 * 2 * 8 * 7168 * 2
        assert found.sent_bytes == found.bytes * 7 / 8
    experts = 58 * 256 * 3 * 7168 * 2048 * 2
    assert report.parts[0].weight_bytes == deepseek.parameter_bytes - experts * 7 // 8


def test_heads_of_a_latent_attention_are_whole(deepseek: AnalyticModel, device: DeviceSpec) -> None:
    """256 ranks do not divide 128 heads, though they would divide their 24,576 features."""
    with pytest.raises(LayoutError, match=r"tensor=256 does not divide the 128 heads of .*q_b_proj/linear"):
        distribute(deepseek, tokens(2), Layout(tensor=256), device=device)


# --- encoders


def test_states_are_handed_over_once(device: DeviceSpec) -> None:
    """Whisper's 32 layers all read the same 1,500 x 1,280 bf16 elements of each of 2 recordings; two ranks get them."""
    report = distribute(
        modelmeter.load("whisper-large-v3"), SHIPPED["whisper-large-v3"], Layout(tensor=2), device=device
    )
    handed = exchange(report, "prefill", "encoder features")
    assert (handed.calls, handed.bytes) == (1, 2 * 1500 * 1280 * 2)
    summed = exchange(report, "decode", "cross-attention output")
    assert (summed.calls, summed.bytes) == (32, 32 * 2 * 1280 * 2)
    assert [part.name for part in report.parts] == ["encoder", "decoder"]


def test_features_of_deeper_layers_are_handed_over_too(device: DeviceSpec) -> None:
    """Qwen3-VL takes 256 x 4,096 bf16 elements of each of 2 pages among the embeddings, and after three layers."""
    report = distribute(modelmeter.load("qwen3-vl-8b"), SHIPPED["qwen3-vl-8b"], Layout(tensor=2), device=device)
    handed = exchange(report, "prefill", "vision features")
    assert (handed.calls, handed.bytes) == (4, 4 * 2 * 256 * 4096 * 2)


def test_encoders_share_a_batch(device: DeviceSpec) -> None:
    """A batch of 8 images on 4 devices is a batch of 2 on each: a quarter of the FLOPs."""
    model = modelmeter.load("siglip-so400m-patch14-384")
    eight = runs(StageRun(stage="encode", count=1, bindings={"B": 8}), documents=8)
    (one,) = distribute(model, eight, Layout(), device=device).parts
    (each,) = distribute(model, eight, Layout(vision_data=4), device=device).parts
    assert (each.devices, 4 * each.cost.matmul_flops) == (4, one.cost.matmul_flops)
    with pytest.raises(LayoutError, match=r"vision_data=3 encoders cannot share the 8 documents .* are 1, 2, 4, 8, or"):
        distribute(model, eight, Layout(vision_data=3), device=device)


# --- what a model does not have


@pytest.mark.parametrize(
    ("name", "layout", "message"),
    [
        ("qwen3-8b", Layout(tensor=2, expert=2), r"expert=2 shares experts, and qwen3-8b has none"),
        ("qwen3-8b", Layout(vision_data=2), r"vision_data=2 shares what is encoded, and every stage of qwen3-8b decod"),
        ("siglip-so400m-patch14-384", Layout(tensor=2), r"tensor=2 shares a decoder, and no stage of siglip.* leaves"),
    ],
)
def test_a_degree_of_what_is_not_there(name: str, layout: Layout, message: str, device: DeviceSpec) -> None:
    """No degree is ignored: the message says what the model lacks."""
    with pytest.raises(LayoutError, match=message):
        distribute(modelmeter.load(name), SHIPPED[name], layout, device=device)


def test_replicas_need_a_batch(qwen: AnalyticModel, device: DeviceSpec) -> None:
    """Where the plan's batch is no dim of a stage, replicas have nothing to share."""
    plan = evolve(derived_plan(qwen), batch="R")
    with pytest.raises(LayoutError, match=r"data=2 replicas .* share the batch R, which stage 'prefill' of qwen3-8b"):
        distribute(qwen, tokens(2), Layout(data=2), device=device, plan=plan)


# --- structures that are not told


def without_leaf(_leaf: Leaf) -> None:
    """Drop a leaf."""


def narrower(leaf: Leaf) -> Leaf:
    """Return a projection to one head of 128 features."""
    assert isinstance(leaf.layer, Linear)
    return evolve(leaf, layer=evolve(leaf.layer, out_features=128), cost=None)


def over_all_heads(leaf: Leaf) -> Leaf:
    """Return an operator whose operand has the features of 32 heads of 128 on one axis."""
    assert leaf.signature is not None
    tensor = next(each for each in leaf.signature.tensors)
    joined = TensorArgument(dtype=tensor.dtype, shape=("B", "S", 4096), strides=("4096*S", 4096, 1))
    return evolve(leaf, signature=evolve(leaf.signature, arguments={"self": joined}))


def moved(leaf: Leaf) -> Leaf:
    """Return a leaf in a module that is no part of a layer."""
    return evolve(leaf, module=QWEN_LAYER)


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("self_attn/scaled_dot_product_attention", without_leaf, r"self_attn attends with no operator over two heads"),
        ("self_attn.o_proj/linear", without_leaf, r"3 products before its attention and 0 after it"),
        ("self_attn.q_norm/mean", over_all_heads, r"q_norm/mean needs the features of all heads, of which a tensor"),
        ("mlp.down_proj/linear", without_leaf, r"up_proj/linear makes 12288 features of 4096, so that .*gate_proj"),
        ("mlp.gate_proj/linear", moved, r"gate_proj/linear is a product in a layer, but of no attention, feed-forward"),
        (
            "self_attn/mul.1",
            lambda leaf: evolve(leaf, signature=None),
            r"has no signature, .* derive the plan from the captured",
        ),
    ],
)
def test_a_layer_that_is_not_told(
    qwen: AnalyticModel, suffix: str, change: Callable[[Leaf], Leaf | None], message: str
) -> None:
    """The message says which operator does not fit, and what to pass instead."""
    with pytest.raises(MissingPlanError, match=message + r".*ShardingPlan and give that to"):
        derived_plan(changed(qwen, suffix, change))


def test_a_decoder_without_a_list_of_layers(qwen: AnalyticModel) -> None:
    """A decoder that attends nowhere has no layers to tell."""
    attending = [leaf for leaf in qwen.leaves if ".self_attn" not in leaf.id]
    with pytest.raises(MissingPlanError, match=r"should attend in one list of layers, and does so in none"):
        derived_plan(evolve(qwen, leaves=tuple(attending)))


def test_replicas_need_no_plan(qwen: AnalyticModel, device: DeviceSpec) -> None:
    """What cannot be told is not needed while every device runs the whole model: two replicas are two models."""
    untold = changed(qwen, "self_attn/mul.1", lambda leaf: evolve(leaf, signature=None))
    one, two = (distribute(untold, tokens(4), Layout(data=count), device=device) for count in (1, 2))
    assert 2 * two.parts[0].cost.matmul_flops == one.parts[0].cost.matmul_flops
    assert two.parts[0].weight_bytes == one.parts[0].weight_bytes == qwen.parameter_bytes
    with pytest.raises(MissingPlanError, match="has no signature"):
        distribute(untold, tokens(4), Layout(pipeline=2), device=device)


def test_one_head_of_keys_is_not_divided(qwen: AnalyticModel, device: DeviceSpec) -> None:
    """A projection to one head could be cut by features, but not by heads."""
    with pytest.raises(LayoutError, match=r"tensor=2 does not divide the 1 head of .*k_proj/linear; .* are 1$"):
        distribute(changed(qwen, "k_proj/linear", narrower), tokens(2), Layout(tensor=2), device=device)


def test_experts_that_run_one_by_one_are_refused(deepseek: AnalyticModel) -> None:
    """Without their products experts cannot be told apart."""
    with pytest.raises(MissingPlanError, match=r"runs its experts as something else than grouped products"):
        derived_plan(changed(deepseek, "experts/grouped_linear.1", without_leaf))


def test_experts_whose_rows_nobody_gathers_are_refused(deepseek: AnalyticModel) -> None:
    """What is sent to the experts is what an operator before them writes."""
    with pytest.raises(MissingPlanError, match=r"no operator of .*experts gathers the rows that .* reads"):
        derived_plan(changed(deepseek, "experts/index", without_leaf))
