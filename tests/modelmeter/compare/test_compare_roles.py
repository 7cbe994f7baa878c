"""Roles of modules: from names, stages and operators, in trees of several families of models."""

import pytest

import modelmeter
from modelmeter.categories import Category
from modelmeter.compare import Node, roles_of
from modelmeter.compare.model_tree import cached_stages, nodes_of_model

CACHED = frozenset({"prefill", "decode"})
TEXT, IMAGE, SOUND = CACHED, frozenset({"vision"}), frozenset({"encode"})


def roles(*modules: tuple[str, str, frozenset[str]], own: dict[str, Category] | None = None) -> dict[str, str]:
    """Return the names of roles of (id, class, stages), the root first; parents are what ids say."""
    ids = [name for name, _, _ in modules]
    nodes = [
        Node(
            id=name,
            class_name=kind,
            parent=None if index == 0 else max((o for o in ids if name.startswith(f"{o}.")), key=len, default=""),
            instances=1,
            stages=stages,
            categories=frozenset({own[name]} if own and name in own else ()),
        )
        for index, (name, kind, stages) in enumerate(modules)
    ]
    return {
        name: role.name for name, role in roles_of(nodes, CACHED & {s for _, _, each in modules for s in each}).items()
    }


def test_a_decoder_with_experts_has_router_experts_and_shared_experts() -> None:
    """What lies below a feed-forward is told apart; a gated projection is no router."""
    found = roles(
        ("", "AnyForCausalLM", TEXT),
        ("model.embed_tokens", "Embedding", TEXT),
        ("model.layers.[1-60]", "AnyDecoderLayer", TEXT),
        ("model.layers.[1-60].post_attention_layernorm", "AnyRMSNorm", TEXT),
        ("model.layers.[1-60].self_attn", "AnyAttention", TEXT),
        ("model.layers.[1-60].self_attn.kv_a_layernorm", "AnyRMSNorm", TEXT),
        ("model.layers.[1-60].mlp", "AnyMoE", TEXT),
        ("model.layers.[1-60].mlp.gate", "AnyTopkRouter", TEXT),
        ("model.layers.[1-60].mlp.experts", "AnyExperts", TEXT),
        ("model.layers.[1-60].mlp.shared_experts", "AnyMLP", TEXT),
        ("model.layers.[1-60].mlp.shared_experts.gate_proj", "Linear", TEXT),
        ("model.layers.0.mlp", "AnyMLP", TEXT),
        ("model.layers.0.mlp.gate_proj", "Linear", TEXT),
        ("lm_head", "Linear", TEXT),
    )
    assert list(found.values()) == [
        "decoder: other",
        "decoder: embedding",
        "decoder: other",
        "decoder: norm",
        "decoder: attention",
        "decoder: attention",  # a norm of compressed keys belongs to its attention
        "decoder: feed-forward",
        "decoder: router",
        "decoder: experts",
        "decoder: shared experts",
        "decoder: shared experts",
        "decoder: feed-forward",
        "decoder: feed-forward",
        "head",
    ]


def test_a_projector_inside_the_vision_encoder_is_the_projector() -> None:
    """The outermost tower counts, but for a merger of patches, which hands over to the decoder."""
    found = roles(
        ("", "AnyForConditionalGeneration", TEXT | IMAGE),
        ("model", "AnyModel", TEXT | IMAGE),
        ("model.visual", "AnyTower", IMAGE),
        ("model.visual.patch_embed.proj", "Conv3d", IMAGE),
        ("model.visual.blocks.[0-31].attn", "AnyAttention", IMAGE),
        ("model.visual.merger", "PatchMerger", IMAGE),
        ("model.visual.merger.mlp", "Sequential", IMAGE),
        ("model.language_model.rotary_emb", "AnyRotaryEmbedding", TEXT),
    )
    assert list(found.values()) == [
        "whole model",
        "whole model",
        "vision encoder: other",
        "vision encoder: convolution",
        "vision encoder: attention",
        "projector",
        "projector",
        "decoder: positions",
    ]


def test_stages_tell_encoder_from_decoder_where_names_do_not() -> None:
    """A module of a stage that leaves no keys and values behind encodes; attention to it is cross-attention."""
    found = roles(
        ("", "AnyForConditionalGeneration", TEXT | SOUND),
        ("encoder", "Stack", SOUND),
        ("encoder.conv1", "Conv1d", SOUND),
        ("encoder.layers.[0-3].fc1", "Linear", SOUND),
        ("decoder.layers.[0-3].encoder_attn", "AnyAttention", TEXT),
        ("decoder.layers.[0-3].encoder_attn_layer_norm", "LayerNorm", TEXT),
        ("proj_out", "Linear", TEXT),
    )
    assert list(found.values())[1:] == [
        "encoder: other",
        "encoder: convolution",
        "encoder: feed-forward",
        "decoder: cross-attention",
        "decoder: norm",
        "head",
    ]


def test_a_vision_stage_makes_a_vision_encoder_of_modules_without_telling_names() -> None:
    """The name of the stage is the last resort for what kind of encoder it is."""
    found = roles(("", "Any", TEXT | IMAGE), ("tower", "Stack", IMAGE), ("decoder", "Stack", TEXT))
    assert found == {"": "whole model", "tower": "vision encoder: other", "decoder": "decoder: other"}


def test_a_model_that_is_one_tower_takes_it_from_the_class_of_its_root() -> None:
    """Without a KV cache the root's class may say what the whole model is; a plain module is just a model."""
    assert roles(("", "AnyVisionModel", SOUND), ("layers.0.mlp", "AnyMLP", SOUND)) == {
        "": "vision encoder: other",
        "layers.0.mlp": "vision encoder: feed-forward",
    }
    forward = frozenset({"forward"})
    assert roles(("", "Perceptron", forward), ("body", "Stack", forward), ("classifier", "Linear", forward)) == {
        "": "model: other",
        "body": "model: other",
        "classifier": "head",
    }


def test_operators_tell_attention_and_routing_where_names_do_not() -> None:
    """A module that runs an attention operator is one; a block with experts that picks them itself routes."""
    found = roles(
        ("", "Any", TEXT),
        ("mixer", "Mixer", TEXT),
        ("mlp", "SparseMoeBlock", TEXT),
        ("mlp.act_fn", "SiLU", TEXT),
        own={"mixer": Category.ATTENTION, "mlp": Category.ROUTING},
    )
    assert list(found.values())[1:] == ["decoder: attention", "decoder: router", "decoder: feed-forward"]


def test_parameters_that_no_module_runs_have_the_role_of_their_owner() -> None:
    """Experts read through their container keep the role of the container."""
    nothing: frozenset[str] = frozenset()
    found = roles(("", "Any", TEXT), ("mlp.experts", "AnyExperts", TEXT), ("mlp.experts.[0-7].w1", "Linear", nothing))
    assert found["mlp.experts.[0-7].w1"] == "decoder: experts"


@pytest.mark.parametrize(
    ("module", "role"),
    [
        ("", "whole model"),
        ("model.sam_model.patch_embed.proj", "vision encoder: embedding"),
        ("model.vision_model.transformer.layers.[0-23].mlp.fc1", "vision encoder: feed-forward"),
        ("model.projector.layers", "projector"),
        ("model.layers.[1-11].mlp.gate", "decoder: router"),
        ("model.layers.[1-11].mlp.experts.[0-63].up_proj", "decoder: experts"),
        ("model.norm", "decoder: norm"),
        ("lm_head", "head"),
    ],
)
def test_roles_of_a_shipped_model(module: str, role: str) -> None:
    """A captured model gets its roles by the same rules."""
    model = modelmeter.load("deepseek-ocr", "tiny")
    assert roles_of(nodes_of_model(model).values(), cached_stages(model))[module].name == role


def test_operators_that_no_name_places_are_told_apart_by_their_kind() -> None:
    """A plain stack of layers is no one part; what lies below a layer has no part of that layer's operators."""
    forward = frozenset({"forward"})
    found = roles(
        ("", "Sequential", forward),
        ("0", "Linear", forward),
        ("1", "GELU", forward),
        ("2", "Scaled", forward),
        ("3", "Block", forward),
        ("3.attn", "Attention", forward),
        own={"0": Category.LINEAR, "1": Category.ACTIVATION, "2": Category.NORMALIZATION, "3": Category.LINEAR},
    )
    assert list(found.values()) == [
        "model: other",
        "model: linear",
        "model: other",
        "model: norm",
        "model: linear",
        "model: attention",
    ]


def test_a_pair_of_layers_beside_an_attention_is_its_feed_forward() -> None:
    """Layers of BERT, of T5 and of torch have no module for the whole feed-forward, or one of a name of its own."""
    found = roles(
        ("", "BertModel", SOUND),
        ("encoder", "BertEncoder", SOUND),
        ("encoder.layer.[0-11]", "BertLayer", SOUND),
        ("encoder.layer.[0-11].attention", "BertAttention", SOUND),
        ("encoder.layer.[0-11].attention.output.dense", "Linear", SOUND),
        ("encoder.layer.[0-11].intermediate", "BertIntermediate", SOUND),
        ("encoder.layer.[0-11].intermediate.dense", "Linear", SOUND),
        ("encoder.layer.[0-11].output", "BertOutput", SOUND),
        ("encoder.layer.[0-11].output.dense", "Linear", SOUND),
        ("encoder.layer.[0-11].output.LayerNorm", "LayerNorm", SOUND),
    )
    assert list(found.values())[3:] == [
        "encoder: attention",
        "encoder: attention",
        "encoder: feed-forward",
        "encoder: feed-forward",
        "encoder: other",
        "encoder: feed-forward",
        "encoder: norm",
    ]
    found = roles(
        ("", "Any", SOUND),
        ("blocks.[0-1]", "TransformerEncoderLayer", SOUND),
        ("blocks.[0-1].self_attn", "MultiheadAttention", SOUND),
        ("blocks.[0-1].linear1", "Linear", SOUND),
        ("blocks.[0-1].linear2", "Linear", SOUND),
        ("block.0.layer.1", "T5LayerFF", SOUND),
        ("block.0.layer.1.DenseReluDense", "T5DenseGatedActDense", SOUND),
        ("block.0.layer.1.DenseReluDense.wi_0", "Linear", SOUND),
        ("block.0.layer.1.layer_norm", "T5LayerNorm", SOUND),
    )
    feed_forward = [name for name, role in found.items() if role == "encoder: feed-forward"]
    assert feed_forward == [
        "blocks.[0-1].linear1",
        "blocks.[0-1].linear2",
        "block.0.layer.1.DenseReluDense",
        "block.0.layer.1.DenseReluDense.wi_0",
    ]


def test_layers_of_those_names_elsewhere_are_no_feed_forward() -> None:
    """Without an attention beside them, two layers are two layers, and an output is any output."""
    forward = frozenset({"forward"})
    own = dict.fromkeys(("linear1", "linear2", "output.dense"), Category.LINEAR)
    found = roles(
        ("", "Any", forward),
        ("linear1", "Linear", forward),
        ("linear2", "Linear", forward),
        ("output", "Any", forward),
        ("output.dense", "Linear", forward),
        own=own,
    )
    assert {found[name] for name in own} == {"model: linear"}


@pytest.mark.parametrize(
    ("modules", "tower"),
    [
        ([("blocks.[0-1]", "TransformerEncoderLayer")], "encoder"),
        ([("encoder", "Stack")], "encoder"),
        ([("encoder", "Stack"), ("decoder", "Stack")], "model"),  # such as an autoencoder
        ([("body", "Stack")], "model"),
    ],
)
def test_a_model_of_one_stage_is_an_encoder_where_its_names_say_so(modules: list[tuple[str, str]], tower: str) -> None:
    """So that a factory's encoder has the roles of one by configuration, whose stage is called `encode`."""
    forward = frozenset({"forward"})
    found = roles(("", "Any", forward), *((name, kind, forward) for name, kind in modules))
    assert {role.partition(":")[0] for role in found.values()} == {tower}
    twice = frozenset({"first", "second"})  # two stages: which one encodes, names do not say
    found = roles(("", "Any", twice), *((name, kind, twice) for name, kind in modules))
    assert {role.partition(":")[0] for role in found.values()} == {"model"}
