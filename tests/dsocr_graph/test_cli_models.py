"""The subcommand `models`: what is known by name, and what a broken package has instead."""

import argparse
from types import SimpleNamespace

import pytest

import modelmeter
from dsocr_graph import cli_models
from modelmeter import registry


def listed(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the subcommand prints."""
    parser = argparse.ArgumentParser()
    cli_models.add_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(["models"])
    assert options.run(options) == 0
    return capsys.readouterr().out


def test_a_broken_package_does_not_hide_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be imported, and one without its default variant, are listed with the reason."""
    model = modelmeter.load("deepseek-ocr", "tiny")

    def lookup(name: str) -> object:
        if name == "a-broken":
            raise registry.BrokenModelError("model 'a-broken' cannot be imported")
        if name == "b-empty":
            return registry.RegisteredModel(name="b-empty", package="modelmeter.layers", default="plain")
        if name == "qwen3-8b":
            raise registry.DuplicateModelError("model 'qwen3-8b' is registered by a and b")
        return SimpleNamespace(package="mine", variants={"plain": ""}, load=lambda: model)

    monkeypatch.setattr(registry, "available", lambda: ("a-broken", "b-empty", "c-mine", "qwen3-8b"))
    monkeypatch.setattr(registry, "registered", lookup)
    lines = listed(capsys).splitlines()
    assert lines[lines.index("a-broken  compiled by another package, to be loaded and compared") + 1] == (
        "  cannot be loaded: model 'a-broken' cannot be imported"
    )
    assert any(line.startswith("  cannot be loaded: unknown variant of b-empty 'plain'") for line in lines)
    assert "  source: mine" in lines
    qwen = next(place for place, line in enumerate(lines) if line.startswith("qwen3-8b  "))
    assert lines[qwen + 1] == "  cannot be loaded: model 'qwen3-8b' is registered by a and b"
    assert any(line.startswith("whisper-large-v3") for line in lines)
