"""A table of models: each at its own workload, its totals and what each role costs, as records."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from modelmeter.compare.errors import MissingWorkloadError
from modelmeter.compare.from_report import side_of_report
from modelmeter.compare.roles import Role
from modelmeter.compare.side import PEAK_STAGE, Figures
from modelmeter.costs import Number
from modelmeter.devices import DeviceSpec
from modelmeter.evaluate import evaluate
from modelmeter.model import AnalyticModel
from modelmeter.workload import Fact, Workload


@frozen(kw_only=True)
class ModelRow:
    """A model at a workload.

    Attributes
    ----------
    label : str
        The caller's name of it.
    model : str
    variant : mapping of str to str
    workload : str
    facts : mapping of str to fact
        Of the workload, such as the mode of its pages.
    peak_stage : str
        The stage in which memory peaks.
    memory : mapping of str to bytes
        What that peak consists of.
    device, times : str or None
        What times are of, and how they were found; None without a device.
    missing_memory : str or None
        What the model lacks in memory on the device, in words; None where it fits or there is none.
    totals : mapping of Metric to number
        Tokens, parameters, bytes of weights, FLOPs, bytes, KV cache per token, peak memory; with a device times.
    roles : mapping of Role to (mapping of Metric to number)
        In the order of the data flow; adds up to the totals.
    """

    label: str
    model: str
    variant: Mapping[str, str]
    workload: str
    facts: Mapping[str, Fact]
    peak_stage: str
    memory: Mapping[str, Number]
    totals: Figures
    roles: Mapping[Role, Figures]
    device: str | None = None
    times: str | None = None
    missing_memory: str | None = None


def table(
    models: Mapping[str, AnalyticModel], workloads: Mapping[str, Workload], device: DeviceSpec | None = None
) -> tuple[ModelRow, ...]:
    """Evaluate models, each at its workload, and return a record of each, in the order given.

    Parameters
    ----------
    models : mapping of str to AnalyticModel
        By labels of the caller's choice.
    workloads : mapping of str to Workload
        What each is asked, by the same labels: models bind the same request to different stages and dims.
    device : DeviceSpec or None
        With a device, times are its roofline.

    Raises
    ------
    MissingWorkloadError
        When a model has no workload.
    UnknownStageError, UnboundStageDimError
        When a workload does not fit its model.

    Examples
    --------
    >>> import modelmeter
    >>> from modelmeter.compare import Metric
    >>> from modelmeter.workload import StageRun, Workload, WorkloadItem
    >>> step = StageRun(stage="decode", count=1, bindings={"B": 1, "T": 10})
    >>> workload = Workload(name="step", items=(WorkloadItem(name="one", documents=1, runs=(step,)),))
    >>> (row,) = table({"tiny": modelmeter.load("deepseek-ocr", "tiny")}, {"tiny": workload})
    >>> row.model, row.totals[Metric.PARAMETERS]
    ('deepseek-ocr', 3336106240)
    """
    missing = [label for label in models if label not in workloads]
    if missing:
        raise MissingWorkloadError(f"no workload for {', '.join(missing)}; give one for each of {', '.join(models)}")
    return tuple(_row(label, model, workloads[label], device) for label, model in models.items())


def _row(label: str, model: AnalyticModel, workload: Workload, device: DeviceSpec | None) -> ModelRow:
    side = side_of_report(evaluate(model, workload, device=device), label=label, model=model)
    return ModelRow(
        label=label,
        model=model.name,
        variant=model.variant,
        workload=workload.name,
        facts=workload.facts,
        peak_stage=side.facts[PEAK_STAGE],
        memory=side.memory,
        totals=side.totals,
        roles=side.by_role,
        device=side.facts.get("device"),
        times=side.facts.get("times"),
        missing_memory=side.missing_memory,
    )
