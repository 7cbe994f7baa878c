"""Report: an AnalyticModel evaluated at a workload, in base units, as a record and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import cattrs
from attrs import frozen

from modelmeter.categories import Category
from modelmeter.costs import COST_NAMES, TIME_NAMES, Amount, Cost, Number, Time
from modelmeter.errors import ModelMeterError
from modelmeter.json_text import dump_json, read_bytes, register_plain, structure_text
from modelmeter.predict.time_model import PredictionFacts
from modelmeter.workload import Fact, StageRun

REPORT_SCHEMA_VERSION = 2


class ReportFileError(ModelMeterError, ValueError):
    """A file that is no report, or a report of another schema version."""


class MissingReportFileError(ReportFileError, FileNotFoundError):
    """A report file that cannot be read at all."""


@frozen(kw_only=True)
class ModuleAmount:
    """What a module costs: by its own operators, and with everything below it."""

    class_name: str
    parent: str | None
    instances: int  # instances folded into the module's id
    own: Amount
    inclusive: Amount


@frozen(kw_only=True)
class Breakdown:
    """One amount of work, split in several ways; each split adds up to `total`, modules by their own amounts."""

    total: Amount
    executions: Mapping[str, int]  # by stage
    stages: Mapping[str, Amount]
    components: Mapping[str, Amount]
    categories: Mapping[Category, Amount]
    modules: Mapping[str, ModuleAmount]  # those that ran
    module_categories: Mapping[str, Mapping[Category, Amount]]  # own amounts


@frozen(kw_only=True)
class LiveBytes:
    """A tensor alive at a peak."""

    name: str
    module: str
    op: str
    role: str  # "activation", "input" or "kv_cache"
    bytes: Number


@frozen(kw_only=True)
class StageMemory:
    """Device memory of one stage at the sizes where it needs most; all in bytes."""

    stage: str
    item: str  # the page whose run decides
    bindings: Mapping[str, int]
    weight_bytes: Number  # parameters that the stage reads; the others stay resident as well
    kv_cache_bytes: Number  # keys and values that the stage leaves behind
    peak_bytes: Number  # the largest sum of activations, KV cache and inputs; parameters and buffers apart
    peak_activation_bytes: Number
    peak_kv_cache_bytes: Number
    peak_input_bytes: Number
    at: str  # operator that allocates at the peak
    module: str
    live: tuple[LiveBytes, ...]  # largest first


@frozen(kw_only=True)
class RunMemory:
    """Device memory of the whole run; all in bytes."""

    weight_bytes: Number  # every parameter, resident all the time
    stage_peak_bytes: Number  # the largest peak of a stage, parameters and buffers apart
    running_bytes: Number  # parameters, buffers and the largest peak
    load_bytes: Number  # alive while the model loads
    peak_bytes: Number  # the larger of the two before
    decided_by: str  # "load", or the stage whose peak decides
    stages: tuple[StageMemory, ...]  # over all items, the largest of each stage
    buffer_bytes: Number = 0  # every registered buffer, resident all the time

    @property
    def held_bytes(self) -> Number:
        """Bytes that are resident all the time: parameters and buffers."""
        return self.weight_bytes + self.buffer_bytes


@frozen(kw_only=True)
class Routings:
    """A figure under several assumptions on how tokens choose experts."""

    selected: Number  # the assumption of the report
    uniform: Number  # every expert as likely: the expectation
    fewest: Number  # every token picks the same experts: the lower bound
    most: Number  # tokens share no expert while any is left: the upper bound


@frozen(kw_only=True)
class MoEReport:
    """How the choice of experts moves the weight traffic of one stage of one page."""

    item: str
    stage: str
    experts: int
    top_k: int  # experts per token
    tokens: int  # routed together in one execution
    executions: int  # of the stage
    distinct_experts: Routings  # per layer and execution
    expert_weight_bytes_read: Routings  # bytes, all executions
    stage_bytes: Routings  # bytes, all executions, unfused


@frozen(kw_only=True)
class Share:
    """Calls, FLOPs and bytes of one state of coverage; bytes are unfused."""

    calls: int = 0
    flops: Number = 0
    bytes: Number = 0


@frozen(kw_only=True)
class Approximation:
    """An assumption that some costs rest on."""

    op: str
    note: str
    calls: int
    flops: Number
    bytes: Number


@frozen(kw_only=True)
class UnclassifiedOp:
    """An operator without a rule: its bytes are counted, its FLOPs are unknown."""

    op: str
    stage: str
    module: str  # the first module that runs it
    calls: int
    bytes: Number


@frozen(kw_only=True)
class Coverage:
    """How much of the work is known how well."""

    exact: Share
    approximated: Share
    free: Share  # views: no FLOPs, no bytes
    unclassified: Share
    approximations: tuple[Approximation, ...]
    unclassified_ops: tuple[UnclassifiedOp, ...]


@frozen(kw_only=True)
class ModelFacts:
    """Which model the report is about."""

    name: str
    variant: Mapping[str, str]
    parameters: int
    parameter_bytes: int
    load_bytes: int
    dims: Mapping[str, str]  # legend
    provenance: Mapping[str, str]


@frozen(kw_only=True)
class ItemReport:
    """One page, or one batch of equal pages together."""

    name: str
    documents: int
    facts: Mapping[str, Fact]
    runs: tuple[StageRun, ...]
    breakdown: Breakdown
    memory: tuple[StageMemory, ...]


@frozen(kw_only=True)
class WhatIfEffect:
    """A what-if in force and what it does to the workload, beside the model with the what-ifs before it."""

    option: str  # such as "kv_dtype"
    what: str  # is changed
    assumes: tuple[str, ...]
    matmul_flops: Number  # more FLOPs of matrix products, negative where there are fewer
    bytes: Number  # more bytes moved, unfused
    weight_bytes_read: Number  # more bytes of parameters read, part of `bytes`
    lower_bound_of_peaks: bool = False  # whether what runs now may need more memory than the report says


@frozen(kw_only=True)
class Report:
    """A model evaluated at a workload and, if one is given, a device.

    FLOPs, bytes and seconds throughout; FLOPs are exact integers, bytes are expectations where a router decides.
    """

    model: ModelFacts
    workload: str
    workload_facts: Mapping[str, Fact]
    routing: str  # assumption on the choice of experts
    prediction: PredictionFacts | None  # None: no device, no times
    total: Breakdown
    module_stages: Mapping[str, Mapping[str, ModuleAmount]]  # stage, then module
    idle_modules: Mapping[str, int]  # modules that never ran: their parameters
    memory: RunMemory
    moe: tuple[MoEReport, ...]
    coverage: Coverage
    items: tuple[ItemReport, ...]
    what_ifs: tuple[WhatIfEffect, ...] = ()  # in the order in which they were applied

    @property
    def peaks_are_lower_bounds(self) -> bool:
        """Whether a run may need more memory than the report says, as under some what-ifs."""
        return any(effect.lower_bound_of_peaks for effect in self.what_ifs)

    @property
    def documents(self) -> int:
        """Documents in the workload."""
        return sum(item.documents for item in self.items)

    def to_json(self) -> str:
        """Write the report as JSON in SI base units, as ``schema/report.schema.json`` describes."""
        document = {"schema_version": REPORT_SCHEMA_VERSION, **_converter().unstructure(self)}
        if not self.what_ifs:
            del document["what_ifs"]  # a report of the model as captured says nothing of what it is not
        depths = {"total": 3, "module_stages": 3, "memory": 3, "items": 5, "coverage": 3}
        return dump_json(document, depths=depths)


def report_from_json(text: str | bytes, *, source: str = "the text") -> Report:
    """Read a report from JSON.

    Raises
    ------
    ReportFileError
        When the text is cut off, no JSON, of another schema version or no report.
    """
    return structure_text(
        text, Report, _converter(), source=source, kind="report", version=REPORT_SCHEMA_VERSION, error=ReportFileError
    )


def read_report(path: str | Path) -> Report:
    """Read a report file.

    Raises
    ------
    MissingReportFileError
        When the file cannot be read.
    ReportFileError
        When its content is no report.
    """
    data = read_bytes(path, kind="report", error=MissingReportFileError)
    return report_from_json(data, source=str(path))


@lru_cache(maxsize=1)
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    register_plain(converter)
    converter.register_structure_hook_func(lambda kind: kind == Number, _number)
    converter.register_structure_hook_func(lambda kind: kind == Fact, _fact)
    converter.register_structure_hook(float, lambda value, _: float(_number(value)))
    converter.register_structure_hook(Amount, _amount_from_json)
    converter.register_unstructure_hook(Amount, _amount_to_json)
    return converter


def _number(value: object, _kind: object = None) -> Number:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def _fact(value: object, _kind: object) -> Fact:
    return value if isinstance(value, str) else _number(value)


def _amount_to_json(amount: Amount) -> dict[str, Any]:
    """Write an amount flat, with the sums a reader wants: `flops` and, where there is a time, `seconds`."""
    cost = amount.cost
    document: dict[str, Any] = {"flops": cost.flops, **{name: getattr(cost, name) for name in COST_NAMES}}
    if amount.time is not None:
        time = amount.time
        document["seconds"] = time.seconds
        document["seconds_bound_by"] = {name: getattr(time, name) for name in TIME_NAMES}
        if time.p10 is not None:
            document["seconds_p10"], document["seconds_p90"] = time.p10, time.p90
    return document


def _amount_from_json(document: object, _kind: object) -> Amount:
    if not isinstance(document, dict):
        raise TypeError(f"{document!r} is no amount")
    names = {"flops", *COST_NAMES}
    timed = names | {"seconds", "seconds_bound_by"}
    ranged = timed | {"seconds_p10", "seconds_p90"}
    if document.keys() not in (names, timed, ranged):
        raise ValueError(f"an amount has the keys {sorted(names)}, this one has {sorted(document)}")
    calls = document["calls"]
    if type(calls) is not int:
        raise TypeError(f"calls is {calls!r}, not an integer")
    numbers = {name: _number(document[name]) for name in COST_NAMES if name != "calls"}
    cost = Cost(calls=calls, **numbers)
    if "seconds" not in document:
        return Amount(cost=cost)
    parts = document["seconds_bound_by"]
    if not isinstance(parts, dict) or parts.keys() != set(TIME_NAMES):
        raise ValueError(f"seconds_bound_by has the keys {sorted(TIME_NAMES)}, this one is {parts!r}")
    interval = (
        (float(_number(document["seconds_p10"])), float(_number(document["seconds_p90"])))
        if document.keys() == ranged
        else None
    )
    time = Time(
        matrix_units=float(_number(parts["matrix_units"])),
        vector_units=float(_number(parts["vector_units"])),
        memory=float(_number(parts["memory"])),
        host=float(_number(parts["host"])),
        interval=interval,
    )
    return Amount(cost=cost, time=time)
