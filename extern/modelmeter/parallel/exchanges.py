"""Exchanges: the messages of a part in one execution of a stage, read from the operators whose results they carry."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from attrs import field, frozen

from modelmeter.dims import Dim
from modelmeter.layers import Scatter
from modelmeter.model import Leaf
from modelmeter.parallel.division import over
from modelmeter.parallel.errors import LayoutError
from modelmeter.parallel.layout import Layout
from modelmeter.parallel.links import Operation
from modelmeter.parallel.parts import Part, Sharding
from modelmeter.parallel.plan import Exchange, Group, Operator, ShardingPlan, operator_of
from modelmeter.stored import StoredDim, stored


@frozen(kw_only=True)
class Message:
    """What a device exchanges in one execution of a stage, some times alike."""

    stage: str
    operation: Operation
    what: str
    ranks: int
    calls: int
    bytes: StoredDim = field(converter=stored)  # of one call, in the dims of the stage


def messages_of(sharding: Sharding, part: Part) -> tuple[Message, ...]:
    """Return the messages of a part; the encoder has none, as its features are messages of who takes them.

    Raises
    ------
    LayoutError
        When the plan names no operator whose result passes between pipeline stages.
    """
    if part.stages == sharding.plan.encoding:
        return ()
    exchanges: dict[Operator, list[Exchange]] = {}
    for exchange in sharding.plan.exchanges:
        exchanges.setdefault(exchange.after, []).append(exchange)
    found = [
        message
        for leaf in part.captured
        for exchange in exchanges.get(operator_of(leaf), ())
        for message in _in_group(sharding.layout, leaf, exchange)
    ]
    passes_on = part.rank < sharding.layout.pipeline - 1
    return (*found, *_features(sharding, part), *(_sends(sharding, part) if passes_on else ()))


def _in_group(layout: Layout, leaf: Leaf, exchange: Exchange) -> Iterator[Message]:
    ranks = layout.tensor if exchange.group is Group.TENSOR else layout.expert
    if ranks == 1:
        return
    # Each tensor rank dispatches, and gets back, its share of the tokens that all of them have.
    sharers = layout.tensor if exchange.group is Group.EXPERT else 1
    yield Message(
        stage=leaf.stage,
        operation=exchange.operation,
        what=exchange.what,
        ranks=ranks,
        calls=leaf.calls,
        bytes=over(_result_bytes(leaf), sharers),
    )


def _features(sharding: Sharding, part: Part) -> Iterator[Message]:
    """Yield what the encoder's devices hand to the decoder's first ones.

    The busiest device sends, or gets, the features of the documents of one encoder or of one replica, whichever are
    more; a leaf states those of one replica.
    """
    layout = sharding.layout
    ranks = max(layout.vision_data, layout.stage_devices)
    for leaf, taken, calls in _taken(sharding.plan, part) if ranks > 1 else ():
        yield Message(
            stage=leaf.stage,
            operation=Operation.ALL_GATHER,
            what=f"{sharding.plan.encoder.removesuffix(' encoder')} features",
            ranks=ranks,
            calls=calls,
            bytes=over(taken * layout.data, min(layout.vision_data, layout.data)),
        )


def _taken(plan: ShardingPlan, part: Part) -> Iterator[tuple[Leaf, Dim, int]]:
    """Yield what a part takes of the encoder, in bytes, and how often: features each time, states for all layers once.

    An operator that puts features into a copy of the embeddings writes the features last.
    """
    for leaf in part.captured:
        if operator_of(leaf) in plan.features:
            scattered = leaf.layer.writes[-1].bytes if isinstance(leaf.layer, Scatter) else _result_bytes(leaf)
            yield leaf, scattered, leaf.calls
    readers = (leaf for leaf in part.captured if operator_of(leaf) in plan.states)
    for leaf in islice(readers, 1):
        yield leaf, leaf.layer.traffic().activations_read, 1


def _sends(sharding: Sharding, part: Part) -> Iterator[Message]:
    for stage in sharding.stages:
        of_stage = (leaf for leaf in part.captured if leaf.stage == stage.name)
        leaf = next((leaf for leaf in of_stage if operator_of(leaf) in sharding.plan.stream), None)
        if leaf is None:
            raise LayoutError(
                f"no layer of {sharding.plan.layers} has an operator in stage {stage.name!r} that is in the plan's "
                "`stream`, so what passes between pipeline stages is not known; add the operator whose result passes "
                "on, or choose pipeline=1"
            )
        yield Message(
            stage=stage.name,
            operation=Operation.SEND,
            what="hidden states",
            ranks=2,
            calls=1,
            bytes=_result_bytes(leaf),
        )


def _result_bytes(leaf: Leaf) -> Dim:
    return leaf.layer.traffic().written
