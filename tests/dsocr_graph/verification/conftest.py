"""What the tests of verification share."""

import logging
from collections.abc import Generator

import pytest


@pytest.fixture(autouse=True)
def _no_traces() -> Generator[None]:
    """Switch off the traces of torch's exporter, all of which pytest would keep."""
    before = logging.root.manager.disable
    logging.disable(logging.DEBUG)
    yield
    logging.disable(before)
