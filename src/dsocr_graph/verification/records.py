"""The records of a verification: what was compared, what differs, and why; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from attrs import field, frozen


class Subject(StrEnum):
    """What of a run is compared with the captured graph."""

    CALLS = "module calls"
    TORCHLENS = "module calls, TorchLens"
    EDGES = "parent-child edges"
    SHAPES = "module inputs and outputs"
    SIZES = "symbolic sizes"
    OPERATORS = "operators"
    RESULTS = "results"
    FLOPS = "FLOPs"
    PARAMETERS = "parameters"


class Reason(StrEnum):
    """Why a run and a graph may differ; each is given only where its condition was checked."""

    METHOD = "runs in a method of the module, outside any call of it that a hook would see"
    PARTS = "not called itself: other code calls modules in it, and the graph files those under it"
    AROUND = "runs in the stage's own code around the model, which the graph files under the model"
    NO_OPERATOR = "runs no operator itself, so that the graph holds nothing of it"
    ELSEWHERE = "called by another module than the one that holds it: the graph files it under its own path"
    CACHE = "part of the KV cache, which passes in an object beside the tensors"
    HELD = "reaches the module in an object or a function, not as an argument: operators in it read it in the run too"
    CONSTANT = "a constant of the code: lifted out when the graph is captured"
    ASSIGNED = "a constant assigned to a part of a tensor: filled in the run, expanded and copied in the graph"
    SHORTENED = "a value assigned by index: a run drops its leading axes of size 1, a graph for all sizes keeps them"
    WRITTEN_BACK = "a buffer that the code assigns: bound anew in the run, copied to in the graph, to the same values"
    READ_BACK = "a value that Python reads back, as a check does: a graph cannot hold that"
    MESSAGE = "runs to write a tensor into a message: a graph cannot hold that"
    LOOP = "runs a loop over experts, the graph their grouped product"
    RUN_FUSED = "the run has torch's fused attention, the graph the single operators"
    GRAPH_FUSED = "the graph has torch's fused attention; where hooks watch its modules, torch runs single operators"
    UNCOUNTED = "torch's counter has no formula for some operators here whose products the model counts"
    THREE_PRODUCTS = "torch runs a complex convolution as three real ones; the model counts the four of the definition"
    UNCLASSIFIED = "some operators here have no rule: the model has their bytes and none of their FLOPs"
    LOST_CONSTANTS = "the graph keeps no values of the code's constants, and the run made others than it names"


@frozen(kw_only=True)
class Difference:
    """One way in which a run and the captured graph differ."""

    subject: Subject
    module: str  # id in the call graph; "" is the root
    what: str  # such as "calls", "aten::add", "reads [2, 7, 64] fp32"
    run: str  # as the run had it
    graph: str  # as the graph has it
    instances: int = 1  # modules of that id with the same difference
    reason: Reason | None = None  # None: unexplained


@frozen(kw_only=True)
class Check:
    """How much of one subject was compared in a stage."""

    subject: Subject
    compared: int  # pairs of a figure of the run and one of the graph
    unit: str  # what a pair is of, such as "modules"
    differences: tuple[Difference, ...] = ()

    @property
    def unexplained(self) -> tuple[Difference, ...]:
        """The differences without a reason."""
        return tuple(difference for difference in self.differences if difference.reason is None)


@frozen(kw_only=True)
class Decomposition:
    """What a captured operator runs as, below autograd."""

    op: str  # as captured
    runs: Mapping[str, int]  # operator -> calls of it in one call; empty: it returns its input
    calls: int  # that ran so

    @property
    def why(self) -> str:
        """Why the names of the graph and of the run are not the same here."""
        if not self.runs:
            return "dispatches nothing: it returns its input"
        return "itself" if dict(self.runs) == {self.op: 1} else "composite: decomposes before it is dispatched"


@frozen(kw_only=True)
class StageVerification:
    """One stage, run and compared with its graph."""

    stage: str
    bindings: Mapping[str, int] = field(converter=dict[str, int])
    checks: tuple[Check, ...]
    decompositions: tuple[Decomposition, ...]
    flops: int  # of matrix products, as the analytic model has them
    operators: int  # calls of the captured graph
    notes: tuple[str, ...] = ()  # how the run was made to go as the capture did

    @property
    def unexplained(self) -> tuple[Difference, ...]:
        """The differences without a reason."""
        return tuple(difference for check in self.checks for difference in check.unexplained)


@frozen(kw_only=True)
class UnclassifiedOperator:
    """An operator without a rule: the model has the bytes of its tensors, and none of its FLOPs."""

    op: str
    stage: str
    module: str  # id in the call graph
    calls: int  # in one run of the stage


@frozen(kw_only=True)
class Verification:
    """A model, run and compared with its captured graph, stage by stage.

    Examples
    --------
    >>> parameters = Check(subject=Subject.PARAMETERS, compared=3, unit="modules")
    >>> Verification(model="toy", variant={}, torch="2.13.0", parameters=parameters, stages=()).unexplained
    ()
    """

    model: str
    variant: Mapping[str, str]
    torch: str  # version
    parameters: Check
    stages: tuple[StageVerification, ...]
    left_out: Mapping[str, str] = field(factory=dict)  # stages that cannot be captured, and why
    unclassified: tuple[UnclassifiedOperator, ...] = ()

    @property
    def unexplained(self) -> tuple[Difference, ...]:
        """The differences of all stages without a reason."""
        found = (difference for stage in self.stages for difference in stage.unexplained)
        return (*self.parameters.unexplained, *found)
