"""Module calls: how often a real run calls each module, beside what the captured graph says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

from torch import nn

from dsocr_graph.scopes import CallGraph
from modelmeter.measurement import CallCount


@contextmanager
def count_module_calls(model: nn.Module) -> Generator[Counter[str]]:
    """Count the calls of every module of a model, by path, while the context is open.

    A module that two others share is counted under the first of its paths.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    >>> with count_module_calls(model) as counted:
    ...     _ = model(torch.ones(1, 4))
    ...     _ = model[1](torch.ones(1, 4))
    >>> dict(counted)
    {'': 1, '0': 1, '1': 2}
    """
    counted: Counter[str] = Counter()

    def count(path: str, *_: object) -> None:
        counted[path] += 1

    hooks = [module.register_forward_pre_hook(partial(count, path)) for path, module in model.named_modules()]
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


def compare_calls(graph: CallGraph, stage: str, counted: Counter[str]) -> tuple[CallCount, ...]:
    """Return counted beside expected calls for every node that has either, all its instances together.

    Parameters
    ----------
    graph : CallGraph
        The captured model, grouped.
    stage : str
        The stage that ran.
    counted : Counter of str
        Calls by module path, as `count_module_calls` counts them.
    """
    return tuple(
        CallCount(stage=stage, module=node.id, counted=calls, expected=node.calls.get(stage, 0))
        for node in graph.nodes
        if (calls := sum(counted[path] for path in node.paths)) or node.calls.get(stage, 0)
    )
