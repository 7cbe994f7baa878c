"""Mixtures of experts: routing, both implementations, shared storage, and the grouped operator."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dsocr_graph.errors import ModelInputError
from dsocr_graph.models.deepseek_ocr.config import DeepseekOCRConfig
from dsocr_graph.models.deepseek_ocr.decoder import DeepseekV2MoE, MoEGate
from dsocr_graph.models.deepseek_ocr.experts import combine_expert_outputs, sort_by_expert
from dsocr_graph.models.deepseek_ocr.modeling import DeepseekOCRForCausalLM, initialize
from dsocr_graph.models.deepseek_ocr.ops import flash_attention, grouped_linear

MakeModel = Callable[..., DeepseekOCRForCausalLM]


def _x(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _mlp(model: DeepseekOCRForCausalLM, layer: int) -> Any:
    """Return a layer's MLP; torch types what a ModuleList holds as a plain module."""
    return model.model.layers[layer].mlp


def _moe(model: DeepseekOCRForCausalLM) -> Any:
    return _mlp(model, 1)


def test_layer_equals_a_plain_sum_over_every_tokens_experts(tiny: DeepseekOCRForCausalLM) -> None:
    """Token by token: the two likeliest experts weighted by their softmax, not renormalised, plus the shared MLP."""
    moe, x = _moe(tiny), _x(1, 5, 64)
    expected = []
    for token in x[0]:
        scores = (moe.gate.weight @ token).exp()
        scores = scores / scores.sum()
        best = sorted(range(8), key=lambda expert: -scores[expert])[:2]
        routed = sum(scores[expert] * moe.experts[expert](token) for expert in best)
        expected.append(routed + moe.shared_experts(token))
    torch.testing.assert_close(moe(x)[0], torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_gate_weights_are_not_renormalised(tiny: DeepseekOCRForCausalLM) -> None:
    """The weights of the chosen experts add up to less than one, in float32 even for bfloat16 weights."""
    gate: MoEGate = copy.deepcopy(_moe(tiny).gate).bfloat16()
    index, weight = gate(_x(4, 64).bfloat16())
    assert weight.dtype is torch.float32
    assert index.shape == weight.shape == (4, 2)
    assert (weight.sum(-1) < 0.999).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_loop_equals_grouped(make_model: MakeModel, dtype: torch.dtype, tolerance: float) -> None:
    """Both implementations give the same layer output, for one token and for many."""
    grouped, loop = _moe(make_model(dtype=dtype)), _moe(make_model(dtype=dtype, moe_implementation="loop"))
    for tokens in (1, 33):
        x = _x(1, tokens, 64).to(dtype)
        torch.testing.assert_close(loop(x), grouped(x), rtol=tolerance, atol=tolerance)


def test_loop_runs_only_experts_that_got_tokens(make_model: MakeModel) -> None:
    """One token, two experts of eight: two MLP calls; the grouped implementation calls none."""
    for implementation, calls in (("loop", 2), ("grouped", 0)):
        moe = _moe(make_model(moe_implementation=implementation))
        called: list[torch.nn.Module] = []
        for expert in moe.experts:
            expert.register_forward_hook(lambda module, _inputs, _output, seen=called: seen.append(module))
        moe(_x(1, 1, 64))
        assert len(called) == calls


@given(data=st.data(), tokens=st.integers(1, 9), experts=st.integers(1, 7))
def test_sorting_groups_all_assignments_by_expert(data: st.DataObject, tokens: int, experts: int) -> None:
    """For any routing the rows of expert e lie before its end, and combining unit weights restores k * x."""
    per_token = data.draw(st.integers(1, experts))
    chosen = [data.draw(st.permutations(range(experts)))[:per_token] for _ in range(tokens)]
    x = torch.arange(float(tokens))[:, None].expand(tokens, 3).contiguous()
    order, rows, ends = sort_by_expert(x, torch.tensor(chosen), experts)
    flat = [expert for row in chosen for expert in row]
    assert ends.dtype is torch.int32
    assert ends.tolist() == [sum(expert <= last for expert in flat) for last in range(experts)]
    assert [flat[at] for at in order.tolist()] == sorted(flat)
    assert rows[:, 0].tolist() == [at // per_token for at in order.tolist()]
    combined = combine_expert_outputs(rows, order, torch.ones(tokens, per_token))
    assert torch.equal(combined, per_token * x)


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=6), inner=st.sampled_from([3, 8]))
def test_grouped_linear_is_one_product_per_group(counts: list[int], inner: int) -> None:
    """For any group sizes, empty ones too, and with and without torch's kernel (8 is aligned, 3 is not)."""
    rows, weight = _x(sum(counts), inner), _x(len(counts), 4, inner, seed=1)
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    expected = [group @ weight[expert].T for expert, group in enumerate(rows.split(counts))]
    actual = grouped_linear(rows, weight, ends, experts_per_token=1)
    torch.testing.assert_close(actual, torch.cat(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_grouped_linear_has_a_shape_for_every_dtype_on_meta(dtype: torch.dtype) -> None:
    """On meta the result is [M, N] of the operands' dtype."""
    rows = torch.empty(12, 64, dtype=dtype, device="meta")
    weight = torch.empty(4, 32, 64, dtype=dtype, device="meta")
    ends = torch.empty(4, dtype=torch.int32, device="meta")
    result = grouped_linear(rows, weight, ends, experts_per_token=2)
    assert (tuple(result.shape), result.dtype) == ((12, 32), dtype)


def test_grouped_linear_refuses_operands_that_do_not_fit() -> None:
    """Five ends for four experts is an error with the shapes."""
    with pytest.raises(ModelInputError, match=r"\[4, 32, 64\].*\[5\]"):
        grouped_linear(
            torch.empty(12, 64, device="meta"),
            torch.empty(4, 32, 64, device="meta"),
            torch.empty(5, dtype=torch.int32, device="meta"),
            experts_per_token=2,
        )


def test_flops_of_grouped_linear_and_flash_attention() -> None:
    """FlopCounterMode counts 2 M K N, and 4 B heads Sq Sk D for attention in full."""
    counter = FlopCounterMode(display=False)
    with counter, torch.device("meta"):
        grouped_linear(
            torch.empty(12, 64), torch.empty(4, 32, 64), torch.empty(4, dtype=torch.int32), experts_per_token=2
        )
        flash_attention(
            torch.empty(2, 5, 3, 8), torch.empty(2, 9, 3, 8), torch.empty(2, 9, 3, 8), causal=True, scale=1.0
        )
    # 2 * 12 * 64 * 32 = 49,152; 4 * 2 * 3 * 5 * 9 * 8 = 8,640
    assert counter.get_total_flops() == 49_152 + 8_640


def test_grouped_layer_has_the_flops_of_the_loop(make_model: MakeModel) -> None:
    """Both implementations do the same matmuls: 3 * 2 * (T k) * 64 * 32 by experts, plus gate and shared MLP."""
    totals = []
    for implementation in ("grouped", "loop"):
        counter = FlopCounterMode(display=False)
        moe = _moe(make_model(moe_implementation=implementation))
        with counter:
            moe(_x(1, 7, 64))
        totals.append(counter.get_total_flops())
    # T = 7, k = 2: 3 * 2 * 14 * 64 * 32 = 172,032; gate 2 * 7 * 64 * 8 = 7,168; shared 3 * 2 * 7 * 64 * 64 =
    # 172,032
    assert totals == [172_032 + 7_168 + 172_032] * 2


def _storages(module: torch.nn.Module) -> set[int]:
    tensors = [*module.parameters(), *module.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def _is_shared(experts: Any) -> bool:
    """Tell whether parameters and buffers are three storages, and a write to one is seen by the other."""
    experts[5].up_proj.weight[3, 4] = 77.0
    return len(_storages(experts)) == 3 and experts.up_weight[5, 3, 4].item() == 77.0


def _moved(how: str, model: DeepseekOCRForCausalLM) -> DeepseekOCRForCausalLM:
    if how == "bfloat16":
        return model.to(torch.bfloat16)
    if how == "twice":
        return model.double().float()
    if how == "deepcopy":
        return copy.deepcopy(model)
    if how == "pickle":
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)
    with torch.device("meta"):
        empty = DeepseekOCRForCausalLM(model.config)
    if how == "load":
        empty.to_empty(device="cpu")
        empty.load_state_dict(model.state_dict())
        return empty
    empty.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    return empty


@pytest.mark.parametrize("how", ["bfloat16", "twice", "deepcopy", "pickle", "load", "assign"])
def test_experts_share_their_storage_after(how: str, tiny: DeepseekOCRForCausalLM) -> None:
    """Casts, copies and loads keep stacked buffers and named parameters one memory with the same values."""
    before = _mlp(tiny, 2).experts[6].down_proj.weight.clone()
    experts = _mlp(_moved(how, tiny), 2).experts
    assert torch.equal(experts.down_weight[6].float(), before.to(experts.down_weight.dtype).float())
    assert _is_shared(experts)


def test_a_deep_copy_shares_nothing_with_its_original(tiny: DeepseekOCRForCausalLM) -> None:
    """Writing to the copy leaves the original as it was."""
    copied = copy.deepcopy(tiny)
    assert not _storages(copied) & _storages(tiny)


def test_a_cast_keeps_parameter_objects(tiny: DeepseekOCRForCausalLM) -> None:
    """As with any module, a parameter is the same object after `to`."""
    weight = _mlp(tiny, 1).experts[0].gate_proj.weight
    tiny.to(torch.bfloat16)
    assert _mlp(tiny, 1).experts[0].gate_proj.weight is weight


def test_casting_makes_no_second_copy_of_the_model() -> None:
    """On meta, a cast leaves exactly one storage per stacked tensor and one per other parameter."""
    with torch.device("meta"):
        model = DeepseekOCRForCausalLM(DeepseekOCRConfig.tiny()).to(torch.bfloat16)
    experts = _mlp(model, 1).experts
    for name, projection in (("gate_weight", "gate_proj"), ("down_weight", "down_proj")):
        stacked = getattr(experts, name)
        weight = getattr(experts[7], projection).weight
        assert weight.storage_offset() == 7 * weight.numel()
        assert weight.untyped_storage().nbytes() == stacked.nbytes == 8 * weight.numel() * 2


def test_a_new_model_on_a_device_has_its_computed_buffers() -> None:
    """Buffers that no checkpoint holds are computed when a model leaves meta, cast or not."""
    with torch.device("meta"):
        model = DeepseekOCRForCausalLM(DeepseekOCRConfig.tiny()).to(torch.bfloat16)
    model.to_empty(device="cpu")
    layer: Any = model.model.layers[2]
    frequencies = layer.self_attn.rotary_emb.inv_freq
    expected = torch.tensor([10000 ** (-i / 8) for i in range(8)])
    assert torch.equal(frequencies, expected.bfloat16())
    assert model.model.vision_model.embeddings.position_ids.tolist() == [list(range(17))]


def test_initialisation_repeats_and_differs_by_seed() -> None:
    """The same seed gives the same weights, another seed others; norms are 1 and biases 0."""
    first, again, other = (
        initialize(DeepseekOCRForCausalLM(DeepseekOCRConfig.tiny()), seed=seed) for seed in (1, 1, 2)
    )
    state, same, different = first.state_dict(), again.state_dict(), other.state_dict()
    assert all(torch.equal(state[name], same[name]) for name in state)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    assert not torch.equal(state[name], different[name])
    assert abs(state[name].std().item() - 0.02) < 0.002
    assert state["model.sam_model.blocks.0.norm1.weight"].eq(1).all()
    assert state["model.sam_model.blocks.0.norm1.bias"].eq(0).all()


def test_experts_run_outside_a_model_as_built() -> None:
    """A MoE layer made alone has torch's own initial weights, finite and shared."""
    moe: Any = DeepseekV2MoE(DeepseekOCRConfig.tiny())
    assert moe(_x(2, 3, 64)).isfinite().all()
    assert torch.equal(moe.experts.gate_weight[2], moe.experts[2].gate_proj.weight)
    expert = moe.experts[2]
    x = _x(4, 64)
    gated = F.silu(x @ expert.gate_proj.weight.T) * (x @ expert.up_proj.weight.T)
    torch.testing.assert_close(expert(x), gated @ expert.down_proj.weight.T, rtol=1e-5, atol=1e-5)
