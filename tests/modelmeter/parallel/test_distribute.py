"""distribute: one device is `evaluate`; several have shares that add up, and exchange what hands can count."""

from collections.abc import Callable

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

import modelmeter
from modelmeter.costs import Cost
from modelmeter.devices import DeviceSpec
from modelmeter.evaluate import evaluate
from modelmeter.model import AnalyticModel
from modelmeter.parallel import (
    CollectiveReport,
    Layout,
    LayoutError,
    MissingLinkError,
    ParallelReport,
    derived_plan,
    distribute,
)
from modelmeter.parallel.parts import Sharding, parts_of
from modelmeter.parallel.runs import PartRun, SharedRun, stage_time
from modelmeter.workload import StageRun, Workload

Pages = Callable[..., Workload]

DECODER_BYTES = 5_869_468_160  # parameters that a decode reads, in bf16
# 25 norms of 1,280 and 11 routers of 64 x 1,280, in bf16.
REPLICATED_BYTES = 25 * 1280 * 2 + 11 * 64 * 1280 * 2


def exchange(report: ParallelReport, stage: str, what: str) -> CollectiveReport:
    """Return the only exchange of a kind in a stage."""
    (found,) = [each for each in report.collectives if (each.stage, each.what) == (stage, what)]
    return found


# --- laws


def test_one_device_is_evaluate(model: AnalyticModel, device: DeviceSpec, pages: Pages) -> None:
    """Costs, time and memory are those of a report of the model, and nothing is exchanged."""
    report = distribute(model, pages(2), Layout(), device=device)
    whole = evaluate(model, pages(2), device=device)
    assert whole.total.total.time is not None
    assert report.cost == whole.total.total.cost
    assert report.seconds == pytest.approx(whole.total.total.time.seconds, rel=1e-12)
    assert report.collectives == ()
    assert report.link is None
    assert report.device_bytes == whole.memory.running_bytes


layouts = st.builds(
    lambda tensor, spread, pipeline, data, micro: Layout(
        tensor=tensor, expert=spread(tensor, data), pipeline=pipeline, data=data, micro_batches=micro
    ),
    st.sampled_from([1, 2]),
    st.sampled_from([lambda _t, _d: 1, lambda t, _d: t, lambda t, d: t * d]),
    st.sampled_from([1, 2, 3, 4, 6, 12]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2]),
)


@settings(max_examples=10)
@given(layout=layouts)
def test_shares_add_up(model: AnalyticModel, device: DeviceSpec, pages: Pages, layout: Layout) -> None:
    """Divided FLOPs of all devices are those of one device, and every tensor rank repeats the rest of its replica."""
    one = distribute(model, pages(8), Layout(), device=device).parts[1]
    parts = distribute(model, pages(8), layout, device=device).parts[1:]
    divided = sum(part.devices * (part.cost.flops - part.repeated.flops) for part in parts)
    assert divided == one.cost.flops - one.repeated.flops
    if layout.data == layout.micro_batches == 1:
        assert sum(part.repeated.flops for part in parts) == one.repeated.flops
    assert all(part.cost.tensor_core_flops + part.cost.cuda_core_flops == part.cost.flops for part in parts)


@settings(max_examples=10)
@given(layout=layouts)
def test_weights_add_up(model: AnalyticModel, layout: Layout) -> None:
    """A pipeline's parts hold the decoder: experts over all expert ranks, the rest and the replicated over tensor's."""
    parts = parts_of(Sharding(model=model, plan=derived_plan(model), layout=layout))[1:]
    experts = 11 * 64 * 3 * 1280 * 896 * 2
    expert_ranks = max(layout.tensor, layout.expert)
    others = DECODER_BYTES - experts - REPLICATED_BYTES
    held = experts // expert_ranks + others // layout.tensor + REPLICATED_BYTES
    assert sum(part.weight_bytes for part in parts) == held


def test_weights_of_two_tensor_ranks(model: AnalyticModel, device: DeviceSpec, pages: Pages) -> None:
    """Twice a rank's weights are the decoder's and once more what both hold: norms and routers."""
    decoder = distribute(model, pages(2), Layout(tensor=2), device=device).parts[1]
    assert decoder.replicated_weight_bytes == REPLICATED_BYTES
    assert 2 * decoder.weight_bytes == DECODER_BYTES + REPLICATED_BYTES


def test_the_eager_attention_is_divided_as_well(device: DeviceSpec, pages: Pages) -> None:
    """Its heads are in the batch of its products; the law of FLOPs holds and 4 ranks are refused."""
    eager = modelmeter.load("deepseek-ocr", "gundam-eager")
    one = distribute(eager, pages(2), Layout(), device=device).parts[1]
    half = distribute(eager, pages(2), Layout(tensor=2), device=device).parts[1]
    assert 2 * (half.cost.flops - half.repeated.flops) == one.cost.flops - one.repeated.flops
    assert half.repeated.flops == one.repeated.flops
    with pytest.raises(LayoutError, match=r"tensor=4 does not divide the 10 heads.*are 1, 2$"):
        distribute(eager, pages(2), Layout(tensor=4), device=device)


def test_keys_and_values_are_divided_by_heads_and_layers(
    model: AnalyticModel, device: DeviceSpec, pages: Pages
) -> None:
    """8 documents in 2 replicas, 2 tensor ranks, 3 stages, at the last step, which starts with 915 tokens.

    12 layers of keys and values of 916 tokens, 1,280 features and 2 bytes over 6 devices; and, while one layer's are
    joined, which decides the peak, its 915 tokens once more over 2.
    """
    layout = Layout(tensor=2, pipeline=3, data=2)
    kept = 4 * 916 * 2 * 1280 * 2 * 12 // 6
    joined = 4 * 915 * 2 * 1280 * 2 // 2
    for part in distribute(model, pages(8, tokens=913), layout, device=device).parts[1:]:
        assert part.kv_cache_bytes == kept + joined


# --- exchanges, by hand


def test_tensor_ranks_reduce_twice_per_layer(model: AnalyticModel, device: DeviceSpec, pages: Pages) -> None:
    """2 documents of 283 tokens: each of 12 layers all-reduces 2 x 283 x 1,280 bf16 elements after each block."""
    report = distribute(model, pages(2), Layout(tensor=2), device=device)
    message = 2 * 283 * 1280 * 2
    for what in ("attention output", "MLP output"):
        found = exchange(report, "prefill", what)
        assert (found.calls, found.bytes, found.ranks) == (12, 12 * message, 2)
        assert found.sent_bytes == 12 * message  # 2(p - 1)/p = 1 with two ranks
        assert found.seconds == pytest.approx(12 * (6.6e-6 + 2 * 0.6e-6) + 12 * message / 450e9)
    decode = exchange(report, "decode", "attention output")
    assert (decode.calls, decode.bytes) == (3 * 12, 3 * 12 * 2 * 1280 * 2)


def test_logits_are_gathered(model: AnalyticModel, device: DeviceSpec, pages: Pages) -> None:
    """A decode of 2 documents and 3 steps gathers 3 x 2 x 129,280 bf16 logits; a rank sends its half."""
    found = exchange(distribute(model, pages(2), Layout(tensor=2), device=device), "decode", "logits")
    assert (found.operation, found.bytes, found.sent_bytes) == ("all-gather", 3 * 2 * 129280 * 2, 3 * 129280 * 2)


def test_experts_are_reached_by_all_to_all(model: AnalyticModel, device: DeviceSpec, pages: Pages) -> None:
    """8 documents on 4 replicas of 2 tensor ranks: a rank dispatches 6 rows of 1,280 for its one token, 11 layers."""
    report = distribute(model, pages(8), Layout(tensor=2, data=4, expert=8), device=device)
    for what in ("expert dispatch", "expert combine"):
        found = exchange(report, "decode", what)
        assert (found.operation, found.ranks, found.calls) == ("all-to-all", 8, 3 * 11)
        assert found.bytes == 3 * 11 * 6 * 1280 * 2
        assert found.sent_bytes == found.bytes * 7 / 8


def test_pipeline_stages_hand_on_hidden_states(model: AnalyticModel, device: DeviceSpec, pages: Pages) -> None:
    """All but the last stage send 2 x 283 x 1,280 bf16 elements, cut in two pieces of one document."""
    report = distribute(model, pages(2), Layout(pipeline=3, micro_batches=2), device=device)
    sent = [each for each in report.collectives if (each.stage, each.what) == ("prefill", "hidden states")]
    assert [each.part for each in sent] == ["decoder, layers 0 to 3", "decoder, layers 4 to 7"]
    assert [(each.calls, each.bytes) for each in sent] == [(2, 2 * 283 * 1280 * 2)] * 2


def test_replicas_take_the_features_that_an_encoder_made(
    model: AnalyticModel, device: DeviceSpec, pages: Pages
) -> None:
    """One encoder of 4 sends 3 of 4 replicas the features of their document: 273 x 1,280 bf16 elements each."""
    found = exchange(distribute(model, pages(4), Layout(data=4), device=device), "prefill", "vision features")
    assert found.sent_bytes == 3 * 273 * 1280 * 2


def test_encoders_share_the_documents(model: AnalyticModel, device: DeviceSpec, pages: Pages) -> None:
    """4 encoders take a quarter of the time of one, with the same cost together."""
    one = distribute(model, pages(4), Layout(), device=device)
    four = distribute(model, pages(4), Layout(vision_data=4), device=device)
    assert four.stages[0].seconds == pytest.approx(one.stages[0].seconds / 4)
    assert four.parts[0].cost * 4 == one.parts[0].cost


# --- time along the pipeline


def test_pieces_overlap_in_an_even_pipeline(model: AnalyticModel) -> None:
    """4 parts of 9 s for 9 pieces: 12 slots of 1 s, of which each part is idle for 3, as the bubble says."""
    layout = Layout(pipeline=4, micro_batches=9)
    parts = parts_of(Sharding(model=model, plan=derived_plan(model), layout=layout))[1:]
    runs = [
        PartRun(
            part=part,
            stage="prefill",
            cost=Cost(),
            repeated=Cost(),
            kv_cache_bytes=0,
            activation_bytes=0,
            compute_seconds=9.0,
            collectives=(),
        )
        for part in parts
    ]
    shared = SharedRun(run=StageRun(stage="prefill", count=9, bindings={"B": 1, "S": 283, "N": 273}), pieces=9)
    time = stage_time(shared, runs)
    assert time.seconds == pytest.approx(12.0)
    assert time.idle_fraction == pytest.approx(layout.bubble)


def test_a_decode_goes_through_the_stages_in_turn(model: AnalyticModel, device: DeviceSpec, pages: Pages) -> None:
    """Its time is the sum of the parts' times, however a prefill is cut."""
    report = distribute(model, pages(2, steps=5), Layout(pipeline=2, micro_batches=2), device=device)
    one = distribute(model, pages(2, steps=5), Layout(), device=device)
    decode, alone = (each.stages[-1] for each in (report, one))
    assert decode.compute_seconds == pytest.approx(alone.compute_seconds)
    assert decode.communication_seconds == pytest.approx(exchange(report, "decode", "hidden states").seconds)


# --- what is refused


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(tensor=4), r"tensor=4 does not divide the 10 heads of model\.layers\.0\.self_attn\.q_proj/.*are 1, 2$"),
        (Layout(expert=3, data=3), r"expert=3 does not divide the 64 experts .* are 1, 2, 4, 8, 16, 32, 64$"),
        (Layout(pipeline=5), r"pipeline=5 does not divide the 12 layers of model\.layers; .* 1, 2, 3, 4, 6, 12$"),
        (Layout(data=4), r"data=4 replicas with 1 micro-batches cannot share the batch of 6 .* are 1, 2, 3, 6, or"),
        (Layout(vision_data=4), r"vision_data=4 encoders cannot share the 6 documents .* are 1, 2, 3, 6, or"),
    ],
)
def test_a_degree_that_does_not_divide(
    model: AnalyticModel, device: DeviceSpec, pages: Pages, layout: Layout, message: str
) -> None:
    """The message says what is not divided and lists the degrees that do."""
    with pytest.raises(LayoutError, match=message):
        distribute(model, pages(6), layout, device=device)


def test_a_device_without_a_link_works_alone(model: AnalyticModel, device: DeviceSpec, pages: Pages) -> None:
    """One device needs no link; two do."""
    alone = evolve(device, links=())
    assert distribute(model, pages(2), Layout(), device=alone).collectives == ()
    with pytest.raises(MissingLinkError, match="choose a layout of one device"):
        distribute(model, pages(2), Layout(tensor=2), device=alone)


def test_a_plan_without_the_stream_cannot_be_cut_in_stages(
    model: AnalyticModel, device: DeviceSpec, pages: Pages
) -> None:
    """What passes between pipeline stages must be known."""
    plan = evolve(derived_plan(model), stream=frozenset())
    with pytest.raises(LayoutError, match=r"has an operator in stage 'prefill' that is in the plan's `stream`"):
        distribute(model, pages(2), Layout(pipeline=2), device=device, plan=plan)


def test_what_is_approximated_is_said(model: AnalyticModel, device: DeviceSpec, pages: Pages) -> None:
    """A report of several devices says how times of communication were made and which link's half they use."""
    report = distribute(model, pages(2), Layout(tensor=2), device=device)
    text = "\n".join(report.assumptions)
    assert "half of the stated 900 GB/s" in text
    assert "NCCL's tuning tables" in text
    assert "does not overlap with compute" in text
    assert "pipeline" not in text
