"""Serving figures: TTFT, TPOT, seconds a page, pages and tokens a second, from the times of a report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from attrs import frozen

from modelmeter.costs import Time
from modelmeter.reports.report import ItemReport, Report

PREFILL, DECODE = "prefill", "decode"
"""The stage that yields the first token of each document, and the one that yields each further one."""


@frozen(kw_only=True)
class Rate:
    """How much is done a second, with an interval where the time behind it has one.

    Examples
    --------
    >>> Rate.of(6, Time(memory=2.0, interval=(1.5, 3.0)))
    Rate(value=3.0, p10=2.0, p90=4.0)
    """

    value: float  # a second
    p10: float | None = None  # nine of ten runs exceed it
    p90: float | None = None  # one of ten runs exceeds it

    @classmethod
    def of(cls, count: int, time: Time) -> Self:
        """Return the rate of so much in some time; a slow run has a low rate, so the ends change places."""
        slow, fast = time.p90, time.p10
        return cls(
            value=count / time.seconds,
            p10=None if slow is None else count / slow,
            p90=None if fast is None else count / fast,
        )


@frozen(kw_only=True)
class Serving:
    """What a user of the model waits for and what a machine yields, one batch after the other."""

    name: str  # the page; "all" for a workload
    documents: int  # of a page: processed together
    output_tokens: int  # generated for all documents
    ttft: Time  # time to first token, of every document of the batch: vision and prefill; of a workload the mean
    tpot: Time | None  # time per output token after the first; None where there is one token only
    page: Time  # time a document
    pages_per_second: Rate
    tokens_per_second: Rate  # output tokens over all of the time, vision and prefill included


def serving_of(report: Report) -> tuple[Serving, ...]:
    """Return the serving figures of each page, then those of the workload, its pages one after the other.

    A page of a model without a prefill, and a report without times, have none.

    Examples
    --------
    >>> import modelmeter
    >>> from modelmeter.workload import StageRun, Workload, WorkloadItem
    >>> prefill = StageRun(stage="prefill", count=1, bindings={"B": 1, "S": 283, "N": 273})
    >>> workload = Workload(name="one", items=(WorkloadItem(name="page", documents=1, runs=(prefill,)),))
    >>> model, device = modelmeter.load("deepseek-ocr"), modelmeter.load_device("h200")
    >>> [serving.name for serving in serving_of(modelmeter.evaluate.evaluate(model, workload, device=device))]
    ['page', 'all']
    """
    return serving_of_items(report.items)


def serving_of_items(items: Iterable[ItemReport]) -> tuple[Serving, ...]:
    """Return the serving figures of each page, then those of all; of a page, its times by stage are read alone.

    Examples
    --------
    >>> serving_of_items([])
    ()
    """
    items = [item for item in items if _is_served(item)]
    if not items:
        return ()
    total = _sum(_time(item) for item in items)
    steps = sum(_steps(item) for item in items)
    documents = sum(item.documents for item in items)
    return (
        *(_serving_of_item(item) for item in items),
        _serving(
            "all",
            documents=documents,
            output_tokens=sum(_output_tokens(item) for item in items),
            ttft=_sum(_first_token(item) * item.documents for item in items) * (1 / documents),
            tpot=_sum(_decode(item) for item in items) * (1 / steps) if steps else None,
            total=total,
        ),
    )


def _serving_of_item(item: ItemReport) -> Serving:
    steps = _steps(item)
    return _serving(
        item.name,
        documents=item.documents,
        output_tokens=_output_tokens(item),
        ttft=_first_token(item),
        tpot=_decode(item) * (1 / steps) if steps else None,
        total=_time(item),
    )


def _serving(name: str, *, documents: int, output_tokens: int, ttft: Time, tpot: Time | None, total: Time) -> Serving:
    return Serving(
        name=name,
        documents=documents,
        output_tokens=output_tokens,
        ttft=ttft,
        tpot=tpot,
        page=total * (1 / documents),
        pages_per_second=Rate.of(documents, total),
        tokens_per_second=Rate.of(output_tokens, total),
    )


def _is_served(item: ItemReport) -> bool:
    return PREFILL in item.breakdown.stages and _time(item).seconds > 0


def _time(item: ItemReport) -> Time:
    return item.breakdown.total.time or Time()


def _first_token(item: ItemReport) -> Time:
    """Return the time of everything before the first decode step."""
    return _sum(amount.time or Time() for stage, amount in item.breakdown.stages.items() if stage != DECODE)


def _decode(item: ItemReport) -> Time:
    amount = item.breakdown.stages.get(DECODE)
    return (amount.time if amount is not None else None) or Time()


def _steps(item: ItemReport) -> int:
    return item.breakdown.executions.get(DECODE, 0)


def _output_tokens(item: ItemReport) -> int:
    """Return the tokens of all documents: one of the prefill and one of each decode step."""
    return item.documents * (1 + _steps(item))


def _sum(times: Iterable[Time]) -> Time:
    first, *others = times
    return sum(others, first)
