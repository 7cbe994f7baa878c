"""A small model and its reports, shared by the tests of the emitters."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def toy(repo_root: Path) -> ModuleType:
    """Return the module tests/modelmeter/toy.py."""
    spec = importlib.util.spec_from_file_location("modelmeter_toy", repo_root / "tests" / "modelmeter" / "toy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
