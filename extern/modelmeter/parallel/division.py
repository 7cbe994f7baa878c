"""Division: a layer as one device has it; its dims are divided, so its own formulas state what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import sympy
from attrs import evolve, frozen

from modelmeter.dims import Dim, simplify
from modelmeter.expert_counts import distinct_experts
from modelmeter.layers import (
    Activation,
    BaseLayer,
    DataMovement,
    Elementwise,
    Embedding,
    GroupedLinear,
    LayerNorm,
    Linear,
    Matmul,
    Operand,
    Reduction,
    RMSNorm,
    ScaledDotProductAttention,
    Softmax,
)
from modelmeter.parallel.errors import UndividedLayerError
from modelmeter.parallel.layout import Layout
from modelmeter.parallel.plan import Role


class Axis(StrEnum):
    """What divides a dim."""

    TENSOR = "tensor"
    EXPERT = "expert"
    EXPERT_WIDTH = "expert_width"  # tensor ranks that divide one expert

    def degree(self, layout: Layout) -> int:
        """Return the parts into which a layout divides."""
        return getattr(layout, self.value)


@frozen(kw_only=True)
class Cut:
    """A size that a degree must divide."""

    axis: Axis
    what: str  # such as "heads"
    size: int


def divided(layer: BaseLayer, role: Role, layout: Layout) -> BaseLayer:
    """Return a layer as one device of a layout has it.

    Tokens meet experts evenly: each expert rank has an equal share of rows and of the distinct experts touched. The
    bias of a row layer is counted on every rank.

    Raises
    ------
    UndividedLayerError
        When no rule divides such a layer in its role.

    Examples
    --------
    >>> from modelmeter.dtypes import DType
    >>> layer = Linear(rows=3, in_features=4, out_features=8, bias=False, dtype=DType.BF16)
    >>> divided(layer, Role.COLUMN, Layout(tensor=2)).matmul_flops(), layer.matmul_flops()
    (96, 192)
    """
    if role is Role.REPLICATED or (layout.tensor == 1 and layout.expert == 1):
        return layer
    if (type(layer), role) in _CUTS:
        cut = {name: over(getattr(layer, name), axis.degree(layout)) for name, axis in _cuts_of(layer, role)}
        return evolve(layer, **cut, **_shared_rows(layer, layout))
    if role is Role.INNER and type(layer) in _INNER:
        return layer if layout.tensor == 1 else _INNER[type(layer)](layer, layout.tensor)
    known = ", ".join(sorted({kind.__name__ for kind, _ in _CUTS} | {kind.__name__ for kind in _INNER}))
    raise UndividedLayerError(
        f"no rule divides a {type(layer).__name__} in the role {role.value!r}; layers with rules are {known}. Give it "
        "another role in the sharding plan, or add a rule to modelmeter.parallel.division"
    )


def cuts(layer: BaseLayer, role: Role) -> Iterator[Cut]:
    """Yield the sizes of a layer in a role that the degrees of a layout must divide.

    Examples
    --------
    >>> from modelmeter.dtypes import DType
    >>> layer = Linear(rows=3, in_features=4, out_features=8, bias=False, dtype=DType.BF16)
    >>> [(cut.what, cut.size) for cut in cuts(layer, Role.ROW)]
    [('in_features', 4)]
    """
    if (type(layer), role) in _CUTS:
        yield from (Cut(axis=axis, what=name, size=_size(layer, name)) for name, axis in _cuts_of(layer, role))
    elif role is Role.INNER and isinstance(layer, Matmul):
        yield Cut(axis=Axis.TENSOR, what="heads, which its batch counts", size=_size(layer, "batch"))


def over(dim: Dim, degree: int) -> Dim:
    """Return a dim divided by a degree, exactly.

    Examples
    --------
    >>> from modelmeter.dim_text import to_text
    >>> from modelmeter.dims import symbol
    >>> over(12, 4), to_text(over(6 * symbol("B"), 4))
    (3, '3*B/2')
    """
    return dim if degree == 1 else simplify(sympy.Mul(sympy.sympify(dim), sympy.Rational(1, degree)))


# --- rules: the dims that a role cuts


_CUTS: Mapping[tuple[type[BaseLayer], Role], Mapping[str, Axis]] = MappingProxyType(
    {
        (Linear, Role.COLUMN): {"out_features": Axis.TENSOR},
        (Linear, Role.ROW): {"in_features": Axis.TENSOR},
        (Embedding, Role.VOCABULARY): {"vocabulary": Axis.TENSOR},
        (ScaledDotProductAttention, Role.INNER): {"heads": Axis.TENSOR, "kv_heads": Axis.TENSOR},
        (GroupedLinear, Role.EXPERT_COLUMN): {"experts": Axis.EXPERT, "out_features": Axis.EXPERT_WIDTH},
        (GroupedLinear, Role.EXPERT_ROW): {"experts": Axis.EXPERT, "in_features": Axis.EXPERT_WIDTH},
    }
)


def _cuts_of(layer: BaseLayer, role: Role) -> Iterator[tuple[str, Axis]]:
    yield from _CUTS[type(layer), role].items()


def _size(layer: BaseLayer, name: str) -> int:
    """Return the whole number in a dim: 10 of 10*B."""
    return int(sympy.sympify(getattr(layer, name)).as_coeff_Mul()[0])


def _shared_rows(layer: BaseLayer, layout: Layout) -> dict[str, Dim]:
    """Return an expert rank's rows, of all replicas whose tokens meet its experts, and the experts that they touch."""
    if not isinstance(layer, GroupedLinear):
        return {}
    replicas = layout.expert_replicas
    return {
        "rows": over(layer.rows * replicas, layout.expert),
        "active_experts": over(_touched_by(layer.active_experts, replicas), layout.expert),
    }


def _touched_by(active: Dim, replicas: int) -> Dim:
    """Return the experts that the tokens of some replicas touch, of an expression for those of one."""
    if not isinstance(active, sympy.Expr):
        return active
    touched: Any = active  # what sympy takes apart is untyped
    calls = {call: call.func(*call.args[:2], call.args[2] * replicas) for call in touched.atoms(distinct_experts)}
    return simplify(touched.xreplace(calls))


# --- rules: kernels between a column and a row, on the heads or features of one tensor rank


def _operands(operands: tuple[Operand, ...], degree: int) -> tuple[Operand, ...]:
    return tuple(evolve(operand, elements=over(operand.elements, degree)) for operand in operands)


def _kernel(layer: Elementwise | Reduction, degree: int) -> BaseLayer:
    """Divide the operands that have all elements; one that is broadcast stays whole, over heads or within one."""
    reads = tuple(
        evolve(each, elements=over(each.elements, degree)) if each.elements == layer.elements else each
        for each in layer.reads
    )
    return evolve(layer, elements=over(layer.elements, degree), reads=reads, writes=_operands(layer.writes, degree))


def _movement(layer: DataMovement, degree: int) -> BaseLayer:
    return evolve(layer, reads=_operands(layer.reads, degree), writes=_operands(layer.writes, degree))


def _matmul(layer: Matmul, degree: int) -> BaseLayer:
    stored = {"left_elements": layer.left_elements, "right_elements": layer.right_elements}
    parts = {name: None if elements is None else over(elements, degree) for name, elements in stored.items()}
    return evolve(layer, batch=over(layer.batch, degree), **parts)


def _rows(layer: Softmax | LayerNorm | RMSNorm, degree: int) -> BaseLayer:
    return evolve(layer, rows=over(layer.rows, degree))


_INNER: Mapping[type[BaseLayer], Callable[[Any, int], BaseLayer]] = MappingProxyType(
    {
        **dict.fromkeys((Activation, Elementwise, Reduction), _kernel),
        DataMovement: _movement,
        Matmul: _matmul,
        **dict.fromkeys((LayerNorm, RMSNorm, Softmax), _rows),
    }
)
