"""A verification for readers: a Markdown page, and the summary that the command line prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dsocr_graph.emit.markdown_table import code, table
from dsocr_graph.verification.records import (
    Check,
    Decomposition,
    Difference,
    StageVerification,
    Subject,
    UnclassifiedOperator,
    Verification,
)
from modelmeter import units

_UNEXPLAINED = "UNEXPLAINED"


def verification_markdown(verification: Verification, command: str) -> str:
    """Return a page about a verification: a table per stage, every difference, and what captured operators run as.

    Parameters
    ----------
    verification : Verification
        What was compared.
    command : str
        That makes the page.

    Examples
    --------
    >>> parameters = Check(subject=Subject.PARAMETERS, compared=3, unit="modules")
    >>> toy = Verification(model="toy", variant={}, torch="2.13.0", parameters=parameters, stages=())
    >>> print(verification_markdown(toy, "dsocr-graph verify --model toy"))
    # toy: a run beside the captured graph
    <BLANKLINE>
    Made by `dsocr-graph verify --model toy`; torch 2.13.0, random weights, on a CPU. Calls are counted by hooks alone.
    <BLANKLINE>
    0 differences, 0 unexplained.
    <BLANKLINE>
    ## Model
    <BLANKLINE>
    | compared   |     pairs | differ | unexplained |
    | :--------- | --------: | -----: | ----------: |
    | parameters | 3 modules |      0 |           0 |
    <BLANKLINE>
    """
    variant = ", ".join(f"{key} {value}" for key, value in verification.variant.items())
    checks = [verification.parameters, *(check for stage in verification.stages for check in stage.checks)]
    twice = any(check.subject is Subject.TORCHLENS for check in checks)
    parts = [
        f"# {verification.model}{f' ({variant})' if variant else ''}: a run beside the captured graph",
        f"Made by `{command}`; torch {verification.torch}, random weights, on a CPU. "
        f"Calls are counted by hooks {'and by TorchLens' if twice else 'alone'}.",
        f"{sum(len(check.differences) for check in checks):,} differences, "
        f"{len(verification.unexplained):,} unexplained.",
        *_left_out(verification),
        "## Model",
        *_sections([verification.parameters]),
    ]
    for stage in verification.stages:
        parts += _stage(stage)
    return "\n\n".join(parts) + "\n"


def verification_console(verification: Verification) -> str:
    """Return a line per check and stage, and every unexplained difference in full.

    Examples
    --------
    >>> parameters = Check(subject=Subject.PARAMETERS, compared=3, unit="modules")
    >>> print(verification_console(
    ...     Verification(model="toy", variant={}, torch="2.13.0", parameters=parameters, stages=())
    ... ))
    toy: 0 unexplained differences
      parameters                 3 modules                     0 differ    0 unexplained
    """
    lines = [f"{verification.model}: {len(verification.unexplained):,} unexplained differences"]
    lines += [f"  PARTIAL    without {stage}: {_beginning(why)}" for stage, why in verification.left_out.items()]
    lines += [f"  UNCLASSIFIED  {_operator(each)}" for each in verification.unclassified]
    lines += _lines(verification.parameters)
    for stage in verification.stages:
        lines += [
            "",
            _title(stage),
            *(f"  note: {note}" for note in stage.notes),
            *(line for check in stage.checks for line in _lines(check)),
        ]
    return "\n".join(lines)


def _left_out(verification: Verification) -> Iterator[str]:
    """Yield what was not compared: stages without a graph, and the FLOPs of operators without a rule."""
    if verification.left_out:
        yield "## What is left out"
        yield f"**Without {', '.join(verification.left_out)}**: what cannot be captured cannot be compared."
        for stage, reason in verification.left_out.items():
            yield f"Why without {stage}:"
            yield f"```text\n{reason}\n```"
    if verification.unclassified:
        yield "## Operators without a rule"
        yield "The model has the bytes of these and none of their FLOPs:"
        yield "\n".join(f"- {_operator(each)}" for each in verification.unclassified)


def _operator(operator: UnclassifiedOperator) -> str:
    return f"{operator.op} x{operator.calls:,} in {operator.module or '(root)'} of {operator.stage}"


def _beginning(reason: str) -> str:
    return reason.strip().splitlines()[0]


def _lines(check: Check) -> Iterator[str]:
    pairs = f"{check.compared:,} {check.unit}"
    differ, unexplained = len(check.differences), len(check.unexplained)
    yield f"  {check.subject.value:<26} {pairs:<26}  {differ:>3,} differ  {unexplained:>3,} unexplained"
    yield from (f"    {_UNEXPLAINED}: {_sentence(difference)}" for difference in check.unexplained)


def _sentence(difference: Difference) -> str:
    times = f", in {difference.instances} instances" if difference.instances > 1 else ""
    where = difference.module or "(root)"
    return f"{where}: {difference.what}: {difference.run} in the run, {difference.graph} in the graph{times}"


def _title(stage: StageVerification) -> str:
    sizes = ", ".join(f"{name}={size}" for name, size in stage.bindings.items())
    return (
        f"{stage.stage}{f' at {sizes}' if sizes else ''}: {stage.operators:,} captured calls, "
        f"{units.format_flops(stage.flops)}"
    )


def _stage(stage: StageVerification) -> Iterator[str]:
    yield f"## {_title(stage)}"
    yield from (f"Note: {note}." for note in stage.notes)
    yield from _sections(stage.checks)
    yield "Captured operators by what they run as below autograd, which is what a run can be compared in:"
    yield table(
        ("captured", "runs as", "why", "calls"),
        [(f"`{each.op}`", _runs(each), each.why, f"{each.calls:,}") for each in stage.decompositions],
        left=3,
    )


def _runs(decomposition: Decomposition) -> str:
    return ", ".join(
        f"`{op}`" + (f" x{count}" if count > 1 else "") for op, count in sorted(decomposition.runs.items())
    )


def _sections(checks: Sequence[Check]) -> Iterator[str]:
    yield table(
        ("compared", "pairs", "differ", "unexplained"),
        [
            (
                check.subject.value,
                f"{check.compared:,} {check.unit}",
                f"{len(check.differences):,}",
                f"{len(check.unexplained):,}",
            )
            for check in checks
        ],
    )
    rows = [_row(difference) for check in checks for difference in check.differences]
    if rows:
        yield table(("compared", "module", "what", "in the run", "in the graph", "modules", "reason"), rows, left=7)


def _row(difference: Difference) -> tuple[str, ...]:
    return (
        difference.subject.value,
        code(difference.module),
        difference.what,
        difference.run,
        difference.graph,
        str(difference.instances),
        difference.reason.value if difference.reason is not None else _UNEXPLAINED,
    )
