"""Liveness: when each tensor of a stage is allocated and freed, and the moments that can decide the peak."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sympy
from attrs import evolve, frozen

from dsocr_graph.ir import OpGraph, Role, TensorSpec
from modelmeter.dim_binding import bind
from modelmeter.dims import Dim, shifted_terms, total
from modelmeter.model import LiveTensor, PeakPoint

_REFERENCE = 997  # a size to order tensors by where sizes are symbolic; only the order of a list depends on it
_LISTED = 8  # tensors named per peak


@frozen(kw_only=True)
class Lifetime:
    """One allocation of a stage."""

    tensor: TensorSpec  # the tensor that owns the memory
    birth: int  # index of the call that allocates it; -1 for an input
    death: int  # index of the last call that needs it; the number of calls for a result of the stage


def lifetimes(graph: OpGraph) -> tuple[Lifetime, ...]:
    """Return every allocation of a stage outside the weights.

    Memory lives from the call that writes it first to the last call that reads it or a view of it, or to the last
    call during which a Python variable holds it (`OpGraph.held`), whichever comes later. The caller holds the inputs.
    The KV cache holds its own entries: those that one function of one module replaces go together, after the last
    use of any of them.
    """
    births: dict[int, int] = {}
    owners: dict[int, TensorSpec] = {}
    deaths: dict[int, int] = {}
    weights = {tensor.storage for tensor in graph.tensors if tensor.is_weight}
    for tensor in (graph.tensors[item] for item in graph.inputs):
        births.setdefault(tensor.storage, -1)
        owners.setdefault(tensor.storage, tensor)
        deaths[tensor.storage] = len(graph.calls) if tensor.role is Role.INPUT else -1
    for call in graph.calls:
        for tensor in (*call.reads, *call.writes):
            if tensor.storage in weights:
                continue
            if tensor.storage not in births:
                births[tensor.storage] = call.index
                owners[tensor.storage] = tensor
            deaths[tensor.storage] = max(deaths.get(tensor.storage, -1), call.index)
    for storage, until in graph.held.items():
        if storage in deaths:
            deaths[storage] = max(deaths[storage], until)
    deaths.update(_replaced_together(graph, births, owners, deaths))
    for item in graph.outputs:
        storage = graph.tensors[item].storage
        if storage not in weights:
            deaths[storage] = len(graph.calls)
    roles = {graph.tensors[item].storage for item in graph.outputs if graph.tensors[item].role is Role.KV_CACHE}
    return tuple(
        Lifetime(tensor=_as_role(owners[storage], storage in roles), birth=birth, death=deaths[storage])
        for storage, birth in births.items()
    )


def _replaced_together(
    graph: OpGraph, births: Mapping[int, int], owners: Mapping[int, TensorSpec], deaths: Mapping[int, int]
) -> dict[int, int]:
    """Return when the KV cache lets go of each entry that the stage was given."""
    groups: dict[tuple[str, str], list[int]] = {}
    for storage, birth in births.items():
        if birth < 0 <= deaths[storage] and owners[storage].role is Role.KV_CACHE:
            last = graph.calls[deaths[storage]]
            groups.setdefault((last.module, last.function), []).append(storage)
    return {storage: max(deaths[other] for other in group) for group in groups.values() for storage in group}


def _as_role(tensor: TensorSpec, cached: bool) -> TensorSpec:
    return evolve(tensor, role=Role.KV_CACHE) if cached else tensor


def peaks(graph: OpGraph, name_of: Callable[[str], str]) -> tuple[PeakPoint, ...]:
    """Return the moments of a stage that can be its peak, for some sizes of its dims.

    A moment is left out when another one holds at least as much for every size. Sizes are polynomials; written in
    t = dim - 1, which is never negative, it is enough to compare coefficients term by term.

    Parameters
    ----------
    graph : OpGraph
        One stage.
    name_of : callable
        From a module path to the id of its node.
    """
    alive = lifetimes(graph)
    starts: dict[int, list[Lifetime]] = {}
    stops: dict[int, list[Lifetime]] = {}
    for life in alive:
        starts.setdefault(life.birth, []).append(life)
        stops.setdefault(life.death, []).append(life)
    terms = {life.tensor.storage: shifted_terms(life.tensor.storage_bytes) for life in alive}
    current: dict[sympy.Expr, int] = {}
    candidates: dict[frozenset[tuple[sympy.Expr, int]], int] = {}
    for index in range(-1, len(graph.calls)):
        for life in starts.get(index, ()):
            _add(current, terms[life.tensor.storage], 1)
        if index >= 0 and index in starts:
            candidates.setdefault(frozenset(current.items()), index)
        for life in stops.get(index, ()):
            _add(current, terms[life.tensor.storage], -1)
    kept = _undominated(candidates)
    return tuple(_point(graph, index, alive, name_of) for index in kept)


def _add(current: dict[sympy.Expr, int], terms: Mapping[sympy.Expr, int], sign: int) -> None:
    for term, factor in terms.items():
        value = current.get(term, 0) + sign * factor
        if value:
            current[term] = value
        else:
            current.pop(term, None)


def _undominated(candidates: Mapping[frozenset[tuple[sympy.Expr, int]], int]) -> list[int]:
    sums = [(dict(items), index) for items, index in candidates.items()]
    sums.sort(key=lambda entry: (-sum(entry[0].values()), entry[1]))
    kept: list[tuple[dict[sympy.Expr, int], int]] = []
    for terms, index in sums:
        if not any(all(other.get(term, 0) >= factor for term, factor in terms.items()) for other, _ in kept):
            kept.append((terms, index))
    return sorted(index for _, index in kept)


def _point(graph: OpGraph, index: int, alive: tuple[Lifetime, ...], name_of: Callable[[str], str]) -> PeakPoint:
    there = [life for life in alive if life.birth <= index <= life.death]
    call = graph.calls[index]

    def held(role: Role) -> Dim:
        return total(life.tensor.storage_bytes for life in there if life.tensor.role is role)

    cached = [life for life in there if life.tensor.role is Role.KV_CACHE]
    tensors = [_live_tensor(graph, life, name_of) for life in there if life.tensor.role is not Role.KV_CACHE]
    if cached:
        name = f"KV cache, {len(cached)} tensors"
        tensors.append(LiveTensor(name=name, module="", op="", role=Role.KV_CACHE.value, bytes=held(Role.KV_CACHE)))
    return PeakPoint(
        at=call.op,
        module=name_of(call.module),
        activation_bytes=held(Role.ACTIVATION),
        kv_cache_bytes=held(Role.KV_CACHE),
        input_bytes=held(Role.INPUT),
        live=tuple(sorted(tensors, key=lambda tensor: (-_weight(tensor.bytes), tensor.name))[:_LISTED]),
    )


def _live_tensor(graph: OpGraph, life: Lifetime, name_of: Callable[[str], str]) -> LiveTensor:
    maker = graph.calls[life.birth] if life.birth >= 0 else None
    return LiveTensor(
        name=life.tensor.name,
        module=name_of(maker.module) if maker is not None else "",
        op=maker.op if maker is not None else "input",
        role=life.tensor.role.value,
        bytes=life.tensor.storage_bytes,
    )


def _weight(size: Dim) -> float:
    if not isinstance(size, sympy.Expr):
        return float(size)
    return float(bind(size, {symbol.name: _REFERENCE for symbol in size.free_symbols}))  # pyright: ignore[reportAttributeAccessIssue]
