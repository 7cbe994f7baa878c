"""Registry: models found through entry points of installed packages, each mistake with its message."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

import modelmeter
from modelmeter.errors import UnknownModelError
from modelmeter.registry import (
    BrokenModelError,
    DuplicateModelError,
    RegisteredModel,
    UnknownVariantError,
    available,
    load,
    registered,
)
from modelmeter.serialize import ModelFileError, compress, model_to_json

POINTS = """[modelmeter.models]
toy-model = toy_package_of_tests:MODEL
toy-broken = toy_package_of_tests.missing:MODEL
toy-wrong = toy_package_of_tests:NAME
toy-other = toy_package_of_tests:MODEL
"""


@pytest.fixture
def installed(tmp_path: Path, toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package with a model, a broken entry point and one that is no model."""
    meta = tmp_path / "toy_package_of_tests-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package-of-tests\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(POINTS)
    data = tmp_path / "toy_package_of_tests" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").write_text(
        "from modelmeter.registry import RegisteredModel\n"
        "NAME = 'toy'\n"
        "MODEL = RegisteredModel(name='toy-model', package='toy_package_of_tests', default='plain')\n"
    )
    text = model_to_json(toy.toy_model())
    (data / "plain.json").write_text(text)
    (data / "small.json.gz").write_bytes(compress(text))
    (data / "torn.json").write_text(text[:300])
    (data / "README.md").write_text("no variant")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "toy_package_of_tests", raising=False)
    return tmp_path


@pytest.mark.usefixtures("installed")
def test_models_of_installed_packages_are_available(toy: ModuleType) -> None:
    """Names come from entry points; the default variant is loaded when none is named."""
    assert {"toy-model", "toy-broken"} <= set(available())
    assert load("toy-model") == toy.toy_model()
    assert load("toy-model", "small") == toy.toy_model()
    assert modelmeter.load("toy-model") == toy.toy_model()


@pytest.mark.usefixtures("installed")
def test_variants_are_the_data_files() -> None:
    """Each JSON file of the folder is a variant, other files are not."""
    assert registered("toy-model").variants == {
        "plain": "plain.json",
        "small": "small.json.gz",
        "torn": "torn.json",
    }


@pytest.mark.usefixtures("installed")
def test_unknown_names_list_the_known_ones() -> None:
    """A wrong model or variant is an error with the alternatives."""
    with pytest.raises(
        UnknownModelError, match=r"unknown model 'toy-modle'; did you mean toy-model.*Known:.*toy-model"
    ):
        load("toy-modle")
    with pytest.raises(UnknownVariantError, match=r"unknown variant of toy-model 'large'.*Known: plain, small, torn"):
        load("toy-model", "large")


@pytest.mark.usefixtures("installed")
def test_broken_entry_points_are_said() -> None:
    """A module that is not there, no model, one of another name and a torn file each have their message."""
    with pytest.raises(
        BrokenModelError, match=r"toy_package_of_tests\.missing:MODEL, which cannot be imported"
    ) as caught:
        load("toy-broken")
    assert isinstance(caught.value, ImportError)
    with pytest.raises(BrokenModelError, match=r"is a str; an entry point of modelmeter\.models must name"):
        load("toy-wrong")
    with pytest.raises(BrokenModelError, match=r"toy_package_of_tests:MODEL, whose name is 'toy-model'; give both the"):
        load("toy-other")
    with pytest.raises(ModelFileError, match=r"toy_package_of_tests/data/torn\.json is no JSON or cut off"):
        load("toy-model", "torn")


def test_no_package_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is installed the message says to install something."""
    monkeypatch.setattr("sys.path", [])
    assert available() == ()
    with pytest.raises(UnknownModelError, match="No installed package registers a model"):
        load("deepseek-ocr")


def test_a_package_without_data_has_no_variants() -> None:
    """A registered model without files has no variants, and says so."""
    empty = RegisteredModel(name="empty", package="modelmeter.layers", default="plain")
    assert empty.variants == {}
    with pytest.raises(UnknownVariantError, match="Known: none"):
        empty.load()


def test_a_name_of_two_packages_is_refused(installed: Path) -> None:
    """Which of two models is meant cannot be told: both packages are named. The same entry twice is one model."""
    for package, value in (("other-package", "other_package:MODEL"), ("again", "toy_package_of_tests:MODEL")):
        meta = installed / f"{package.replace('-', '_')}-1.0.dist-info"
        meta.mkdir()
        (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        name = "toy-model" if package == "again" else "toy-wrong"
        (meta / "entry_points.txt").write_text(f"[modelmeter.models]\n{name} = {value}\n")
    assert registered("toy-model").name == "toy-model"
    with pytest.raises(DuplicateModelError, match="uninstall one of the packages") as caught:
        registered("toy-wrong")
    assert "toy-package-of-tests (toy_package_of_tests:NAME)" in str(caught.value)
    assert "other-package (other_package:MODEL)" in str(caught.value)
    assert list(available()).count("toy-wrong") == 1
