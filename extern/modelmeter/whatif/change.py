"""Change: what one what-if did to a model, in words and as formulas of each stage; and leaves with another layer."""

from __future__ import annotations

from itertools import chain, combinations

from attrs import evolve, field, frozen

from modelmeter.dims import Dim, product, simplify, total
from modelmeter.layers import BaseLayer, Operand
from modelmeter.model import AnalyticModel, Leaf
from modelmeter.stored import StoredDim, stored


@frozen(kw_only=True)
class Shift:
    """What one run of a stage does more than before, negative where it does less; formulas in the stage's dims."""

    stage: str
    matmul_flops: StoredDim = field(converter=stored)  # FLOPs
    bytes: StoredDim = field(converter=stored)  # bytes moved, unfused
    weight_bytes_read: StoredDim = field(converter=stored)  # bytes of parameters read, part of `bytes`


@frozen(kw_only=True)
class Change:
    """One what-if: what it changed and what it assumes."""

    option: str  # field of `Options`
    what: str
    assumes: tuple[str, ...]
    shifts: tuple[Shift, ...] = ()  # of the stages where anything moved
    lower_bound_of_peaks: bool = False  # whether what runs now may need more memory than the model says

    @property
    def text(self) -> str:
        """What changed and what is assumed, one line each.

        Examples
        --------
        >>> print(Change(option="logits", what="the last position alone", assumes=("argmax reads it",)).text)
        logits: the last position alone
          assumed: argmax reads it
        """
        return "\n".join((f"{self.option}: {self.what}", *(f"  assumed: {each}" for each in self.assumes)))


def change_between(
    before: AnalyticModel,
    after: AnalyticModel,
    *,
    option: str,
    what: str,
    assumes: tuple[str, ...],
    lower_bound_of_peaks: bool = False,
) -> Change:
    """Return the change of one model into another that has the same stages."""
    shifts = [
        _shift(stage.name, before.leaves_by_stage[stage.name], after.leaves_by_stage[stage.name])
        for stage in before.stages
    ]
    moved = tuple(shift for shift in shifts if (shift.matmul_flops.value, shift.bytes.value) != (0, 0))
    return Change(option=option, what=what, assumes=assumes, shifts=moved, lower_bound_of_peaks=lower_bound_of_peaks)


def _shift(stage: str, before: tuple[Leaf, ...], after: tuple[Leaf, ...]) -> Shift:
    was, now = set(map(id, before)), set(map(id, after))
    gone = [(-1, leaf) for leaf in before if id(leaf) not in now]
    come = [(1, leaf) for leaf in after if id(leaf) not in was]

    def more(figure: str) -> Dim:
        return total(product((sign * leaf.calls, getattr(leaf.cost, figure).value)) for sign, leaf in (*gone, *come))

    return Shift(
        stage=stage,
        matmul_flops=more("matmul_flops"),
        bytes=more("bytes"),
        weight_bytes_read=more("weight_bytes_read"),
    )


# --- leaves


def with_layer(leaf: Leaf, layer: BaseLayer) -> Leaf:
    """Return a leaf with another layer: its cost stated anew, its captured signature, which it no longer has, gone."""
    if layer == leaf.layer:
        return leaf
    fused = _fused_bytes(leaf.layer, leaf.fused_bytes, layer)
    return evolve(leaf, layer=layer, fused_bytes=fused, cost=None, signature=None)


def _fused_bytes(before: BaseLayer, fused: Dim, after: BaseLayer) -> Dim:
    """Return the traffic in fused chains: the operands that stayed on chip before stay there.

    Which those are follows from the bytes saved. Where no choice of operands gives them, nothing is saved: an upper
    bound.
    """
    moved = after.traffic().bytes
    saved = simplify(before.traffic().bytes - fused)
    was, now = _operand_bytes(before), _operand_bytes(after)
    if saved == 0 or len(was) != len(now):
        return moved
    choices = chain.from_iterable(combinations(range(len(was)), count) for count in range(1, len(was) + 1))
    for choice in choices:
        if simplify(total(was[index] for index in choice) - saved) == 0:
            return simplify(moved - total(now[index] for index in choice))
    return moved


def _operand_bytes(layer: BaseLayer) -> list[Dim]:
    """Return the bytes of each operand that is listed, or of all that are read and of all that are written."""
    listed: tuple[Operand, ...] = (*getattr(layer, "reads", ()), *getattr(layer, "writes", ()))
    if listed:
        return [operand.bytes for operand in listed]
    traffic = layer.traffic()
    return [traffic.activations_read, traffic.written]
