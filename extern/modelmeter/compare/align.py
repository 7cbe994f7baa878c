"""Alignment: which modules of several models are one row, by stable id, else by how paths end and what modules are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence

from attrs import field, frozen

from modelmeter.compare.paths import last_name, likeness_of, shared_path, whole_of


@frozen(kw_only=True)
class Alignment:
    """The rows of modules of several trees.

    Attributes
    ----------
    rows : tuple of (mapping of module id to row)
        One of each tree; no two modules of one tree have one row.
    undecided : mapping of row to tuple of rows
        Modules that are rows of their own though others fit them, since several do equally well.
    """

    rows: tuple[Mapping[str, str], ...]
    undecided: Mapping[str, tuple[str, ...]] = field(factory=dict[str, tuple[str, ...]])

    @property
    def renamed(self) -> Mapping[str, tuple[str | None, ...]]:
        """The ids of each row whose modules have several, by tree; None where a tree has no such module."""
        ids = [{row: module for module, row in rows.items()} for rows in self.rows]
        names = dict.fromkeys(row for rows in self.rows for module, row in rows.items() if module != row)
        return {name: tuple(of_tree.get(name) for of_tree in ids) for name in names}


def align(trees: Sequence[Mapping[str, str]]) -> Alignment:
    """Return the row that each module of each tree belongs to.

    Modules of equal ids are one row, whatever they are. Of what is left, two modules are one row that are the same
    thing and whose paths end in the same name, if neither has another partner that fits as well: a longer equal end
    fits better, then one that is equal but for the numbers of layers. So are two that hold parts of each other and of
    nothing else, such as `blocks.[0-3]` and `layers.[0-3]`. Every other module is a row of its own.

    Parameters
    ----------
    trees : sequence of (mapping of module id to str)
        What each module is, in words that are equal for modules that may be one row.

    Examples
    --------
    >>> plain = {"layers.[0-11].mlp": "feed-forward", "norm": "norm"}
    >>> wrapped = {"decoder.layers.[0-23].mlp": "feed-forward", "vision.norm": "vision norm"}
    >>> first, second = align([plain, wrapped]).rows
    >>> first
    {'layers.[0-11].mlp': '{-/decoder}.layers.{[0-11]/[0-23]}.mlp', 'norm': 'norm'}
    >>> second
    {'decoder.layers.[0-23].mlp': '{-/decoder}.layers.{[0-11]/[0-23]}.mlp', 'vision.norm': 'vision.norm'}
    """
    rows: list[_Row] = []
    undecided: list[tuple[_Row, _Row]] = []
    for index, tree in enumerate(trees):
        left, maybe = _add_tree(rows, index, tree)
        made = {module: _Row(index, module, what) for module, what in left.items()}
        undecided += [(made[module], row) for module, row in maybe]
        rows += made.values()
    names = _names(rows)
    return Alignment(
        rows=tuple({row.ids[index]: names[row] for row in rows if index in row.ids} for index in range(len(trees))),
        undecided=_partners((names[one], names[other]) for one, other in undecided),
    )


def _partners(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for one, other in pairs:
        found[one] = (*found.get(one, ()), other)
        found[other] = (*found.get(other, ()), one)
    return found


class _Row:
    """Modules of several trees that are one row; grows while trees are aligned."""

    def __init__(self, index: int, module: str, what: str) -> None:
        self.ids = {index: module}  # by tree
        self.what = {what}

    def add(self, index: int, module: str, what: str) -> None:
        self.ids[index] = module
        self.what.add(what)

    def fits(self, tree: int, other: int) -> bool:
        """Whether it has modules of two trees whose ids are not equal."""
        return tree in self.ids and other in self.ids and self.ids[tree] != self.ids[other]


_Pair = tuple[str, _Row]


def _add_tree(rows: Sequence[_Row], index: int, tree: Mapping[str, str]) -> tuple[Mapping[str, str], list[_Pair]]:
    """Add the modules of a tree to the rows that they fit; return those that are left, and the rows they might fit.

    What holds two modules decides between partners that are alike, and what they hold tells that they are one row, so
    that every pair that is found may decide others.
    """
    modules = _add_equal_ids(rows, index, tree)
    open_rows = [row for row in rows if index not in row.ids]
    left = dict(modules)
    while True:
        best = _best_pairs(modules, open_rows, index, _rows_by_id(rows))
        partners = Counter(one for pair in best for one in pair)
        free = [(module, row) for module, row in best if module in left and index not in row.ids]
        found = [(module, row) for module, row in free if partners[module] == partners[row] == 1]
        found = found or _pairs_by_parts(left, rows, index)
        if not found:
            return left, free
        for module, row in found:
            row.add(index, module, left.pop(module))


def _add_equal_ids(rows: Iterable[_Row], index: int, tree: Mapping[str, str]) -> dict[str, str]:
    """Add the modules of a tree to the rows that have their ids, and return those that are left."""
    known: dict[str, _Row] = {}
    for row in rows:
        for module in row.ids.values():
            known.setdefault(module, row)
    left: dict[str, str] = {}
    for module, what in tree.items():
        row = known.get(module)
        if row is None or index in row.ids:
            left[module] = what
        else:
            row.add(index, module, what)
    return left


def _best_pairs(
    modules: Mapping[str, str], rows: Sequence[_Row], index: int, row_of: Mapping[tuple[int, str], _Row]
) -> list[_Pair]:
    """Return the modules and rows that are the same thing and that no other module or row fits better."""
    candidates: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        for key in {(last_name(module), what) for module in row.ids.values() for what in row.what}:
            candidates.setdefault(key, []).append(row)
    fits = {
        (module, row): max(likeness_of(module, other) for tree, other in row.ids.items() if tree != index)
        for module, what in modules.items()
        for row in candidates.get((last_name(module), what), ())
        if not _elsewhere(row_of, index, module, row)
    }
    best: dict[str | _Row, tuple[int, int]] = {}
    for pair, likeness in fits.items():
        for one in pair:
            best[one] = max(likeness, best.get(one, likeness))
    return [pair for pair, likeness in fits.items() if likeness == best[pair[0]] == best[pair[1]]]


def _elsewhere(row_of: Mapping[tuple[int, str], _Row], index: int, module: str, row: _Row) -> bool:
    """Whether what holds a module and what holds those of a row each have another partner: the two are in other parts.

    Wholes of equal ids do not count: `model` may hold the layers in one tree, and what holds the layers in another.
    """
    whole = row_of.get((index, whole_of(module)))
    others = {tree: row_of.get((tree, whole_of(other))) for tree, other in row.ids.items() if tree != index}
    return any(
        other is not whole
        and other is not None
        and whole is not None
        and other.fits(tree, index)
        and whole.fits(index, tree)
        for tree, other in others.items()
    )


def _pairs_by_parts(left: Container[str], rows: Sequence[_Row], index: int) -> list[_Pair]:
    """Return the modules of a tree and the rows that hold parts of each other, and of no others."""
    row_of = _rows_by_id(rows)
    wholes: dict[str, set[_Row]] = {}
    held_by: dict[_Row, set[str]] = {}
    for row in rows:
        if index not in row.ids:
            continue
        module = whole_of(row.ids[index])
        for tree, other in row.ids.items():
            whole = row_of.get((tree, whole_of(other)))
            if whole is not None and tree != index:
                wholes.setdefault(module, set()).add(whole)
                held_by.setdefault(whole, set()).add(module)
    return [
        (module, row)
        for module, found in wholes.items()
        for row in found
        if module in left and index not in row.ids and len(found) == len(held_by[row]) == 1
    ]


def _rows_by_id(rows: Iterable[_Row]) -> dict[tuple[int, str], _Row]:
    return {(tree, module): row for row in rows for tree, module in row.ids.items()}


def _names(rows: Sequence[_Row]) -> dict[_Row, str]:
    """Return a name for each row: its id, or what its ids have in common where that is no other row's name."""
    shared = {row: shared_path(tuple(dict.fromkeys(row.ids.values()))) for row in rows}
    counts = Counter(shared.values())
    return {
        row: name if counts[name] == 1 else " = ".join(dict.fromkeys(row.ids.values())) for row, name in shared.items()
    }
