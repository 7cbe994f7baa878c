"""The inputs of stages at points that are run again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from torch import Tensor

from dsocr_graph.timing.plan import Point

_MOST_BYTES = 2 * 2**30


class StageInputs:
    """The inputs of points, made once: large random tensors take longer to make than some stages to run.

    Those that were not used for longest go once all take more than 2 GiB.

    Parameters
    ----------
    make : callable
        Makes the inputs of a point.

    Examples
    --------
    >>> import torch
    >>> inputs = StageInputs(lambda point: [torch.rand(point.bindings["B"])])
    >>> decode = Point(stage="decode", bindings={"B": 2})
    >>> first, second = inputs.copy(decode), inputs.copy(decode)
    >>> torch.equal(first[0], second[0]), first[0] is second[0]
    (True, False)
    """

    def __init__(self, make: Callable[[Point], list[Tensor]]) -> None:
        self._make = make
        self._kept: OrderedDict[str, list[Tensor]] = OrderedDict()  # the longest unused first

    def has(self, point: Point) -> bool:
        """Whether the inputs of a point exist already."""
        return point.text in self._kept

    def copy(self, point: Point) -> list[Tensor]:
        """Return inputs of a point that the caller alone holds, equal each time."""
        if point.text not in self._kept:
            self._kept[point.text] = self._make(point)
        self._kept.move_to_end(point.text)
        while len(self._kept) > 1 and sum(map(total_bytes, self._kept.values())) > _MOST_BYTES:
            self._kept.popitem(last=False)
        return [tensor.clone() for tensor in self._kept[point.text]]


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of some tensors.

    Examples
    --------
    >>> import torch
    >>> total_bytes([torch.ones(3), torch.ones(2, dtype=torch.int64)])  # 3 * 4 + 2 * 8
    28
    """
    return sum(tensor.nbytes for tensor in tensors)
