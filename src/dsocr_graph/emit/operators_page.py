"""The page of all operators and their states, and the same as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import asdict

from dsocr_graph.emit.markdown_table import table

if TYPE_CHECKING:
    from dsocr_graph.lowering.coverage import OperatorState

_WIDTH = 120


def operators_page(states: Sequence[OperatorState], *, torch: str, command: str) -> str:
    """Return the page: what shipped models call first, then all other operators compactly.

    Parameters
    ----------
    states : sequence of OperatorState
        As `dsocr_graph.lowering.coverage.operator_states` returns them.
    torch : str
        Release whose operators they are.
    command : str
        That makes the page.
    """
    used = [state for state in states if state.uses]
    aten = [state for state in states if state.name.startswith("aten::")]
    custom = [state for state in states if not state.name.startswith("aten::")]
    counts = {kind: sum(state.state.value == kind for state in aten) for kind in ("rule", "free", "missing")}
    parts = [
        "# Operators",
        f"Made by `{command}`, from the rules in `src/dsocr_graph/lowering/`. torch {torch} has {len(aten):,} "
        f"operators in ATen, overloads counted together: {counts['rule']:,} have a rule, {counts['free']:,} are free "
        f"(they move nothing), {counts['missing']:,} are missing. {len(custom):,} more are custom operators.",
        "A **rule** maps each call to a layer of modelmeter, exactly or as an approximation with a note. Some calls of "
        "an operator may be free by their layout. A **missing** operator stops an analysis with an error that names "
        "it, its calls and the module that calls it first; CONTRIBUTING.md shows how a rule is added.",
        "## Used by the shipped models",
        "Calls in one run of a stage, by model.",
        _used(used),
    ]
    if custom:
        parts += ["## Custom operators with a rule", _rules(custom)]
    parts += ["## Other operators with a rule", _rules([each for each in aten if _is(each, "rule") and not each.uses])]
    parts += ["## Other free operators", _listed([each for each in aten if _is(each, "free") and not each.uses])]
    parts += ["## Missing", *_missing([each for each in aten if _is(each, "missing")])]
    return "\n\n".join(part if part.startswith("|") else textwrap.fill(part, _WIDTH) for part in parts) + "\n"


def operators_json(states: Sequence[OperatorState], *, torch: str) -> str:
    """Return the states of all operators as JSON text."""
    records: list[Mapping[str, Any]] = [
        {key: value for key, value in asdict(state).items() if value or key in {"name", "state"}} for state in states
    ]
    return json.dumps({"torch": torch, "operators": records}, indent=1) + "\n"


def _is(state: OperatorState, kind: str) -> bool:
    return state.state.value == kind


def _used(states: Sequence[OperatorState]) -> str:
    return table(
        ("operator", "state", "layer", "calls", "assumption"),
        [
            (f"`{state.name}`", _state(state), ", ".join(state.layers) or "-", _calls(state), "; ".join(state.notes))
            for state in states
        ],
        left=5,
    )


def _calls(state: OperatorState) -> str:
    by_model = (
        f"{model}: " + ", ".join(f"{stage} {calls:,}" for stage, calls in stages.items())
        for model, stages in state.uses.items()
    )
    return "; ".join(by_model)


def _rules(states: Sequence[OperatorState]) -> str:
    """Return a row for all operators that are treated alike."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for state in states:
        alike.setdefault((state.family, ", ".join(state.layers), _state(state)), []).append(state.name)
    return table(
        ("family", "layer", "state", "operators"),
        [(*key, ", ".join(map(_short, names))) for key, names in sorted(alike.items())],
        left=4,
    )


def _state(state: OperatorState) -> str:
    """Return what becomes of calls, with what depends on the call."""
    if state.state.value != "rule":
        return state.state.value
    words = ["rule", "approximated" if state.approximated else "exact"]
    words += ["some layouts free"] if state.sometimes_free else []
    words += ["some forms missing"] if state.sometimes_refused else []
    return ", ".join(words)


_KINDS: Mapping[str, Callable[[str], bool]] = {
    "Gradients": lambda name: "backward" in name,
    "Internal, by a leading underscore": lambda name: name.startswith("_"),
    "In place": lambda name: name.endswith("_"),
    "Copying variants of views": lambda name: name.endswith("_copy"),
    "Linear algebra, special functions and Fourier transforms": lambda name: name.startswith(
        ("linalg_", "special_", "fft_")
    ),
    "Quantised, sparse and for one backend": lambda name: any(
        word in name for word in ("quantize", "sparse", "mkldnn", "cudnn", "miopen", "fbgemm", "mps")
    ),
    "Others": lambda name: True,
}
"""How missing operators are grouped: the first that fits."""


def _missing(states: Sequence[OperatorState]) -> Iterator[str]:
    groups: dict[str, list[OperatorState]] = {kind: [] for kind in _KINDS}
    for state in states:
        name = state.name.removeprefix("aten::")
        groups[next(kind for kind, fits in _KINDS.items() if fits(name))].append(state)
    for kind, members in groups.items():
        if members:
            yield f"### {kind}: {len(members):,}"
            yield _listed(members)


def _listed(states: Sequence[OperatorState]) -> str:
    return ", ".join(_short(state.name) for state in states)


def _short(name: str) -> str:
    """Write a name as code; the namespace goes without saying in ATen."""
    return f"`{name.removeprefix('aten::')}`"
