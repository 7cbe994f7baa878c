"""Side: a report, a model at a workload or a measurement, in the form in which sides are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TypeVar

from attrs import field, frozen

from modelmeter.compare.metrics import HELD_METRICS, Metric
from modelmeter.compare.roles import UNATTRIBUTED, Node, Role, roles_of
from modelmeter.compare.setup import Setup
from modelmeter.compare.variants import comparable
from modelmeter.costs import Number
from modelmeter.model import AnalyticModel
from modelmeter.reports.report import StageMemory
from modelmeter.units import format_bytes
from modelmeter.workload import StageRun

Figures = Mapping[Metric, Number]
Key = TypeVar("Key")

UNNAMED = "(not attributed)"
"""Module of what no module accounts for: parameters that modules share, measured time between calls."""

RESIDENT = ""
"""Stage of what is there in all stages: parameters."""


VARIANT, WORKLOAD, VERSION = "variant: ", "workload: ", "version of "
"""What the names of facts of these kinds begin with."""

PEAK_STAGE = "peak memory in"
"""Name of the fact that says in which stage memory peaks."""

PIXELS = "views of "
"""After `WORKLOAD`, before the name of a stage: the fact that says how large the views are that it takes."""

ROUTING = "routing"
"""Name of the fact that says how tokens choose experts."""

WEIGHTS, BUFFERS, KV_CACHE, ACTIVATIONS, INPUTS = "weights", "buffers", "KV cache", "activations", "inputs"
"""What the peak of a run consists of."""

BANDWIDTH, MATRIX_PEAK = "memory bandwidth", "matrix peak"
"""Names of the facts that say what a device is capable of."""


@frozen(kw_only=True)
class Piece:
    """What one module does itself in one stage."""

    stage: str
    module: str


@frozen(kw_only=True)
class StageSizes:
    """How often a stage runs, and at which sizes."""

    executions: int
    sizes: Mapping[str, float]  # by dim, the mean over executions
    fixed: frozenset[str]  # dims of one size in all executions


@frozen(kw_only=True)
class Uncounted:
    """Something of a model that the figures of a side leave out."""

    stage: str
    what: str  # in words

    @property
    def text(self) -> str:
        """In words, with its stage."""
        return f"{self.what} in {self.stage}"


@frozen(kw_only=True)
class Side:
    """One side of a comparison.

    Attributes
    ----------
    label : str
        How tables call it.
    facts : mapping of str to str
        What it is: model, variant, workload, device, versions.
    totals : mapping of Metric to number
        The figures that are known.
    work : mapping of Piece to (mapping of Metric to number)
        Own work of modules by stage, and their parameters; adds up to the totals.
    memory : mapping of str to number
        What the peak of the run consists of, in bytes; empty when unknown.
    uncounted : tuple of Uncounted
        What of the model no figure has, so that totals are too low; empty for a whole one.
    peaks : mapping of str to StageMemory
        The largest memory of each stage.
    device_memory : number or None
        Bytes of its device; None where there is none.
    setup : Setup or None
        What it was evaluated with; with it, changes are explained by evaluating it otherwise.
    """

    label: str
    facts: Mapping[str, str]
    totals: Figures
    work: Mapping[Piece, Figures]
    memory: Mapping[str, Number] = field(factory=dict[str, Number])
    calls: Mapping[Piece, int] = field(factory=dict[Piece, int])  # operator calls
    stages: Mapping[str, StageSizes]
    cached: frozenset[str]  # stages that leave keys and values behind
    nodes: Mapping[str, Node]  # parents before children
    uncounted: tuple[Uncounted, ...] = ()
    model: AnalyticModel | None = None  # with it, changes are explained by operators and layers
    peaks: Mapping[str, StageMemory] = field(factory=dict[str, StageMemory])
    setup: Setup | None = None
    device_memory: Number | None = None

    @property
    def missing_memory(self) -> str | None:
        """What it lacks in memory on its device, running or loading; None where it fits or that is not known."""
        peak = max((self.totals[metric] for metric in HELD_METRICS if metric in self.totals), default=0)
        if self.device_memory is None or peak <= self.device_memory:
            return None
        return f"it needs {format_bytes(peak)}, {self.facts['device']} has {format_bytes(self.device_memory)}"

    @cached_property
    def roles(self) -> Mapping[str, Role]:
        """The role of each module, the unnamed one included."""
        return {**roles_of(self.nodes.values(), self.cached), UNNAMED: UNATTRIBUTED}

    @cached_property
    def by_role(self) -> Mapping[Role, Figures]:
        """The work of each role, in the order of the data flow; adds up to the totals."""
        sums = self.sum_by(lambda piece: self.roles[piece.module])
        return {role: sums[role] for role in sorted(sums, key=lambda role: role.order)}

    def sum_by(self, key: Callable[[Piece], Key]) -> dict[Key, Figures]:
        """Return the work of the pieces of each key; what costs nothing is left out."""
        sums: dict[Key, dict[Metric, Number]] = {}
        for piece, figures in self.work.items():
            held = sums.setdefault(key(piece), {})
            for metric, number in figures.items():
                held[metric] = held.get(metric, 0) + number
        return {name: figures for name, figures in sums.items() if any(figures.values())}


# --- facts of a side


def stage_sizes(runs: Iterable[StageRun]) -> dict[str, StageSizes]:
    """Return how often each stage runs and at which sizes.

    Examples
    --------
    >>> steps = stage_sizes([StageRun(stage="decode", count=3, bindings={"B": 1, "T": 10}, sweep="T")])["decode"]
    >>> steps.executions, steps.sizes, sorted(steps.fixed)
    (3, {'B': 1.0, 'T': 11.0}, ['B'])
    """
    found: dict[str, list[StageRun]] = {}
    for run in runs:
        found.setdefault(run.stage, []).append(run)
    return {stage: _sizes(of_stage) for stage, of_stage in found.items()}


def _sizes(runs: list[StageRun]) -> StageSizes:
    executions = sum(run.count for run in runs)
    dims = list(dict.fromkeys(dim for run in runs for dim in run.bindings))
    sums = {dim: sum(run.count * mean_size(run, dim) for run in runs if dim in run.bindings) for dim in dims}
    sizes = {dim: sums[dim] / sum(run.count for run in runs if dim in run.bindings) for dim in dims}
    return StageSizes(
        executions=executions,
        sizes=sizes,
        fixed=frozenset(
            dim for dim in dims if len({run.bindings.get(dim) for run in runs}) == 1 and runs[0].sweep != dim
        ),
    )


def mean_size(run: StageRun, dim: str) -> float:
    """Return the mean of a dim over the executions of a run; a sweep adds 0, 1, ... count - 1.

    Examples
    --------
    >>> mean_size(StageRun(stage="decode", count=3, bindings={"T": 10}, sweep="T"), "T")
    11.0
    """
    return run.bindings[dim] + ((run.count - 1) / 2 if run.sweep == dim else 0)


def model_facts(name: str, variant: Mapping[str, str]) -> dict[str, str]:
    """Return which model a side is of, as facts; those of variants under the names that all models have.

    Examples
    --------
    >>> model_facts("toy", {"experts": "grouped", "dtype": "bf16"})
    {'model': 'toy', 'variant: dtype': 'bf16', 'variant: moe': 'grouped'}
    """
    return {"model": name, **{f"{VARIANT}{fact}": value for fact, value in comparable(variant).items()}}
