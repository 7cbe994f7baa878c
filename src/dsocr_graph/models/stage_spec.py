"""StageSpec: what a model offers for capture, one record per stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from attrs import field, frozen

if TYPE_CHECKING:
    from torch import nn


@frozen(kw_only=True)
class StageSpec:
    """How one stage of a model is run for capture.

    Attributes
    ----------
    module : nn.Module
        Runs the stage; the captured model is its submodule `root`, or the module itself when that is "".
    inputs : tuple
        Example inputs, on the `meta` device.
    dynamic_shapes
        As `torch.export.export` takes it, one mapping of axis to `Dim` (or None) per input tensor; the names of the
        `Dim`s are the names of the dims.
    aliases : mapping of str to str
        Dims to write in terms of others, such as {"W": "V/H"}.
    kv_inputs, kv_outputs : tuple of int
        Positions of the KV cache among the flattened inputs and outputs.
    limits : mapping of str to int
        The largest size of each dim that a user bounds. The bounds of the other `Dim`s are for the exporter alone.
    left_out : str
        Why the stage cannot be captured, where that is known before; it is then left out, and said to be.
    configured : bool
        Whether the stage follows from a model's configuration, so that nobody who gives that can change its dims.
    """

    name: str
    description: str
    module: nn.Module
    inputs: tuple[Any, ...]
    dynamic_shapes: Any = None
    root: str = ""
    aliases: Mapping[str, str] = field(factory=dict)
    kv_inputs: tuple[int, ...] = ()
    kv_outputs: tuple[int, ...] = ()
    limits: Mapping[str, int] = field(factory=dict)  # elements
    left_out: str = ""
    configured: bool = False


def declared_leaves(declared: object) -> Iterator[Mapping[int, Any] | None]:
    """Yield what `dynamic_shapes` declares for each tensor, in the order of the inputs.

    Examples
    --------
    >>> list(declared_leaves({"x": {0: "B"}, "cache": ({0: "B"}, None)}))
    [{0: 'B'}, {0: 'B'}, None]
    """
    if declared is None:
        yield None
    elif isinstance(declared, Mapping):
        entries = cast("Mapping[Any, Any]", declared)
        if all(isinstance(axis, int) for axis in entries):
            yield entries
        else:
            for item in entries.values():
                yield from declared_leaves(item)
    else:
        for item in cast("Iterable[object]", declared):
            yield from declared_leaves(item)


def example_sizes(stage: StageSpec) -> dict[str, int]:
    """Return the size of each dim in a stage's example inputs; needs torch.

    Examples
    --------
    >>> import torch
    >>> from torch.export import Dim
    >>> shapes = ({0: Dim("B")},)
    >>> module, x = torch.nn.ReLU(), torch.empty(3, 4)
    >>> example_sizes(StageSpec(name="forward", description="", module=module, inputs=(x,), dynamic_shapes=shapes))
    {'B': 3}
    """
    from torch.utils._pytree import tree_leaves

    found: dict[str, int] = {}
    for value, axes in zip(tree_leaves(stage.inputs), declared_leaves(stage.dynamic_shapes), strict=False):
        for axis, dim in (axes or {}).items():
            if dim is not None:
                name, factor, offset = linear_in(dim)
                found[name] = (value.shape[axis] - offset) // factor
    return found


def linear_in(dim: Any) -> tuple[str, int, int]:  # noqa: ANN401 - torch's Dim is no type
    """Return name, factor and offset of a size: factor * name + offset, which is 1 and 0 unless it is derived.

    Examples
    --------
    >>> from torch.export import Dim
    >>> linear_in(Dim("B")), linear_in(2 * Dim("T") + 1)
    (('B', 1, 0), ('T', 2, 1))
    """
    if not hasattr(dim, "root"):
        return dim.__name__, 1, 0
    offset = int(dim.fn(0))
    return dim.root.__name__, int(dim.fn(1)) - offset, offset
