"""Real inputs of a stage at given sizes, made from its example inputs on `meta`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from dsocr_graph.errors import OptionError
from dsocr_graph.ir import OpGraph, TensorSpec
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.verification.id_ranges import IdRange, id_ranges
from dsocr_graph.verification.observe import tensors_in
from modelmeter.dim_binding import bind
from modelmeter.dim_text import free_dims
from modelmeter.dims import symbol

_LARGEST = 2**40  # no dim is as large


def example_bindings(graph: OpGraph, stage: StageSpec) -> dict[str, int]:
    """Return the sizes that the example inputs of a stage have, by the dims of its graph.

    Raises
    ------
    OptionError
        When the inputs do not say the size of a dim.

    Examples
    --------
    >>> from torch.export import Dim
    >>> from dsocr_graph.tracing import capture
    >>> with torch.device("meta"):
    ...     module, x = torch.nn.Linear(4, 2), torch.empty(3, 4)
    >>> rows = {"input": {0: Dim("B", min=1, max=64)}}
    >>> stage = StageSpec(name="forward", description="", module=module, inputs=(x,), dynamic_shapes=rows)
    >>> (graph,) = capture(module, [stage], name="toy", variant={}).graphs
    >>> example_bindings(graph, stage)
    {'B': 3}
    """
    sizes = [
        (symbolic, real)
        for spec, example in zip(_input_specs(graph), tensors_in(stage.inputs), strict=True)
        for symbolic, real in zip(spec.shape, example.shape, strict=True)
        if isinstance(symbolic, sympy.Expr)
    ]
    found = {str(symbolic): real for symbolic, real in sizes if isinstance(symbolic, sympy.Symbol)}
    for symbolic, _ in sizes:
        unknown = free_dims(symbolic) - found.keys()
        if len(unknown) == 1:  # such as V in V/H columns of views, or T in the Min(T, 512) tokens of a window
            (name,) = unknown
            size = _solution(name, [(_with(expr, found), real) for expr, real in sizes])
            if size is not None:
                found[name] = size
    missing = sorted(set(graph.dims) - found.keys())
    if missing:
        raise OptionError(
            f"stage {graph.stage}: the example inputs do not say the size of {', '.join(missing)}; give the sizes, "
            f"such as --points {graph.stage}:{','.join(f'{name}=2' for name in graph.dims)}"
        )
    return found


def _with(expr: sympy.Expr, known: Mapping[str, int]) -> sympy.Expr:
    return expr.subs({symbol(name): size for name, size in known.items()})


def _solution(name: str, sizes: Sequence[tuple[sympy.Expr, int]]) -> int | None:
    """Return the smallest size of a dim at which every expression in it alone has its value; None without one.

    Sizes grow with their dims, so that it is found by halving: sympy solves no Min, and no rounding.
    """
    alone = [(expr, real) for expr, real in sizes if free_dims(expr) == {name}]

    size = max(bisect_left(range(1, _LARGEST), real, key=partial(_at, expr, name)) + 1 for expr, real in alone)
    return size if all(_at(expr, name, size) == real for expr, real in alone) else None


def _at(expr: sympy.Expr, name: str, size: int) -> float:
    return float(expr.subs(symbol(name), size))


def meta_inputs(graph: OpGraph, stage: StageSpec, bindings: Mapping[str, int]) -> tuple[Any, ...]:
    """Return the inputs of a stage on `meta` at given sizes, in the structure of its example inputs."""
    return with_tensors(
        stage,
        [
            torch.empty(_shape(spec, bindings), dtype=example.dtype, device="meta")
            for spec, example in zip(_input_specs(graph), tensors_in(stage.inputs), strict=True)
        ],
    )


def random_inputs(graph: OpGraph, stage: StageSpec, bindings: Mapping[str, int], *, seed: int) -> list[Tensor]:
    """Return real inputs of a stage at given sizes, on the CPU, in the order of its graph.

    Ids that an embedding reads are random within its table; other whole numbers are positions along the last axis,
    which begin anew where an operator that reads by them has no more places or classes. A mask holds True at the first
    place of each row alone: one key to attend to, or one token to replace, whatever the sizes are.

    Raises
    ------
    UnboundDimError
        When a dim has no size.
    """
    generator = torch.Generator().manual_seed(seed)
    ranges = id_ranges(graph, bindings)
    return [
        _values(_shape(spec, bindings), example.dtype, ranges.get(spec.storage), generator)
        for spec, example in zip(_input_specs(graph), tensors_in(stage.inputs), strict=True)
    ]


def with_tensors(stage: StageSpec, tensors: list[Tensor]) -> tuple[Any, ...]:
    """Return the inputs of a stage with other tensors in them, in order."""
    leaves, structure = tree_flatten(stage.inputs)
    rest = iter(tensors)
    return tree_unflatten([next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)


def _input_specs(graph: OpGraph) -> list[TensorSpec]:
    return [graph.tensors[item] for item in graph.inputs]


def _shape(spec: TensorSpec, bindings: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(bind(size, bindings)) for size in spec.shape)


def _values(shape: tuple[int, ...], dtype: torch.dtype, ids: IdRange | None, generator: torch.Generator) -> Tensor:
    if dtype is torch.bool:
        mask = torch.zeros(shape, dtype=dtype)
        mask[..., 0] = True
        return mask
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    if ids is not None and ids.table:
        return torch.randint(ids.size, shape, dtype=dtype, generator=generator)
    if not shape:
        return torch.zeros((), dtype=dtype)
    positions = torch.arange(shape[-1])
    if ids is not None:
        positions %= ids.size
    return positions.to(dtype).expand(shape).clone()
