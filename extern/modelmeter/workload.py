"""Workload: which stages run, how often and at which dims; what a model is evaluated at."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import field, frozen

from modelmeter.errors import ModelMeterError

if TYPE_CHECKING:
    from attrs import Attribute

Fact = int | float | str


class InvalidWorkloadError(ModelMeterError, ValueError):
    """A workload that cannot be run: a count, dim, name or fact out of its range.

    Examples
    --------
    >>> issubclass(InvalidWorkloadError, ValueError)
    True
    """


def _checked_name(owner: object, attribute: Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise InvalidWorkloadError(
            f"{type(owner).__name__}.{attribute.name} is {value!r}; expected text that is not blank"
        )


def _checked_count(owner: object, attribute: Attribute[int], value: object) -> None:
    _positive(value, f"{_label(owner)}.{attribute.name}")


def _checked_bindings(owner: object, attribute: object, value: Mapping[str, int]) -> None:
    for dim, size in value.items():
        if not isinstance(dim, str) or not dim.isidentifier():
            raise InvalidWorkloadError(f"{_label(owner)}.bindings names a dim {dim!r}; expected a name such as 'B'")
        _positive(size, f"{_label(owner)}.bindings[{dim!r}]")


def _checked_facts(owner: object, attribute: object, value: Mapping[str, Fact]) -> None:
    for key, fact in value.items():
        what = f"{_label(owner)}.facts[{key!r}]"
        if isinstance(fact, bool) or not isinstance(fact, int | float | str):
            raise InvalidWorkloadError(f"{what} is {fact!r} ({type(fact).__name__}); expected a number or text")
        if isinstance(fact, float) and not math.isfinite(fact):
            raise InvalidWorkloadError(f"{what} is {fact!r}; expected a finite number")


def _checked_sweep(owner: StageRun, attribute: Attribute[str | None], value: str | None) -> None:
    if value is not None and value not in owner.bindings:
        raise InvalidWorkloadError(
            f"{_label(owner)} sweeps {value!r}, which has no start; its bindings are "
            f"{sorted(owner.bindings)}. Add {value!r} to bindings."
        )


def _checked_runs(owner: object, attribute: object, value: tuple[StageRun, ...]) -> None:
    if not value:
        raise InvalidWorkloadError(f"{_label(owner)} runs no stage; give at least one StageRun")


def _checked_items(owner: object, attribute: object, value: tuple[WorkloadItem, ...]) -> None:
    if not value:
        raise InvalidWorkloadError(f"{_label(owner)} has no items; give at least one WorkloadItem")
    counts = Counter(item.name for item in value)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise InvalidWorkloadError(f"{_label(owner)} has items of one name: {repeated}; rename them")


def _positive(value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidWorkloadError(f"{what} is {value!r} ({type(value).__name__}); expected a whole number from 1 up")


def _label(owner: object) -> str:
    name = getattr(owner, "stage", None) or getattr(owner, "name", None)
    return f"{type(owner).__name__}({name!r})"


@frozen(kw_only=True)
class StageRun:
    """`count` executions of one stage.

    Without `sweep` every execution runs at `bindings`. With ``sweep="T"`` execution i, counted from 0, runs
    at ``T = bindings["T"] + i`` and at `bindings` otherwise: the steps of a decode, each with one more cached
    token.

    Parameters
    ----------
    stage
        Name of the model's stage, such as "prefill".
    count
        Executions, at least 1.
    bindings
        Size of each dim, at least 1; empty when the stage has no dims.
    sweep
        The dim that grows by one with each execution, or None.

    Raises
    ------
    InvalidWorkloadError
        A blank stage, a count or size that is not a whole number from 1 up, or a sweep over a dim without a
        start.

    Examples
    --------
    >>> run = StageRun(stage="decode", count=3, bindings={"B": 1, "T": 913}, sweep="T")
    >>> [run.bindings["T"] + i for i in range(run.count)]
    [913, 914, 915]
    """

    stage: str = field(validator=_checked_name)
    count: int = field(validator=_checked_count)
    bindings: Mapping[str, int] = field(converter=dict[str, int], validator=_checked_bindings)
    sweep: str | None = field(default=None, validator=_checked_sweep)


@frozen(kw_only=True)
class WorkloadItem:
    """One page, or one batch of equal pages together.

    Parameters
    ----------
    name
        Name of the page in reports, unique in its workload.
    documents
        Pages processed together: the batch.
    runs
        What runs for them, in order; at least one.
    facts
        What is known of the page, for reports: sizes in pixels, tokens, the crop grid.

    Raises
    ------
    InvalidWorkloadError
        A blank name, no runs, documents below 1, or a fact that is neither a finite number nor text.

    Examples
    --------
    >>> prefill = StageRun(stage="prefill", count=1, bindings={"B": 2, "S": 283, "N": 273})
    >>> WorkloadItem(name="figure", documents=2, runs=(prefill,), facts={"width": 640}).documents
    2
    """

    name: str = field(validator=_checked_name)
    documents: int = field(validator=_checked_count)
    runs: tuple[StageRun, ...] = field(converter=tuple[StageRun, ...], validator=_checked_runs)
    facts: Mapping[str, Fact] = field(factory=dict[str, Fact], converter=dict[str, Fact], validator=_checked_facts)


@frozen(kw_only=True)
class Workload:
    """Pages that a model is evaluated at; totals are sums over items and their runs.

    Parameters
    ----------
    name
        Name of the workload in reports.
    items
        The pages, at least one, each name once.
    facts
        What holds for all pages, for reports: mode, dtype, batch.

    Raises
    ------
    InvalidWorkloadError
        A blank name, no items, two items of one name, or a fact that is neither a finite number nor text.

    Examples
    --------
    >>> run = StageRun(stage="vision_global", count=1, bindings={})
    >>> Workload(name="one view", items=(WorkloadItem(name="page", documents=1, runs=(run,)),)).items[0].name
    'page'
    """

    name: str = field(validator=_checked_name)
    items: tuple[WorkloadItem, ...] = field(converter=tuple[WorkloadItem, ...], validator=_checked_items)
    facts: Mapping[str, Fact] = field(factory=dict[str, Fact], converter=dict[str, Fact], validator=_checked_facts)
