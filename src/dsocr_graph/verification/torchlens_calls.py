"""TorchLens, where it is installed: a second, independent count of the module calls of a run."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from torch import nn


def torchlens_calls(module: nn.Module, root: str, inputs: Sequence[Any]) -> Counter[str] | None:
    """Run a module under TorchLens and return the calls of each module below `root`; None where it is not installed.

    Parameters
    ----------
    module : nn.Module
        The module of a stage, with weights.
    root : str
        Path of the model in it; "" for the module itself.
    inputs : sequence
        Of the module.

    Notes
    -----
    Source: TorchLens 2.36, whose `trace` returns the modules that were called with `address` and `num_calls`.

    Examples
    --------
    >>> import torch
    >>> found = torchlens_calls(nn.Sequential(nn.Linear(4, 4)), "", [torch.ones(1, 4)])
    >>> found is None or dict(found) == {"": 1, "0": 1}
    True
    """
    if find_spec("torchlens") is None:
        return None
    trace: Any = importlib.import_module("torchlens").trace(module, list(inputs))
    prefix = f"{root}." if root else ""
    calls: Counter[str] = Counter()
    for called in trace.modules:
        address = "" if called.address == "self" else str(called.address)
        if address == root or address.startswith(prefix):
            calls[address[len(prefix) :] if address != root else ""] += called.num_calls
    return calls
