"""What the tests of what-ifs share."""

from types import ModuleType

import pytest

from modelmeter.model import AnalyticModel


@pytest.fixture(scope="session")
def toy_model(toy: ModuleType) -> AnalyticModel:
    """Return the model of two stages that is built by hand."""
    return toy.toy_model()
