"""Cells of comparisons: a figure in the unit that its metric is read in, changes with their sign, percentages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from modelmeter.compare import Metric, Reason
from modelmeter.units import format_binary_bytes, format_bytes, format_count, format_flops, format_seconds

NOTHING = "-"
"""What a side without the part or the figure has."""

_ROUNDING = 1e-12

_MEMORY = (Metric.WEIGHT_BYTES, Metric.MEMORY, Metric.LOAD_MEMORY, Metric.KV_PER_TOKEN)


def figure(metric: Metric, value: float | None) -> str:
    """Write a figure; memory in binary units, traffic in SI units.

    Examples
    --------
    >>> figure(Metric.MEMORY, 2**31), figure(Metric.BYTES, 2**31), figure(Metric.TIME, None)
    ('2.00 GiB', '2.15 GB', '-')
    """
    return NOTHING if value is None else _format(metric)(value)


def difference(metric: Metric, before: float | None, after: float | None) -> str:
    """Write a change with its sign; a part that a side does not have counts as nothing.

    Examples
    --------
    >>> difference(Metric.FLOPS, 2e9, 5e8), difference(Metric.FLOPS, None, 5e8), difference(Metric.FLOPS, 1, 1)
    ('-1.50 GFLOP', '+500 MFLOP', '=')
    >>> difference(Metric.TIME, 0.3, 0.1 + 0.2)
    '='
    """
    if _same(before, after):
        return "="
    change = (after or 0) - (before or 0)
    return ("+" if change > 0 else "") + _format(metric)(change)


def why(reason: Reason, metric: Metric) -> str:
    """Write a reason and what it adds to the change of a metric; where that is not known, which way it works.

    Examples
    --------
    >>> why(Reason(text="decode T 10 → 20", effect=2e-3), Metric.TIME), why(Reason(text="heads 8 → 4"), Metric.TIME)
    ('decode T 10 → 20 (+2.00 ms)', 'heads 8 → 4')
    >>> parts = (Reason(text="linear calls 2 → 1", effect=-1), Reason(text="mm calls 0 → 1", effect=3))
    >>> why(Reason(text="kernel a → b", effect=2, parts=parts), Metric.FLOPS)
    'kernel a → b (+2 FLOP: linear calls 2 → 1 (-1 FLOP), mm calls 0 → 1 (+3 FLOP))'
    >>> why(Reason(text="decode executions 3 → 2", raises=False), Metric.TIME)
    'decode executions 3 → 2 (lowers)'
    """
    if reason.effect is None:
        way = "" if reason.raises is None else " (raises)" if reason.raises else " (lowers)"
        return f"{reason.text}{way}"
    parts = f": {', '.join(why(part, metric) for part in reason.parts)}" if reason.parts else ""
    return f"{reason.text} ({difference(metric, 0, reason.effect)}{parts})"


def fit_lines(missing: Iterable[tuple[str, str | None]]) -> Iterator[str]:
    """Yield a line for each label that does not fit its device, with what it lacks in memory.

    Examples
    --------
    >>> list(fit_lines([("a", None), ("b", "it needs 1.34 TB, NVIDIA H200 has 151 GB")]))
    ['**b does not fit**: it needs 1.34 TB, NVIDIA H200 has 151 GB.']
    """
    for label, text in missing:
        if text is not None:
            yield f"**{label} does not fit**: {text}."


def percent(before: float | None, after: float | None) -> str:
    """Write a change in percent of what it was.

    Examples
    --------
    >>> percent(8, 10), percent(8, 8), percent(0, 3), percent(3, None), percent(10_000, 10_001), percent(1, 12.34)
    ('+25.0 %', '=', 'new', 'gone', '+<0.1 %', '+1,134 %')
    """
    if _same(before, after):
        return "="
    if not before:
        return "new"
    if not after:
        return "gone"
    change = (after - before) / before * 100
    if abs(change) < 0.05:  # rounds to 0.0
        return "+<0.1 %" if change > 0 else "-<0.1 %"
    return f"{change:+,.0f} %" if abs(change) >= 1000 else f"{change:+,.1f} %"


def share_of_change(part: float, whole: float) -> str:
    """Write how much of a change a part explains; negative where it works against it.

    Examples
    --------
    >>> share_of_change(-3, -4), share_of_change(1, -4), share_of_change(1, 0), share_of_change(-1, 10_000)
    ('75.0 %', '-25.0 %', '-', '-<0.1 %')
    """
    if not whole:
        return NOTHING
    share = part / whole * 100
    if part and abs(share) < 0.05:  # rounds to 0.0
        return "<0.1 %" if share > 0 else "-<0.1 %"
    return f"{share:,.1f} %"


def _same(before: float | None, after: float | None) -> bool:
    """Whether two figures are the same but for the rounding of sums in another order."""
    return math.isclose(before or 0, after or 0, rel_tol=_ROUNDING)


def _format(metric: Metric) -> Callable[[float], str]:
    if metric in _MEMORY:
        return format_binary_bytes
    return {
        Metric.FLOPS: format_flops,
        Metric.BYTES: format_bytes,
        Metric.FUSED_BYTES: format_bytes,
        Metric.TIME: format_seconds,
        Metric.TTFT: format_seconds,
        Metric.TPOT: format_seconds,
    }.get(metric, format_count)
