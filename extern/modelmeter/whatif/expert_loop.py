"""The published loop over experts in place of the grouped products: what it counts, joins and leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain

from attrs import evolve, frozen

from modelmeter.dims import Dim, product
from modelmeter.dtypes import DType
from modelmeter.layers import BaseLayer, DataMovement, GroupedLinear, Operand, Reduction, Scatter, SearchSorted
from modelmeter.model import AnalyticModel, Leaf, Stage
from modelmeter.whatif.errors import UnsupportedWhatIfError
from modelmeter.whatif.memory import with_operand_peaks

Replaced = Mapping[int, tuple[Leaf, ...]]  # what runs in place of the leaf at a position


def with_expert_loop(model: AnalyticModel) -> AnalyticModel:
    """Return a model that multiplies expert by expert, as the published code of DeepSeek-OCR does.

    The experts' products, activations and what is gathered and scattered move as much, in one call for each expert
    with rows; the leaves of the grouped form stand for those calls together. In place of a search for the experts'
    ends, the loop counts the rows of each expert (zeros, a scatter and a sum), and it joins the experts' results.

    Raises
    ------
    UnsupportedWhatIfError
        When no stage has grouped products between a search for the experts' ends and a scatter of their results.

    Examples
    --------
    >>> import modelmeter
    >>> model = modelmeter.load("deepseek-ocr")
    >>> looped = with_expert_loop(model)
    >>> [leaf.id for leaf in looped.leaves_by_stage["decode"] if "/loop." in leaf.id][-1]
    'model.layers.[1-11].mlp.experts/loop.cat'
    """
    replaced = {stage.name: _replaced(model, stage) for stage in model.stages}
    if not any(replaced.values()):
        raise UnsupportedWhatIfError(
            f"no stage of {model.name} has grouped experts to loop over; leave moe at 'grouped'"
        )
    leaves = chain.from_iterable(
        _with_replaced(model.leaves_by_stage[stage.name], replaced[stage.name]) for stage in model.stages
    )
    stages = tuple(
        _with_stage(stage, len(model.leaves_by_stage[stage.name]), replaced[stage.name]) for stage in model.stages
    )
    return evolve(model, leaves=tuple(leaves), stages=stages)


# --- what the loop does


@frozen(kw_only=True)
class _Experts:
    """The calls of one module's experts that the loop does otherwise, by position, and its sizes."""

    search: int
    placing: int  # results back in the order of the tokens
    numbering: tuple[int, ...]  # of the experts, for the search
    experts: Dim
    per_token: Dim
    tokens: Dim


def _replaced(model: AnalyticModel, stage: Stage) -> Replaced:
    leaves = model.leaves_by_stage[stage.name]
    modules = {leaf.module: leaf.layer for leaf in leaves if isinstance(leaf.layer, GroupedLinear)}
    found: dict[int, tuple[Leaf, ...]] = {}
    for module, layer in modules.items():
        experts = _experts(model, leaves, module, layer)
        placing = leaves[experts.placing]
        found |= dict.fromkeys(experts.numbering, ())
        found[experts.search] = _counting(leaves[experts.search], experts)
        found[experts.placing] = (_joining(placing), placing)
    return found


def _experts(model: AnalyticModel, leaves: Sequence[Leaf], module: str, layer: BaseLayer) -> _Experts:
    own = {at: leaf for at, leaf in enumerate(leaves) if leaf.module == module}
    searches = [at for at, leaf in own.items() if isinstance(leaf.layer, SearchSorted)]
    placing = [at for at, leaf in own.items() if isinstance(leaf.layer, Scatter)]
    assert isinstance(layer, GroupedLinear)
    sizes = getattr(layer.active_experts, "args", ())
    if len(searches) != 1 or len(placing) != 1 or len(sizes) != 3:
        raise UnsupportedWhatIfError(
            f"the experts {module!r} of {model.name} are not sorted and placed as DeepSeek-OCR's are, whose loop is "
            f"known: it searches for the experts' ends once (here {len(searches)} times) and places their results once "
            f"(here {len(placing)} times); leave moe at 'grouped'"
        )
    experts, per_token, tokens = sizes
    numbering = tuple(at for at, leaf in own.items() if leaf.op == "aten::arange")
    return _Experts(
        search=searches[0],
        placing=placing[0],
        numbering=numbering,
        experts=experts,
        per_token=per_token,
        tokens=tokens,
    )


def _counting(search: Leaf, sizes: _Experts) -> tuple[Leaf, ...]:
    table = Operand(elements=product((sizes.tokens, sizes.experts)), dtype=DType.INT64)
    picks = Operand(elements=product((sizes.tokens, sizes.per_token)), dtype=DType.INT64)
    counts = Operand(elements=sizes.experts, dtype=DType.INT64)
    return (
        _made(search, "zero_", DataMovement(op="zeros", reads=(), writes=(table,))),
        _made(search, "scatter_", Scatter(reads=(picks,), writes=(picks,))),
        _made(
            search,
            "sum",
            Reduction(op="sum", elements=table.elements, reads=(table,), writes=(counts,), dtype=DType.INT64),
        ),
    )


def _joining(placing: Leaf) -> Leaf:
    layer = placing.layer
    assert isinstance(layer, Scatter)
    return _made(placing, "cat", DataMovement(op="cat", reads=layer.writes, writes=layer.writes))


def _made(near: Leaf, name: str, layer: BaseLayer) -> Leaf:
    """Return a call that the loop makes where the grouped form makes another."""
    return Leaf(
        id=f"{near.module}/loop.{name}",
        module=near.module,
        stage=near.stage,
        op=f"aten::{name}",
        function=near.function,
        category=near.category,
        layer=layer,
        calls=near.calls,
        fused_bytes=layer.traffic().bytes,
    )


# --- in a stage


def _with_replaced(leaves: Sequence[Leaf], replaced: Replaced) -> tuple[Leaf, ...]:
    return tuple(chain.from_iterable(replaced.get(at, (leaf,)) for at, leaf in enumerate(leaves)))


def _with_stage(stage: Stage, leaves: int, replaced: Replaced) -> Stage:
    """Return a stage whose schedule runs the new calls, and whose peak may be where the results are joined."""
    if not replaced:
        return stage
    lengths = [len(replaced[at]) if at in replaced else 1 for at in range(leaves)]
    firsts = [0, *accumulate(lengths)]

    def places(position: int) -> range:
        if position >= leaves:  # a call that moves nothing
            return range(position - leaves + firsts[-1], position - leaves + firsts[-1] + 1)
        return range(firsts[position], firsts[position + 1])

    schedule = tuple(chain.from_iterable(map(places, stage.schedule)))
    new = tuple(leaf for each in replaced.values() for leaf in each if leaf.op == "aten::cat")
    return with_operand_peaks(evolve(stage, schedule=schedule), new, None)
