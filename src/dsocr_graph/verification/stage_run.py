"""A stage's run with what its graph says of it and does when it is replayed: what comparisons and reasons read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property

import torch
from attrs import field, frozen
from torch import Tensor

from dsocr_graph.scopes import CallGraph
from dsocr_graph.verification.expect import Expected, called_modules
from dsocr_graph.verification.module_paths import ModulePaths
from dsocr_graph.verification.observe import Observed
from dsocr_graph.verification.replayed import ReplayedCall, ReplayedGraph


@frozen(kw_only=True)
class BufferValues:
    """The buffers that a run or the replay changed, as they left them, by path in the stage's module."""

    ran: Mapping[str, Tensor]
    replayed: Mapping[str, Tensor]

    @classmethod
    def changed(
        cls, before: Mapping[str, Tensor], ran: Mapping[str, Tensor], replayed: Mapping[str, Tensor]
    ) -> BufferValues:
        """Return what two runs that began alike changed.

        Examples
        --------
        >>> import torch
        >>> zero, one = torch.zeros(()), torch.ones(())
        >>> BufferValues.changed({"n": zero, "m": zero}, {"n": one, "m": zero}, {"n": one, "m": zero}).ran
        {'n': tensor(1.)}
        """
        names = [
            name
            for name in before
            if name in ran and not (same(before[name], ran[name]) and same(before[name], replayed[name]))
        ]
        return cls(ran={name: ran[name] for name in names}, replayed={name: replayed[name] for name in names})


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal in every bit of theirs, NaN and NaN included.

    Examples
    --------
    >>> import torch
    >>> same(torch.tensor([float("nan")]), torch.tensor([float("nan")])), same(torch.ones(2), torch.ones(1))
    (True, False)
    """
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


@frozen(kw_only=True)
class StageRun:
    """A stage, run and replayed on the same inputs."""

    stage: str
    bindings: Mapping[str, int]  # size of each dim
    grouped: CallGraph
    paths: ModulePaths
    seen: Observed
    said: Expected
    replayed: ReplayedGraph

    same_weights: bool  # whether what ran is what was captured
    buffers: BufferValues = field(repr=False, factory=lambda: BufferValues(ran={}, replayed={}))

    def node(self, path: str) -> str:
        """Return the id of a module in the call graph."""
        return self.grouped.ids[path]

    def module_of(self, item: ReplayedCall) -> str:
        """Return the innermost module that was called around a captured call."""
        chain = called_modules(item.call, self.paths.first)
        return chain[-1] if chain else ""

    @cached_property
    def replayed_operators(self) -> Counter[tuple[str, str]]:
        """Count what the captured calls of each module dispatch, by module and operator, as a run is counted."""
        counted: Counter[tuple[str, str]] = Counter()
        for item in self.replayed.calls:
            for op, count in item.dispatched.items():
                counted[self.module_of(item), op] += count
        return counted
