"""Row lattice: the numbers of rows that a GPU's products are timed at, beside those of the points; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import evolve

from modelmeter.signature import Signature, TensorArgument

ROWS: tuple[int, ...] = (
    *(1, 2, 3, 4, 6, 8, 12, 16, 17, 24, 32, 48, 64, 65, 96, 128, 129, 192),
    *(256, 257, 384, 512, 768, 1024, 1536, 2048, 3072, 4096),
)
"""Dense where a product reads little but its weight; pairs where kernels with larger tiles take over."""


def at_more_rows(signature: Signature, bindings: Mapping[str, int]) -> Iterator[Signature]:
    """Yield a product at every number of rows of `ROWS`; nothing for another call, or one whose rows do not vary.

    Rows with gaps between them are left out as well: how large the gaps are follows from the sizes.

    Parameters
    ----------
    signature : Signature
        A call with open sizes.
    bindings : mapping of str to int
        Sizes at which the layout of its rows shows: no size of 1 where there may be more.

    Examples
    --------
    >>> from modelmeter.dtypes import DType
    >>> x = TensorArgument(dtype=DType.BF16, shape=("B", 1, 64), strides=(64, 64, 1))
    >>> w = TensorArgument(dtype=DType.BF16, shape=(32, 64), strides=(64, 1), weight=True)
    >>> linear = Signature(op="aten::linear", overload="default", arguments={"input": x, "weight": w})
    >>> [call.tensor("input").shape for call in at_more_rows(linear, {"B": 8})][:3]
    [(1, 1, 64), (1, 2, 64), (1, 3, 64)]
    """
    if signature.op != "aten::linear":
        return
    rows, weight = signature.tensor("input"), signature.tensor("weight")
    varies = any(isinstance(size, str) for size in rows.shape[:-1])
    fixed = all(isinstance(size, int) for size in weight.shape)  # a weight, or one that was cast for the call
    if not varies or not fixed or not signature.at(bindings).tensor("input").is_contiguous:
        return
    for count in ROWS:
        yield evolve(signature, arguments={**signature.arguments, "input": _with_rows(rows, count)})


def _with_rows(rows: TensorArgument, count: int) -> TensorArgument:
    width = rows.shape[-1]
    outer = len(rows.shape) - 2
    assert isinstance(width, int)
    return evolve(rows, shape=(*(1,) * outer, count, width), strides=(*(count * width,) * outer, width, 1))
