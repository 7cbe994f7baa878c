"""Cache of compiled models, by content: model config, code, variant and torch version decide the key."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path

import platformdirs
from attrs import frozen

from dsocr_graph.errors import OptionError
from dsocr_graph.models.named_model import ModelVariant, NamedModel

_CODE = {
    "dsocr_graph": (
        "__init__.py",
        "models",
        "lowering",
        "emit/onnx_graph.py",
        "emit/onnx_metadata.py",
        "emit/onnx_stage.py",
        "emit/onnx_values.py",
        "ir.py",
        "tracing",
        "scopes.py",
        "liveness.py",
    ),
    "modelmeter": (
        "layers",
        "categories.py",
        "dim_binding.py",
        "dim_text.py",
        "dims.py",
        "dtypes.py",
        "expert_counts.py",
        "json_text.py",
        "model.py",
        "serialize.py",
        "signature.py",
        "stored.py",
    ),
}


@frozen(kw_only=True)
class CompiledModel:
    """What a capture yields, as bytes: the same for every workload and device."""

    model_json: bytes
    onnx: bytes


@frozen(kw_only=True)
class ModelCache:
    """A directory of compiled models; `None` keeps nothing.

    Examples
    --------
    >>> import tempfile
    >>> from dsocr_graph.models.registry import Variant, model_named
    >>> variant = Variant(base_size=1024, dtype="bf16", attention="sdpa")
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     cache = ModelCache(directory=Path(directory))
    ...     key = cache_key(model_named("deepseek-ocr"), variant)
    ...     cache.store(key, CompiledModel(model_json=b"{}", onnx=b""))
    ...     cache.load(key).model_json
    b'{}'
    """

    directory: Path | None

    @classmethod
    def default(cls) -> ModelCache:
        """Return the user's cache; DSOCR_GRAPH_CACHE names another directory."""
        named = os.environ.get("DSOCR_GRAPH_CACHE")
        return cls(directory=Path(named) if named else Path(platformdirs.user_cache_dir("dsocr_graph")))

    def load(self, key: str) -> CompiledModel | None:
        """Return a compiled model, or None when it is not there or not whole."""
        if self.directory is None:
            return None
        try:
            data = {name: (self.directory / key / name).read_bytes() for name in ("model.json", "graph.onnx", "sums")}
        except OSError:
            return None
        compiled = CompiledModel(model_json=data["model.json"], onnx=data["graph.onnx"])
        return compiled if _sums(compiled) == data["sums"] else None

    def store(self, key: str, compiled: CompiledModel) -> None:
        """Keep a compiled model; readers see all of it or nothing.

        Raises
        ------
        OptionError
            When the directory cannot be written.
        """
        if self.directory is None:
            return
        home = self.directory / key
        try:
            home.mkdir(parents=True, exist_ok=True)
            for name, data in (
                ("model.json", compiled.model_json),
                ("graph.onnx", compiled.onnx),
                ("sums", _sums(compiled)),
            ):
                _write(home / name, data)
        except OSError as error:
            raise OptionError(
                f"the cache directory {self.directory} cannot be written ({error.strerror}); "
                "name another one in DSOCR_GRAPH_CACHE, or pass --no-cache"
            ) from error


def _write(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def _sums(compiled: CompiledModel) -> bytes:
    both = (compiled.model_json, compiled.onnx)
    return "\n".join(hashlib.sha256(data).hexdigest() for data in both).encode()


def cache_key(model: NamedModel, variant: ModelVariant) -> str:
    """Return the key of a compiled model.

    Examples
    --------
    >>> from dsocr_graph.models.registry import Variant, model_named
    >>> key = cache_key(model_named("deepseek-ocr"), Variant(base_size=1024, dtype="bf16", attention="sdpa"))
    >>> key.startswith("deepseek-ocr-base1024-bf16-sdpa-grouped-")
    True
    """
    facts: Mapping[str, object] = {
        "config": model.config(variant),
        "variant": variant.facts(),
        "versions": {**{name: metadata.version(name) for name in ("torch", "sympy", "onnx")}, **model.versions},
        "code": {package: _code_digest(package, parts) for package, parts in _CODE.items()},
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return f"{model.name}-{variant.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _code_digest(package: str, parts: tuple[str, ...]) -> str:
    root = Path(str(resources.files(package)))
    digest = hashlib.sha256()
    for part in parts:
        place = root / part
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
