"""Modules and their paths: one that several modules share has several, in the graph a node for each it is called by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from attrs import frozen
from torch import nn

from dsocr_graph.scopes import CallGraph, ScopeNode


@frozen(kw_only=True)
class ModulePaths:
    """Every path of every module of a model; a module is named by the first of its paths."""

    first: Mapping[str, str]  # every path -> the first one of the same module
    all: Mapping[str, tuple[str, ...]]  # the first path of each module -> all of its paths

    @classmethod
    def of(cls, root: nn.Module) -> ModulePaths:
        """Return the paths of a module and of all below it.

        Examples
        --------
        >>> twice = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh()))
        >>> twice.append(twice[0])  # doctest: +ELLIPSIS
        Sequential(...
        >>> ModulePaths.of(twice).all["0"], ModulePaths.of(twice).first["2"]
        (('0', '2'), '0')
        """
        names = {id(each): path for path, each in root.named_modules()}
        return cls.from_first(
            {path: names[id(each)] for path, each in root.named_modules(remove_duplicate=False)},
        )

    @classmethod
    def from_first(cls, first: Mapping[str, str]) -> ModulePaths:
        """Return the paths that a mapping of every path to the first one of its module says.

        Examples
        --------
        >>> ModulePaths.from_first({"": "", "a": "a", "b": "a"}).all
        {'': ('',), 'a': ('a', 'b')}
        """
        found: dict[str, list[str]] = {}
        for path, name in first.items():
            found.setdefault(name, []).append(path)
        return cls(first=dict(first), all={name: tuple(paths) for name, paths in found.items()})

    def canonical(self, counted: Mapping[str, int]) -> Counter[str]:
        """Return counts by any paths as counts by the first paths.

        Examples
        --------
        >>> ModulePaths.from_first({"a": "a", "b": "a"}).canonical({"a": 1, "b": 2})
        Counter({'a': 3})
        """
        found: Counter[str] = Counter()
        for path, count in counted.items():
            found[self.first.get(path, path)] += count
        return found

    def holds(self, outer: str, inner: str) -> bool:
        """Whether a module is, or contains, another one, under any path of either.

        Examples
        --------
        >>> paths = ModulePaths.from_first({"": "", "a": "a", "a.act": "a.act", "b": "b", "b.act": "a.act"})
        >>> paths.holds("b", "a.act"), paths.holds("a.act", "b")
        (True, False)
        """
        return any(inside(path, around) for around in self.all[outer] for path in self.all[inner])

    def filed(self, called: str, callers: tuple[str, ...]) -> str:
        """Return the path under which the graph has a call of a module: that in the innermost caller that holds it.

        Parameters
        ----------
        called : str
            The module.
        callers : tuple of str
            The modules that run, the outermost first.

        Examples
        --------
        >>> paths = ModulePaths.from_first({"": "", "a": "a", "a.act": "a.act", "b": "b", "b.act": "a.act"})
        >>> paths.filed("a.act", ("", "b")), paths.filed("b", ("", "a"))
        ('b.act', 'b')
        """
        for caller in reversed(callers):
            for around in self.all[caller]:
                for path in self.all[called]:
                    if inside(path, around):
                        return path
        return self.all[called][0]

    def groups(self, graph: CallGraph) -> Iterator[tuple[ScopeNode, ...]]:
        """Yield the nodes of a call graph, those together that a shared module joins.

        What a run does in a shared module is known of the module, what the graph has is known of each of its paths: the
        two can be compared for all paths together.
        """
        leaders: dict[str, str] = {}  # node -> node

        def leader(node: str) -> str:
            while leaders.setdefault(node, node) != node:
                node = leaders[node]
            return node

        for paths in self.all.values():
            for path in paths[1:]:
                leaders[leader(graph.ids[path])] = leader(graph.ids[paths[0]])
        groups: dict[str, list[ScopeNode]] = {}
        for node in graph.nodes:
            groups.setdefault(leader(node.id), []).append(node)
        yield from map(tuple, groups.values())

    def modules_of(self, nodes: tuple[ScopeNode, ...]) -> tuple[str, ...]:
        """Return the modules of some nodes, each once."""
        return tuple(dict.fromkeys(self.first[path] for node in nodes for path in node.paths))


def inside(path: str, outer: str) -> bool:
    """Whether a path is another one or leads further.

    Examples
    --------
    >>> inside("layers.1.mlp", "layers.1"), inside("layers.10", "layers.1"), inside("layers", "")
    (True, False, True)
    """
    return not outer or path == outer or path.startswith(f"{outer}.")
