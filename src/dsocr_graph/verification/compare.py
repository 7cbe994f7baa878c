"""Comparisons of one run with its graph: each returns what was compared and how every difference is explained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from attrs import evolve
from torch import Tensor, nn

from dsocr_graph.scopes import CallGraph, ScopeNode
from dsocr_graph.verification.observe import Sized, sized
from dsocr_graph.verification.reasons import why_calls, why_edge, why_operator, why_shape
from dsocr_graph.verification.records import Check, Decomposition, Difference, Reason, Subject
from dsocr_graph.verification.replayed import ReplayedCall, ReplayedGraph
from dsocr_graph.verification.stage_run import StageRun, same


def module_calls(run: StageRun, counted: Counter[str], *, subject: Subject = Subject.CALLS) -> Check:
    """Compare how often each module was called, as somebody counted it, the instances of a node together.

    Nodes that a shared module joins are compared together, under the first of them.
    """
    calls = run.paths.canonical(counted)
    rows = [
        (nodes[0].id, modules, sum(calls[module] for module in modules), _expected(run, nodes))
        for nodes in run.paths.groups(run.grouped)
        for modules in [run.paths.modules_of(nodes)]
    ]
    rows = [row for row in rows if row[2] or row[3]]
    return Check(
        subject=subject,
        compared=len(rows),
        unit="modules",
        differences=tuple(
            Difference(
                subject=subject,
                module=node,
                what="calls",
                run=str(ran),
                graph=str(expected),
                reason=why_calls(run, modules, ran, expected),
            )
            for node, modules, ran, expected in rows
            if ran != expected
        ),
    )


def _expected(run: StageRun, nodes: Sequence[ScopeNode]) -> int:
    return sum(node.calls.get(run.stage, 0) for node in nodes)


def edges(run: StageRun) -> Check:
    """Compare which module calls which, and how often."""
    found = [
        Difference(
            subject=Subject.EDGES,
            module=run.node(edge[1]),
            what=f"called by {run.node(edge[0]) or '(root)'}",
            run=str(ran),
            graph=str(graph),
            reason=why_edge(run, edge, ran, graph),
        )
        for edge, ran, graph in _unequal(run.seen.edges, run.said.edges)
    ]
    compared = len(run.seen.edges.keys() | run.said.edges.keys())
    return Check(subject=Subject.EDGES, compared=compared, unit="edges", differences=_folded(found))


def shapes(run: StageRun) -> Check:
    """Compare the tensors that pass into and out of each module that is called.

    What a module reads from outside it was given, what others read of it it returned, and what it returned was made in
    it or given to it.
    """
    found: list[Difference] = []
    compared = 0
    for path in sorted(run.seen.calls.keys() & run.said.entered):
        given, returned = run.seen.inputs[path], run.seen.outputs[path]
        reads, leaves = run.said.reads.get(path), run.said.leaves.get(path)
        if reads is not None:
            compared += len(reads.tensors)
            held = run.seen.reads.get(path, frozenset())
            why = dict.fromkeys(held, Reason.HELD) | dict.fromkeys(reads.cached, Reason.CACHE)
            found += _passed(run, path, "reads", {item: why.get(item) for item in reads.tensors - given})
        if leaves is not None:
            compared += len(leaves.tensors)
            why = dict.fromkeys(leaves.cached, Reason.CACHE)
            found += _passed(run, path, "passes on", {item: why.get(item) for item in leaves.tensors - returned})
        compared += len(returned)
        strange = returned - given - run.said.made.get(path, frozenset())
        found += [
            _shape(run, path, f"returns {sized_text(item)}", ran=True, reason=why_shape(run, path, "returns", item))
            for item in sorted(strange)
        ]
    return Check(subject=Subject.SHAPES, compared=compared, unit="tensors", differences=_folded(found))


def _passed(run: StageRun, path: str, verb: str, lacking: Mapping[Sized, Reason | None]) -> list[Difference]:
    return [
        _shape(run, path, f"{verb} {sized_text(item)}", ran=False, reason=reason or why_shape(run, path, verb, item))
        for item, reason in sorted(lacking.items())
    ]


def _shape(run: StageRun, path: str, what: str, *, ran: bool, reason: Reason | None) -> Difference:
    run_text, graph_text = ("yes", "no") if ran else ("no", "yes")
    return Difference(
        subject=Subject.SHAPES,
        module=run.node(path),
        what=what,
        run=run_text,
        graph=graph_text,
        reason=reason,
    )


def sizes(run: StageRun, bound: Callable[[ReplayedCall], tuple[Sized, ...]]) -> Check:
    """Compare the shape of every result with its symbolic shape at the sizes of the run.

    Parameters
    ----------
    run : StageRun
        The run.
    bound : callable
        Returns what the graph says of the results of a call.
    """
    found = [
        Difference(
            subject=Subject.SIZES,
            module=run.node(item.call.module),
            what=f"result of {item.call.op}",
            run=", ".join(map(sized_text, item.results)),
            graph=", ".join(map(sized_text, said)),
        )
        for item in run.replayed.calls
        if (said := bound(item)) != item.results
    ]
    compared = sum(len(item.results) for item in run.replayed.calls)
    return Check(subject=Subject.SIZES, compared=compared, unit="results", differences=_folded(found))


def operators(run: StageRun) -> Check:
    """Compare what each module dispatches with what the captured calls of the same module dispatch when replayed.

    Operators that ran while a tensor was written as text are told by themselves.
    """
    said = run.replayed_operators
    found = [
        _operator(run, (module, f"{op}, for a message"), (count, 0), Reason.MESSAGE)
        for (module, op), count in sorted(run.seen.messages.items())
    ]
    found += [
        _operator(run, key, (ran, graph), why_operator(run, *key))
        for key, ran, graph in _unequal(run.seen.operators - run.seen.messages, said)
    ]
    compared = len(run.seen.operators.keys() | said.keys())
    return Check(subject=Subject.OPERATORS, compared=compared, unit="operators by module", differences=_folded(found))


def _operator(run: StageRun, key: tuple[str, str], counts: tuple[int, int], reason: Reason | None) -> Difference:
    (module, what), (ran, graph) = key, counts
    return Difference(
        subject=Subject.OPERATORS, module=run.node(module), what=what, run=str(ran), graph=str(graph), reason=reason
    )


def decompositions(replayed: ReplayedGraph) -> tuple[Decomposition, ...]:
    """Return what each captured operator was dispatched as, the most frequent first."""
    counted = Counter((item.call.op, tuple(sorted(item.dispatched.items()))) for item in replayed.calls)
    return tuple(
        Decomposition(op=op, runs=dict(runs), calls=calls)
        for (op, runs), calls in sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))
    )


def results(run: StageRun) -> Check:
    """Compare the results of the run with those of the replayed graph, bit by bit, where the weights are the same.

    So are the buffers that either of them changed.
    """
    pairs: list[tuple[str, Tensor, Tensor]] = []
    if run.same_weights:
        made = zip(run.seen.results, run.replayed.results, strict=True)
        pairs += [(f"result {position}", ran, said) for position, (ran, said) in enumerate(made)]
        pairs += [(f"buffer {name}", ran, run.buffers.replayed[name]) for name, ran in run.buffers.ran.items()]
    found = tuple(
        Difference(
            subject=Subject.RESULTS,
            module="",
            what=what,
            run=sized_text(sized(ran)),
            graph=f"{sized_text(sized(said))}, other values",
            reason=Reason.LOST_CONSTANTS if run.replayed.lost_constants else None,
        )
        for what, ran, said in pairs
        if not same(ran, said)
    )
    return Check(subject=Subject.RESULTS, compared=len(pairs), unit="tensors", differences=found)


def parameters(root: nn.Module, grouped: CallGraph) -> Check:
    """Compare the parameters of a module with those of the call graph, in all and of each node itself."""
    owned: Counter[str] = Counter()
    for name, parameter in root.named_parameters():
        owned[name.rpartition(".")[0]] += parameter.numel()
    rows = [("", "in all", sum(owned.values()), sum(node.parameters for node in grouped.nodes))]
    rows += [(node.id, "own", sum(owned[path] for path in node.paths), node.parameters) for node in grouped.nodes]
    found = tuple(
        Difference(subject=Subject.PARAMETERS, module=module, what=what, run=f"{held:,}", graph=f"{said:,}")
        for module, what, held, said in rows
        if held != said
    )
    return Check(subject=Subject.PARAMETERS, compared=len(rows), unit="modules", differences=found)


def sized_text(item: Sized) -> str:
    """Write a shape and type as text.

    Examples
    --------
    >>> sized_text(((2, 7), "float32"))
    '[2, 7] float32'
    """
    shape, dtype = item
    return f"{list(shape)} {dtype}"


def _unequal(
    ran: Mapping[tuple[str, str], int], said: Mapping[tuple[str, str], int]
) -> list[tuple[tuple[str, str], int, int]]:
    keys = sorted(ran.keys() | said.keys())
    return [(key, ran.get(key, 0), said.get(key, 0)) for key in keys if ran.get(key, 0) != said.get(key, 0)]


def _folded(found: Sequence[Difference]) -> tuple[Difference, ...]:
    """Return equal differences of the instances of a node as one."""
    return tuple(evolve(difference, instances=count) for difference, count in Counter(found).items())
