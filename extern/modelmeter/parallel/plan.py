"""ShardingPlan: which part of a model plays which role when devices share it, and what they must then exchange."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from attrs import frozen

from modelmeter.model import Leaf
from modelmeter.parallel.links import Operation

Operator = tuple[str, str]
"""A stage, and the id of a leaf in it."""


def operator_of(leaf: Leaf) -> Operator:
    """Return what tells a leaf from all others, under what-ifs too."""
    return leaf.stage, leaf.id


class Role(StrEnum):
    """How tensor and expert ranks share a module or an operator."""

    COLUMN = "column"  # each tensor rank makes a part of the features
    ROW = "row"  # each tensor rank reads a part of the features and makes a partial sum
    INNER = "inner"  # between a column and a row: each tensor rank has the heads or features that it made
    VOCABULARY = "vocabulary"  # each tensor rank holds a part of the table's rows
    EXPERT_COLUMN = "expert column"  # each expert rank holds whole experts; spare tensor ranks make parts of features
    EXPERT_ROW = "expert row"  # the same; spare tensor ranks make partial sums
    REPLICATED = "replicated"  # alike on every tensor rank


EXPERT_ROLES = (Role.EXPERT_COLUMN, Role.EXPERT_ROW)


class Group(StrEnum):
    """The devices that exchange something."""

    TENSOR = "tensor"  # of one replica and pipeline stage
    EXPERT = "expert"  # that share the experts


@frozen(kw_only=True)
class Share:
    """How an operator is shared."""

    role: Role
    heads: int | None = None  # that its features form; only whole ones can be divided


@frozen(kw_only=True)
class Exchange:
    """What the ranks of a group exchange after an operator: the result that it has on one device."""

    after: Operator
    operation: Operation
    group: Group
    what: str  # for reports


@frozen(kw_only=True)
class ShardingPlan:
    """How devices share a model.

    Attributes
    ----------
    shares : mapping of (str, str) to Share
        By stage and id of an operator; those without one run alike on every tensor rank.
    modules : mapping of str to Role
        By the id of a module, how its own parameters are held; those without one are held whole.
    exchanges : tuple of Exchange
    layers : str
        Id of the list of decoder layers, which pipeline stages divide; "" in a model without any.
    stream : frozenset of (str, str)
        Operators of decoder layers whose results pass on to the next layer.
    encoding : tuple of str
        Stages that encode: one document per execution, or a batch of them.
    encoder : str
        What these stages run, for reports.
    features : frozenset of (str, str)
        Operators of the decoder that take what the encoder made, each time that they run.
    states : frozenset of (str, str)
        Operators of the decoder that read what the encoder made, all of them the same.
    cache : Role
        INNER where tensor ranks divide keys and values by heads; REPLICATED where each keeps all of them.
    assumptions : tuple of str
        What the plan takes for granted, a sentence each.
    batch : str
        Dim of the documents that are processed together.

    Examples
    --------
    >>> import modelmeter
    >>> from modelmeter.parallel.derive import derived_plan
    >>> plan = derived_plan(modelmeter.load("deepseek-ocr"))
    >>> plan.role("decode", "model.layers.0.self_attn.q_proj/linear").value, plan.role("decode", "lm_head/x").value
    ('column', 'replicated')
    """

    shares: Mapping[Operator, Share]
    modules: Mapping[str, Role]
    exchanges: tuple[Exchange, ...]
    layers: str
    stream: frozenset[Operator]
    encoding: tuple[str, ...]
    encoder: str = "vision encoder"
    features: frozenset[Operator] = frozenset()
    states: frozenset[Operator] = frozenset()
    cache: Role = Role.INNER
    assumptions: tuple[str, ...] = ()
    batch: str = "B"

    def role(self, stage: str, operator: str) -> Role:
        """Return the role of an operator."""
        share = self.shares.get((stage, operator))
        return Role.REPLICATED if share is None else share.role

    def module_role(self, module: str) -> Role:
        """Return how the parameters of a module itself are held."""
        return self.modules.get(module, Role.REPLICATED)
