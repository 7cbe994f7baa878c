"""Laws that every layer keeps, over random sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmeter import units
from modelmeter.categories import Category
from modelmeter.dim_binding import bind
from modelmeter.dim_text import parse, to_text
from modelmeter.dims import Dim, symbol, total
from modelmeter.dtypes import DType
from modelmeter.expert_counts import distinct_experts
from modelmeter.layers import (
    LAYERS,
    Activation,
    BaseLayer,
    BatchNorm,
    Child,
    Combination,
    Conv1d,
    Conv2d,
    ConvTranspose,
    DataMovement,
    Elementwise,
    Embedding,
    EmbeddingBag,
    Factorization,
    FourierTransform,
    Gather,
    GroupedLinear,
    GroupNorm,
    Interpolation,
    LayerNorm,
    Linear,
    Matmul,
    Module,
    MoEExperts,
    Operand,
    Recurrent,
    Reduction,
    RMSNorm,
    ScaledDotProductAttention,
    Scan,
    Scatter,
    SearchSorted,
    Softmax,
    Sort,
    TopK,
    Traffic,
    Unclassified,
)

DIMS = ("P", "Q", "R", "U")
SIZES = st.fixed_dictionaries({name: st.integers(1, 300) for name in DIMS})
BF16, FP32, INT64 = DType.BF16, DType.FP32, DType.INT64


def _operand(elements: Dim, *, weight: bool = False) -> Operand:
    return Operand(elements=elements, dtype=BF16, weight=weight)


def _linear(p: Dim, q: Dim, r: Dim) -> Linear:
    return Linear(rows=p, in_features=q, out_features=r, bias=True, dtype=BF16)


def _kernel(p: Dim, q: Dim) -> dict[str, Any]:
    return {
        "op": "x",
        "elements": p * q,
        "reads": (_operand(p * q), _operand(q, weight=True), Operand(elements=p, dtype=INT64)),
        "writes": (_operand(p * q),),
        "dtype": BF16,
    }


def _moved(p: Dim, q: Dim) -> dict[str, Any]:
    return {"reads": (_operand(p * q), Operand(elements=p, dtype=INT64)), "writes": (_operand(p * q),)}


EXAMPLES: Mapping[str, Callable[[Dim, Dim, Dim, Dim], BaseLayer]] = {
    "Activation": lambda p, q, r, u: Activation(flops_per_element=5, **_kernel(p, q)),
    "BatchNorm": lambda p, q, r, u: BatchNorm(
        batch=p, channels=q, spatial=r, weight=True, bias=True, running=True, training=True, dtype=BF16
    ),
    "Combination": lambda p, q, r, u: Combination(taps=r, flops_per_tap=3, **_kernel(p, q)),
    "ConvTranspose": lambda p, q, r, u: ConvTranspose(
        batch=p,
        in_channels=2 * q,
        out_channels=2 * r,
        in_positions=u,
        out_positions=4 * u,
        taps=9,
        groups=2,
        bias=True,
        dtype=BF16,
    ),
    "EmbeddingBag": lambda p, q, r, u: EmbeddingBag(
        rows=p, bags=u, width=q, vocabulary=r, weighted=True, index_dtype=INT64, dtype=BF16
    ),
    "Factorization": lambda p, q, r, u: Factorization(
        kind="svd", matrices=p, rows=q + 300, columns=q, right_sides=r, dtype=FP32, **_moved(p, q)
    ),
    "FourierTransform": lambda p, q, r, u: FourierTransform(
        op="rfft", transforms=p, length=q, real=True, flops_per_point=1, dtype=DType.COMPLEX64, **_moved(p, q)
    ),
    "Recurrent": lambda p, q, r, u: Recurrent(
        cell="lstm",
        rows=p * q,
        steps=p,
        batch=q,
        input_size=r,
        hidden_size=u,
        projection_size=7,
        layers=2,
        directions=2,
        bias=True,
        dtype=BF16,
    ),
    "Conv1d": lambda p, q, r, u: Conv1d(
        batch=p, in_channels=q, out_channels=r, in_length=u + 2, out_length=u, kernel_length=3, bias=True, dtype=BF16
    ),
    "Conv2d": lambda p, q, r, u: Conv2d(
        batch=p,
        in_channels=2 * q,
        out_channels=r * 2,
        in_height=u,
        in_width=7,
        out_height=u,
        out_width=5,
        kernel_height=1,
        kernel_width=3,
        groups=2,
        bias=True,
        dtype=FP32,
    ),
    "DataMovement": lambda p, q, r, u: DataMovement(op="copy", **_moved(p, q)),
    "Elementwise": lambda p, q, r, u: Elementwise(flops_per_element=2, **_kernel(p, q)),
    "Embedding": lambda p, q, r, u: Embedding(rows=p, width=q, vocabulary=r, index_dtype=INT64, dtype=BF16),
    "Gather": lambda p, q, r, u: Gather(**_moved(p, q)),
    "GroupNorm": lambda p, q, r, u: GroupNorm(
        batch=p, channels=q, groups=1, spatial=r, weight=True, bias=True, dtype=BF16
    ),
    "GroupedLinear": lambda p, q, r, u: GroupedLinear(
        rows=6 * p, in_features=q, out_features=r, experts=64, active_experts=distinct_experts(64, 6, p), dtype=BF16
    ),
    "Interpolation": lambda p, q, r, u: Interpolation(
        mode="bicubic",
        planes=p,
        in_height=q,
        in_width=r,
        out_height=u,
        out_width=9,
        antialias=True,
        dtype=FP32,
    ),
    "LayerNorm": lambda p, q, r, u: LayerNorm(rows=p * r, width=q, weight=True, bias=True, dtype=BF16),
    "Linear": lambda p, q, r, u: _linear(p, q, r),
    "Matmul": lambda p, q, r, u: Matmul(
        batch=p, m=q, k=r, n=u, right_elements=r * u, right_weight=True, out_dtype=FP32, dtype=BF16
    ),
    "MoEExperts": lambda p, q, r, u: MoEExperts(
        tokens=p, experts=64, experts_per_token=6, hidden_size=q, intermediate_size=r, gated=True, dtype=BF16
    ),
    "Module": lambda p, q, r, u: Module(
        children=(
            Child(layer=_linear(p, q, r), calls=u),
            Child(layer=Elementwise(flops_per_element=1, **_kernel(p, q))),
            Child(layer=Module(children=(Child(layer=_linear(q, r, 5), calls=2),)), calls=3),
        )
    ),
    "RMSNorm": lambda p, q, r, u: RMSNorm(rows=p, width=q, weight=True, dtype=BF16),
    "Reduction": lambda p, q, r, u: Reduction(**_kernel(p, q)),
    "ScaledDotProductAttention": lambda p, q, r, u: ScaledDotProductAttention(
        batch=p,
        heads=4,
        kv_heads=2,
        query_length=q,
        key_length=r,
        head_dim=u,
        value_head_dim=8,
        causal=True,
        mask=_operand(q * r),
        dtype=BF16,
    ),
    "Scan": lambda p, q, r, u: Scan(**_kernel(p, q)),
    "Scatter": lambda p, q, r, u: Scatter(**_moved(p, q)),
    "SearchSorted": lambda p, q, r, u: SearchSorted(queries=p, width=q, dtype=INT64, out_dtype=INT64),
    "Softmax": lambda p, q, r, u: Softmax(rows=p, width=q, dtype=BF16, out_dtype=FP32),
    "Sort": lambda p, q, r, u: Sort(rows=p, width=q, dtype=FP32),
    "TopK": lambda p, q, r, u: TopK(rows=p, width=q, k=6, dtype=FP32),
    "Unclassified": lambda p, q, r, u: Unclassified(op="aten::x", **_moved(p, q)),
}
SYMBOLIC = {name: make(*(symbol(dim) for dim in DIMS)) for name, make in EXAMPLES.items()}

BASE_UNITS = (
    "matmul_flops",
    "vector_flops",
    "weight_bytes",
    "activation_bytes",
    "kvcache_bytes",
    "tensor_core_flops",
    "cuda_core_flops",
    "backward_matmul_flops",
    "backward_vector_flops",
    "backward_weight_bytes",
    "backward_activation_bytes",
    "backward_kvcache_bytes",
    "backward_tensor_core_flops",
    "backward_cuda_core_flops",
)
CONTRACT = tuple(
    f"{direction}_{name}"
    for direction in ("forward", "backward")
    for name in (
        "tensor_core_flops",
        "cuda_core_flops",
        "cal_io",
        "arithmetic_intensity",
        "memory_weight",
        "memory_activation",
        "memory_kvcache",
    )
)


def _costs(layer: BaseLayer) -> dict[str, Dim]:
    costs: dict[str, Dim] = {name: getattr(layer, name)() for name in BASE_UNITS}
    for name in ("traffic", "backward_traffic"):
        moved: Traffic = getattr(layer, name)()
        costs |= {f"{name}.{part}": value for part, value in attrs.asdict(moved).items()}
        costs[f"{name}.bytes"] = moved.bytes
    return costs


COSTS = {name: _costs(layer) for name, layer in SYMBOLIC.items()}


def _numbers(layer: BaseLayer) -> dict[str, float]:
    costs = _costs(layer)
    assert not any(isinstance(cost, sympy.Expr) for cost in costs.values())
    return costs  # type: ignore[return-value]


def test_every_layer_has_an_example() -> None:
    """The laws below cover each layer that can be stored."""
    assert EXAMPLES.keys() == LAYERS.keys()
    assert all(type(SYMBOLIC[name]) is LAYERS[name] for name in LAYERS)


@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"Module"}))
def test_every_leaf_has_a_category_and_a_formula_with_its_source(name: str) -> None:
    """A leaf names its category, and its docstring has an example that runs."""
    assert isinstance(LAYERS[name].category, Category)
    assert "Examples\n" in (LAYERS[name].__doc__ or "")


@pytest.mark.parametrize("name", sorted(LAYERS))
@settings(max_examples=25)
@given(sizes=SIZES)
def test_binding_commutes_with_costing(name: str, sizes: dict[str, int]) -> None:
    """The layer at given sizes costs what its symbolic cost gives there, and what a layer of numbers costs."""
    bound = _numbers(SYMBOLIC[name].at(**sizes))
    made = _numbers(EXAMPLES[name](*(sizes[dim] for dim in DIMS)))
    for cost, value in COSTS[name].items():
        assert bound[cost] == pytest.approx(bind(value, sizes), rel=1e-12), cost
        assert bound[cost] == pytest.approx(made[cost], rel=1e-12), cost
        if isinstance(bound[cost], int) and isinstance(made[cost], int):
            assert bound[cost] == made[cost], cost


@pytest.mark.parametrize("name", sorted(LAYERS))
@settings(max_examples=25)
@given(sizes=SIZES)
def test_costs_are_never_negative(name: str, sizes: dict[str, int]) -> None:
    """No size makes a cost or a traffic figure negative."""
    assert all(cost >= 0 for cost in _numbers(SYMBOLIC[name].at(**sizes)).values())


@pytest.mark.parametrize("name", sorted(LAYERS))
@settings(max_examples=25)
@given(sizes=SIZES)
def test_contract_units_follow_from_base_units(name: str, sizes: dict[str, int]) -> None:
    """TFLOPs, Tb, GB and FLOPs per bit are the base units converted, forward and backward."""
    layer = SYMBOLIC[name].at(**sizes)
    for prefix, moved in (("", layer.traffic()), ("backward_", layer.backward_traffic())):
        way = prefix or "forward_"
        tensor = getattr(layer, f"{prefix}tensor_core_flops")()
        cuda = getattr(layer, f"{prefix}cuda_core_flops")()
        if not prefix:
            assert layer.forward_tensor_core_flops() == units.flops_to_tflops(tensor)
            assert layer.forward_cuda_core_flops() == units.flops_to_tflops(cuda)
        both = getattr(layer, f"{prefix}matmul_flops")() + getattr(layer, f"{prefix}vector_flops")()
        assert tensor + cuda == both
        assert getattr(layer, f"{way}cal_io")() == units.bytes_to_terabits(moved.bytes)
        intensity = getattr(layer, f"{way}arithmetic_intensity")()
        assert intensity * moved.bytes * 8 == pytest.approx(both if moved.bytes else 0)
        for part, held in (("weight", "weight"), ("activation", "activation"), ("kvcache", "kvcache")):
            bytes_held = getattr(layer, f"{prefix}{held}_bytes")()
            assert getattr(layer, f"{way}memory_{part}")() == units.bytes_to_gb(bytes_held)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_the_whole_contract_is_there(name: str) -> None:
    """Each method of the contract answers for each layer, symbolic too."""
    for method in CONTRACT:
        assert isinstance(getattr(SYMBOLIC[name], method)(), int | float | sympy.Expr), method


@pytest.mark.parametrize("name", sorted(LAYERS))
@settings(max_examples=25)
@given(sizes=SIZES, grown=st.sampled_from(DIMS), by=st.integers(1, 50))
def test_traffic_and_flops_grow_with_every_size(name: str, sizes: dict[str, int], grown: str, by: int) -> None:
    """A larger size never moves fewer bytes nor computes less.

    A wider output of an antialiased interpolation is the exception: it scales down less, so it has fewer taps.
    """
    small, large = (SYMBOLIC[name].at(**at) for at in (sizes, sizes | {grown: sizes[grown] + by}))
    assert large.traffic().bytes >= small.traffic().bytes * (1 - 1e-12)
    assert large.weight_bytes() >= small.weight_bytes()
    if name != "Interpolation":
        assert large.matmul_flops() >= small.matmul_flops()
        assert large.vector_flops() >= small.vector_flops()


@pytest.mark.parametrize("name", sorted(LAYERS))
@settings(max_examples=25)
@given(sizes=SIZES)
def test_layers_rebuild_from_their_fields(name: str, sizes: dict[str, int]) -> None:
    """A layer is its fields: made again from them, it is equal, symbolic and bound."""
    for layer in (SYMBOLIC[name], SYMBOLIC[name].at(**sizes)):
        fields = {part.name: getattr(layer, part.name) for part in attrs.fields(type(layer))}
        assert type(layer)(**fields) == layer


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_costs_survive_their_text_form(name: str) -> None:
    """Each symbolic cost reads back from its text as the same text."""
    for cost, value in COSTS[name].items():
        assert to_text(parse(to_text(value))) == to_text(value), cost


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 4096), st.integers(1, 4096), st.booleans())
def test_linear_is_additive_in_rows(one: int, other: int, wide: int, narrow: int, bias: bool) -> None:
    """Rows in two batches cost the FLOPs and the activation bytes of one; the weights are read once more."""

    def linear(rows: int) -> Linear:
        return Linear(rows=rows, in_features=wide, out_features=narrow, bias=bias, dtype=BF16)

    first, second, both = linear(one), linear(other), linear(one + other)
    assert both.matmul_flops() == first.matmul_flops() + second.matmul_flops()
    assert both.vector_flops() == first.vector_flops() + second.vector_flops()
    apart = first.traffic().bytes + second.traffic().bytes
    assert apart - both.traffic().bytes == both.weight_bytes()


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 64), st.integers(1, 16))
def test_attention_is_two_products_and_a_softmax(queries: int, keys: int, width: int, heads: int) -> None:
    """FLOPs of the fused kernel are those of the two bmm; it moves their bytes less the scores' two passes."""
    fused = ScaledDotProductAttention(
        batch=1,
        heads=heads,
        kv_heads=heads,
        query_length=queries,
        key_length=keys,
        head_dim=width,
        value_head_dim=width,
        causal=False,
        dtype=BF16,
    )
    scores = Matmul(batch=heads, m=queries, k=width, n=keys, dtype=BF16)
    values = Matmul(batch=heads, m=queries, k=keys, n=width, dtype=BF16)
    assert fused.matmul_flops() == scores.matmul_flops() + values.matmul_flops()
    apart = scores.traffic().bytes + values.traffic().bytes
    assert apart - fused.traffic().bytes == 2 * (2 * heads * queries * keys)


@given(st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), st.integers(0, 20)), max_size=6), SIZES)
def test_a_module_is_the_sum_of_its_children(picked: list[tuple[str, int]], sizes: dict[str, int]) -> None:
    """Every cost but memory is a sum over children times calls; weights are counted once each."""
    children = [(SYMBOLIC[name].at(**sizes), calls) for name, calls in picked]
    module = Module(children=tuple(Child(layer=layer, calls=calls) for layer, calls in children))
    for cost in BASE_UNITS:
        each = [(getattr(layer, cost)(), calls) for layer, calls in children]
        if cost.endswith("weight_bytes"):
            assert getattr(module, cost)() == total(value for value, _ in each)
        elif cost == "activation_bytes":
            assert module.activation_bytes() == max((value for value, _ in each), default=0)
        else:
            assert getattr(module, cost)() == pytest.approx(total(value * calls for value, calls in each))
    moved = total(layer.traffic().bytes * calls for layer, calls in children)
    assert module.traffic().bytes == pytest.approx(moved)
