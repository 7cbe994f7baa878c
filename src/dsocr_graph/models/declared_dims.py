"""Declared dims: the sizes that a user keeps symbolic, checked and in the form that torch.export takes."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from attrs import frozen
from torch import Tensor
from torch.export import Dim

from dsocr_graph.errors import ModelInputError
from dsocr_graph.models.stage_spec import linear_in
from modelmeter import dims
from modelmeter.errors import DimError

LARGEST_SIZE = 131_072
"""The largest size of a dim that is captured; a bound keeps the exporter's arithmetic in 64 bits."""

_DERIVED = re.compile(r"(?:([1-9]\d*)\*)?([^\W\d]\w*)([+-]\d+)?")  # factor * name + offset


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
    >>> dynamic_shapes({"pairs": {0: "2*N"}, "x": {0: "N"}}, {"pairs": torch.empty(6), "x": torch.empty(3)})
    [{0: 2*N}, {0: Dim('N', min=1, max=131072)}]
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
    declared = getattr(declared, "root", declared)  # of a size that is derived
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
                f"axis {axis} of {name} is called {label!r}; a dim's name is a word, such as 'B', or a multiple of "
                "one, such as '2*N', and one that has a largest size a torch.export.Dim, such as Dim('S', max=512)"
            )
        if axis % tensor.dim() in shape:
            raise ModelInputError(f"dims of {name} name axis {axis % tensor.dim()} twice; name it once")
        declared = _declared(label, f"axis {axis} of {name}")
        size = _example_size(declared, tensor.shape[axis], name)
        first = known.setdefault(declared.name, _NamedDim(dim=declared.dim, size=size, where=name))
        if first.size != size:
            raise ModelInputError(
                f"dim {declared.name!r} has size {first.size} in the example input {first.where} and {size} in {name}; "
                "one name is one size, so give equal sizes or another name"
            )
        shape[axis % tensor.dim()] = declared.of(first.dim)
    return shape


@frozen(kw_only=True)
class _Declared:
    """A size as declared: factor * dim + offset."""

    dim: Dim
    factor: int = 1
    offset: int = 0

    @property
    def name(self) -> str:
        return self.dim.__name__

    @property
    def text(self) -> str:
        factor = f"{self.factor}*" if self.factor > 1 else ""
        offset = f" {'+' if self.offset > 0 else '-'} {abs(self.offset)}" if self.offset else ""
        return f"{factor}{self.name}{offset}"

    def of(self, dim: Dim) -> Dim:
        """Return the size in terms of a dim, as torch.export takes it.

        Arithmetic on a `Dim` makes the same, but fails on names that sympy has for its own, such as N and S.
        """
        if (self.factor, self.offset) == (1, 0):
            return dim
        shapes: Any = importlib.import_module("torch.export.dynamic_shapes")
        return shapes._DerivedDim(self.text, dim, lambda size: self.factor * size + self.offset)


def _example_size(declared: _Declared, size: int, where: str) -> int:
    """Return the size of a dim in an example, by that of an axis."""
    found, rest = divmod(size - declared.offset, declared.factor)
    if rest:
        raise ModelInputError(
            f"the example input {where} has size {size} where {declared.text} is declared, which it is for no "
            f"{declared.name}; give an example of such a size"
        )
    if found < 2:
        raise ModelInputError(
            f"dim {declared.name!r} has size {found} in the example input {where}; torch.export takes a size below "
            "2 for a constant, so give an example of 2 or more"
        )
    return found


def _declared(label: str | Dim, where: str) -> _Declared:
    """Return what is declared of an axis: a name, a `Dim`, or a multiple of one, more or less a number."""
    if isinstance(label, Dim):
        name, factor, offset = linear_in(label)
        return _Declared(dim=_dim(getattr(label, "root", label), name, where), factor=factor, offset=offset)
    if label.isidentifier():
        return _Declared(dim=_dim(None, label, where))
    found = _DERIVED.fullmatch(label.replace(" ", ""))
    if found is None:
        raise ModelInputError(
            f"the dim of {where} is {label!r}; call it 'B', for example, or write a multiple of one dim, more or less "
            "a number, such as '2*N + 1'"
        )
    factor, name, offset = found.groups()
    return _Declared(dim=_dim(None, name, where), factor=int(factor or 1), offset=int(offset or 0))


def _dim(given: Dim | None, name: str, where: str) -> Dim:
    try:
        dims.symbol(name)
    except DimError as error:
        raise ModelInputError(f"the dim of {where}: {error}; call it 'B', for example") from error
    return Dim(name, min=1, max=LARGEST_SIZE) if given is None else given
