"""Cells of the report's tables: amounts of work with their shares, times, intervals and what bounds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dsocr_graph.emit.markdown_table import share, shares, table
from dsocr_graph.emit.predicted import has_interval
from modelmeter.costs import TIME_NAMES, Amount, Number, Time
from modelmeter.units import format_bytes, format_flops, format_seconds


def weight_of(amount: Amount) -> Number:
    """Return what amounts are ranked by: time, or traffic where there is no device."""
    return amount.cost.bytes if amount.time is None else amount.time.seconds


def seconds_of(amount: Amount) -> float:
    """Return the time of an amount; none where there is no device."""
    return amount.time.seconds if amount.time is not None else 0.0


def counted(count: int, noun: str) -> str:
    """Return a count with its noun.

    Examples
    --------
    >>> counted(1, "document"), counted(1200, "document")
    ('1 document', '1,200 documents')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def amount_table(title: str, amounts: Mapping[str, Amount]) -> str:
    """Return a table of the parts of a whole, largest first, with a row for their sum."""
    ordered = sorted(amounts.items(), key=lambda entry: (-weight_of(entry[1]), entry[0]))
    parts = [amount for _, amount in ordered]
    total = sum(parts, Amount())
    percentages = [
        shares([part.cost.flops for part in parts]),
        shares([part.cost.bytes for part in parts]),
        shares([seconds_of(part) for part in parts]),
    ]
    rows = [
        amount_row(name, amount, [column[index] for column in percentages], total)
        for index, (name, amount) in enumerate(ordered)
    ]
    rows.append(amount_row("**all**", total, shares_of(total, total), total))
    return table([title, *amount_header(total)], rows)


def shares_of(part: Amount, total: Amount) -> list[str]:
    """Return the shares of FLOPs, bytes and time that a part has, each by itself."""
    return [
        share(part.cost.flops, total.cost.flops),
        share(part.cost.bytes, total.cost.bytes),
        share(seconds_of(part), seconds_of(total)),
    ]


def amount_header(total: Amount) -> list[str]:
    """Return the titles of the columns that `amount_row` fills; `total` says whether there are times and intervals."""
    header = ["calls", "FLOPs", "%", "bytes", "%", "fused bytes", "FLOP/byte"]
    if total.time is None:
        return header
    return [*header, "time", "%", *(["p10 to p90"] if has_interval(total) else []), "bound by"]


def amount_row(name: str, amount: Amount, percentages: Sequence[str], total: Amount) -> list[str]:
    """Return the cells of an amount that is part of a total."""
    flops, moved, timed = percentages
    cost, time = amount.cost, amount.time
    row = [
        name,
        f"{cost.calls:,}",
        format_flops(cost.flops),
        flops,
        format_bytes(cost.bytes),
        moved,
        format_bytes(cost.fused_bytes),
        intensity(amount),
    ]
    if time is not None:
        row += [format_seconds(time.seconds), timed]
        row += [interval(time)] if has_interval(total) else []
        row.append(bound(time))
    return row


def interval(time: Time) -> str:
    """Write the 10th and the 90th percentile of a time.

    Examples
    --------
    >>> interval(Time(memory=2.0, interval=(1.5, 2.75))), interval(Time(memory=2.0))
    ('1.50 s to 2.75 s', '-')
    """
    if time.p10 is None or time.p90 is None:
        return "-"
    return f"{format_seconds(time.p10)} to {format_seconds(time.p90)}"


def intensity(amount: Amount) -> str:
    """Write FLOPs per byte of unfused traffic.

    Examples
    --------
    >>> from modelmeter.costs import Cost
    >>> intensity(Amount(cost=Cost(matmul_flops=300, bytes=2)))
    '150'
    """
    if not amount.cost.bytes or not amount.cost.flops:
        return "-"
    return format_significant(amount.cost.flops / amount.cost.bytes)


def format_significant(value: float) -> str:
    """Write a number with three significant digits and no exponent.

    Examples
    --------
    >>> format_significant(0.876), format_significant(1234.5), format_significant(12.0)
    ('0.876', '1,234', '12.0')
    """
    return f"{value:,.0f}" if value >= 999.5 else f"{value:#.3g}".rstrip(".")


def bound(time: Time) -> str:
    """Write what bounds most of the time, and how much of it.

    Examples
    --------
    >>> bound(Time(memory=1.0, host=3.0)), bound(Time())
    ('host 75%', '-')
    """
    if not time.seconds:
        return "-"
    parts = {name.replace("_", " "): getattr(time, name) for name in TIME_NAMES}
    return f"{time.bound_by} {parts[time.bound_by] / time.seconds:.0%}"
