"""The section of report.md on predicted times: by stage, as serving figures, and where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from dsocr_graph.emit.markdown_amounts import bound, format_significant, interval
from dsocr_graph.emit.markdown_table import share, shares, table
from dsocr_graph.emit.predicted import is_bound
from modelmeter.costs import TIME_NAMES, Time
from modelmeter.predict.kernel_time import Method, SourceShare
from modelmeter.predict.time_model import PredictionFacts
from modelmeter.reports import Report
from modelmeter.reports.serving import Rate, Serving, serving_of
from modelmeter.units import format_seconds

_RUNTIMES: Mapping[str, str] = {
    "eager": "PyTorch runs the model call by call from Python",
    "cudagraph": "kernels run back to back from a CUDA graph",
    "engine": "an inference engine runs fused kernels from CUDA graphs",
    "none": "kernels only",
}
_METHODS: Mapping[Method, str] = {
    Method.EXACT: "this very call was measured",
    Method.BRACKET: "between two measured sizes of the same call",
    Method.BLEND: "by the efficiency of the nearest measured calls of its kind",
    Method.HOLD: "beyond the measured sizes, at the efficiency of the last",
    Method.PHYSICAL: "from the device's rates; nothing like it was measured",
}


def time_sections(report: Report, statement: Sequence[SourceShare] = ()) -> Iterable[str]:
    """Yield the section on predicted times, as Markdown; nothing where a report has none.

    Parameters
    ----------
    report : Report
        A bound by a datasheet is no prediction.
    statement : sequence of SourceShare
        How the kernels' times were found.
    """
    prediction, total = report.prediction, report.total.total.time
    if prediction is None or total is None or is_bound(prediction):
        return
    yield "## Predicted time"
    ends = "" if total.p10 is None else f", {interval(total)} from p10 to p90"
    yield (
        f"**{format_seconds(total.seconds)}**{ends}, bound by {bound(total)}, on {prediction.device.name} with the "
        f"runtime `{prediction.runtime}`: {_RUNTIMES.get(prediction.runtime, 'as its name says')}."
    )
    yield "### Time by stage"
    yield _stages(report, total)
    yield "Mean of one execution:"
    yield _executions(report)
    served = serving_of(report)
    if served:
        yield "### Serving"
        yield (
            "Batches run one after the other. TTFT: until the first token of every document of a batch, vision and "
            "prefill. TPOT: per output token after the first. Tokens are output tokens over all of the time. In "
            "brackets: p10 to p90. TTFT of all is the mean over documents."
        )
        *pages, whole = served
        yield table(
            ["page", "documents", "TTFT", "TPOT", "s/page", "pages/s", "tokens/s"],
            [*(_serving_row(page.name, page) for page in pages), _serving_row("**all**", whole)],
        )
    yield "### Where the prediction comes from"
    yield from _sources(prediction, statement)


# --- stages


def _stages(report: Report, total: Time) -> str:
    times = {name: amount.time or Time() for name, amount in report.total.stages.items()}
    percentages = shares([time.seconds for time in times.values()])
    rows = [
        [name, f"{report.total.executions[name]:,}", *_time_cells(time), percent, *_bounds(time)]
        for (name, time), percent in zip(times.items(), percentages, strict=True)
    ]
    rows.append(["**all**", "", *_time_cells(total), share(total.seconds, total.seconds), *_bounds(total)])
    bounds = [name.replace("_", " ") for name in TIME_NAMES]
    return table(["stage", "executions", "time", "p10 to p90", "%", *(f"bound by {name}" for name in bounds)], rows)


def _time_cells(time: Time) -> list[str]:
    return [format_seconds(time.seconds), interval(time)]


def _bounds(time: Time) -> list[str]:
    return [share(getattr(time, name), time.seconds) for name in TIME_NAMES]


def _executions(report: Report) -> str:
    rows: list[list[str]] = []
    for name, amount in report.total.stages.items():
        time = (amount.time or Time()) * (1 / report.total.executions[name])
        rows.append([name, *_time_cells(time), bound(time)])
    return table(["stage", "time", "p10 to p90", "bound by"], rows)


# --- serving


def _serving_row(name: str, serving: Serving) -> list[str]:
    return [
        name,
        f"{serving.documents:,}",
        _bracketed(serving.ttft),
        "-" if serving.tpot is None else _bracketed(serving.tpot),
        _bracketed(serving.page),
        _rate(serving.pages_per_second),
        _rate(serving.tokens_per_second),
    ]


def _bracketed(time: Time) -> str:
    return format_seconds(time.seconds) + ("" if time.p10 is None else f" ({interval(time)})")


def _rate(rate: Rate) -> str:
    if rate.p10 is None or rate.p90 is None:
        return format_significant(rate.value)
    return f"{format_significant(rate.value)} ({format_significant(rate.p10)} to {format_significant(rate.p90)})"


# --- sources


def _sources(prediction: PredictionFacts, statement: Sequence[SourceShare]) -> Iterator[str]:
    facts = {"method": prediction.method, "device": prediction.device.name, "runtime": prediction.runtime}
    known = {name: text for name, text in (facts | dict(prediction.source)).items() if text}  # a CPU has no driver
    yield table(["", "of the measurements"], list(known.items()), left=2)
    if not statement:
        return
    methods = [method for method in Method if any(entry.method is method for entry in statement)]
    yield "Predicted time of the kernels by family of operators, and how it was found:"
    yield _statement(statement, methods)
    yield "\n".join(f"- **{method.value}**: {_METHODS[method]}" for method in methods)
    if Method.PHYSICAL in methods:
        unmeasured = sum(entry.seconds for entry in statement if entry.method is Method.PHYSICAL)
        whole = sum(entry.seconds for entry in statement)
        yield f"**{share(unmeasured, whole)} of the kernels' time rests on rates alone, as was asked for.**"


def _statement(statement: Sequence[SourceShare], methods: Sequence[Method]) -> str:
    families: dict[str, dict[Method, float]] = {}
    calls: dict[str, int] = {}
    for entry in statement:
        found = families.setdefault(entry.family, {})
        found[entry.method] = found.get(entry.method, 0.0) + entry.seconds
        calls[entry.family] = calls.get(entry.family, 0) + entry.calls
    whole = sum(entry.seconds for entry in statement)
    ordered = sorted(families, key=lambda family: (-sum(families[family].values()), family))
    percentages = shares([sum(families[family].values()) for family in ordered])
    rows = [
        [
            family,
            f"{calls[family]:,}",
            format_seconds(sum(families[family].values())),
            percent,
            *(share(families[family].get(method, 0.0), whole) for method in methods),
        ]
        for family, percent in zip(ordered, percentages, strict=True)
    ]
    sums = [sum(found.get(method, 0.0) for found in families.values()) for method in methods]
    every = [f"{sum(calls.values()):,}", format_seconds(whole), share(whole, whole), *shares(sums)]
    return table(["family", "calls", "time", "%", *(method.value for method in methods)], [*rows, ["**all**", *every]])
