"""The cache of compiled models: whole entries or none, keys that follow what decides the model."""

from pathlib import Path

import attrs
import pytest

from dsocr_graph import model_cache
from dsocr_graph.errors import OptionError
from dsocr_graph.model_cache import CompiledModel, ModelCache, cache_key
from dsocr_graph.models.registry import Variant, model_named

MODEL = CompiledModel(model_json=b'{"a": 1}', onnx=b"\x00graph")
VARIANT = Variant(base_size=1024, dtype="bf16", attention="sdpa")


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    """An entry comes back as it was, another key finds nothing, and no temporary file stays."""
    cache = ModelCache(directory=tmp_path / "new" / "deeper")
    cache.store("key", MODEL)
    assert cache.load("key") == MODEL
    assert cache.load("other") is None
    assert sorted(path.name for path in (tmp_path / "new" / "deeper" / "key").iterdir()) == [
        "graph.onnx",
        "model.json",
        "sums",
    ]


@pytest.mark.parametrize("name", ["model.json", "graph.onnx", "sums"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_entry_is_ignored_and_can_be_rebuilt(tmp_path: Path, name: str, damage: str) -> None:
    """A changed byte, a cut, empty or missing file makes the entry no entry; storing again mends it."""
    cache = ModelCache(directory=tmp_path)
    cache.store("key", MODEL)
    path = tmp_path / "key" / name
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    assert cache.load("key") is None
    cache.store("key", MODEL)
    assert cache.load("key") == MODEL


def test_no_directory_keeps_nothing() -> None:
    """A cache without a directory stores without complaint and finds nothing."""
    cache = ModelCache(directory=None)
    cache.store("key", MODEL)
    assert cache.load("key") is None


def test_a_directory_that_cannot_be_made_is_said_with_the_way_out(tmp_path: Path) -> None:
    """A file in the way gives one message: the directory, the reason, the variable and the option."""
    (tmp_path / "file").write_text("not a directory")
    cache = ModelCache(directory=tmp_path / "file")
    with pytest.raises(OptionError) as caught:
        cache.store("key", MODEL)
    assert str(caught.value) == (
        f"the cache directory {tmp_path / 'file'} cannot be written (Not a directory); "
        "name another one in DSOCR_GRAPH_CACHE, or pass --no-cache"
    )


def test_an_interruption_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before the last file is renamed: nothing to load, no temporary file, and the next store works."""
    cache = ModelCache(directory=tmp_path)
    real = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if target.name == "sums":
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.store("key", MODEL)
    assert cache.load("key") is None
    assert [path.name for path in (tmp_path / "key").iterdir() if path.suffix == ".partial"] == []
    cache.store("key", MODEL)
    assert cache.load("key") == MODEL


def test_the_variable_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DSOCR_GRAPH_CACHE decides; without it, or when empty, the user's cache directory does."""
    monkeypatch.setenv("DSOCR_GRAPH_CACHE", str(tmp_path))
    assert ModelCache.default().directory == tmp_path
    monkeypatch.setenv("DSOCR_GRAPH_CACHE", "")
    directory = ModelCache.default().directory
    assert directory is not None
    assert directory.name == "dsocr_graph"
    monkeypatch.delenv("DSOCR_GRAPH_CACHE")
    assert ModelCache.default().directory == directory


def test_the_key_follows_what_decides_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variant, config, package versions and code each change the key; nothing else does."""
    named = model_named("deepseek-ocr")
    key = cache_key(named, VARIANT)
    assert cache_key(named, VARIANT) == key
    others = [
        cache_key(named, attrs.evolve(VARIANT, base_size=640)),
        cache_key(named, attrs.evolve(VARIANT, dtype="fp32")),
        cache_key(named, attrs.evolve(VARIANT, attention="eager")),
        cache_key(attrs.evolve(named, config=lambda variant: {"layers": 1}), VARIANT),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(model_cache.metadata, "version", lambda name: "0.0")
        others.append(cache_key(named, VARIANT))
    with monkeypatch.context() as patch:
        patch.setattr(model_cache, "_code_digest", lambda package, parts: "other code")
        others.append(cache_key(named, VARIANT))
    assert len({key, *others}) == 7
    assert cache_key(attrs.evolve(named, description="said in other words"), VARIANT) == key


def test_the_code_of_every_step_is_in_the_key() -> None:
    """Each part that the key digests exists, and together they hold every module that compiling runs."""
    from importlib import resources

    for package, parts in model_cache._CODE.items():
        for part in parts:
            assert (Path(str(resources.files(package))) / part).exists(), part
    assert {"models", "lowering", "tracing", "scopes.py", "liveness.py"} <= set(model_cache._CODE["dsocr_graph"])
