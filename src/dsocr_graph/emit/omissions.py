"""What a report does not speak of, near its top: stages that were left out and why, and what the model ignores."""

from __future__ import annotations

from collections.abc import Iterator

from modelmeter.reports import Report
from modelmeter.reports.left_out import left_out_stages

_CONSOLE_LINES = 2
"""Lines of a reason on the console: what failed, and in which module; the report has all."""


def omission_sections(report: Report) -> Iterator[str]:
    """Yield as Markdown what a report is without; nothing where it is of all that was asked."""
    without = left_out_stages(report.model.provenance)
    if without:
        yield "## What is left out"
        yield (
            f"**This is a part of the model: without {', '.join(without)}.** What cannot be captured is in no figure "
            "here."
        )
        for stage, reason in without.items():
            yield f"Why without {stage}:"
            yield f"```text\n{reason}\n```"
    ignored = _ignored(report)
    if ignored:
        yield f"The model has no use for {ignored} of the pages: they change nothing here."


def omission_lines(report: Report) -> Iterator[str]:
    """Yield the same as lines for the console, with the beginning of each reason."""
    for stage, reason in left_out_stages(report.model.provenance).items():
        first, *more = [line.strip() for line in reason.splitlines()[:_CONSOLE_LINES]]
        yield f"  PARTIAL    without {stage}, which is in no figure: {first}"
        yield from (f"             {line}" for line in more)
    ignored = _ignored(report)
    if ignored:
        yield f"  ignored    {ignored} of the pages: the model has no use for them"


def _ignored(report: Report) -> str:
    """Return what of the pages' requests the model does not use, each once."""
    noted = [str(item.facts["ignored"]).split(", ") for item in report.items if "ignored" in item.facts]
    return ", ".join(dict.fromkeys(name for names in noted for name in names))
