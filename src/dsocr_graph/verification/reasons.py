"""Why a run and its graph differ: each reason is given only where what it says was found in the run or the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dsocr_graph.verification.expect import bound_sizes
from dsocr_graph.verification.records import Reason
from dsocr_graph.verification.stage_run import StageRun

# Operators by which a constant of the code becomes a tensor of its own; the graph holds the constant itself.
_LIFTED = frozenset({"aten::lift_fresh", "aten::detach", "aten::detach_"})

_READ_BACK = "aten::_local_scalar_dense"
# By how many calls more a run does what the graph does otherwise, for one constant assigned to a part of a tensor.
_ASSIGNMENT = {"aten::fill_": 1, "aten::scalar_tensor": -1, "aten::view": -1, "aten::expand": -1, "aten::copy_": -1}

_VIEW, _PUT = "aten::view", "aten::index_put_"
_GROUPED = frozenset({"dsocr_graph::grouped_linear", "aten::_grouped_mm"})


def why_calls(run: StageRun, paths: Sequence[str], counted: int, expected: int) -> Reason | None:
    """Return why the modules of some paths were called otherwise often than the graph says."""
    if not counted and ((run.wrapped and "" in paths) or not any(path in run.said.entered for path in paths)):
        return Reason.METHOD
    if not expected and not any(_runs_operators(run, path) for path in paths):
        return Reason.NO_OPERATOR
    return Reason.LOOP if all(_in_loop(run, path) for path in paths) else None


def why_edge(run: StageRun, edge: tuple[str, str], ran: int, graph: int) -> Reason | None:
    """Return why one module called another otherwise often than the graph says."""
    caller, called = edge
    if ran and not graph and not _runs_operators(run, called):
        return Reason.NO_OPERATOR
    if _called_from_elsewhere(run, called):
        return Reason.ELSEWHERE
    return Reason.LOOP if _in_loop(run, caller) or _in_loop(run, called) else None


def why_shape(run: StageRun, path: str) -> Reason | None:
    """Return why a tensor passes into or out of a module in the run alone, or in the graph alone."""
    if run.wrapped and not path:
        return Reason.METHOD  # the stage runs operators in methods of the model, outside its call
    return Reason.LOOP if _in_loop(run, path) else None


def why_operator(run: StageRun, said: Counter[tuple[str, str]], module: str, op: str) -> Reason | None:
    """Return why a module dispatches an operator otherwise often than its captured calls do.

    Parameters
    ----------
    run : StageRun
        The run.
    said : Counter
        What the captured calls dispatch when replayed, by module and operator.
    module, op : str
        Where the two differ.
    """

    def more(op: str) -> int:
        return run.seen.operators[module, op] - said[module, op]

    if _in_loop(run, module):
        return Reason.LOOP
    constants = more("aten::fill_")
    if (
        op in _ASSIGNMENT
        and constants > 0
        and all(more(each) == sign * constants for each, sign in _ASSIGNMENT.items())
    ):
        return Reason.ASSIGNED
    if op == _VIEW and more(op) > 0 and more(op) == _shortened_values(run, module):
        return Reason.SHORTENED
    if op in _LIFTED and more(op) > 0:
        return Reason.CONSTANT
    return Reason.CHECK if op == _READ_BACK and more(op) > 0 else None


def _shortened_values(run: StageRun, module: str) -> int:
    """Count the values that a module puts at indices and whose first axis is of size 1 at these sizes.

    Source: `slicePrefix1sSize` in ATen/TensorIndexing.h, which `tensor[indices] = value` goes through in Python.
    """
    puts = [item for item in run.replayed.calls if item.call.op == _PUT and run.module_of(item) == module]
    values = [shape for item in puts for shape, _ in bound_sizes(item.call.reads[-1:], run.bindings)]
    return sum(shape[:1] == (1,) for shape in values)


# --- what runs where


def _runs_operators(run: StageRun, path: str) -> bool:
    return any(_inside(module, path) for module, _ in run.seen.operators)


def _called_from_elsewhere(run: StageRun, called: str) -> bool:
    """Whether a module is called by one that does not contain it, as often as the graph says it is called."""
    callers = [caller for caller, target in run.seen.edges if target == called]
    ran = sum(run.seen.edges[caller, called] for caller in callers)
    said = sum(count for (_, target), count in run.said.edges.items() if target == called)
    return ran == said and any(not _inside(called, caller) for caller in callers)


def _in_loop(run: StageRun, path: str) -> bool:
    """Whether a module is, or is inside, one that runs experts one by one where the graph has a grouped product."""
    for item in run.replayed.calls:
        if item.call.op in _GROUPED:
            experts = item.call.module
            looped = any(caller == experts for caller, _ in run.seen.edges)
            if looped and _inside(path, experts):
                return True
    return False


def _inside(path: str, outer: str) -> bool:
    return not outer or path == outer or path.startswith(f"{outer}.")
