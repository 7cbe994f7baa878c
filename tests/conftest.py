"""What all tests share: options, skips for what a machine lacks, reproducible property tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Manual scripts, and the script that a test runs in a process, are no test files; doctests would import them.
collect_ignore = ["manual", "data"]

# Examples are the same in every run, and a slow shared machine fails no property.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two workers with a thread pool each would fight over two cores; set before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this suite."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")
    parser.addoption("--update-golden", action="store_true", help="write golden artefacts anew")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this run or this machine cannot do, with the reason."""
    if not config.getoption("--slow"):
        _skip(items, "slow", "slow: give --slow to run it")
    if any(item.get_closest_marker("gpu") for item in items) and not _has_cuda():
        _skip(items, "gpu", "needs a CUDA device")


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Return the root of the checkout."""
    return Path(__file__).parent.parent


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Tell whether golden artefacts are to be written anew instead of compared."""
    return bool(request.config.getoption("--update-golden"))
