"""A report as a side of a comparison, alone or with the model that it is of."""

from __future__ import annotations

from collections.abc import Sequence

from modelmeter.categories import Category
from modelmeter.compare.metrics import Metric
from modelmeter.compare.model_tree import cached_stages, nodes_of_model, parameter_work
from modelmeter.compare.roles import Node
from modelmeter.compare.setup import figures_of, setup_of
from modelmeter.compare.side import (
    ACTIVATIONS,
    BANDWIDTH,
    BUFFERS,
    INPUTS,
    KV_CACHE,
    MATRIX_PEAK,
    PEAK_STAGE,
    ROUTING,
    VERSION,
    WEIGHTS,
    WORKLOAD,
    Piece,
    Side,
    Uncounted,
    model_facts,
    stage_sizes,
)
from modelmeter.costs import Number
from modelmeter.model import AnalyticModel
from modelmeter.predict.time_model import TimeModel
from modelmeter.reports.left_out import WHY_WITHOUT, left_out_stages
from modelmeter.reports.report import Report, StageMemory
from modelmeter.reports.serving import DECODE, PREFILL, serving_of
from modelmeter.units import format_bytes, format_flop_rate
from modelmeter.workload import StageRun


def side_of_report(
    report: Report, *, label: str, model: AnalyticModel | None = None, clock: TimeModel | None = None
) -> Side:
    """Return a report as a side; with its model, parameters by module and reasons are known as well.

    Parameters
    ----------
    report : Report
    label : str
        How tables call it.
    model : AnalyticModel, optional
        The one that it is of.
    clock : TimeModel, optional
        What made its times; a roofline is recognised without.

    Examples
    --------
    >>> import modelmeter
    >>> from modelmeter.workload import StageRun, Workload, WorkloadItem
    >>> step = StageRun(stage="decode", count=1, bindings={"B": 1, "T": 10})
    >>> workload = Workload(name="step", items=(WorkloadItem(name="one", documents=1, runs=(step,)),))
    >>> model = modelmeter.load("deepseek-ocr", "tiny")
    >>> side = side_of_report(modelmeter.evaluate.evaluate(model, workload), label="tiny", model=model)
    >>> side.totals[Metric.PARAMETERS], side.totals[Metric.KV_PER_TOKEN]
    (3336106240, 61440)
    """
    own = {
        Piece(stage=stage, module=name): module.own
        for stage, modules in report.module_stages.items()
        for name, module in modules.items()
    }
    totals = _report_totals(report, model)
    return Side(
        label=label,
        facts=_report_facts(report),
        totals=totals,
        work={
            **{piece: figures_of(amount) for piece, amount in own.items()},
            **({} if model is None else parameter_work(model)),
        },
        memory=_memory(report),
        calls={piece: amount.cost.calls for piece, amount in own.items()},
        stages=stage_sizes(run for item in report.items for run in item.runs),
        cached=_cached(report) if model is None else cached_stages(model),
        nodes=_nodes(report) if model is None else nodes_of_model(model),
        uncounted=_uncounted(report),
        model=model,
        peaks={peak.stage: peak for peak in report.memory.stages},
        setup=None if model is None else setup_of(report, model, clock),
        device_memory=None if report.prediction is None else report.prediction.device.memory_bytes,
    )


def _report_totals(report: Report, model: AnalyticModel | None) -> dict[Metric, Number]:
    runs = [run for item in report.items for run in item.runs]
    totals: dict[Metric, Number] = {
        Metric.PARAMETERS: report.model.parameters,
        Metric.WEIGHT_BYTES: report.model.parameter_bytes,
        Metric.DOCUMENTS: report.documents,
        **figures_of(report.total.total),
        Metric.MEMORY: report.memory.running_bytes,
        Metric.LOAD_MEMORY: report.memory.load_bytes,
    }
    prefills = [run for run in runs if run.stage == PREFILL and "S" in run.bindings]
    if prefills:
        totals[Metric.CONTEXT_TOKENS] = sum(
            run.count * run.bindings.get("B", 1) * run.bindings["S"] for run in prefills
        )
        totals[Metric.OUTPUT_TOKENS] = sum(
            run.count * run.bindings.get("B", 1) for run in runs if run.stage in {PREFILL, DECODE}
        )
    kv_per_token = None if model is None else _kv_per_token(model, runs)
    if kv_per_token is not None:
        totals[Metric.KV_PER_TOKEN] = kv_per_token
    served = serving_of(report)
    if served:
        totals[Metric.TTFT] = served[-1].ttft.seconds
        if served[-1].tpot is not None:
            totals[Metric.TPOT] = served[-1].tpot.seconds
    return totals


def _kv_per_token(model: AnalyticModel, runs: Sequence[StageRun]) -> Number | None:
    """Return what one more token adds to the cache of one document; None for a model without a cache."""
    for run in runs:
        stage = model.stage(run.stage)
        dim = next((dim for dim in (run.sweep, "S", "T") if dim in stage.dims), None)
        if dim is not None and stage.kv_cache_text != "0":
            one = {**run.bindings, "B": 1}  # one document
            longer = {**one, dim: one[dim] + 1}
            return stage.kv_cache_bytes_at(longer) - stage.kv_cache_bytes_at(one)
    return None


def _memory(report: Report) -> dict[str, Number]:
    peak = _peak(report)
    return {
        WEIGHTS: report.memory.weight_bytes,
        **({BUFFERS: report.memory.buffer_bytes} if report.memory.buffer_bytes else {}),
        KV_CACHE: peak.peak_kv_cache_bytes,
        ACTIVATIONS: peak.peak_activation_bytes,
        INPUTS: peak.peak_input_bytes,
    }


def _peak(report: Report) -> StageMemory:
    return max(report.memory.stages, key=lambda stage: stage.peak_bytes)


def _report_facts(report: Report) -> dict[str, str]:
    facts = model_facts(report.model.name, report.model.variant)
    facts["workload"] = report.workload
    facts |= {f"{WORKLOAD}{name}": str(fact) for name, fact in report.workload_facts.items()}
    if report.prediction is not None:
        device, dtype = report.prediction.device, report.model.variant.get("dtype", "")
        facts["device"] = device.name
        facts[BANDWIDTH] = f"{format_bytes(device.bytes_per_second)}/s"
        if dtype in device.matrix_flops_per_second:
            facts[MATRIX_PEAK] = f"{format_flop_rate(device.matrix_flops_per_second[dtype])} in {dtype}"
        facts["times"] = f"{report.prediction.method}, {report.prediction.traffic} traffic"
        facts["runtime"] = report.prediction.runtime
        facts |= {f"times: {name}": text for name, text in report.prediction.source.items()}
    facts[ROUTING] = report.routing
    facts[PEAK_STAGE] = _peak(report).stage
    versions = {name: text for name, text in report.model.provenance.items() if not name.startswith(WHY_WITHOUT)}
    return facts | {f"{VERSION}{name}": version for name, version in versions.items()}


def _uncounted(report: Report) -> tuple[Uncounted, ...]:
    stages = [
        Uncounted(stage=stage, what="everything (it cannot be captured)")
        for stage in left_out_stages(report.model.provenance)
    ]
    ops = [
        Uncounted(stage=each.stage, what=f"FLOPs of {each.op} (unclassified)")
        for each in report.coverage.unclassified_ops
    ]
    return (*stages, *ops)


def _cached(report: Report) -> frozenset[str]:
    return frozenset(stage.stage for stage in report.memory.stages if stage.kv_cache_bytes)


def _nodes(report: Report) -> dict[str, Node]:
    """Return the modules that ran."""
    stages = {
        name: frozenset(stage for stage, modules in report.module_stages.items() if name in modules)
        for name in report.total.modules
    }
    return {
        name: Node(
            id=name,
            class_name=module.class_name,
            parent=module.parent,
            instances=module.instances,
            stages=stages[name],
            categories=frozenset(report.total.module_categories.get(name, {})) - {Category.HOST},
        )
        for name, module in report.total.modules.items()
    }
