"""TorchLens, where it is installed: a second, independent count of the module calls of a run."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Literal

from torch import nn

from dsocr_graph.errors import DsocrGraphError

Use = Literal["auto", "on", "off"]
"""Whether TorchLens counts: where it is installed, in any case, or not at all."""

Trace = Callable[[nn.Module, list[Any]], Any]
"""TorchLens' `trace`: runs a module on inputs and returns what it did."""

_REMEDY = "run `pip install 'dsocr-graph[torchlens]'`, or count by hooks alone with --torchlens off"


class TorchLensError(DsocrGraphError, ImportError):
    """TorchLens that is asked for and not installed, or that is too old to count module calls."""


def torchlens_trace(use: Use) -> Trace | None:
    """Return TorchLens' `trace`; None where it is not to be used, or not installed and not asked for.

    Raises
    ------
    TorchLensError
        When it is asked for and not installed, or installed and without a `trace`.

    Examples
    --------
    >>> torchlens_trace("off") is None
    True
    """
    if use == "off":
        return None
    if find_spec("torchlens") is None:
        if use == "auto":
            return None
        raise TorchLensError(f"TorchLens is asked for and not installed: {_REMEDY}")
    torchlens: Any = importlib.import_module("torchlens")
    if not hasattr(torchlens, "trace"):
        version = getattr(torchlens, "__version__", "of an unknown version")
        raise TorchLensError(f"the installed TorchLens {version} has no `trace`, which counts the calls: {_REMEDY}")
    return torchlens.trace


def torchlens_calls(trace: Trace, module: nn.Module, root: str, inputs: Sequence[Any]) -> Counter[str]:
    """Run a module under TorchLens and return the calls of each module below `root`, by its path from there.

    Parameters
    ----------
    trace : callable
        TorchLens' own. Source: TorchLens 2.36, where the modules of a trace have `address` and `num_calls`.
    module : nn.Module
        The module of a stage, with weights.
    root : str
        Path of the model in it; "" for the module itself.
    inputs : sequence
        Of the module.

    Examples
    --------
    >>> from types import SimpleNamespace as Seen
    >>> seen = Seen(modules=[Seen(address="self", num_calls=1), Seen(address="root.0", num_calls=2)])
    >>> torchlens_calls(lambda module, inputs: seen, nn.Identity(), "root", [])
    Counter({'0': 2})
    """
    prefix = f"{root}." if root else ""
    calls: Counter[str] = Counter()
    for called in trace(module, list(inputs)).modules:
        address = "" if called.address == "self" else str(called.address)
        if address == root or address.startswith(prefix):
            calls[address[len(prefix) :] if address != root else ""] += called.num_calls
    return calls
