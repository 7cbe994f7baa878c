"""Several devices: tensor, expert, pipeline and data parallelism of an analytic model.

`distribute` divides the model's own layers over the devices of a `Layout` by the roles of a `ShardingPlan`, which
follows from the model's structure unless one is given, reads off what they must exchange and times it by the
alpha-beta model.

>>> Layout(tensor=2, data=4).devices
8
"""

from __future__ import annotations

from modelmeter.parallel.derive import derived_plan, plan_for
from modelmeter.parallel.distribute import distribute
from modelmeter.parallel.errors import (
    LayoutError,
    MissingLinkError,
    MissingPlanError,
    UndividedLayerError,
    UnknownLinkError,
)
from modelmeter.parallel.layout import Layout
from modelmeter.parallel.links import NCCL_RING, Latency, Operation
from modelmeter.parallel.plan import Exchange, Group, Operator, Role, ShardingPlan, Share
from modelmeter.parallel.report import CollectiveReport, ParallelReport, PartReport, StageTime

__all__ = [
    "NCCL_RING",
    "CollectiveReport",
    "Exchange",
    "Group",
    "Latency",
    "Layout",
    "LayoutError",
    "MissingLinkError",
    "MissingPlanError",
    "Operation",
    "Operator",
    "ParallelReport",
    "PartReport",
    "Role",
    "ShardingPlan",
    "Share",
    "StageTime",
    "UndividedLayerError",
    "UnknownLinkError",
    "derived_plan",
    "distribute",
    "plan_for",
]
