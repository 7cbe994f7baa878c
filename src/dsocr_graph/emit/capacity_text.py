"""Answers to capacity questions as text for a terminal and as rows for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modelmeter import units
from modelmeter.capacity import Candidate, Fit, LargestBatch, Plan
from modelmeter.costs import Time


def fit_lines(fit: Fit, batch: int) -> list[str]:
    """Return whether a batch fits, a table of its memory by stage, and what decides; weights stand with buffers.

    Examples
    --------
    >>> fit_lines.__name__
    'fit_lines'
    """
    memory = fit.memory
    rows = [
        (
            stage.stage,
            memory.held_bytes,
            stage.peak_activation_bytes,
            stage.peak_kv_cache_bytes,
            stage.peak_input_bytes,
            memory.held_bytes + stage.peak_bytes,
        )
        for stage in memory.stages
    ]
    rows.append(("load", memory.load_bytes, 0, 0, 0, memory.load_bytes))
    held = "weights, buffers" if memory.buffer_bytes else "weights"
    columns = ("stage", held, "activations", "KV cache", "inputs", "in all")
    return [
        f"{fit.device} at batch {batch}: {_verdict(fit)}",
        *_table(columns, [(name, *map(units.format_bytes, sizes)) for name, *sizes in rows]),
        f"  {fit.reason}",
        *_alive(fit),
    ]


def _verdict(fit: Fit) -> str:
    if not fit.fits:
        least = "at least " if fit.lower_bound else ""
        return f"DOES NOT FIT, {least}{units.format_bytes(-fit.spare_bytes)} missing"
    if fit.lower_bound:
        return (
            f"may fit, needs at least {units.format_bytes(fit.memory.peak_bytes)} (a lower bound): at most "
            f"{units.format_bytes(fit.spare_bytes)} to spare"
        )
    return f"fits, {units.format_bytes(fit.spare_bytes)} to spare"


def _alive(fit: Fit) -> Iterable[str]:
    stage = fit.decisive
    if stage is None or not stage.live:
        return
    largest = ", ".join(f"{live.role} {live.name} {units.format_bytes(live.bytes)}" for live in stage.live[:3])
    yield f"  largest tensors alive then: {largest}; at the page {stage.item!r}"


def largest_line(largest: LargestBatch) -> str:
    """Return the largest batch that fits, and what stops a larger one."""
    which = "may fit, by a lower bound of memory," if largest.fit.lower_bound else "fits"
    found = f"{largest.fit.device}: largest batch that {which} is {largest.batch:,}"
    if largest.over is None:
        return f"{found}, the limit of the search"
    return f"{found}; at {largest.batch + 1:,} it {largest.over.reason}"


def fit_row(fit: Fit) -> dict[str, object]:
    """Return a fit as a row; sizes in bytes."""
    return {
        "device": fit.device,
        "fits": fit.fits,
        "lower_bound": fit.lower_bound,
        "usable_bytes": fit.usable_bytes,
        "peak_bytes": fit.memory.peak_bytes,
        "weight_bytes": fit.memory.weight_bytes,
        "buffer_bytes": fit.memory.buffer_bytes,
        "load_bytes": fit.memory.load_bytes,
        "decided_by": fit.reason,
        "stages": [
            {
                "stage": stage.stage,
                "activation_bytes": stage.peak_activation_bytes,
                "kv_cache_bytes": stage.peak_kv_cache_bytes,
                "input_bytes": stage.peak_input_bytes,
                "at": stage.at,
                "module": stage.module,
            }
            for stage in fit.memory.stages
        ],
    }


def plan_lines(plan: Plan) -> list[str]:
    """Return the best batch of each device as a table, why others fail, and the assumptions under it."""
    priced = plan.ranked[0].cost_per_hour is not None
    columns = ("devices", "device", "batch", "pages/day", "TTFT", "TPOT", "s/page", "memory")
    columns += ("cost/hour", "cost/1000 pages") if priced else ()
    best = {candidate.device.key: candidate for candidate in reversed(plan.ranked)}
    shown = [candidate for candidate in plan.ranked if best[candidate.device.key] is candidate]
    return [
        f"{len(plan.ranked)} candidates meet the targets, {len(plan.rejected)} do not; the best batch of each device, "
        f"{plan.order}",
        *_table((*columns, "decided by"), [_cells(candidate, priced=priced) for candidate in shown]),
        *_rejections(plan),
        "assumptions",
        *(f"  {text}" for text in plan.assumptions),
    ]


def _cells(candidate: Candidate, *, priced: bool) -> tuple[str, ...]:
    performance = candidate.performance
    assert performance is not None
    assert candidate.devices is not None
    cells = (
        f"{candidate.devices:,}",
        candidate.device.key,
        f"{candidate.batch:,}",
        f"{candidate.devices * performance.pages_per_day:,.0f}",
        *("-" if time is None else units.format_seconds(time.seconds) for time in (performance.ttft, performance.tpot)),
        f"{performance.page.seconds:.3g}",
        units.format_bytes(performance.memory.peak_bytes),
    )
    if priced:
        cells += (f"{candidate.cost_per_hour:,.2f}", f"{candidate.cost_per_thousand:,.4g}")
    return (*cells, candidate.decided_by)


def _rejections(plan: Plan) -> Iterable[str]:
    """Yield why each device fails at its smallest batch that does."""
    if not plan.rejected:
        return
    yield "rejected, each device at its smallest batch that fails"
    seen: set[str] = set()
    for candidate in plan.rejected:
        if candidate.device.key not in seen:
            seen.add(candidate.device.key)
            yield f"  {candidate.device.key} at batch {candidate.batch}: {candidate.decided_by}"


def plan_document(plan: Plan) -> dict[str, object]:
    """Return every candidate as a row with base units, the best first, rejected ones last."""
    return {
        "order": plan.order,
        "assumptions": list(plan.assumptions),
        "candidates": [_row(candidate) for candidate in (*plan.ranked, *plan.rejected)],
    }


def _row(candidate: Candidate) -> dict[str, object]:
    performance = candidate.performance
    row: dict[str, object] = {
        "device": candidate.device.key,
        "batch": candidate.batch,
        "meets_targets": candidate.meets_targets,
        "decided_by": candidate.decided_by,
        "devices": candidate.devices,
        "cost_per_hour": candidate.cost_per_hour,
        "cost_per_thousand_pages": candidate.cost_per_thousand,
        "peak_bytes": candidate.fit.memory.peak_bytes,
        "usable_bytes": candidate.fit.usable_bytes,
    }
    if performance is not None:
        row |= {
            "continuous": performance.continuous,
            "seconds_per_page": _seconds(performance.page),
            "pages_per_day_per_device": performance.pages_per_day,
            "ttft": _seconds(performance.ttft),
            "tpot": _seconds(performance.tpot),
            "method": performance.prediction.method,
        }
    return row


def _seconds(time: Time | None) -> dict[str, float | None] | None:
    return None if time is None else {"seconds": time.seconds, "p10": time.p10, "p90": time.p90}


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Yield aligned lines, the last column at the left and without padding."""
    widths = [max(len(row[index]) for row in (columns, *rows)) for index in range(len(columns))]
    for row in (columns, *rows):
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
