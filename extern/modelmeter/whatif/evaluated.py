"""evaluate_what_if: a report of a model under what-ifs that says what each of them does to the workload."""

from __future__ import annotations

from attrs import evolve

from modelmeter.binding import Binding
from modelmeter.costs import Number
from modelmeter.devices import DeviceSpec
from modelmeter.evaluate import evaluate
from modelmeter.expert_counts import Routing, uniform_routing
from modelmeter.model import AnalyticModel
from modelmeter.predict.time_model import TimeModel
from modelmeter.reports.report import Report, WhatIfEffect
from modelmeter.routing import UNIFORM
from modelmeter.whatif.apply import WhatIf
from modelmeter.whatif.change import Change, Shift
from modelmeter.workload import Workload

ROUTING = "routing"
"""The one what-if that changes no call, only how many experts it reads."""


def evaluate_what_if(
    what_if: WhatIf,
    workload: Workload,
    *,
    device: DeviceSpec | None = None,
    time_model: TimeModel | None = None,
    fused: bool = False,
) -> Report:
    """Evaluate a model under what-ifs at a workload, as `modelmeter.evaluate.evaluate` does, and say what each changes.

    Options are applied one after the other, so each effect is beside the model with those before it; routing comes
    last. They add up to the difference to the model as captured under uniform routing.

    Parameters
    ----------
    what_if : WhatIf
        What `apply` returns.
    workload, device, time_model, fused
        As in `modelmeter.evaluate.evaluate`.

    Raises
    ------
    UnscheduledModelError
        When a calibration is asked for the time of a call that a what-if changed, as nobody measured that.
    ModelMeterError
        As `modelmeter.evaluate.evaluate` does.

    Examples
    --------
    >>> import modelmeter
    >>> from modelmeter.whatif import Options, apply
    >>> from modelmeter.workload import StageRun, Workload, WorkloadItem
    >>> step = StageRun(stage="decode", count=1, bindings={"B": 1, "T": 100})
    >>> workload = Workload(name="step", items=(WorkloadItem(name="page", documents=1, runs=(step,)),))
    >>> report = evaluate_what_if(apply(modelmeter.load("deepseek-ocr"), Options(kv_dtype="int8")), workload)
    >>> [(effect.option, effect.bytes < 0) for effect in report.what_ifs]
    [('kv_dtype', True)]
    """
    # Without a routing of its own a report is that of `evaluate`, name and all.
    routing = uniform_routing if what_if.routing == UNIFORM else what_if.routing
    report = evaluate(what_if.model, workload, device=device, time_model=time_model, routing=routing, fused=fused)
    effects = tuple(_effect(change, what_if, workload) for change in what_if.changes)
    return evolve(report, what_ifs=effects)


def _effect(change: Change, what_if: WhatIf, workload: Workload) -> WhatIfEffect:
    if change.option == ROUTING:
        moved, read = (
            _of_leaves(what_if.model, workload, figure, what_if.routing)
            - _of_leaves(what_if.model, workload, figure, uniform_routing)
            for figure in ("bytes", "weight_bytes_read")
        )
        flops: Number = 0
    else:
        flops, moved, read = (
            _of_shifts(change.shifts, workload, figure) for figure in ("matmul_flops", "bytes", "weight_bytes_read")
        )
    return WhatIfEffect(
        option=change.option,
        what=change.what,
        assumes=change.assumes,
        matmul_flops=flops,
        bytes=moved,
        weight_bytes_read=read,
        lower_bound_of_peaks=change.lower_bound_of_peaks,
    )


def _of_shifts(shifts: tuple[Shift, ...], workload: Workload, figure: str) -> Number:
    texts = {shift.stage: getattr(shift, figure).text for shift in shifts}
    return sum(binding.sum(texts[stage]) for stage, binding in _bindings(workload, uniform_routing) if stage in texts)


def _of_leaves(model: AnalyticModel, workload: Workload, figure: str, routing: Routing) -> Number:
    return sum(
        leaf.calls * binding.sum(getattr(leaf.cost, figure).text)
        for stage, binding in _bindings(workload, routing)
        for leaf in model.leaves_by_stage[stage]
    )


def _bindings(workload: Workload, routing: Routing) -> list[tuple[str, Binding]]:
    return [
        (run.stage, Binding(bindings=run.bindings, count=run.count, sweep=run.sweep, routing=routing))
        for item in workload.items
        for run in item.runs
    ]
