"""Which parameters hold a matrix of weights: tied ones, ones of children, and ones that are called at several sizes."""

from __future__ import annotations

import pytest

from modelmeter.dtypes import DType
from modelmeter.layers import BaseLayer, Conv2d, Embedding, Linear
from modelmeter.model import AnalyticModel, Leaf, ModuleNode, Stage
from modelmeter.whatif import Options, UnsupportedWhatIfError, apply
from modelmeter.whatif.storages import storages

WIDTH, VOCABULARY = 8, 50
TABLE = (1, VOCABULARY, WIDTH)


def linear(rows: int = 3, out: int = WIDTH, width: int = WIDTH) -> Linear:
    """Return a linear layer without bias."""
    return Linear(rows=rows, in_features=width, out_features=out, bias=False, dtype=DType.BF16)


def embedding() -> Embedding:
    """Return a look-up of three rows of the table."""
    return Embedding(rows=3, width=WIDTH, vocabulary=VOCABULARY, index_dtype=DType.INT64, dtype=DType.BF16)


def model_of(calls: list[tuple[str, BaseLayer]], owned: dict[str, int], instances: int = 1) -> AnalyticModel:
    """Return a model of one stage: calls by module, and the parameters of each module; all have these instances."""
    leaves = tuple(
        Leaf(
            id=f"{module}/{position}",
            module=module,
            stage="forward",
            op="aten::op",
            function="forward",
            category=layer.category,
            layer=layer,
            calls=instances,
            fused_bytes=layer.traffic().bytes,
        )
        for position, (module, layer) in enumerate(calls)
    )
    names = dict.fromkeys(("", *owned, *(module for module, _ in calls)))
    nodes = tuple(
        ModuleNode(
            id=name,
            class_name="Module",
            parent=None if name == "" else "",
            instances=instances if name else 1,
            series=1,
            parallel={},
            calls={},
            parameters=owned.get(name, 0),
            parameter_bytes=2 * owned.get(name, 0),
            fan_in=0,
            fan_out=0,
        )
        for name in names
    )
    parameters = sum(owned.values())
    stage = Stage(name="forward", description="", dims=(), weight_bytes=2 * parameters, kv_cache_bytes=0, peaks=())
    return AnalyticModel(
        name="tied",
        variant={"dtype": "bf16"},
        dims={},
        parameters=parameters,
        parameter_bytes=2 * parameters,
        load_bytes=2 * parameters,
        stages=(stage,),
        modules=nodes,
        leaves=leaves,
        free=(),
        edges=(),
    )


def in_fp8(model: AnalyticModel) -> dict[str, int]:
    """Return the bytes of the parameters of each module that has some, with matrices in fp8."""
    changed = apply(model, Options(weight_dtype="fp8")).model
    held = {node.id: node.parameter_bytes for node in changed.modules if node.parameters}
    assert sum(held.values()) == changed.parameter_bytes == changed.stage("forward").weight_bytes
    return held


def test_a_tied_head_is_stored_where_the_embedding_is() -> None:
    """GPT-2: 400 elements of the table are a byte each; the embedding of positions, 160 elements, keeps two."""
    positions = Embedding(rows=3, width=WIDTH, vocabulary=20, index_dtype=DType.INT64, dtype=DType.BF16)
    calls = [("wte", embedding()), ("wpe", positions), ("head", linear(out=VOCABULARY))]
    model = model_of(calls, {"wte": 400, "wpe": 160})
    held = storages(model)
    assert held["head", TABLE] is held["wte", TABLE]
    assert in_fp8(model) == {"wte": 400, "wpe": 320}
    rows = apply(model, Options(weight_dtype="fp8")).model.leaves
    assert [leaf.layer.traffic().weights_read for leaf in rows] == [24, 48, 400]


def test_an_embedding_tied_to_a_head_made_first_reads_the_heads_weights() -> None:
    """The module that PyTorch names first owns the parameter."""
    assert in_fp8(model_of([("emb", embedding()), ("head", linear(out=VOCABULARY))], {"head": 400})) == {"head": 400}


def test_a_table_that_no_call_of_its_own_module_reads_is_shared_by_all_who_do() -> None:
    """T5: a module that is never called holds the table of both embeddings and the head."""
    calls = [("encoder", embedding()), ("decoder", embedding()), ("head", linear(out=VOCABULARY))]
    model = model_of(calls, {"shared": 400})
    assert len({id(storage) for storage in storages(model).values()}) == 1
    assert in_fp8(model) == {"shared": 400}


def test_a_root_that_multiplies_by_the_table_of_its_embedding_is_tied_to_it() -> None:
    """The root's own matrix takes its own parameters, so that the table is what is left for the other product."""
    calls = [("emb", embedding()), ("", linear()), ("", linear(out=VOCABULARY))]
    assert in_fp8(model_of(calls, {"emb": 400, "": 64})) == {"emb": 400, "": 64}


def test_convolutions_and_biases_leave_no_room_for_a_matrix() -> None:
    """A root whose child is a convolution of 1,152 elements multiplies by the table all the same."""
    conv = Conv2d(
        batch=1,
        in_channels=WIDTH,
        out_channels=16,
        in_height=4,
        in_width=4,
        out_height=4,
        out_width=4,
        kernel_height=3,
        kernel_width=3,
        bias=False,
        dtype=DType.BF16,
    )
    calls = [("conv", conv), ("emb", embedding()), ("", linear(out=VOCABULARY))]
    assert in_fp8(model_of(calls, {"conv": 1152, "emb": 400})) == {"conv": 2304, "emb": 400}


def test_a_layer_that_is_called_at_two_sizes_has_one_matrix() -> None:
    """An encoder of page and crops runs each layer at two sizes, on the same 64 weights."""
    assert in_fp8(model_of([("fc", linear(rows=3)), ("fc", linear(rows=7))], {"fc": 64})) == {"fc": 64}


def test_two_matrices_of_one_shape_in_one_module_are_two() -> None:
    """A module with the parameters of both calls a pair of its own, in each of its three instances."""
    assert in_fp8(model_of([("pair", linear()), ("pair", linear())], {"pair": 3 * 128}, instances=3)) == {"pair": 384}


def test_what_a_module_multiplies_by_its_childrens_weights_is_saved_by_those() -> None:
    """Attention in one call: the parent's three products are of the children's matrices, a bias of 5 beside one."""
    calls = [("attn", linear()), ("attn", linear()), ("attn", linear())]
    owned = {"attn.q": 64, "attn.k": 64, "attn.v": 69}
    assert in_fp8(model_of(calls, owned)) == {"attn.q": 64, "attn.k": 64, "attn.v": 64 + 10}


def test_a_matrix_that_nobody_owns_is_refused() -> None:
    """A model written by hand without the parameters of a layer says which module and what size."""
    with pytest.raises(UnsupportedWhatIfError, match="module fc of tied reads 8 x 8 weights that none of its modules"):
        apply(model_of([("fc", linear())], {"other": 10}), Options(weight_dtype="fp8"))
