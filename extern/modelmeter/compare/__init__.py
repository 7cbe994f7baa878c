"""Comparisons: sides beside each other by stage, role and module, what changed and why, and a table of models.

Predicted beside measured times of one model are `modelmeter.reports.comparison`.
"""

from __future__ import annotations

from modelmeter.compare.align import Alignment
from modelmeter.compare.changes import Changes
from modelmeter.compare.comparison import (
    Fact,
    Movement,
    Row,
    SideBySide,
    movements,
    set_side_by_side,
    with_explained,
)
from modelmeter.compare.errors import CompareError, MissingFigureError, MissingWorkloadError, UnknownOperandError
from modelmeter.compare.from_measurement import side_of_measurement
from modelmeter.compare.from_report import side_of_report
from modelmeter.compare.metrics import ADDITIVE, GATES, RANKS, Metric
from modelmeter.compare.operands import Operand, read_operand, sides_of
from modelmeter.compare.part_changes import Change
from modelmeter.compare.reason import Reason
from modelmeter.compare.roles import Node, Part, Role, Tower, roles_of
from modelmeter.compare.side import Piece, Side
from modelmeter.compare.table import ModelRow, table

__all__ = [
    "ADDITIVE",
    "GATES",
    "RANKS",
    "Alignment",
    "Change",
    "Changes",
    "CompareError",
    "Fact",
    "Metric",
    "MissingFigureError",
    "MissingWorkloadError",
    "ModelRow",
    "Movement",
    "Node",
    "Operand",
    "Part",
    "Piece",
    "Reason",
    "Role",
    "Row",
    "Side",
    "SideBySide",
    "Tower",
    "UnknownOperandError",
    "movements",
    "read_operand",
    "roles_of",
    "set_side_by_side",
    "side_of_measurement",
    "side_of_report",
    "sides_of",
    "table",
    "with_explained",
]
