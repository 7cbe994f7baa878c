"""Storages: which parameters hold each matrix of weights; tied weights are one storage that several modules read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import frozen

from modelmeter.dims import Dim
from modelmeter.layers import BaseLayer, Embedding, EmbeddingBag, GroupedLinear, Linear, MoEExperts
from modelmeter.model import AnalyticModel, Leaf
from modelmeter.whatif.errors import UnsupportedWhatIfError

Shape = tuple[int, ...]
"""``(matrices, rows, row elements)`` of a matrix of weights, or of as many of them in one parameter."""

Reader = tuple[str, Shape]
"""A module and the shape of the matrices that it reads, all those of one shape together."""


@frozen(kw_only=True)
class Storage:
    """The parameters that hold the matrices of one shape of a module, in all its instances.

    Examples
    --------
    >>> import modelmeter
    >>> found = storages(modelmeter.load("whisper-large-v3"))
    >>> tied = found["proj_out", (1, 51866, 1280)]
    >>> dict(tied.held), tied is found["model.decoder.embed_tokens", (1, 51866, 1280)]
    ({'model.decoder.embed_tokens': 66388480}, True)
    """

    copies: int  # matrices that lie in memory
    held: Mapping[str, int]  # module that owns parameters -> elements of the matrices in them


def matrix_shape(layer: BaseLayer) -> Shape | None:
    """Return the shape of a layer's matrix of weights, None for a layer without one.

    Examples
    --------
    >>> from modelmeter.dtypes import DType
    >>> matrix_shape(Linear(rows=3, in_features=4, out_features=2, bias=True, dtype=DType.BF16))
    (1, 2, 4)
    """
    sizes: tuple[Dim, ...]
    match layer:
        case Linear():
            sizes = (1, layer.out_features, layer.in_features)
        case GroupedLinear():
            sizes = (layer.experts, layer.out_features, layer.in_features)
        case MoEExperts():
            sizes = (layer.experts, (3 if layer.gated else 2) * layer.intermediate_size, layer.hidden_size)
        case Embedding() | EmbeddingBag():
            sizes = (1, layer.vocabulary, layer.width)
        case _:
            return None
    return tuple(map(int, sizes)) if all(isinstance(size, int) for size in sizes) else None


def storages(model: AnalyticModel) -> Mapping[Reader, Storage]:
    """Return what holds the matrices of each module that reads some; tied ones are the same object.

    A compiled model says how many parameters each module owns and which shapes its calls read. A matrix is in the
    parameters of the module that reads it, else in those of its children, so long as they have room that no other
    matrix takes. Where they have none, the matrix is another module's: one of its size that nothing reads, or a matrix
    of that shape which is read there.

    Raises
    ------
    UnsupportedWhatIfError
        When no module has room for a matrix.
    """
    return _Placing(model).found


def read_copies(leaves: Iterable[Leaf], instances: Mapping[str, int]) -> dict[Reader, int]:
    """Return how many matrices the leaves of a stage read, by reader, if none is read by two of its leaves.

    A leaf is called once for each instance of its module, or more often on the same weights.
    """
    counts: dict[Reader, int] = {}
    for leaf in leaves:
        shape = matrix_shape(leaf.layer)
        if shape is not None:
            reader = (leaf.module, shape)
            counts[reader] = counts.get(reader, 0) + min(leaf.calls, instances[leaf.module])
    return counts


class _Placing:
    """Parameters not taken yet, by owner, and what is placed so far."""

    def __init__(self, model: AnalyticModel) -> None:
        self._model = model
        self._left = {node.id: node.parameters for node in model.modules if node.parameters}
        self._nodes = {node.id: node for node in model.modules}
        self._wanted = _wanted(model)
        self.found: dict[Reader, Storage] = {}
        self._place(lambda module: (module,))
        self._take_other_parameters()
        self._place(self._below)
        for reader in self._wanted:
            if reader not in self.found:
                self.found[reader] = self._elsewhere(reader)

    def _place(self, owners_of: Callable[[str], tuple[str, ...]]) -> None:
        """Place what owners have room for: first one matrix of each shape in each instance, then further ones."""
        pending = [reader for reader in self._wanted if reader not in self.found]
        placed: dict[Reader, Storage] = {}
        for once in (True, False):
            for reader in pending:
                wanted = self._wanted[reader] - (placed[reader].copies if reader in placed else 0)
                most = min(wanted, self._nodes[reader[0]].instances) if once else wanted
                more = self._taken(owners_of(reader[0]), reader[1], most)
                if more is not None:
                    placed[reader] = _joined(placed.get(reader), more)
        self.found |= placed

    def _taken(self, owners: tuple[str, ...], shape: Shape, wanted: int) -> Storage | None:
        """Take room for up to so many matrices from owners; those of exactly that size come first."""
        each = _elements(shape)
        copies = min(wanted, sum(self._left.get(owner, 0) for owner in owners) // each)
        if copies == 0:
            return None
        pending, held = copies * each, dict[str, int]()
        for owner in sorted(owners, key=lambda owner: self._left.get(owner, 0) != pending):
            share = min(pending, self._left.get(owner, 0))
            if share:
                held[owner] = share
                self._left[owner] -= share
                pending -= share
        return Storage(copies=copies, held=held)

    def _take_other_parameters(self) -> None:
        """Leave no room where layers without a matrix, such as convolutions, or biases keep their parameters."""
        biases: dict[Reader, int] = {}
        for leaf in self._model.leaves:
            shape = matrix_shape(leaf.layer)
            if shape is None and leaf.cost.weight_bytes_read.value != 0:
                self._left[leaf.module] = 0
            elif shape is not None and isinstance(leaf.layer, Linear) and leaf.layer.bias:
                biases[leaf.module, shape] = shape[1]
        for (owner, _), elements in biases.items():
            self._left[owner] = max(0, self._left.get(owner, 0) - elements * self._nodes[owner].instances)

    def _below(self, module: str) -> tuple[str, ...]:
        return tuple(owner for owner in self._left if module in {"", owner} or owner.startswith(f"{module}."))

    def _elsewhere(self, reader: Reader) -> Storage:
        module, shape = reader
        wanted = self._nodes[module].instances
        exact = tuple(owner for owner, left in self._left.items() if left == _elements(shape) * wanted)
        same = [storage for (_, other), storage in self.found.items() if other == shape]
        found = self._taken(exact[:1], shape, wanted) or next(iter(same), None)
        if found is None:
            roomy = [owner for owner, left in self._left.items() if left >= _elements(shape)]
            found = self._taken(tuple(roomy[:1]), shape, wanted)
        if found is None:
            raise UnsupportedWhatIfError(
                f"module {module or '(root)'} of {self._model.name} reads {shape[-2]} x {shape[-1]} weights "
                "that none of its modules owns, so that its type cannot be changed; leave weight_dtype as captured, or "
                "compile the model anew"
            )
        return found


def _wanted(model: AnalyticModel) -> dict[Reader, int]:
    """Return how many matrices each reader has, if none is read by two leaves: the most of any stage."""
    instances = {node.id: node.instances for node in model.modules}
    wanted: dict[Reader, int] = {}
    for stage in model.stages:
        for reader, copies in read_copies(model.leaves_by_stage[stage.name], instances).items():
            wanted[reader] = max(wanted.get(reader, 0), copies)
    return wanted


def _joined(storage: Storage | None, more: Storage) -> Storage:
    if storage is None:
        return more
    owners = dict.fromkeys((*storage.held, *more.held))
    held = {owner: storage.held.get(owner, 0) + more.held.get(owner, 0) for owner in owners}
    return Storage(copies=storage.copies + more.copies, held=held)


def _elements(shape: Shape) -> int:
    matrices, rows, width = shape
    return matrices * rows * width
