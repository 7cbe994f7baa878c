"""A stage's run with what its graph says of it and does when it is replayed: what comparisons and reasons read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from attrs import frozen

from dsocr_graph.scopes import CallGraph
from dsocr_graph.verification.expect import Expected, called_modules
from dsocr_graph.verification.observe import Observed
from dsocr_graph.verification.replayed import ReplayedCall, ReplayedGraph


@frozen(kw_only=True)
class StageRun:
    """A stage, run and replayed on the same inputs."""

    stage: str
    bindings: Mapping[str, int]  # size of each dim
    grouped: CallGraph
    first_paths: Mapping[str, str]  # every path of every module -> the first path of the same module
    seen: Observed
    said: Expected
    replayed: ReplayedGraph
    wrapped: bool  # whether the stage is a module around the model, that may call methods of it
    same_weights: bool  # whether what ran is what was captured

    def node(self, path: str) -> str:
        """Return the id of a module in the call graph."""
        return self.grouped.ids[path]

    def module_of(self, item: ReplayedCall) -> str:
        """Return the innermost module that was called around a captured call."""
        chain = called_modules(item.call, self.first_paths)
        return chain[-1] if chain else ""

    def replayed_operators(self) -> Counter[tuple[str, str]]:
        """Count what the captured calls of each module dispatch, by module and operator, as a run is counted."""
        counted: Counter[tuple[str, str]] = Counter()
        for item in self.replayed.calls:
            for op, count in item.dispatched.items():
                counted[self.module_of(item), op] += count
        return counted
