"""Why a run and its graph differ: each reason is given only where what it says was found in the run or the graph."""

from __future__ import annotations

from collections.abc import Sequence

from dsocr_graph.verification.expect import bound_sizes
from dsocr_graph.verification.fused_attention import FUSED
from dsocr_graph.verification.observe import DETACH, LIFT, Sized
from dsocr_graph.verification.records import Reason
from dsocr_graph.verification.stage_run import StageRun, same

_READ_BACK = "aten::_local_scalar_dense"
_LIFTED_COPY = "aten::lift_fresh_copy"  # as which a graph may hold a constant
# By how many calls more a run does what the graph does otherwise, for one constant assigned to a part of a tensor.
_ASSIGNMENT = {"aten::fill_": 1, "aten::scalar_tensor": -1, "aten::view": -1, "aten::expand": -1, "aten::copy_": -1}

_VIEW, _PUT, _COPY = "aten::view", "aten::index_put_", "aten::copy_"
_GROUPED = frozenset({"dsocr_graph::grouped_linear", "aten::_grouped_mm"})


def why_calls(run: StageRun, modules: Sequence[str], counted: int, expected: int) -> Reason | None:
    """Return why some modules were called otherwise often than the graph says.

    Parameters
    ----------
    run : StageRun
        The run.
    modules : sequence of str
        The first path of each.
    counted, expected : int
        Calls in the run and in the graph.
    """
    if not counted and any(module in run.seen.methods for module in modules):
        return Reason.METHOD
    if not counted and any(module in run.seen.parts for module in modules):
        return Reason.PARTS
    if not expected and not any(_runs_operators(run, module) for module in modules):
        return Reason.NO_OPERATOR
    if all(_in_loop(run, module) for module in modules):
        return Reason.LOOP
    return why_fused(run, modules)


def why_edge(run: StageRun, edge: tuple[str, str], ran: int, graph: int) -> Reason | None:
    """Return why one module called another otherwise often than the graph says."""
    caller, called = edge
    if ran and not graph and not _runs_operators(run, called):
        return Reason.NO_OPERATOR
    if _called_from_elsewhere(run, called):
        return Reason.ELSEWHERE
    if _in_loop(run, caller) or _in_loop(run, called):
        return Reason.LOOP
    return why_fused(run, edge)


def why_shape(run: StageRun, path: str, verb: str, item: Sized) -> Reason | None:
    """Return why a tensor passes into or out of a module in the run alone, or in the graph alone.

    Parameters
    ----------
    run : StageRun
        The run.
    path : str
        The first path of the module.
    verb : {"reads", "passes on", "returns"}
        What the module does with it.
    item : (shape, type)
        The tensor.
    """
    method = run.seen.methods.get(path)
    if method is not None and item in (method.reads if verb == "reads" else method.makes):
        return Reason.METHOD
    if not path and item in (run.seen.around.reads if verb == "reads" else run.seen.around.makes):
        return Reason.AROUND
    return Reason.LOOP if _in_loop(run, path) else why_fused(run, (path,))


def why_operator(run: StageRun, module: str, op: str) -> Reason | None:
    """Return why a module dispatches an operator otherwise often than its captured calls do, messages left out.

    Parameters
    ----------
    run : StageRun
        The run.
    module, op : str
        Where the two differ.
    """

    def more(op: str) -> int:
        return run.seen.operators[module, op] - run.seen.messages[module, op] - run.replayed_operators[module, op]

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
    if op == _COPY and 0 < -more(op) <= _written_back(run, module):
        return Reason.WRITTEN_BACK
    if (op == LIFT or op in DETACH) and more(op) == run.seen.lifts[module, op]:
        return Reason.CONSTANT
    if op == _LIFTED_COPY and 0 < -more(op) <= run.seen.lifts[module, LIFT]:
        return Reason.CONSTANT
    return Reason.READ_BACK if op == _READ_BACK and more(op) > 0 else why_fused(run, (module,))


def why_fused(run: StageRun, modules: Sequence[str]) -> Reason | None:
    """Return whether the run or the graph alone has torch's fused attention in modules that hold, or are, all of some.

    Source: `torch.nn.MultiheadAttention.forward` and `torch.nn.TransformerEncoderLayer.forward`, which has a layer
    whose parts have hooks run its single operators.
    """
    for (where, op), ran in (run.seen.operators | run.replayed_operators).items():
        more = run.seen.operators[where, op] - run.replayed_operators[where, op] if op in FUSED and ran else 0
        if more and all(run.paths.holds(where, module) for module in modules):
            return Reason.RUN_FUSED if more > 0 else Reason.GRAPH_FUSED
    return None


def _shortened_values(run: StageRun, module: str) -> int:
    """Count the values that a module puts at indices and whose first axis is of size 1 at these sizes.

    Source: `slicePrefix1sSize` in ATen/TensorIndexing.h, which `tensor[indices] = value` goes through in Python.
    """
    puts = [item for item in run.replayed.calls if item.call.op == _PUT and run.module_of(item) == module]
    values = [shape for item in puts for shape, _ in bound_sizes(item.call.reads[-1:], run.bindings)]
    return sum(shape[:1] == (1,) for shape in values)


def _written_back(run: StageRun, module: str) -> int:
    """Count the copies of a module in the graph to buffers that the run changed to the same values."""
    equal = {name for name, ran in run.buffers.ran.items() if same(ran, run.buffers.replayed[name])}
    return sum(
        item.call.reads[0].name in equal
        for item in run.replayed.calls
        if item.call.op == _COPY and run.module_of(item) == module
    )


# --- what runs where


def _runs_operators(run: StageRun, path: str) -> bool:
    return any(run.paths.holds(path, module) for module, _ in run.seen.operators)


def _called_from_elsewhere(run: StageRun, called: str) -> bool:
    """Whether a module is called by one that does not contain it, as often as the graph says it is called."""
    callers = [caller for caller, target in run.seen.edges if target == called]
    ran = sum(run.seen.edges[caller, called] for caller in callers)
    said = sum(count for (_, target), count in run.said.edges.items() if target == called)
    return ran == said and any(not run.paths.holds(caller, called) for caller in callers)


def _in_loop(run: StageRun, path: str) -> bool:
    """Whether a module is, or is inside, one that runs experts one by one where the graph has a grouped product."""
    for item in run.replayed.calls:
        if item.call.op in _GROUPED:
            experts = run.paths.first[item.call.module]
            looped = any(caller == experts for caller, _ in run.seen.edges)
            if looped and run.paths.holds(experts, path):
                return True
    return False
