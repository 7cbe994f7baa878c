"""Who may import what: the layers of the two packages, read from the imports themselves."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# (imported top-level package, modules that may import it); a module covers the ones below it
EXTERNAL: dict[str, tuple[str, ...]] = {
    "torch": (
        "dsocr_graph.models",
        "dsocr_graph.tracing",
        "dsocr_graph.timing",
        "dsocr_graph.verification",
        "dsocr_graph.workloads.pixels",  # turns pages into the model's input tensors
    ),
    "networkx": ("dsocr_graph.scopes", "dsocr_graph.emit.graphml"),
    "transformers": ("dsocr_graph.models",),
    "dsocr_graph": ("dsocr_graph",),
}

# Module -> its level; a module imports its own level's branch and lower levels only. Unlisted modules (errors
# and other leaves) may be imported from anywhere and import nothing that is listed.
LEVELS: dict[str, int] = {
    "dsocr_graph.ir": 1,
    "dsocr_graph.models": 1,
    "dsocr_graph.workloads": 1,
    "dsocr_graph.tracing": 2,
    "dsocr_graph.scopes": 2,
    "dsocr_graph.lowering": 2,
    "dsocr_graph.liveness": 2,
    "dsocr_graph.timing": 2,
    "dsocr_graph.emit": 2,
    "dsocr_graph.emit.files": 1,
    "dsocr_graph.model_cache": 2,
    "dsocr_graph.time_models": 2,
    "dsocr_graph.verification.records": 1,
    "dsocr_graph.verification": 3,
    "dsocr_graph.compiling": 3,
    "dsocr_graph.subjects": 3,
    "dsocr_graph.pipeline": 4,
    "dsocr_graph.assumed_readings": 3,
    "dsocr_graph.compared_workloads": 4,
    "dsocr_graph.compiled_subject": 4,
    "dsocr_graph.sweep_pages": 4,
    "dsocr_graph.sweep_stages": 4,
    "dsocr_graph.cli_calibrate": 5,
    "dsocr_graph.cli_figures": 5,
    "dsocr_graph.cli_formulas": 5,
    "dsocr_graph.cli_measure": 5,
    "dsocr_graph.cli_options": 5,
    "dsocr_graph.cli_parallel": 5,
    "dsocr_graph.cli_plan": 5,
    "dsocr_graph.cli_sweep": 5,
    "dsocr_graph.cli_compare": 5,
    "dsocr_graph.cli_models": 5,
    "dsocr_graph.cli_operators": 5,
    "dsocr_graph.cli_verify": 5,
    "dsocr_graph.cli": 6,
    "dsocr_graph.analyze": 7,
    "dsocr_graph.__main__": 8,
}

# The side of the line that each module of the second level may see: none of its neighbours, but for these.
NEIGHBOURS: dict[str, tuple[str, ...]] = {
    "dsocr_graph.tracing": (),
    "dsocr_graph.lowering": ("dsocr_graph.scopes", "dsocr_graph.liveness"),
    "dsocr_graph.liveness": ("dsocr_graph.scopes",),
    "dsocr_graph.emit": ("dsocr_graph.scopes", "dsocr_graph.liveness"),
    "dsocr_graph.timing": ("dsocr_graph.tracing", "dsocr_graph.scopes", "dsocr_graph.liveness"),
}

# modelmeter's own order, lowest first.
MODELMETER_LEVELS: dict[str, int] = {
    "modelmeter.errors": 0,
    "modelmeter.units": 0,
    "modelmeter.dims": 1,
    "modelmeter.expert_counts": 2,
    "modelmeter.dim_text": 3,
    "modelmeter.dim_binding": 4,
    "modelmeter.layers": 5,
    "modelmeter.model": 6,
    "modelmeter.formulas": 7,
    "modelmeter.predict": 7,
    "modelmeter.routing": 7,
    "modelmeter.whatif": 9,
    "modelmeter.reports": 8,
    "modelmeter.registry": 9,
    "modelmeter.compare": 10,
    "modelmeter.capacity": 9,
    "modelmeter.sweeps": 9,
    "modelmeter.parallel": 10,
}


def module_name(path: Path, root: Path) -> str:
    """Return the dotted name of a file below an import root."""
    parts = list(path.relative_to(root).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def imports_of(path: Path, name: str, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import in a file, lazy ones included, type-only ones left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    type_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in type_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in modules else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "import_module",
            "importlib.import_module",
            "__import__",
        }:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value


def within(module: str, owner: str) -> bool:
    """Tell whether a module is its owner or lies below it."""
    return module == owner or module.startswith(f"{owner}.")


def place(module: str, levels: dict[str, int]) -> str | None:
    """Return the listed module that a module belongs to, if any; the nearest one wins."""
    return max((owner for owner in levels if within(module, owner)), key=len, default=None)


def violations(root: Path) -> list[str]:
    """Return one line per import that goes the wrong way, in src/ and extern/ of a checkout."""
    files = {
        module_name(path, top): path for top in (root / "src", root / "extern") for path in sorted(top.rglob("*.py"))
    }
    found: list[str] = []
    for name, path in files.items():
        for line, imported in imports_of(path, name, set(files)):
            reason = refusal(name, imported)
            if reason:
                found.append(f"{path.relative_to(root)}:{line}: {name} imports {imported}: {reason}")
    return found


def refusal(name: str, imported: str) -> str | None:
    """Return why a module may not import another, or None when it may."""
    top = imported.partition(".")[0]
    if top in EXTERNAL and not any(within(name, owner) for owner in EXTERNAL[top]):
        return f"{top} belongs to {', '.join(EXTERNAL[top])}"
    if imported in {"dsocr_graph", "modelmeter"} and top == name.partition(".")[0]:
        return None  # `from modelmeter import units`, already resolved where the submodule is known
    for levels in (LEVELS, MODELMETER_LEVELS):
        own, other = place(name, levels), place(imported, levels)
        if other is None or own == other:
            continue
        if own is None:
            # A package's __init__ and modelmeter's unlisted modules sit beside the line.
            if levels is LEVELS and name not in {"dsocr_graph", "modelmeter"}:
                return f"{name} is not on the line and may import nothing that is"
            continue
        if levels[other] > levels[own]:
            return f"upward: {own} is below {other}"
        if levels[other] == levels[own] and own in NEIGHBOURS and other not in NEIGHBOURS[own]:
            return f"sideways: {own} and {other} are neighbours"
    return None


def test_no_module_imports_against_the_line(repo_root: Path) -> None:
    """torch, networkx and transformers stay in their places, and nothing imports upwards."""
    assert violations(repo_root) == []


def plant(root: Path, path: str, text: str) -> None:
    """Write one module into a small tree."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("extern/modelmeter/layers/linear.py", "import torch", "torch belongs to"),
        ("extern/modelmeter/layers/linear.py", "def f():\n    import torch.nn as nn", "torch belongs to"),
        ("extern/modelmeter/model.py", "import networkx", "networkx belongs to"),
        ("extern/modelmeter/model.py", "from dsocr_graph.ir import OpGraph", "dsocr_graph belongs to"),
        ("extern/modelmeter/layers/linear.py", "from modelmeter.registry import load", "upward"),
        ("extern/modelmeter/layers/linear.py", "from .. import registry", "upward"),
        ("src/dsocr_graph/lowering/linear.py", "import torch", "torch belongs to"),
        ("src/dsocr_graph/lowering/linear.py", "from ..pipeline import analyze_model", "upward"),
        ("src/dsocr_graph/lowering/linear.py", "import importlib\nimportlib.import_module('torch')", "torch"),
        ("src/dsocr_graph/ir.py", "from dsocr_graph import tracing", "upward"),
        ("src/dsocr_graph/liveness.py", "import dsocr_graph.tracing", "sideways"),
        ("src/dsocr_graph/pipeline.py", "import networkx as nx", "networkx belongs to"),
        ("src/dsocr_graph/pipeline.py", "from dsocr_graph.cli import main", "upward"),
        ("src/dsocr_graph/workloads/tiling.py", "import torch", "torch belongs to"),
        ("src/dsocr_graph/tracing/capturing.py", "from transformers import AutoModel", "transformers belongs to"),
        ("src/dsocr_graph/errors.py", "from dsocr_graph.lowering import lower", "not on the line"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, path: str, text: str, expected: str) -> None:
    """The checker reports an import against the line with its file and line, however it is written."""
    for present in ("src/dsocr_graph/tracing/__init__.py", "extern/modelmeter/registry.py"):
        plant(tmp_path, present, "")
    plant(tmp_path, path, text)
    found = violations(tmp_path)
    assert len(found) == 1, found
    assert found[0].startswith(f"{path}:")
    assert expected in found[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("src/dsocr_graph/tracing/capturing.py", "import torch"),
        ("src/dsocr_graph/models/deepseek_ocr/ops.py", "import torch\nimport transformers"),
        ("src/dsocr_graph/workloads/pixels.py", "import torch"),
        ("src/dsocr_graph/scopes.py", "import networkx"),
        ("src/dsocr_graph/emit/graphml.py", "import networkx"),
        ("src/dsocr_graph/lowering/linear.py", "from modelmeter import layers\nfrom ..ir import OpCall"),
        ("src/dsocr_graph/pipeline.py", "from dsocr_graph import lowering, tracing"),
        ("src/dsocr_graph/lowering/linear.py", "import typing\nif typing.TYPE_CHECKING:\n    import torch"),
    ],
)
def test_an_allowed_import_passes(tmp_path: Path, path: str, text: str) -> None:
    """Each place may import what belongs to it, and types cost nothing at run time."""
    plant(tmp_path, path, text)
    assert violations(tmp_path) == []


def test_importing_both_packages_loads_nothing_heavy() -> None:
    """A warm run starts in milliseconds: the import loads neither torch nor networkx."""
    code = (
        "import sys, dsocr_graph, modelmeter\n"
        "print(sorted({'torch', 'transformers', 'networkx', 'onnx', 'sympy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
