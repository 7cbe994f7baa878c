"""Group: the pieces of one side that have one role in one phase."""

from __future__ import annotations

from attrs import frozen

from modelmeter.compare.metrics import Metric
from modelmeter.compare.roles import Role
from modelmeter.compare.side import RESIDENT, Piece, Side
from modelmeter.costs import Number
from modelmeter.model import Leaf
from modelmeter.reports.serving import DECODE

ENCODE, PREFILL_PHASE, DECODE_PHASE, HELD = "encode", "prefill", "decode", "parameters"
"""Phases: stages of one kind, so that models with other stages can be compared."""

Key = tuple[str, Role]
"""A phase and a role."""


def phase_of(side: Side, stage: str) -> str:
    """Return the phase of a stage: without keys and values left behind it encodes, else it decodes or prefills.

    Examples
    --------
    >>> from modelmeter.compare.side import Side
    >>> side = Side(
    ...     label="a", facts={}, totals={}, work={}, stages={}, nodes={}, cached=frozenset({"prefill", "decode"})
    ... )
    >>> phase_of(side, "vision"), phase_of(side, "decode")
    ('encode', 'decode')
    """
    if stage == RESIDENT:
        return HELD
    if side.cached and stage not in side.cached:
        return ENCODE
    if not side.cached:
        return DECODE_PHASE if DECODE in stage else PREFILL_PHASE if PREFILL_PHASE in stage else ENCODE
    return DECODE_PHASE if DECODE in stage else PREFILL_PHASE


@frozen(kw_only=True)
class Group:
    """The pieces of one side that have one role in one phase."""

    side: Side
    pieces: tuple[Piece, ...] = ()

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that run it; none for parameters."""
        return tuple(dict.fromkeys(piece.stage for piece in self.pieces if piece.stage != RESIDENT))

    @property
    def modules(self) -> frozenset[str]:
        """The modules of its pieces."""
        return frozenset(piece.module for piece in self.pieces)

    @property
    def instances(self) -> int:
        """Modules that run operators themselves or hold parameters, folded ones counted; 0 where that is not known."""
        nodes = self.side.nodes
        busy = [piece for piece in self.pieces if piece.stage == RESIDENT or self.side.calls.get(piece)]
        return sum(
            nodes[module].instances for module in dict.fromkeys(piece.module for piece in busy) if module in nodes
        )

    def calls(self, stage: str) -> float:
        """Return its operator calls in one execution of a stage."""
        calls = sum(self.side.calls.get(piece, 0) for piece in self.pieces if piece.stage == stage)
        return calls / self.side.stages[stage].executions

    def leaves(self, stage: str) -> tuple[Leaf, ...]:
        """Return its leaves in a stage; none without a model."""
        model = self.side.model
        if model is None:
            return ()
        modules = {piece.module for piece in self.pieces if piece.stage == stage}
        return tuple(leaf for leaf in model.leaves_by_stage[stage] if leaf.module in modules)

    def total(self, metric: Metric) -> Number:
        """Return all of its work."""
        return sum(self.side.work[piece].get(metric, 0) for piece in self.pieces)


def groups_of(side: Side, metric: Metric) -> dict[Key, Group]:
    """Return the pieces of a side that have a metric, by phase and role."""
    pieces: dict[Key, list[Piece]] = {}
    for piece, figures in side.work.items():
        if metric in figures:
            pieces.setdefault((phase_of(side, piece.stage), side.roles[piece.module]), []).append(piece)
    return {key: Group(side=side, pieces=tuple(found)) for key, found in pieces.items()}


def same_model(old: Side, new: Side) -> bool:
    """Whether two sides are of one model, in whatever variant."""
    return old.facts.get("model") == new.facts.get("model")
