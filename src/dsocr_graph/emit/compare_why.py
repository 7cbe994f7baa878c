"""What changed and why, as Markdown: a line for each part of a change, largest first, with its reasons below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dsocr_graph.emit.compare_cells import difference, figure, percent, share_of_change, why
from modelmeter.compare import Change, Metric, Reason
from modelmeter.compare.changes import Changes
from modelmeter.costs import Number

SHOWN_CHANGES = 12
"""Lines of "what changed and why", the largest; the JSON has all."""

SHOWN_REASONS = 6
"""Reasons of one line."""

SMALL_CHANGE = 1e-3
"""Of the largest part's change: parts that changed less are summed up."""

SMALL_EFFECT = 0.02
"""Of a part's largest effect: reasons that add less are summed up."""


def changes_text(changes: Changes, first: str, lines: int, legend: Mapping[str, str]) -> Iterator[str]:
    """Yield the section on one change: its causes in all, then its parts with their reasons.

    Parameters
    ----------
    changes : Changes
    first : str
        The label of the first side.
    lines : int
        Most parts that are shown; the rest is summed up in one more line.
    legend : mapping of str to str
        What the dims are.
    """
    metric = changes.metric
    yield f"## What changed and why: {metric.value} of {changes.label}"
    before, after = (figure(metric, value) for value in (changes.before, changes.after))
    if not changes.entries:
        yield f"Nothing: {before} as in {first}, in every part."
        return
    yield (
        f"From {before} ({first}) to {after} ({changes.label}), {percent(changes.before, changes.after)}. Each line "
        "says how much of that it explains; a negative share works against it, and all lines add up to 100 %."
    )
    if changes.causes:
        yield (
            f"In all: {'; '.join(why(cause, metric) for cause in changes.causes)}. Each effect is that of one cause "
            "after the other changed, first what runs; the rest is told apart by stage and kind of operator."
            + _dims(changes, legend)
        )
    yield "\n".join(_lines(changes, lines))


def _dims(changes: Changes, legend: Mapping[str, str]) -> str:
    """Return a sentence on the dims that the causes name; their means are over all executions of a stage."""
    words = {word for cause in changes.causes if cause.of_all for word in cause.text.split()}
    named = [f"{dim}: {text}" for dim, text in legend.items() if dim in words]
    return f" Means are over executions; {'; '.join(named)}." if named else ""


def _lines(changes: Changes, lines: int) -> Iterator[str]:
    enough = abs(changes.entries[0].difference) * SMALL_CHANGE
    count = min(lines, sum(abs(entry.difference) >= enough for entry in changes.entries))
    shown, rest = changes.entries[:count], changes.entries[count:]
    for rank, entry in enumerate(shown, 1):
        shown_reasons, summed_up = _shown(entry.reasons)
        alone = shown_reasons[0] if len(shown_reasons) == 1 and not summed_up else None
        said = [_amounts(entry.before, entry.after, changes), *_work(entry), *([] if alone is None else [alone.text])]
        yield f"{rank}. **{entry.name}**: {'; '.join(said)}"
        if alone is None:
            yield from _bullets(shown_reasons, summed_up, changes.metric, depth=1)
        else:  # its effect is that of the part
            yield from _bullets(*_shown(alone.parts), changes.metric, depth=1)
    if rest:
        sums = sum(entry.before for entry in rest), sum(entry.after for entry in rest)
        parts = "smaller part" if len(rest) == 1 else "smaller parts together"
        yield f"{count + 1}. {len(rest)} {parts}: {_amounts(*sums, changes)}"


def _amounts(before: Number, after: Number, changes: Changes) -> str:
    metric, share = changes.metric, share_of_change(after - before, changes.difference)
    return (
        f"{difference(metric, before, after)}, {share} of the change "
        f"({figure(metric, before)} → {figure(metric, after)})"
    )


def _work(entry: Change) -> list[str]:
    moved = [f"{metric.value} {percent(*pair)}" for metric, pair in entry.work.items() if pair[0] != pair[1]]
    return [", ".join(moved)] if moved else []


def _shown(reasons: Sequence[Reason]) -> tuple[list[Reason], list[Reason]]:
    """Return the reasons with the largest effects, in their order, and those that are summed up."""
    enough = max((abs(reason.effect or 0) for reason in reasons), default=0) * SMALL_EFFECT
    worth = [reason for reason in reasons if reason.effect is None or abs(reason.effect) >= enough]
    largest = sorted(worth, key=lambda reason: -abs(reason.effect or 0))[:SHOWN_REASONS]
    shown = [reason for reason in reasons if reason in largest]
    return shown, [reason for reason in reasons if reason not in largest]


def _bullets(shown: Sequence[Reason], summed_up: Sequence[Reason], metric: Metric, *, depth: int) -> Iterator[str]:
    """Yield a line for each reason, its effect before it, and below it one for each thing that it consists of."""
    indent = "    " * depth
    for reason in shown:
        effect = "" if reason.effect is None else f"{difference(metric, 0, reason.effect)}: "
        yield f"{indent}- {effect}{reason.text if effect else why(reason, metric)}"
        yield from _bullets(*_shown(reason.parts), metric, depth=depth + 1)
    if summed_up:
        effect = sum(reason.effect or 0 for reason in summed_up)
        yield f"{indent}- {f'{difference(metric, 0, effect)}: ' if effect else ''}{len(summed_up)} more"
