"""ShardingPlan: which part of a model plays which role when devices share it, and what they must then exchange."""

from __future__ import annotations

from enum import StrEnum
from fnmatch import fnmatchcase
from importlib import import_module

from attrs import frozen

from modelmeter.parallel.errors import MissingPlanError
from modelmeter.parallel.links import Operation
from modelmeter.registry import registered


class Role(StrEnum):
    """How tensor and expert ranks share a module or an operator."""

    COLUMN = "column"  # each tensor rank makes a part of the features
    ROW = "row"  # each tensor rank reads a part of the features and makes a partial sum
    INNER = "inner"  # between a column and a row: each tensor rank has the heads or features that it made
    VOCABULARY = "vocabulary"  # each tensor rank holds a part of the table's rows
    EXPERT_COLUMN = "expert column"  # each expert rank holds whole experts; spare tensor ranks make parts of features
    EXPERT_ROW = "expert row"  # the same; spare tensor ranks make partial sums
    REPLICATED = "replicated"  # alike on every tensor rank


class Group(StrEnum):
    """The devices that exchange something."""

    TENSOR = "tensor"  # of one replica and pipeline stage
    EXPERT = "expert"  # that share the experts


@frozen(kw_only=True)
class Rule:
    """A role for the modules and operators whose id matches a pattern of `fnmatch`."""

    pattern: str  # such as "model.layers.*.q_proj*": matches a module's id and those of its operators
    role: Role


@frozen(kw_only=True)
class Exchange:
    """What the ranks of a group exchange after an operator: the result that it has on one device."""

    pattern: str  # of operator ids, such as "*.o_proj/linear"
    operation: Operation
    group: Group
    what: str  # for reports


@frozen(kw_only=True)
class ShardingPlan:
    """How devices share a model.

    Attributes
    ----------
    rules : tuple of Rule
        The first that matches an operator's id, or a module's, decides; what none matches is replicated.
    exchanges : tuple of Exchange
    layers : str
        Id of the list of decoder layers, which pipeline stages divide.
    stream : str
        Name of the operator, of those that a layer runs itself, whose result passes on to the next.
    vision : tuple of str
        Stages that encode pages, one document per execution.
    features : str
        Pattern of the decoder's operator that takes what the vision encoder made.
    batch : str
        Dim of the documents that are processed together.

    Examples
    --------
    >>> plan = shipped_plan("deepseek-ocr")
    >>> plan.role("model.layers.[1-11].self_attn.q_proj").value, plan.role("model.norm").value
    ('column', 'replicated')
    """

    rules: tuple[Rule, ...]
    exchanges: tuple[Exchange, ...]
    layers: str
    stream: str
    vision: tuple[str, ...]
    features: str
    batch: str = "B"

    def role(self, identity: str) -> Role:
        """Return the role of a module or an operator by its id."""
        return next((rule.role for rule in self.rules if fnmatchcase(identity, rule.pattern)), Role.REPLICATED)


def shipped_plan(model: str) -> ShardingPlan:
    """Return the plan that a model's package ships: `PLAN` of its module `sharding`.

    Raises
    ------
    UnknownModelError
        When no installed package registers the model.
    MissingPlanError
        When its package ships no plan.
    """
    name = f"{registered(model).package}.sharding"
    try:
        plan = import_module(name).PLAN
    except (ModuleNotFoundError, AttributeError) as error:
        raise MissingPlanError(
            f"model {model!r} ships no sharding plan: {name} has no PLAN; write a ShardingPlan and pass it as plan=..."
        ) from error
    if not isinstance(plan, ShardingPlan):
        raise MissingPlanError(f"{name}.PLAN of model {model!r} is a {type(plan).__name__}; it must be a ShardingPlan")
    return plan
