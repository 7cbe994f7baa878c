"""trace.json: valid Trace Event Format, slices that nest, the same modules on both tracks, times by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelmeter
from dsocr_graph.emit.module_calls import module_calls
from dsocr_graph.emit.trace import (
    BETWEEN,
    MEASURED,
    PREDICTED,
    Execution,
    Lane,
    Track,
    measured_track,
    predicted_track,
    to_trace,
)
from modelmeter.predict.timeline import CallTime

BLOCK = "model.layers.[0-1]"
SIZES = {"B": 2, "S": 5}


def _events(text: str) -> list[dict[str, Any]]:
    """Return the events of a trace, each checked against the Trace Event Format."""
    document = json.loads(text)
    assert document["displayTimeUnit"] in {"ms", "ns"}
    for event in document["traceEvents"]:
        assert event["ph"] in {"X", "M"}
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            assert event["name"] in {"process_name", "process_sort_index", "thread_name", "thread_sort_index"}
            assert event["args"].keys() == {"name" if event["name"].endswith("_name") else "sort_index"}
        else:
            assert event["ts"] >= 0
            assert event["dur"] > 0
            assert isinstance(event["cat"], str)
    return document["traceEvents"]


def _slices(events: Sequence[dict[str, Any]], process: int, thread: int) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X" and (event["pid"], event["tid"]) == (process, thread)]


def _check_nesting(slices: Sequence[dict[str, Any]]) -> None:
    """Each slice begins after the one before it in the file, and lies in it or after it."""
    opened: list[int] = []  # ends
    now = 0
    for event in slices:
        begin, end = round(event["ts"] * 1000), round((event["ts"] + event["dur"]) * 1000)
        assert begin >= now
        while opened and opened[-1] <= begin:
            opened.pop()
        assert not opened or end <= opened[-1], event
        opened.append(end)
        now = begin


def _stack(slices: Sequence[dict[str, Any]], name: str) -> list[list[str]]:
    """Return what each slice of a name lies in, outermost first."""
    found: list[list[str]] = []
    opened: list[tuple[float, str]] = []
    for event in slices:
        while opened and opened[-1][0] <= event["ts"]:
            opened.pop()
        if event["name"] == name:
            found.append([outer for _, outer in opened])
        opened.append((event["ts"] + event["dur"], event["name"]))
    return found


def _on_cpu(toy: ModuleType, measured: Sequence[float] = (0.25, 1.0, 2.0, 0.25, 1.0, 2.0, 0.25, 3.0, 4.0)) -> Execution:
    calls = toy.ToyClock().calls(toy.scheduled_toy_model(), "prefill", SIZES)
    tracks = (predicted_track(calls, [Lane.CPU], 14.5), measured_track(measured, Lane.CPU, 16.0))
    return Execution(stage="prefill", bindings=SIZES, tracks=tracks)


def test_calls_lie_in_the_modules_that_run_them(toy: ModuleType) -> None:
    """Each of the two layers is a slice of its own, with its product inside; all is inside the execution."""
    slices = _slices(_events(to_trace(toy.scheduled_toy_model(), [_on_cpu(toy)])), PREDICTED, 3)
    _check_nesting(slices)
    assert _stack(slices, "aten::linear") == [
        ["prefill B=2 S=5", "Toy", "model", BLOCK, f"{BLOCK}.up"],
        ["prefill B=2 S=5", "Toy", "model", BLOCK, f"{BLOCK}.up"],
        ["prefill B=2 S=5", "Toy", "lm_head"],
    ]
    assert [(event["ts"], event["dur"]) for event in slices if event["name"] == BLOCK] == [(0.5e6, 3e6), (4e6, 3e6)]
    assert Counter(event["cat"] for event in slices)["module"] == 10


def test_an_operator_says_what_it_is(toy: ModuleType) -> None:
    """The first product runs from 0.5 s to 1.5 s; its arguments tell leaf, category, seconds and what bounds it."""
    slices = _slices(_events(to_trace(toy.scheduled_toy_model(), [_on_cpu(toy)])), PREDICTED, 3)
    first = next(event for event in slices if event["name"] == "aten::linear")
    assert (first["ts"], first["dur"], first["cat"]) == (500_000, 1_000_000, "linear")
    assert first["args"] == {
        "leaf": f"{BLOCK}.up/prefill.linear",
        "category": "linear",
        "seconds": 1.0,
        "bound by": "matrix units",
    }
    view = next(event for event in slices if event["name"] == "aten::view")
    assert view["args"] == {"leaf": "model/aten::view", "category": "host", "seconds": 0.5, "bound by": "host"}


def test_both_tracks_have_the_same_modules(toy: ModuleType) -> None:
    """What is between measured calls is drawn at the end: 16 - 13.75 = 2.25 s."""
    events = _events(to_trace(toy.scheduled_toy_model(), [_on_cpu(toy)]))
    predicted, measured = (
        [event["name"] for event in _slices(events, process, 3) if event["cat"] == "module"]
        for process in (PREDICTED, MEASURED)
    )
    assert predicted == measured
    between = [event for event in events if event["name"] == BETWEEN]
    assert [(event["pid"], event["ts"], event["dur"]) for event in between] == [(MEASURED, 13.75e6, 2.25e6)]
    names = {
        (event["pid"], event["args"]["name"]) for event in events if event["name"] in {"process_name", "thread_name"}
    }
    assert names == {(PREDICTED, "predicted"), (PREDICTED, "cpu"), (MEASURED, "measured"), (MEASURED, "cpu")}


def _on_gpu(schedule: Sequence[int]) -> list[CallTime]:
    """Return calls that each take the host 1 us, and the device 4 us from 3 us on; the third is a view."""
    return [
        CallTime(
            begin=3e-6 + 4e-6 * index,
            seconds=4e-6,
            host_begin=1e-6 * index,
            host_seconds=1e-6,
            device_seconds=0.0 if position == 4 else 4e-6,
        )
        for index, position in enumerate(schedule)
    ]


def test_a_gpu_has_a_host_and_a_device(toy: ModuleType) -> None:
    """The host runs ahead; views are on the host only; a module's slice on the device spans its kernels."""
    track = predicted_track(_on_gpu(toy.SCHEDULES["prefill"]), [Lane.HOST, Lane.DEVICE], 40e-6)
    execution = Execution(stage="prefill", bindings=SIZES, tracks=(track,))
    events = _events(to_trace(toy.scheduled_toy_model(), [execution]))
    host, device = _slices(events, PREDICTED, 1), _slices(events, PREDICTED, 2)
    for lane in (host, device):
        _check_nesting(lane)
    assert [event["ts"] for event in host if event["name"] == "aten::view"] == [0, 3, 6]
    assert not [event for event in device if event["name"] == "aten::view"]
    # the first layer's kernels are the second and third calls: 3 + 4 us to 3 + 12 us
    assert [(event["ts"], event["dur"]) for event in device if event["name"] == BLOCK] == [(7, 8), (19, 8)]
    assert not [event for event in events if event["pid"] == MEASURED]


def test_executions_follow_one_another(toy: ModuleType) -> None:
    """The second begins after the longer track of the first, on both tracks: 16 s and 2 %."""
    model = toy.scheduled_toy_model()
    decode = Execution(
        stage="decode",
        bindings={"B": 2, "T": 5},
        tracks=(
            predicted_track(toy.ToyClock().calls(model, "decode", {}), [Lane.CPU], 8.0),
            measured_track((), Lane.CPU, 9.0),
        ),
    )
    events = _events(to_trace(model, [_on_cpu(toy), decode]))
    begins = [(event["pid"], event["ts"]) for event in events if event["name"] == "decode B=2 T=5"]
    assert begins == [(PREDICTED, 16.32e6), (MEASURED, 16.32e6)]
    # only the whole of it was timed
    assert [event["name"] for event in _slices(events, MEASURED, 3)][-2:] == ["decode B=2 T=5", BETWEEN]
    for process in (PREDICTED, MEASURED):
        _check_nesting(_slices(events, process, 3))


def test_equal_arguments_give_equal_text(toy: ModuleType) -> None:
    """Nothing depends on when it was written; an event is a line."""
    one, two = (to_trace(toy.scheduled_toy_model(), [_on_cpu(toy)]) for _ in range(2))
    assert one == two
    assert len(one.splitlines()) == len(_events(one)) + 2


def test_a_track_needs_a_slot_per_call(toy: ModuleType) -> None:
    """Eight measured calls are not those of a schedule of nine."""
    with pytest.raises(ValueError, match="lane cpu of stage prefill has 8 calls, its schedule 9"):
        to_trace(toy.scheduled_toy_model(), [_on_cpu(toy, (1.0,) * 8)])


@given(st.lists(st.floats(0, 1e-3), min_size=9, max_size=9), st.floats(0, 1e-2))
def test_slices_nest_whatever_was_measured(toy: ModuleType, calls: list[float], whole: float) -> None:
    """Law: on rounding to nanoseconds no slice leaves the one around it, and none is negative."""
    track: Track = measured_track(calls, Lane.CPU, whole)
    execution = Execution(stage="prefill", bindings=SIZES, tracks=(track,))
    document = json.loads(to_trace(toy.scheduled_toy_model(), [execution]))
    _check_nesting([event for event in document["traceEvents"] if event["ph"] == "X"])


@pytest.mark.parametrize("stage", ["vision_global", "vision_local", "prefill", "decode"])
def test_every_call_of_a_module_is_a_slice(stage: str) -> None:
    """Law: the order of operators gives back how often the captured model called each module."""
    model = modelmeter.load("deepseek-ocr")
    (found,) = [each for each in model.stages if each.name == stage]
    counted = Counter(call.module for call in module_calls(model, found))
    called = {node.id: node.calls[stage] for node in model.modules if stage in node.calls}
    assert called
    assert {module: counted[module] for module in called} == called
