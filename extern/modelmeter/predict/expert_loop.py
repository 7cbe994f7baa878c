"""The published loop over experts: the calls that run in place of a grouped product and what surrounds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from attrs import evolve, frozen

from modelmeter.dtypes import DType
from modelmeter.predict.kernel_time import Work
from modelmeter.signature import Signature, TensorArgument

GROUPED = "dsocr_graph::grouped_linear"


@frozen(kw_only=True)
class Routed:
    """How many rows each expert that has any gets in one layer."""

    tokens: int
    per_token: int
    experts: int  # all of them, with and without rows
    rows: tuple[int, ...]  # of the experts that have some


def spread_evenly(tokens: int, per_token: int, experts: int, active: int) -> Routed:
    """Return rows spread over some experts as evenly as whole numbers allow.

    Examples
    --------
    >>> spread_evenly(3, 2, 8, 4).rows
    (2, 2, 1, 1)
    """
    each, more = divmod(tokens * per_token, active)
    rows = tuple(each + (index < more) for index in range(active))
    return Routed(tokens=tokens, per_token=per_token, experts=experts, rows=rows)


def calls_in_loop(call: Signature, routed: Routed) -> tuple[Signature, ...]:
    """Return the calls of the loop that do what one call of the grouped form does.

    The loop multiplies the rows of each expert apart, and its activation and product follow expert by expert; at the
    end the experts' results are joined. In place of a search for the experts' ends it counts them: zeros, a scatter and
    a sum, whose result the host waits for. All other calls are those of the grouped form.

    Parameters
    ----------
    call : Signature
        A call of the module with the experts, with numbers.
    routed : Routed
        Which experts have how many rows.

    Returns
    -------
    tuple of Signature
        In the order in which they run; empty where the loop needs nothing.

    Examples
    --------
    >>> rows = TensorArgument(dtype=DType.BF16, shape=(4, 8), strides=(8, 1))
    >>> silu = Signature(op="aten::silu", overload="default", arguments={"self": rows})
    >>> [each.text for each in calls_in_loop(silu, spread_evenly(2, 2, 8, 3))]
    ['aten::silu.default(self=bf16[2,8])', 'aten::silu.default(self=bf16[1,8])', 'aten::silu.default(self=bf16[1,8])']
    """
    total = routed.tokens * routed.per_token
    if call.op == GROUPED:
        return _products(call, routed)
    if call.op == "aten::searchsorted":
        return _counting(routed)
    if call.op == "aten::arange":
        return ()
    if call.op == "aten::index_put_":  # back to the order of the tokens, once the experts' results are joined
        results = tuple(_rows(call.tensor("self"), rows) for rows in routed.rows)
        return (Signature(op="aten::cat", overload="default", arguments={"tensors": results}), call)
    if call.op in {"aten::silu", "aten::mul"} and all(item.shape[0] == total for item in call.tensors):
        return tuple(_with_rows(call, rows) for rows in routed.rows)
    return (call,)


def routing_sizes(grouped: Signature) -> tuple[int, int, int]:
    """Return experts, experts per token and tokens of a grouped product with numbers."""
    rows, experts = grouped.tensor("input").shape[0], grouped.tensor("weight").shape[0]
    per_token = cast("int", grouped.arguments["experts_per_token"])
    return cast("int", experts), per_token, cast("int", rows) // per_token


def loop_work(call: Signature) -> Work:
    """Return what a call of the loop does: the FLOPs of a product, the bytes of the operands and one result."""
    moved = [item.bytes for item in call.tensors]
    if call.op != "aten::linear":
        return Work(flops=0.0, bytes=float(sum(moved) + max(moved)))
    x, w = call.tensor("input"), call.tensor("weight")
    outer, inner = cast("tuple[int, int]", w.shape)
    rows = x.elements // inner
    return Work(flops=2.0 * rows * w.elements, bytes=float(sum(moved) + rows * outer * x.dtype.itemsize))


def waits_for_host(call: Signature) -> bool:
    """Whether the loop copies to the host where the grouped form has this call."""
    return call.op == "aten::searchsorted"


def _products(call: Signature, routed: Routed) -> tuple[Signature, ...]:
    rows, weight = call.tensor("input"), call.tensor("weight")
    _, outer, inner = cast("tuple[int, int, int]", weight.shape)
    one = evolve(weight, shape=(outer, inner), strides=(inner, 1))
    return tuple(
        Signature(op="aten::linear", overload="default", arguments={"input": _rows(rows, count), "weight": one})
        for count in routed.rows
    )


def _counting(routed: Routed) -> tuple[Signature, ...]:
    table = TensorArgument(dtype=DType.INT64, shape=(routed.tokens, routed.experts), strides=(routed.experts, 1))
    picks = evolve(table, shape=(routed.tokens, routed.per_token), strides=(routed.per_token, 1))
    counting: tuple[tuple[str, str, Mapping[str, object]], ...] = (
        ("aten::zero_", "default", {"self": table}),
        ("aten::scatter_", "value", {"self": table, "dim": 1, "index": picks, "value": 1}),
        ("aten::sum", "dim_IntList", {"self": table, "dim": (0,)}),
    )
    return tuple(Signature(op=op, overload=overload, arguments=dict(given)) for op, overload, given in counting)  # pyright: ignore[reportArgumentType]


def _with_rows(call: Signature, rows: int) -> Signature:
    return evolve(
        call,
        arguments={
            name: _rows(value, rows) if isinstance(value, TensorArgument) else value
            for name, value in call.arguments.items()
        },
    )


def _rows(tensor: TensorArgument, rows: int) -> TensorArgument:
    return evolve(tensor, shape=(rows, *tensor.shape[1:]))
