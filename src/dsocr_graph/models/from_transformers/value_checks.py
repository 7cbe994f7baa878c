"""Switch off the checks of values in transformers' models, which tensors on `meta` cannot pass."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

_SWITCH = "TRANSFORMERS_DISABLE_TORCH_CHECK"  # read at each check


@contextmanager
def values_unchecked() -> Generator[None]:
    """Let models run on `meta` inside: such as one that compares its image tokens with the features it was given.

    Examples
    --------
    >>> with values_unchecked():
    ...     os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"]
    '1'
    """
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before
