"""Exchanges: the messages of a part in one execution of a stage, read from the operators whose results they carry."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from attrs import field, frozen

from modelmeter.dims import Dim
from modelmeter.model import Leaf
from modelmeter.parallel.division import over
from modelmeter.parallel.errors import LayoutError
from modelmeter.parallel.links import Operation
from modelmeter.parallel.parts import Part, Sharding
from modelmeter.parallel.plan import Group
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
    """Return the messages of a part; the vision encoder has none, as its features are messages of who takes them.

    Raises
    ------
    LayoutError
        When the plan names no operator whose result passes between pipeline stages.
    """
    if part.stages == sharding.plan.vision:
        return ()
    found = [message for leaf in part.captured for message in _in_groups(sharding, leaf)]
    passes_on = part.rank < sharding.layout.pipeline - 1
    return (*found, *_features(sharding, part), *(_sends(sharding, part) if passes_on else ()))


def _in_groups(sharding: Sharding, leaf: Leaf) -> Iterator[Message]:
    layout = sharding.layout
    for exchange in sharding.plan.exchanges:
        ranks = layout.tensor if exchange.group is Group.TENSOR else layout.expert
        if ranks == 1 or not fnmatchcase(leaf.id, exchange.pattern):
            continue
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
    """Yield what the vision encoder's devices hand to the decoder's first ones.

    The busiest device sends, or gets, the features of the documents of one encoder or of one replica, whichever are
    more; a leaf states those of one replica.
    """
    layout = sharding.layout
    ranks = max(layout.vision_data, layout.stage_devices)
    for leaf in part.captured if ranks > 1 else ():
        if fnmatchcase(leaf.id, sharding.plan.features):
            busiest = over(_result_bytes(leaf) * layout.data, min(layout.vision_data, layout.data))
            yield Message(
                stage=leaf.stage,
                operation=Operation.ALL_GATHER,
                what="vision features",
                ranks=ranks,
                calls=leaf.calls,
                bytes=busiest,
            )


def _sends(sharding: Sharding, part: Part) -> Iterator[Message]:
    for stage in sharding.stages:
        leaf = next((each for each in part.captured if each.stage == stage.name and _passes_on(sharding, each)), None)
        if leaf is None:
            raise LayoutError(
                f"no layer of {sharding.plan.layers} runs an operator {sharding.plan.stream!r} in stage "
                f"{stage.name!r}, so what passes between pipeline stages is not known; correct the plan's `stream`, or "
                "choose pipeline=1"
            )
        yield Message(
            stage=stage.name,
            operation=Operation.SEND,
            what="hidden states",
            ranks=2,
            calls=1,
            bytes=_result_bytes(leaf),
        )


def _passes_on(sharding: Sharding, leaf: Leaf) -> bool:
    in_layer = sharding.model.parents[leaf.module] == sharding.plan.layers
    return in_layer and leaf.id == f"{leaf.module}/{sharding.plan.stream}"


def _result_bytes(leaf: Leaf) -> Dim:
    return leaf.layer.traffic().written
