"""The table that the command line prints of a measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from modelmeter import units
from modelmeter.measurement import CallCount, Measurement, StageMeasurement

OVER_ATTRIBUTED = (
    "above 100 % timing call by call costs more than it attributes, or the run beside it was the faster one"
)
"""What a share of attributed time says that is more than all of it."""

_COLUMNS = ("stage", "sizes", "runs", "CPU", "wall", "spread", "in calls", "peak", "model's peak")


def to_table(measurement: Measurement, expected_peaks: Sequence[int]) -> str:
    """Return a measurement as text: a row per stage, then what the hooks counted.

    Times are medians. The spread is that of the runs, half the distance of the quartiles over the median; "in calls" is
    what the calls take, timed one by one, over a run, above 100 % where the timing costs more or the run was the faster
    one; peaks are beyond weights and inputs.

    Parameters
    ----------
    measurement : Measurement
        What was measured.
    expected_peaks : sequence of int
        By the analytic model, of each stage of the measurement. Unit: bytes.

    Examples
    --------
    >>> from modelmeter.machine import Machine
    >>> machine = Machine(kind="cpu", device="a CPU", driver="", memory_bytes=1, threads=1, torch="2.13.0")
    >>> decode = StageMeasurement(
    ...     stage="decode", bindings={"B": 1}, warmups=1, wall_seconds=(2.0,), cpu_seconds=(1.0,), peak_bytes=1000
    ... )
    >>> toy = Measurement(
    ...     machine=machine, date="2026-11-25", model="toy", variant={}, weights="random", stages=(decode,)
    ... )
    >>> print(to_table(toy, [1000]))
    toy on a CPU, 1 thread, torch 2.13.0, random weights
    <BLANKLINE>
    stage   sizes  runs     CPU    wall  spread  in calls     peak     model's peak
    decode  B=1       1  1.00 s  2.00 s    0.0%         -  1.00 kB  1.00 kB (+0.0%)
    """
    machine = measurement.machine
    threads = f", {machine.threads} thread{'s' if machine.threads > 1 else ''}" if machine.kind == "cpu" else ""
    rows = [_COLUMNS, *(_row(stage, peak) for stage, peak in zip(measurement.stages, expected_peaks, strict=True))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(
        [
            f"{measurement.model} on {machine.device}{threads}, torch {machine.torch}, {measurement.weights} weights",
            "",
            *("  ".join(_aligned(row, widths)).rstrip() for row in rows),
            *(["", f"in calls: {OVER_ATTRIBUTED}"] if any(map(_is_over, measurement.stages)) else []),
            *_calls(measurement),
        ]
    )


def _row(stage: StageMeasurement, expected_peak: int) -> tuple[str, ...]:
    return (
        stage.stage,
        ", ".join(f"{name}={size}" for name, size in stage.bindings.items()),
        str(len(stage.wall_seconds)),
        units.format_seconds(median(stage.cpu_seconds)) if stage.cpu_seconds else "-",
        units.format_seconds(median(stage.wall_seconds)),
        f"{stage.spread:.1%}",
        f"{stage.attributed:.1%}" if stage.call_seconds else "-",
        "-" if stage.peak_bytes is None else units.format_bytes(stage.peak_bytes),
        f"{units.format_bytes(expected_peak)} ({_deviation(expected_peak, stage.peak_bytes)})",
    )


def _is_over(stage: StageMeasurement) -> bool:
    return bool(stage.call_seconds) and stage.attributed > 1


def _deviation(expected: int, measured: int | None) -> str:
    return f"{expected / measured - 1:+.1%}" if measured else "nothing measured"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """Yield the cells padded: names to the left, numbers to the right."""
    for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if column < 2 else cell.rjust(width)


def _calls(measurement: Measurement) -> Iterator[str]:
    if not measurement.calls:
        return
    miscounted = measurement.miscounted
    agreeing = len(measurement.calls) - len(miscounted)
    yield ""
    yield f"calls of modules: {agreeing:,} of {len(measurement.calls):,} counts as in the graph" + (
        ", but for" if miscounted else ""
    )
    for count in miscounted:
        module = count.module or "(root)"
        yield f"  {count.stage} {module}: called {count.counted}, in the graph {count.expected}: {reason(count)}"


def reason(count: CallCount) -> str:
    """Return why hooks may have counted other calls of a module than the graph has.

    Examples
    --------
    >>> reason(CallCount(stage="vision_global", module="", counted=0, expected=1))
    'its methods run without a call of the module, which no hook sees'
    """
    if not count.counted:
        return "its methods run without a call of the module, which no hook sees"
    if not count.expected:
        return "it runs in the loop over experts, which the graph has as one grouped operator"
    return "the graph does not hold for this run"
