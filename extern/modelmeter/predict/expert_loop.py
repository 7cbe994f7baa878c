"""The published loop over experts: the calls that run in place of a grouped product and what surrounds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from attrs import evolve, frozen

from modelmeter.dtypes import DType
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


def loop_samples(calls: Sequence[Signature], routed: Routed) -> tuple[Signature, ...]:
    """Return the distinct calls of the loop for the calls of a module with experts, to be timed.

    Examples
    --------
    >>> loop_samples([], spread_evenly(1, 2, 8, 2))
    ()
    """
    return tuple({each.text: each for call in calls for each in calls_in_loop(call, routed)}.values())
