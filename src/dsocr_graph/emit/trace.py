"""trace.json: predicted beside measured calls in time, for Perfetto and Chrome; the same module ids on both tracks."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum

from attrs import frozen

from dsocr_graph.emit.module_calls import ModuleCall, module_calls, records_of
from modelmeter.categories import Category
from modelmeter.model import AnalyticModel, FreeOps, Leaf, Stage
from modelmeter.predict.timeline import CallTime

PREDICTED, MEASURED = 1, 2
"""Process ids of the two tracks."""

BETWEEN = "between calls (Python)"
"""Name of what a measured execution takes beyond its timed calls."""

_PROCESSES = {PREDICTED: "predicted", MEASURED: "measured"}
_GAP = 0.02  # between two executions, as a share of the longer track of the one before

Event = Mapping[str, object]


class Lane(StrEnum):
    """A row of a track."""

    HOST = "host"  # operator calls in Python, views included
    DEVICE = "device"  # kernels
    CPU = "cpu"  # calls whose work the host does itself


_THREADS = {Lane.HOST: 1, Lane.DEVICE: 2, Lane.CPU: 3}


@frozen(kw_only=True)
class Slot:
    """When a call runs on a lane, in seconds since the stage began."""

    begin: float
    seconds: float
    arguments: Mapping[str, object]


@frozen(kw_only=True)
class Track:
    """One execution of a stage on one process.

    Attributes
    ----------
    process : int
        `PREDICTED` or `MEASURED`.
    lanes : mapping of Lane to sequence of Slot
        A slot per call of the schedule; those of no length are not drawn.
    seconds : float
        Of the whole execution; what no call takes at its end is drawn as such.
    """

    process: int
    lanes: Mapping[Lane, Sequence[Slot]]
    seconds: float

    @property
    def end(self) -> float:
        """Seconds until the last call is over, and all that follows it."""
        ends = (slot.begin + slot.seconds for slots in self.lanes.values() for slot in slots)
        return max(self.seconds, *ends, 0.0)


@frozen(kw_only=True)
class Execution:
    """One execution of a stage at some sizes, as predicted and as measured; tracks begin together."""

    stage: str
    bindings: Mapping[str, int]
    tracks: tuple[Track, ...]


def predicted_track(calls: Sequence[CallTime], lanes: Iterable[Lane], seconds: float) -> Track:
    """Return the predicted calls of an execution.

    Parameters
    ----------
    calls : sequence of CallTime
        In the order of the schedule.
    lanes : iterable of Lane
        What there is: `Lane.CPU` alone, `Lane.DEVICE` alone where no host takes part, or host and device.
    seconds : float
        Of the whole execution.

    Examples
    --------
    >>> call = CallTime(begin=2e-6, seconds=3e-6, host_begin=0.0, host_seconds=1e-6, device_seconds=2e-6)
    >>> track = predicted_track([call], [Lane.HOST, Lane.DEVICE], 4e-6)
    >>> [(slot.begin, slot.seconds) for slots in track.lanes.values() for slot in slots]
    [(0.0, 1e-06), (2e-06, 2e-06)]
    """

    def slot(call: CallTime, lane: Lane) -> Slot:
        arguments = {"seconds": call.seconds, "bound by": call.bound_by}
        if lane is Lane.HOST:
            return Slot(begin=call.host_begin, seconds=call.host_seconds, arguments=arguments)
        length = call.seconds if lane is Lane.CPU else call.device_seconds
        return Slot(begin=call.begin, seconds=length, arguments=arguments)

    return Track(
        process=PREDICTED, lanes={lane: [slot(call, lane) for call in calls] for lane in lanes}, seconds=seconds
    )


def measured_track(call_seconds: Sequence[float], lane: Lane, seconds: float) -> Track:
    """Return the measured calls of an execution, one after the other: when each began is not measured.

    Parameters
    ----------
    call_seconds : sequence of float
        Scaled to the uninstrumented run, in the order of the schedule
        (`modelmeter.measurement.StageMeasurement.scaled_call_seconds`); empty where only the whole was timed.
    lane : Lane
        `Lane.DEVICE` for a GPU, `Lane.CPU` for a CPU.
    seconds : float
        Of the uninstrumented run.

    Examples
    --------
    >>> track = measured_track([1e-6, 2e-6], Lane.CPU, 4e-6)
    >>> [slot.begin for slot in track.lanes[Lane.CPU]]
    [0.0, 1e-06]
    """
    slots: list[Slot] = []
    now = 0.0
    for length in call_seconds:
        slots.append(Slot(begin=now, seconds=length, arguments={"seconds": length}))
        now += length
    return Track(process=MEASURED, lanes={lane: slots}, seconds=seconds)


def to_trace(model: AnalyticModel, executions: Sequence[Execution]) -> str:
    """Write executions, one after the other, in the Trace Event Format.

    Parameters
    ----------
    model : AnalyticModel
        Whose modules and calls they are.
    executions : sequence of Execution
        In the order in which they are to stand.

    Returns
    -------
    str
        JSON that ui.perfetto.dev and chrome://tracing open; one event a line, equal arguments give equal text. Times
        are microseconds. A call lies in a slice per module that it runs in, outermost first, all in one per execution.

    Raises
    ------
    ValueError
        When a lane has not one slot per call of its stage's schedule.
    """
    events: list[Event] = [*_metadata(executions)]
    start = 0.0  # seconds, of both tracks of an execution
    for execution in executions:
        for track in execution.tracks:
            for lane in track.lanes:
                events += _lane_events(model, execution, track=track, lane=lane, start=start)
        start += max((track.end for track in execution.tracks), default=0.0) * (1 + _GAP)
    lines = ",\n".join(json.dumps(event, ensure_ascii=False, allow_nan=False) for event in events)
    about = json.dumps({"model": model.name, **dict(sorted(model.variant.items()))}, ensure_ascii=False)
    return f'{{"displayTimeUnit": "ms", "otherData": {about}, "traceEvents": [\n{lines}\n]}}\n'


def _metadata(executions: Sequence[Execution]) -> Iterator[Event]:
    lanes = {(track.process, lane) for execution in executions for track in execution.tracks for lane in track.lanes}
    for process, name in _PROCESSES.items():
        threads = [lane for lane in Lane if (process, lane) in lanes]
        if not threads:
            continue
        yield {"ph": "M", "pid": process, "tid": 0, "name": "process_name", "args": {"name": name}}
        yield {"ph": "M", "pid": process, "tid": 0, "name": "process_sort_index", "args": {"sort_index": process}}
        for lane in threads:
            ids = {"ph": "M", "pid": process, "tid": _THREADS[lane]}
            yield {**ids, "name": "thread_name", "args": {"name": lane.value}}
            yield {**ids, "name": "thread_sort_index", "args": {"sort_index": _THREADS[lane]}}


# --- one lane

_Span = tuple[int, int]
"""Begin and end in nanoseconds since the trace began: whole, so that slices nest exactly."""


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _drawn(slots: Sequence[Slot], start: float) -> dict[int, _Span]:
    """Return the spans of the calls that take any time on a lane, by their position; they do not overlap."""
    spans: dict[int, _Span] = {}
    now = 0
    for position, slot in enumerate(slots):
        begin = max(now, _nanoseconds(start + slot.begin))
        end = _nanoseconds(start + slot.begin + slot.seconds)
        if end > begin:
            spans[position] = (begin, end)
            now = end
    return spans


def _lane_events(
    model: AnalyticModel, execution: Execution, *, track: Track, lane: Lane, start: float
) -> Iterator[Event]:
    """Yield the execution, then modules and calls in the order in which they begin, outer ones first."""
    stage = model.stage(execution.stage)
    slots = track.lanes[lane]
    if slots and len(slots) != len(stage.schedule):
        raise ValueError(
            f"lane {lane.value} of stage {stage.name} has {len(slots):,} calls, its schedule {len(stage.schedule):,}"
        )
    spans = _drawn(slots, start)
    ids = {"ph": "X", "pid": track.process, "tid": _THREADS[lane]}
    begin = _nanoseconds(start)
    calls_end = max((end for _, end in spans.values()), default=begin)
    end = max(calls_end, _nanoseconds(start + track.seconds))
    sizes = "".join(f" {dim}={size}" for dim, size in sorted(execution.bindings.items()))
    yield {**ids, "name": stage.name + sizes, "cat": "stage", **_times((begin, end)), "args": dict(execution.bindings)}
    yield from ({**ids, **slice_} for slice_ in _slices(model, stage, slots, spans))
    if track.process == MEASURED and end > calls_end:
        yield {**ids, "name": BETWEEN, "cat": Category.HOST.value, **_times((calls_end, end)), "args": {}}


def _slices(model: AnalyticModel, stage: Stage, slots: Sequence[Slot], spans: Mapping[int, _Span]) -> Iterator[Event]:
    records = records_of(model, stage)
    classes = {node.id: node.class_name for node in model.modules}
    entered: dict[int, list[ModuleCall]] = {}
    for call in module_calls(model, stage):
        entered.setdefault(call.first, []).append(call)
    positions = sorted(spans)
    for index, position in enumerate(stage.schedule):
        for call in entered.get(index, ()):
            span = _span_of(call, positions, spans)
            if span is not None:
                yield {
                    "name": call.module or classes[call.module],
                    "cat": "module",
                    **_times(span),
                    "args": {"module": call.module, "class": classes[call.module]},
                }
        if index in spans:
            record = records[position]
            yield {
                "name": record.op,
                "cat": _category(record).value,
                **_times(spans[index]),
                "args": {
                    "leaf": record.id if isinstance(record, Leaf) else f"{record.module}/{record.op}",
                    "category": _category(record).value,
                    **slots[index].arguments,
                },
            }


def _span_of(call: ModuleCall, positions: Sequence[int], spans: Mapping[int, _Span]) -> _Span | None:
    """Return from where to where a module call's drawn calls run; None when none of them is drawn."""
    inside = positions[bisect_left(positions, call.first) : bisect_right(positions, call.last)]
    return (spans[inside[0]][0], spans[inside[-1]][1]) if inside else None


def _category(record: Leaf | FreeOps) -> Category:
    return record.category if isinstance(record, Leaf) else Category.HOST


def _times(span: _Span) -> dict[str, float]:
    """Return begin and length in microseconds, as the format has them."""
    begin, end = span
    return {"ts": begin / 1000, "dur": (end - begin) / 1000}
