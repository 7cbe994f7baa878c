"""Declared dims: the sizes that a user keeps symbolic, checked and in the form that torch.export takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from attrs import frozen
from torch import Tensor
from torch.export import Dim

from dsocr_graph.errors import ModelInputError
from modelmeter import dims
from modelmeter.errors import DimError

LARGEST_SIZE = 131_072
"""The largest size of a dim that is captured; a bound keeps the exporter's arithmetic in 64 bits."""


@frozen(kw_only=True)
class _NamedDim:
    dim: Dim
    size: int  # elements, in the example
    where: str  # it was found first


def dynamic_shapes(declared: object, inputs: Mapping[str, object]) -> list[Any]:
    """Return the dynamic shapes of each input.

    Parameters
    ----------
    declared : mapping or sequence, optional
        As `dsocr_graph.models.user_model.user_model` takes `dims`.
    inputs : mapping of str to object
        The arguments of a forward, by name, in order.

    Raises
    ------
    ModelInputError
        When what is declared does not fit the inputs, or a name or a size cannot be that of a dim.

    Examples
    --------
    >>> import torch
    >>> dynamic_shapes({"x": {0: "B"}}, {"x": torch.empty(3, 4), "scale": 2.0})
    [{0: Dim('B', min=1, max=131072)}, None]
    """
    known: dict[str, _NamedDim] = {}
    listed = zip(inputs.items(), _listed(declared, tuple(inputs)), strict=True)
    return [_shapes(value, spec, name, known) for (name, value), spec in listed]


def declared_limits(declared: object) -> dict[str, int]:
    """Return the largest size of each dim that is declared with one: a mere name has none, whatever the exporter gets.

    Examples
    --------
    >>> declared_limits({"x": {0: "B", 1: Dim("S", max=512)}})
    {'S': 512}
    """
    if isinstance(declared, Dim):
        return {declared.__name__: declared.max} if isinstance(declared.max, int) else {}
    if isinstance(declared, Mapping):
        parts = tuple(cast("Mapping[object, object]", declared).values())
    elif isinstance(declared, Sequence) and not isinstance(declared, str):
        parts = tuple(cast("Sequence[object]", declared))
    else:
        return {}
    return {name: largest for part in parts for name, largest in declared_limits(part).items()}


def _listed(declared: object, names: Sequence[str]) -> tuple[Any, ...]:
    """Return what is declared for each argument, in order."""
    if declared is None:
        return (None,) * len(names)
    if isinstance(declared, Mapping):
        by_name = cast("Mapping[str, Any]", declared)
        unknown = [name for name in by_name if name not in names]
        if unknown:
            raise ModelInputError(
                f"dims are declared for {', '.join(map(str, unknown))}, which is no input; the inputs are "
                f"{', '.join(names)}"
            )
        return tuple(by_name.get(name) for name in names)
    if isinstance(declared, Sequence) and not isinstance(declared, str):
        listed = tuple(cast("Sequence[Any]", declared))
        if len(listed) == len(names):
            return listed
        raise ModelInputError(
            f"dims are declared for {len(listed)} inputs of {len(names)}; write None where there are none"
        )
    raise ModelInputError(
        f"dims are a {type(declared).__name__}; give a mapping such as {{'x': {{0: 'B'}}}}, or one entry per input"
    )


def _shapes(value: object, spec: object, name: str, known: dict[str, _NamedDim]) -> Any:  # noqa: ANN401 - what torch.export takes
    """Return what `torch.export` takes as the dynamic shapes of one input, whatever tensors it holds."""
    if isinstance(value, Tensor):
        return _tensor_shape(value, spec, name, known) if spec is not None else None
    if isinstance(value, Mapping):
        entries = cast("Mapping[Any, object]", value)
        inner = _inner_dims(entries, spec, name)
        return {key: _shapes(item, inner.get(key), f"{name}[{key!r}]", known) for key, item in entries.items()}
    if isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        if spec and not items:
            raise ModelInputError(f"dims are declared for {name}, which is empty in the example; give it a tensor")
        specs = cast("Sequence[object]", spec) if isinstance(spec, list | tuple) else (spec,) * len(items)
        if len(specs) != len(items):
            raise ModelInputError(f"dims of {name} have {len(specs)} entries for {len(items)} tensors")
        shapes = [
            _shapes(item, one, f"{name}[{index}]", known)
            for index, (item, one) in enumerate(zip(items, specs, strict=True))
        ]
        return shapes if isinstance(value, list) else tuple(shapes)  # torch.export wants the same container
    if spec is not None:
        raise ModelInputError(f"dims are declared for {name}, which is a {type(value).__name__} and no tensor")
    return None


def _inner_dims(entries: Mapping[Any, object], spec: object, name: str) -> Mapping[Any, object]:
    """Return what is declared for the entries of a mapping, by key."""
    if spec is None:
        return {}
    declared = cast("Mapping[Any, object]", spec) if isinstance(spec, Mapping) else None
    if declared is None or set(declared) - set(entries):
        raise ModelInputError(
            f"dims of {name} are {spec!r}; write a mapping whose keys are among those of the input, "
            f"{', '.join(map(repr, entries))}"
        )
    return declared


def _tensor_shape(tensor: Tensor, spec: object, name: str, known: dict[str, _NamedDim]) -> dict[int, Dim]:
    if not isinstance(spec, Mapping):
        raise ModelInputError(f"dims of {name} are {spec!r}; write a mapping from axis to name, such as {{0: 'B'}}")
    shape: dict[int, Dim] = {}
    for axis, label in cast("Mapping[object, object]", spec).items():
        if not isinstance(axis, int) or not -tensor.dim() <= axis < tensor.dim():
            raise ModelInputError(f"dims of {name} name axis {axis!r}; it has {tensor.dim()} axes, counted from 0")
        if not isinstance(label, str | Dim):
            raise ModelInputError(
                f"axis {axis} of {name} is called {label!r}; a dim's name is a word, such as 'B', and one that has a "
                "largest size a torch.export.Dim, such as Dim('S', max=512)"
            )
        size = tensor.shape[axis]
        if size < 2:
            raise ModelInputError(
                f"dim {_name(label)!r} has size {size} in the example input {name}; torch.export takes a size below "
                "2 for a constant, so give an example of 2 or more"
            )
        if axis % tensor.dim() in shape:
            raise ModelInputError(f"dims of {name} name axis {axis % tensor.dim()} twice; name it once")
        first = known.setdefault(
            _name(label), _NamedDim(dim=_dim(label, f"axis {axis} of {name}"), size=size, where=name)
        )
        if first.size != size:
            raise ModelInputError(
                f"dim {_name(label)!r} has size {first.size} in the example input {first.where} and {size} in {name}; "
                "one name is one size, so give equal sizes or another name"
            )
        shape[axis % tensor.dim()] = first.dim
    return shape


def _name(label: str | Dim) -> str:
    return label if isinstance(label, str) else label.__name__


def _dim(label: str | Dim, where: str) -> Dim:
    try:
        dims.symbol(_name(label))
    except DimError as error:
        raise ModelInputError(f"the dim of {where}: {error}; call it 'B', for example") from error
    return Dim(label, min=1, max=LARGEST_SIZE) if isinstance(label, str) else label
