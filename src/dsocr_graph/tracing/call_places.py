"""Call places: the modules around each call of an exported program, by what torch and `CallSites` note of its nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn
from torch.fx import Node

from dsocr_graph.ir import ScopeFrame

NUMBER = "number"
"""What `CallSites` annotates every node with that it sees."""


def all_paths(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module under every path that leads to it: a shared one belongs to each of its callers."""
    return model.named_modules(remove_duplicate=False)


class Places:
    """The modules of a model, to place the nodes of its exported stages in.

    Parameters
    ----------
    model : nn.Module
        The model.
    root : str
        The attribute of a stage's module that holds the model; "" when that is the model itself.
    """

    def __init__(self, model: nn.Module, root: str) -> None:
        self._root = root
        self._classes = {path: type(module).__name__ for path, module in all_paths(model)}
        first = {id(module): path for path, module in model.named_modules()}
        self._first_paths = {path: first[id(module)] for path, module in all_paths(model)}

    def of(self, node: Node) -> tuple[ScopeFrame, ...]:
        """Return the modules around a call, root first, containers that are only indexed included."""
        counts: dict[str, int] = {}
        path = ""
        prefix = self._root + "." if self._root else ""
        for key, (raw, _) in (node.meta.get("nn_module_stack") or {}).items():
            path = "" if raw == self._root else raw.removeprefix(prefix)
            if path not in self._classes:
                path = ""
            counts[path] = _call_number(key)
        custom = node.meta.get("custom") or {}
        found = str(custom.get("module", path))
        if self._first_paths.get(path) != found:  # else the same module, under the path by which it was called
            path = found
        parts = path.split(".") if path else []
        paths = ["", *(".".join(parts[: end + 1]) for end in range(len(parts)))]
        return tuple(
            ScopeFrame(path=item, class_name=self._classes[item], call=counts.get(item, 0), entered=item in counts)
            for item in paths
            if item in self._classes
        )

    def inside(self, around: tuple[ScopeFrame, ...], weights: Collection[str]) -> tuple[ScopeFrame, ...]:
        """Return the modules around a call in a graph that Dynamo traced, which notes none: that of its weights.

        Parameters
        ----------
        around : tuple of ScopeFrame
            The modules around the higher-order call that runs the graph.
        weights : collection of str
            The parameters that the call reads; of several modules, or of none inside, they say nothing.
        """
        owners = {name.rpartition(".")[0] for name in weights}
        outer = around[-1]
        prefix = outer.path + "." if outer.path else ""
        if len(owners) != 1 or not all(owner.startswith(prefix) and owner != outer.path for owner in owners):
            return around
        parts = owners.pop().removeprefix(prefix).split(".")
        paths = [prefix + ".".join(parts[: end + 1]) for end in range(len(parts))]
        return (
            *around,
            *(ScopeFrame(path=path, class_name=self._classes[path], call=outer.call) for path in paths),
        )


def _call_number(key: str) -> int:
    """Return which call of its module a key of `nn_module_stack` stands for; "x@1" is the second."""
    _, _, number = key.rpartition("@")
    return int(number) if number.isdigit() and "@" in key else 0
