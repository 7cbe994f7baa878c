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
