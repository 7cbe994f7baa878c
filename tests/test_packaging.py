"""Packaging: what a wheel holds, what the public names load, and that the ways to run things agree."""

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import dsocr_graph
import modelmeter

PACKAGES = {"dsocr_graph": "src/dsocr_graph", "modelmeter": "extern/modelmeter"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """Return pyproject.toml as data."""
    return tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, as pip would, without a network."""
    root = Path(__file__).parent.parent
    copy = tmp_path_factory.mktemp("source")
    for folder in ("src", "extern"):
        shutil.copytree(root / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", ".gitignore"):
        shutil.copy(root / file, copy / file)
    result = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(copy / "dist")],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_both_packages(wheel: Path, repo_root: Path) -> None:
    """Code, TOML, JSON, schemas and py.typed of both packages are in the wheel, nothing else but metadata."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{path.relative_to(repo_root / folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in (repo_root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == expected
    assert {"dsocr_graph/py.typed", "modelmeter/py.typed", "modelmeter/devices/devices.toml"} <= held


def test_a_wheel_away_from_the_sources_finds_its_data(wheel: Path, tmp_path: Path) -> None:
    """From an unpacked wheel in an empty directory, the device table loads from the wheel's own file."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import modelmeter; print(modelmeter.__file__); print(modelmeter.load_device('h200').sm_count)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    origin, count = result.stdout.split("\n")[:2]
    assert Path(origin).is_relative_to(tmp_path / "site")
    assert count == "132"


def test_the_wheel_declares_its_command_and_models(wheel: Path) -> None:
    """The wheel installs the `dsocr-graph` command and registers its models with modelmeter."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (entry for entry in archive.namelist() if entry.endswith("entry_points.txt"))
        text = archive.read(name).decode()
    assert "dsocr-graph = dsocr_graph.cli:main" in text
    assert "[modelmeter.models]" in text


def test_every_entry_point_loads(project: dict[str, Any]) -> None:
    """The command and each registered model name something that is there."""
    targets = [*project["project"]["scripts"].values()]
    targets += project["project"]["entry-points"]["modelmeter.models"].values()
    for target in targets:
        module, _, attribute = target.partition(":")
        assert hasattr(importlib.import_module(module), attribute), target


def test_the_installed_distribution_registers_deepseek_ocr() -> None:
    """`modelmeter.models` has an entry for deepseek-ocr wherever the distribution is installed."""
    names = {entry.name for entry in entry_points(group="modelmeter.models")}
    if not names:
        pytest.skip("the packages are on the path, not installed")
    assert "deepseek-ocr" in names


@pytest.mark.parametrize("package", [dsocr_graph, modelmeter], ids=["dsocr_graph", "modelmeter"])
def test_every_public_name_loads(package: Any) -> None:
    """Each name in __all__ is there on first use, and dir() shows it."""
    for name in package.__all__:
        assert getattr(package, name) is not None, name
        assert name in dir(package)


@pytest.mark.parametrize("package", [dsocr_graph, modelmeter], ids=["dsocr_graph", "modelmeter"])
def test_a_misspelt_public_name_lists_the_names(package: Any) -> None:
    """The error of a missing attribute tells what there is."""
    with pytest.raises(AttributeError, match=package.__all__[-1]):
        _ = package.not_there


def test_one_version_is_stated_once(project: dict[str, Any], wheel: Path) -> None:
    """The wheel's version is the package's constant; pyproject.toml repeats none."""
    assert "version" not in project["project"]
    assert wheel.name.startswith(f"dsocr_graph-{dsocr_graph.__version__}-")


def test_torch_has_one_pin(repo_root: Path) -> None:
    """The pip constraints and pixi's environment name the same torch."""
    constraints = (repo_root / "constraints-dev.txt").read_text(encoding="utf-8")
    (pin,) = re.findall(r"^torch==(\S+)$", constraints, flags=re.MULTILINE)
    pixi = tomllib.loads((repo_root / "pixi.toml").read_text(encoding="utf-8"))
    assert pixi["pypi-dependencies"]["torch"] == f"=={pin}"


def test_every_direct_dependency_is_pinned_for_development(repo_root: Path, project: dict[str, Any]) -> None:
    """What pyproject.toml asks for has one version in the development environment."""
    constraints = (repo_root / "constraints-dev.txt").read_text(encoding="utf-8")
    pinned = {name.lower() for name in re.findall(r"^([\w.-]+)==", constraints, flags=re.MULTILINE)}
    extras = project["project"]["optional-dependencies"]
    asked = [*project["project"]["dependencies"], *extras["dev"]]
    for extra in re.findall(r"^dsocr-graph\[([\w-]+)\]$", "\n".join(asked), flags=re.MULTILINE):
        asked += extras[extra]
    names = {re.split(r"[\[><=]", requirement)[0].lower() for requirement in asked} - {project["project"]["name"]}
    assert names <= pinned


def test_pixi_offers_what_make_offers(repo_root: Path) -> None:
    """Every pixi task is a target of the Makefile and runs the same program."""
    tasks = tomllib.loads((repo_root / "pixi.toml").read_text(encoding="utf-8"))["tasks"]
    makefile = (repo_root / "Makefile").read_text(encoding="utf-8")
    assert set(tasks) == {"analyze", "test", "lint", "types", "golden", "docs", "accuracy"}
    for name, task in tasks.items():
        recipe = re.search(rf"^{name}: .*\n\t@(.*)$", makefile, flags=re.MULTILINE)
        assert recipe, name
        program = task["cmd"].removeprefix("python ").removeprefix("-m ").split()[:2]
        assert all(word in recipe[1] for word in program), (name, recipe[1])


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_refuses_an_old_python(repo_root: Path, tmp_path: Path) -> None:
    """With a Python that is too old, `make test` says what is needed and how to name another one."""
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    old.chmod(0o755)
    command = ["make", "test", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert result.returncode != 0
    assert "is Python 3.9.2; Python 3.11 or newer is needed" in result.stderr
    assert "make PYTHON=python3.12 test" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_continuous_integration_runs_lint_types_and_tests_last(repo_root: Path) -> None:
    """.ci/run is executable, stops at the first failure and ends with the tests' own summary."""
    script = repo_root / ".ci/run"
    text = script.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert script.stat().st_mode & 0o111
    assert lines[0] == "set -euo pipefail"
    assert lines[-3:] == ["make lint", "make types", "make test"]
