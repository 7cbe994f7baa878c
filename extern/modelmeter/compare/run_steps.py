"""Run steps: from what one side runs to what another runs, one cause after the other: executions, then each size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from attrs import evolve, frozen

from modelmeter.compare.setup import Setup
from modelmeter.compare.side import stage_sizes
from modelmeter.compare.words import arrow
from modelmeter.workload import StageRun

_Runs = dict[tuple[str, int], StageRun]
"""The runs of a stage by the name of their item and their place among its runs of the stage."""


@frozen(kw_only=True)
class RunStep:
    """A setup after one more change of what runs, and that change in words."""

    text: str
    setup: Setup


def run_steps(old: Setup, new: Setup) -> Iterator[RunStep]:
    """Yield the first setup with more and more of what the second runs, in the stages that both models have.

    Sizes that the second model does not ask for stay as they are. A stage stays as it is where it would run items that
    the first does not, without a size for them.

    Parameters
    ----------
    old, new : Setup

    Examples
    --------
    >>> import modelmeter
    >>> from modelmeter.expert_counts import uniform_routing
    >>> def decode(count, cached):
    ...     run = StageRun(stage="decode", count=count, bindings={"B": 1, "T": cached}, sweep="T")
    ...     return Setup(
    ...         model=modelmeter.load("qwen3-8b"),
    ...         runs=(("page", run),),
    ...         routing=uniform_routing,
    ...         routing_name="uniform_routing",
    ...         clock=None,
    ...     )
    >>> [step.text for step in run_steps(decode(3, 10), decode(4, 20))]
    ['decode executions 3 → 4', 'decode mean T 11.5 → 21.5']
    """
    now = old
    for stage in old.model.stages:
        if stage.name not in {each.name for each in new.model.stages}:
            continue
        a, b = _keyed(old, stage.name), _keyed(new, stage.name)
        a, b = _paired(a, b)
        if a == b or any(set(stage.dims) - run.bindings.keys() for key, run in b.items() if key not in a):
            continue
        runs = {key: _as_often(a.get(key), run) for key, run in b.items()}
        if runs != a:
            step = _step(now, stage.name, runs, _executions(stage.name, a, runs))
            yield step
            now = step.setup
        for dim in stage.dims:
            after = {key: _with_size(run, dim, b[key]) for key, run in runs.items()}
            if after != runs:
                step = _step(now, stage.name, after, _sizes(stage.name, dim, runs, after))
                yield step
                now, runs = step.setup, after


def _keyed(setup: Setup, stage: str) -> _Runs:
    places = Counter[str]()
    found: _Runs = {}
    for item, run in setup.stages.get(stage, []):
        found[item, places[item]] = run
        places[item] += 1
    return found


def _paired(a: _Runs, b: _Runs) -> tuple[_Runs, _Runs]:
    """Return the runs under keys that pair them: items of one name, else, where none has one, by their order."""
    if len(a) != len(b) or any(key in a for key in b):
        return a, b
    return a, dict(zip(a, b.values(), strict=True))


def _as_often(old: StageRun | None, new: StageRun) -> StageRun:
    """Return a run at the sizes that it had, as often as the new one."""
    if old is None or (new.sweep is not None and new.sweep not in old.bindings):
        return new
    return evolve(old, count=new.count, sweep=new.sweep)


def _with_size(run: StageRun, dim: str, new: StageRun) -> StageRun:
    return evolve(run, bindings={**run.bindings, dim: new.bindings[dim]}) if dim in new.bindings else run


def _step(now: Setup, stage: str, runs: _Runs, text: str) -> RunStep:
    others = [(item, run) for item, run in now.runs if run.stage != stage]
    return RunStep(text=text, setup=evolve(now, runs=(*others, *((item, run) for (item, _), run in runs.items()))))


def _executions(stage: str, a: _Runs, b: _Runs) -> str:
    before, after = (sum(run.count for run in runs.values()) for runs in (a, b))
    return f"{stage} of other items" if before == after else f"{stage} executions {arrow(before, after)}"


def _sizes(stage: str, dim: str, a: _Runs, b: _Runs) -> str:
    (before, one), (after, other) = _mean(stage, dim, a), _mean(stage, dim, b)
    if before == after:
        return f"{stage} {dim} spread otherwise"
    return f"{stage} {'' if one and other else 'mean '}{dim} {arrow(before, after)}"


def _mean(stage: str, dim: str, runs: _Runs) -> tuple[float, bool]:
    """Return the mean of a dim over executions, and whether it is the same in all."""
    sizes = stage_sizes(runs.values())[stage]
    return sizes.sizes[dim], dim in sizes.fixed
