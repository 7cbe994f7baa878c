"""AnalyticModel to JSON and back: dims as text, layers by type and fields, each leaf's cost beside its layer."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import attrs
import cattrs
import sympy
from cattrs.gen import make_dict_unstructure_fn, override

from modelmeter.categories import Category
from modelmeter.dim_text import parse, to_text
from modelmeter.dims import Dim
from modelmeter.dtypes import DType
from modelmeter.errors import ModelMeterError
from modelmeter.json_text import dump_json, load_document, reasons, register_plain
from modelmeter.layers import LAYERS
from modelmeter.layers.base import BaseLayer
from modelmeter.model import COST_FIELDS, SCHEMA_VERSION, AnalyticModel, Exactness, Leaf, LeafCost, ModuleNode
from modelmeter.signature import StoredSignature, signature_to_json
from modelmeter.stored import StoredDim, StoredLayer

MODEL_FILE = "model.json"
"""The file of a compiled model in a directory of `dsocr-graph analyze`."""

_GZIP_MAGIC = b"\x1f\x8b"
_LEAF_PLAIN = ("id", "module", "stage", "op", "function", "category", "calls", "exactness", "note")
_LEAF_TEXTS = tuple(name for name in _LEAF_PLAIN if name != "calls")
_LEAF_KEYS = frozenset({*_LEAF_PLAIN, "layer", "signature", "cost"})


class ModelFileError(ModelMeterError, ValueError):
    """A file that is no model, or a model of another schema version."""


class MissingModelFileError(ModelFileError, FileNotFoundError):
    """A model file that cannot be read at all."""


def model_to_json(model: AnalyticModel) -> str:
    """Write a model as JSON: one leaf, module or edge a line, equal models give equal text.

    Parameters
    ----------
    model : AnalyticModel
        The model; dims become text such as ``"2*B*S"``.

    Returns
    -------
    str
        JSON that `model_from_json` reads and ``schema/model.schema.json`` describes; ends with a newline.
    """
    document = {"schema_version": SCHEMA_VERSION, **_converter().unstructure(model)}
    if not model.limits:
        del document["limits"]
    return dump_json(document, depths={"stages": 4})


def model_from_json(text: str | bytes, *, source: str = "the text") -> AnalyticModel:
    """Read a model from JSON.

    Layers and expressions are built when they are first asked for, so reading is quick.

    Parameters
    ----------
    text : str or bytes
        JSON as `model_to_json` writes it.
    source : str
        Where the text is from, for messages.

    Raises
    ------
    ModelFileError
        When the text is cut off, no JSON, of another schema version or not a model.
    """
    document = load_document(text, source=source, kind="model", version=SCHEMA_VERSION, error=ModelFileError)
    try:
        model = _converter().structure(document, AnalyticModel)
    except Exception as error:
        raise ModelFileError(f"{source} is no model: {reasons(error)}") from error
    _check_references(model, source)
    return model


def read_model(path: str | Path) -> AnalyticModel:
    """Read a model file, gzip or plain.

    Raises
    ------
    MissingModelFileError
        When the file cannot be read.
    ModelFileError
        When its content is no model.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise MissingModelFileError(f"cannot read the model file {path}: {error.strerror or error}") from error
    return model_from_bytes(data, source=str(path))


def looks_like_model(data: bytes) -> bool:
    """Whether bytes are meant as a compiled model: compressed, as models are shipped, or an object with leaves.

    Examples
    --------
    >>> looks_like_model(b'{"leaves": []}'), looks_like_model(b'{"model_type": "t5"}'), looks_like_model(b"leaves")
    (True, False, False)
    """
    if data.startswith(_GZIP_MAGIC):
        return True
    try:
        document: object = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "leaves" in document


def model_from_bytes(data: bytes, *, source: str) -> AnalyticModel:
    """Read a model from the bytes of a file, gzip or plain.

    Raises
    ------
    ModelFileError
        When the bytes are no model.
    """
    if data.startswith(_GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise ModelFileError(f"{source} is cut off or damaged: {error}; write it again") from error
    return model_from_json(data, source=source)


def compress(text: str) -> bytes:
    """Return gzip bytes that hold no time or name: equal texts give equal bytes.

    Examples
    --------
    >>> gzip.decompress(compress("{}"))
    b'{}'
    """
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


def _check_references(model: AnalyticModel, source: str) -> None:
    """Refuse leaves, modules and free calls of modules or stages that the file does not have."""
    modules = {node.id for node in model.modules}
    stages = {stage.name for stage in model.stages}
    if sum(node.parent is None for node in model.modules) != 1:
        raise ModelFileError(f"{source} is no model: exactly one module must have no parent")
    for node in model.modules:
        if node.parent is not None and node.parent not in modules:
            raise ModelFileError(f"{source} is no model: module {node.id!r} has no parent {node.parent!r}")
    named: tuple[tuple[str, list[str]], ...] = (
        ("stage", [stage.name for stage in model.stages]),
        ("module", [node.id for node in model.modules]),
        ("leaf", [f"{leaf.id} in {leaf.stage}" for leaf in model.leaves]),
    )
    for kind, names in named:
        if len(set(names)) != len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise ModelFileError(f"{source} is no model: it has two {kind} records for {twice!r}")
    for edge in model.edges:
        if not {edge.source, edge.target} <= modules or edge.stage not in stages:
            raise ModelFileError(
                f"{source} is no model: an edge of stage {edge.stage!r} from {edge.source!r} to {edge.target!r} "
                "names what the file does not have"
            )
    for record in (*model.leaves, *model.free):
        if record.module not in modules or record.stage not in stages:
            raise ModelFileError(
                f"{source} is no model: {record.op} is in module {record.module!r} of stage {record.stage!r}, "
                "which the file does not have"
            )
    for stage in model.stages:
        counted = [record.calls for record in (*model.leaves_by_stage[stage.name], *model.free_by_stage[stage.name])]
        if stage.schedule and Counter(stage.schedule) != dict(enumerate(counted)):
            raise ModelFileError(
                f"{source} is no model: the schedule of stage {stage.name!r} does not run each call as often as its "
                "record counts"
            )


# --- the converter


def _is_dim(kind: object) -> bool:
    """Tell whether a field's type is `Dim`, or `Dim` or None."""
    return get_origin(kind) in (Union, UnionType) and sympy.Expr in get_args(kind)


def _dim_to_json(value: Dim | None) -> int | float | str | None:
    """Write a dim as a number, or as text where it is an expression."""
    return to_text(value) if isinstance(value, sympy.Expr) else value


def _dim_from_json(value: object, _kind: object) -> Dim | None:
    """Read a dim; text is parsed."""
    if isinstance(value, str):
        return parse(value)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ValueError(f"{value!r} is no dim: give a number or a text such as '2*B*S'")


def _stored_to_json(value: StoredDim) -> int | float | str:
    return value.plain


def _stored_from_json(value: object, _kind: object = None) -> StoredDim:
    if isinstance(value, str):
        return StoredDim(text=value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return StoredDim(value)
    raise ValueError(f"{value!r} is no dim: give a number or a text such as '2*B*S'")


@lru_cache(maxsize=1)
def _converter() -> cattrs.Converter:
    """Return the converter of models: strict on keys, private fields under their public names."""
    converter = cattrs.Converter(forbid_extra_keys=True, use_alias=True)
    register_plain(converter)
    converter.register_structure_hook(StoredDim, _stored_from_json)
    converter.register_unstructure_hook(StoredDim, _stored_to_json)
    converter.register_unstructure_hook(
        ModuleNode,
        make_dict_unstructure_fn(ModuleNode, converter, buffer_bytes=override(omit_if_default=True)),
    )
    converter.register_structure_hook(Leaf, _leaf_from_json)
    converter.register_unstructure_hook(Leaf, _leaf_to_json)
    return converter


def _leaf_to_json(leaf: Leaf) -> dict[str, Any]:
    document: dict[str, Any] = {name: getattr(leaf, name) for name in _LEAF_PLAIN}
    document["category"] = leaf.category.value
    document["exactness"] = leaf.exactness.value
    document["layer"] = leaf.layer_document or layer_to_json(leaf.layer)
    document["signature"] = leaf.signature_document or (leaf.signature and signature_to_json(leaf.signature))
    document["cost"] = {name: _stored_to_json(getattr(leaf.cost, name)) for name in COST_FIELDS}
    return document


_DTYPES = frozenset(dtype.value for dtype in DType)


def _leaf_from_json(document: object, _kind: object) -> Leaf:
    """Read a leaf by hand: there are thousands, and their layers and expressions wait until they are asked for."""
    if not isinstance(document, dict) or document.keys() != _LEAF_KEYS:
        found = sorted(document) if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"a leaf has the keys {sorted(_LEAF_KEYS)}, this one has {found}")
    layer, cost, signature = document["layer"], document["cost"], document["signature"]
    name = document["id"]
    wrong = [key for key in _LEAF_TEXTS if not isinstance(document[key], str)]
    if wrong:
        raise TypeError(f"leaf {name!r}: {', '.join(wrong)} must be text")
    if not isinstance(layer, dict) or layer.get("type") not in LAYERS:
        kind = layer.get("type") if isinstance(layer, dict) else layer
        raise ValueError(f"leaf {name!r} has a layer of unknown type {kind!r}; known are {sorted(LAYERS)}")
    if signature is not None and not isinstance(signature, dict):
        raise TypeError(f"leaf {name!r}: its signature must be an object or null, not {signature!r}")
    if not isinstance(cost, dict) or cost.keys() != set(COST_FIELDS):
        raise ValueError(f"leaf {name!r}: its cost must have the keys {list(COST_FIELDS)}")
    if type(document["calls"]) is not int or document["calls"] < 1:
        raise ValueError(f"leaf {name!r}: calls is {document['calls']!r}, not a positive integer")
    dtype = layer.get("dtype")
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"leaf {name!r} has dtype {dtype!r}; known are {', '.join(sorted(_DTYPES))}")
    negative = [key for key, value in cost.items() if isinstance(value, int | float) and value < 0]
    if negative:
        raise ValueError(f"leaf {name!r}: {', '.join(negative)} must not be negative")
    fused_bytes = _stored_from_json(cost["fused_bytes"])
    return Leaf(
        id=name,
        module=document["module"],
        stage=document["stage"],
        op=document["op"],
        function=document["function"],
        category=Category(document["category"]),
        layer=StoredLayer(layer, layer_from_json),
        calls=document["calls"],
        fused_bytes=fused_bytes,
        exactness=Exactness(document["exactness"]),
        note=document["note"],
        signature=None if signature is None else StoredSignature(signature),
        cost=LeafCost(**{key: _stored_from_json(value) for key, value in cost.items()}),
    )


# --- layers


def layer_to_json(layer: BaseLayer) -> dict[str, Any]:
    """Write a layer by its type and fields.

    Examples
    --------
    >>> from modelmeter.dims import symbol
    >>> from modelmeter.dtypes import DType
    >>> layer = LAYERS["Linear"](rows=symbol("B"), in_features=4, out_features=2, bias=False, dtype=DType.BF16)
    >>> layer_to_json(layer)
    {'type': 'Linear', 'rows': 'B', 'in_features': 4, 'out_features': 2, 'bias': False, 'dtype': 'bf16'}
    """
    return _layer_converter().unstructure(layer, BaseLayer)


def layer_from_json(document: Mapping[str, Any]) -> BaseLayer:
    """Read a layer.

    Raises
    ------
    ModelFileError
        When the type is unknown or a field is missing, unknown or of a wrong type.

    Examples
    --------
    >>> layer_from_json({"type": "Linear", "rows": "B", "in_features": 4, "out_features": 2, "bias": False,
    ...                  "dtype": "bf16"}).at(B=3).matmul_flops()
    48
    """
    try:
        return _layer_converter().structure(document, BaseLayer)
    except Exception as error:
        raise ModelFileError(f"no layer is described by {json.dumps(document)}: {reasons(error)}") from error


@lru_cache(maxsize=1)
def _layer_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    register_plain(converter)
    converter.register_structure_hook_func(_is_dim, _dim_from_json)
    converter.register_unstructure_hook_func(_is_dim, _dim_to_json)
    converter.register_structure_hook_func(
        lambda kind: kind is BaseLayer, lambda document, _: _structure_layer(converter, document)
    )
    converter.register_unstructure_hook_func(
        lambda kind: kind is BaseLayer, lambda layer: _unstructure_layer(converter, layer)
    )
    return converter


def _unstructure_layer(converter: cattrs.Converter, layer: BaseLayer) -> dict[str, Any]:
    """Write a layer; the fields that a what-if alone sets are left out where it has not: captured models lack them."""
    fields: dict[str, Any] = converter.unstructure(layer)
    unset = {item.name for item in attrs.fields(type(layer)) if item.metadata.get("not_captured")}
    return {
        "type": type(layer).__name__,
        **{name: value for name, value in fields.items() if name not in unset or value is not None},
    }


def _structure_layer(converter: cattrs.Converter, document: object) -> BaseLayer:
    if not isinstance(document, Mapping) or document.get("type") not in LAYERS:
        kind = document.get("type") if isinstance(document, Mapping) else document
        raise ValueError(f"unknown layer type {kind!r}; known are {sorted(LAYERS)}")
    fields = {key: value for key, value in document.items() if key != "type"}
    return converter.structure(fields, LAYERS[document["type"]])
