"""Sweeps: a few steps of a long run, with weights, that stand for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from modelmeter.workload import StageRun, Workload

MOST_POINTS = 9
"""Steps of a sweep that are evaluated; times change slowly along it."""


def sweep_points(run: StageRun) -> Iterator[tuple[Mapping[str, int], float]]:
    """Yield sizes and weights: the weighted sum over them is the sum over all executions.

    Exact for what is linear along the sweep, piecewise linear otherwise. Without a sweep it is the run's sizes, times
    its count.

    Examples
    --------
    >>> run = StageRun(stage="decode", count=100, bindings={"T": 1}, sweep="T")
    >>> round(sum(sizes["T"] * weight for sizes, weight in sweep_points(run)), 6)  # 1 + 2 + ... + 100
    5050.0
    """
    if run.sweep is None or run.count == 1:
        yield run.bindings, float(run.count)
        return
    start = run.bindings[run.sweep]
    steps = np.arange(run.count)
    chosen = np.unique(np.round(np.linspace(0, run.count - 1, min(MOST_POINTS, run.count)))).astype(int)
    for index, step in enumerate(chosen):
        hat = np.interp(steps, chosen, np.eye(len(chosen))[index])
        yield {**run.bindings, run.sweep: start + int(step)}, float(hat.sum())


def workload_points(workload: Workload) -> Iterator[tuple[str, Mapping[str, int], float]]:
    """Yield stage, sizes and weight of the steps that stand for all executions of a workload.

    Examples
    --------
    >>> from modelmeter.workload import WorkloadItem
    >>> runs = (StageRun(stage="encode", count=2, bindings={}), StageRun(stage="decode", count=3, bindings={"T": 7}))
    >>> page = WorkloadItem(name="page", documents=1, runs=runs)
    >>> list(workload_points(Workload(name="pages", items=(page,))))
    [('encode', {}, 2.0), ('decode', {'T': 7}, 3.0)]
    """
    for item in workload.items:
        for run in item.runs:
            for sizes, weight in sweep_points(run):
                yield run.stage, sizes, weight
