"""Reasons of a change, in words, from what differs: executions, sizes, operators, layers, types, devices, versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from attrs import frozen

from modelmeter.compare.metrics import Metric
from modelmeter.compare.side import BANDWIDTH, MATRIX_PEAK, RESIDENT, VARIANT, VERSION, Piece, Side
from modelmeter.costs import Number
from modelmeter.model import Leaf

SHOWN_OPERATORS = 4
"""Operators that a reason names, those whose calls differ most."""

SHOWN_VALUES = 4
"""Values of a layer's attribute that a reason names."""

# Attributes of layers that say how large a layer is; what follows a dim is an expression and explained by the dim.
_ATTRIBUTES = (
    "in_features",
    "out_features",
    "experts",
    "k",
    "heads",
    "kv_heads",
    "head_dim",
    "value_head_dim",
    "in_channels",
    "out_channels",
    "vocabulary",
    "rows",
    "query_length",
    "key_length",
)
_ROWS = " rows"
_CLOCK_FACTS = ("device", BANDWIDTH, MATRIX_PEAK, "times", "runtime", "driver", "threads")


@frozen(kw_only=True)
class Group:
    """The pieces of one side that have one role in one phase."""

    side: Side
    pieces: tuple[Piece, ...] = ()

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that run it; none for parameters."""
        return tuple(dict.fromkeys(piece.stage for piece in self.pieces if piece.stage != RESIDENT))

    @property
    def instances(self) -> int:
        """Modules that run operators themselves or hold parameters, folded ones counted; 0 where that is not known."""
        nodes = self.side.nodes
        busy = [piece for piece in self.pieces if piece.stage == RESIDENT or self.side.calls.get(piece)]
        return sum(
            nodes[module].instances for module in dict.fromkeys(piece.module for piece in busy) if module in nodes
        )

    def calls(self, stage: str) -> float:
        """Return its operator calls in one execution of a stage."""
        calls = sum(self.side.calls.get(piece, 0) for piece in self.pieces if piece.stage == stage)
        return calls / self.side.stages[stage].executions

    def leaves(self, stage: str) -> tuple[Leaf, ...]:
        """Return its leaves in a stage; none without a model."""
        modules = {piece.module for piece in self.pieces if piece.stage == stage}
        leaves = () if self.side.model is None else self.side.model.leaves_by_stage[stage]
        return tuple(leaf for leaf in leaves if leaf.module in modules)

    def total(self, metric: Metric) -> Number:
        """Return all of its work."""
        return sum(self.side.work[piece].get(metric, 0) for piece in self.pieces)


def reasons(old: Group, new: Group, metric: Metric) -> tuple[str, ...]:
    """Return why the work of a group changed, causes first: runs, sizes, variant, operators, layers, devices.

    Parameters
    ----------
    old, new : Group
        The group on both sides; in another model, one that has nothing of the metric is as good as not there.
    metric : Metric
        What changed.
    """
    there = [bool(group.total(metric) if not _same_model(old, new) else group.pieces) for group in (old, new)]
    if not all(there):
        return _absence(old, new, metric)
    # Of one model the operators say what another variant does; of two models the sizes of layers say more.
    operators, layers = [*_operators(old, new)], [*_layers(old, new)]
    inside = [*operators, *layers] if _same_model(old, new) else [*layers, *operators]
    variant = _variant(old, new) if inside and _same_model(old, new) else ()
    found = [*_runs(old, new), *_instances(old, new), *variant, *inside]
    if not found:
        found += _uncounted(old, new)
    if metric is Metric.TIME:
        found += _known_facts(old, new, _CLOCK_FACTS)
    if metric is Metric.TIME or not found:
        found += _known_facts(old, new, [name for name in old.side.facts if name.startswith(VERSION)])
    if not found:
        found += _known_facts(old, new, ("model",))
    return tuple(found) or (f"{metric.value} of the same calls {_arrow(old.total(metric), new.total(metric))}",)


def _absence(old: Group, new: Group, metric: Metric) -> tuple[str, ...]:
    """Return why a group is on one side alone: its stages are not run on the other, or there is no such part."""
    present, absent = (old, new) if old.total(metric) else (new, old)
    if present.stages and _same_model(old, new) and not any(stage in absent.side.stages for stage in present.stages):
        return tuple(_executions(old, new, stage) for stage in present.stages)
    largest = max(present.pieces, key=lambda piece: present.side.work[piece].get(metric, 0))
    node = present.side.nodes.get(largest.module)
    example = "" if node is None else f": {f'`{node.id}`' if node.id else 'the model itself'} ({node.class_name})"
    return (f"only in {present.side.label}{example}",)


def _same_model(old: Group, new: Group) -> bool:
    return old.side.facts.get("model") == new.side.facts.get("model")


def _uncounted(old: Group, new: Group) -> Iterator[str]:
    """Yield what one side alone leaves out of the stages of a group."""
    a, b = ([each.text for each in group.side.uncounted if each.stage in group.stages] for group in (old, new))
    for group, texts, others in ((old, a, b), (new, b, a)):
        yield from (f"{group.side.label} leaves out {text}" for text in texts if text not in others)


# --- how often, at which sizes


def _runs(old: Group, new: Group) -> Iterator[str]:
    for stage in dict.fromkeys((*old.stages, *new.stages)):
        a, b = (group.side.stages.get(stage) for group in (old, new))
        if a is None or b is None or a.executions != b.executions:
            yield _executions(old, new, stage)
        if a is None or b is None:
            continue
        for dim in a.sizes:
            if dim in b.sizes and a.sizes[dim] != b.sizes[dim]:
                mean = "" if dim in a.fixed and dim in b.fixed else "mean "
                yield f"{stage} {mean}{dim} {_arrow(a.sizes[dim], b.sizes[dim])}"
        yield from _other_dims(old, new, stage)


def _other_dims(old: Group, new: Group, stage: str) -> Iterator[str]:
    """Yield the dims that one side alone has: as another name, where each side has one and of the same size."""
    a, b = (group.side.stages[stage].sizes for group in (old, new))
    gone, come = _dims_beside(old, stage, b), _dims_beside(new, stage, a)
    if len(gone) == len(come) == 1 and a[gone[0]] == b[come[0]]:
        yield f"{stage} {gone[0]} is called {come[0]} in {new.side.label}"
        return
    for group, dims in ((old, gone), (new, come)):
        if dims:
            legend = {} if group.side.model is None else group.side.model.dims
            named = [f"{dim} ({legend[dim]})" if dim in legend else dim for dim in dims]
            yield f"{stage} depends on {' and '.join(named)} in {group.side.label} alone"


def _dims_beside(group: Group, stage: str, others: Mapping[str, float]) -> list[str]:
    """Return the dims of a stage that others have not, without sizes that the model does not ask for."""
    model = group.side.model
    asked = None if model is None else model.stage(stage).dims
    return [dim for dim in group.side.stages[stage].sizes if dim not in others and (asked is None or dim in asked)]


def _executions(old: Group, new: Group, stage: str) -> str:
    counts = [group.side.stages[stage].executions if stage in group.side.stages else 0 for group in (old, new)]
    return f"{stage} executions {_arrow(*counts)}"


def _instances(old: Group, new: Group) -> Iterator[str]:
    if old.instances and new.instances and old.instances != new.instances:
        yield f"modules {_arrow(old.instances, new.instances)}"


# --- which operators, which layers


def _pairs(old: Group, new: Group) -> list[tuple[str, str]]:
    """Return the stages to set beside each other: those of one name, else the first of each side."""
    shared = [(stage, stage) for stage in old.stages if stage in new.stages]
    return shared or [*zip(old.stages[:1], new.stages[:1], strict=False)]


def _operators(old: Group, new: Group) -> Iterator[str]:
    """Yield how the operator calls of one execution differ: by operator, or in total where a model is missing.

    Operators that are as many more as there are more modules are explained by those.
    """
    pairs = _pairs(old, new)
    if old.side.model is None or new.side.model is None:
        for a, b in pairs:
            if old.calls(a) != new.calls(b):
                yield f"{b} operator calls {_arrow(old.calls(a), new.calls(b))}"
        return
    a, b = Counter[str](), Counter[str]()
    for of_old, of_new in pairs:
        for counts, group, stage in ((a, old, of_old), (b, new, of_new)):
            for leaf in group.leaves(stage):
                counts[leaf.op.partition("::")[2] or leaf.op] += leaf.calls
    # An operator that came or went says more than one that is called more often.
    modules = (old.instances, new.instances) if old.instances and new.instances else (1, 1)
    differing = sorted(
        (name for name in a | b if a[name] != b[name] and a[name] * modules[1] != b[name] * modules[0]),
        key=lambda name: (bool(a[name] and b[name]), -abs(a[name] - b[name]), name),
    )
    for name in differing[:SHOWN_OPERATORS]:
        yield f"{name} calls {_arrow(a[name], b[name])}"
    if len(differing) > SHOWN_OPERATORS:
        yield f"{len(differing) - SHOWN_OPERATORS} more operators"


def _layers(old: Group, new: Group) -> Iterator[str]:
    """Yield what differs in layers of one type: the values of an attribute that occur."""
    pairs = _pairs(old, new)
    a, b = _values(old, [stage for stage, _ in pairs]), _values(new, [stage for _, stage in pairs])
    for key in a:
        if key not in b or a[key] == b[key]:
            continue
        # Rows are formulas: one of each side says what a product is of, such as logits; lists of them say little.
        if not key.endswith(_ROWS) or len(a[key]) == len(b[key]) == 1:
            yield f"{key} {_listed(a[key])} → {_listed(b[key])}"


def _values(group: Group, stages: Sequence[str]) -> Mapping[str, tuple[int | str, ...]]:
    found: dict[str, set[int | str]] = {}
    for leaf in (leaf for stage in stages for leaf in group.leaves(stage)):
        document = leaf.layer_document
        kind = type(leaf.layer).__name__ if document is None else str(document["type"])
        if leaf.dtype is not None:
            found.setdefault(f"{kind} dtype", set()).add(leaf.dtype.value)
        for name in _ATTRIBUTES:
            value = getattr(leaf.layer, name, None) if document is None else document.get(name)
            if isinstance(value, int):
                found.setdefault(f"{kind} {name}", set()).add(value)
        if document is not None and "in_features" in document:  # of a product: which positions it is of, as in logits
            found.setdefault(f"{kind}{_ROWS}", set()).add(str(document["rows"]))
    return {
        key: tuple(sorted(values, key=lambda value: (isinstance(value, str), value))) for key, values in found.items()
    }


def _listed(values: tuple[int | str, ...]) -> str:
    more = "" if len(values) <= SHOWN_VALUES else ", ..."
    return ", ".join(str(value) for value in values[:SHOWN_VALUES]) + more


# --- what the sides are


def _variant(old: Group, new: Group) -> Iterator[str]:
    """Yield the facts that tell two variants of one model apart."""
    for name in dict.fromkeys((*old.side.facts, *new.side.facts)):
        a, b = old.side.facts.get(name), new.side.facts.get(name)
        if not name.startswith(VARIANT) or a == b:
            continue
        fact = name.removeprefix(VARIANT)
        if a is None or b is None:
            yield f"{fact} {b if a is None else a} in {(new if a is None else old).side.label} alone"
        else:
            yield f"{fact} {a} → {b}"


def _known_facts(old: Group, new: Group, names: Sequence[str]) -> Iterator[str]:
    """Yield facts that both sides have and that differ: one that is not known explains nothing."""
    for name in names:
        a, b = old.side.facts.get(name), new.side.facts.get(name)
        if a is not None and b is not None and a != b:
            yield f"{name.removeprefix(VERSION)} {a} → {b}"


def _arrow(before: float, after: float) -> str:
    return f"{_number(before)} → {_number(after)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.4g}"
