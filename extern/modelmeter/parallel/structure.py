"""Structure: a model as decoder layers and their blocks, with what comes before and after them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property

from attrs import frozen

from modelmeter.compare.model_tree import cached_stages, nodes_of_model
from modelmeter.compare.roles import Part, Tower, roles_of
from modelmeter.compare.roles import Role as Place
from modelmeter.layers import Embedding, Linear, Scatter
from modelmeter.model import AnalyticModel, Leaf
from modelmeter.parallel.blocks import Block
from modelmeter.parallel.errors import MissingPlanError
from modelmeter.parallel.plan import Operator, operator_of

ATTENTIONS = (Part.ATTENTION, Part.CROSS_ATTENTION)

# The last name of a layer: a number, or those of folded layers.
_ITEM = r"\d+|\[[\d,-]+\]"


@frozen(kw_only=True)
class Structure:
    """A model as its decoder layers and their blocks.

    Examples
    --------
    >>> import modelmeter
    >>> structure = Structure(model=modelmeter.load("qwen3-8b"))
    >>> structure.layers, sorted({block.part.value for block in structure.blocks})
    ('model.layers', ['attention', 'feed-forward', 'norm', 'other'])
    """

    model: AnalyticModel

    @cached_property
    def decoding(self) -> frozenset[str]:
        """The stages of the decoder: those that leave keys and values behind."""
        return cached_stages(self.model)

    @cached_property
    def encoding(self) -> tuple[str, ...]:
        """The other stages."""
        return tuple(stage.name for stage in self.model.stages if stage.name not in self.decoding)

    @cached_property
    def places(self) -> Mapping[str, Place]:
        """What each module is."""
        return roles_of(nodes_of_model(self.model).values(), self.decoding)

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The decoder's leaves, stage by stage in order of execution."""
        return tuple(leaf for leaf in self.model.leaves if leaf.stage in self.decoding)

    @cached_property
    def encoder(self) -> str:
        """What the stages that encode run, in a word or two."""
        towers = {self.places[leaf.module].tower for leaf in self.model.leaves if leaf.stage in self.encoding}
        known = (Tower.VISION, Tower.AUDIO, Tower.TEXT)
        return next((tower.value for tower in known if tower in towers), Tower.ENCODER.value)

    # --- layers

    @cached_property
    def layers(self) -> str:
        """The list of decoder layers; "" where nothing decodes.

        Raises
        ------
        MissingPlanError
            When the decoder attends in no list of layers, or in several.
        """
        if not self.decoding:
            return ""
        attentions = {leaf.module for leaf in self.leaves if self.places[leaf.module].part in ATTENTIONS}
        lists = sorted({found for module in attentions if (found := _list_around(module)) is not None})
        if len(lists) != 1:
            found = ", ".join(lists) or "none"
            raise MissingPlanError(
                self.model.name, f"its decoder should attend in one list of layers, and does so in {found}"
            )
        return lists[0]

    def layer_of(self, module: str) -> str | None:
        """Return the decoder layer that a module lies in, or is."""
        found = self._in_layers.match(module)
        return None if found is None else found[0]

    @cached_property
    def _in_layers(self) -> re.Pattern[str]:
        return re.compile(rf"{re.escape(self.layers)}\.(?:{_ITEM})(?=\.|$)")

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """What each part of each layer runs, in each stage."""
        found: dict[tuple[str, Part, str], list[Leaf]] = {}
        for leaf in self.leaves:
            if self.layer_of(leaf.module) is not None:
                found.setdefault((leaf.stage, self.places[leaf.module].part, self._top(leaf.module)), []).append(leaf)
        return tuple(
            Block(model=self.model.name, stage=stage, part=part, module=module, leaves=tuple(leaves))
            for (stage, part, module), leaves in found.items()
        )

    def _top(self, module: str) -> str:
        """Return the outermost module of the same part in the layer; of bare children of one module, that module."""
        parents, part = self.model.parents, self.places[module].part
        top = module
        while (parent := parents[top]) is not None and parent != self.layers and self.places[parent].part is part:
            top = parent
        above = parents[top]
        return top if above is None or above == self.layers or top in self._parents else above

    @cached_property
    def _parents(self) -> frozenset[str | None]:
        return frozenset(self.model.parents.values())

    @cached_property
    def stream(self) -> frozenset[Operator]:
        """The last operator that each layer runs itself, in each stage."""
        last = {
            (leaf.stage, leaf.module): operator_of(leaf)
            for leaf in self.leaves
            if self.model.parents[leaf.module] == self.layers
        }
        return frozenset(last.values())

    # --- around the layers

    @cached_property
    def vocabulary(self) -> tuple[Leaf, ...]:
        """The embeddings of tokens: those of the largest vocabulary."""
        tables = [(leaf, int(leaf.layer.vocabulary)) for leaf in self.leaves if isinstance(leaf.layer, Embedding)]
        largest = max((rows for _, rows in tables), default=0)
        return tuple(leaf for leaf, rows in tables if rows == largest)

    @cached_property
    def heads(self) -> tuple[Leaf, ...]:
        """The products that make logits."""
        return tuple(
            leaf
            for leaf in self.leaves
            if isinstance(leaf.layer, Linear) and self.places[leaf.module].tower is Tower.HEAD
        )

    @cached_property
    def features(self) -> frozenset[Operator]:
        """The operators that put what was encoded among the embeddings, or beside the layers."""
        outside = (leaf for leaf in self.leaves if self.layer_of(leaf.module) is None)
        found = (operator_of(leaf) for leaf in outside if isinstance(leaf.layer, Scatter))
        return frozenset(found if self.encoding else ())

    @cached_property
    def states(self) -> frozenset[Operator]:
        """The first projection of what was encoded in each cross-attention: of those that not every stage runs."""
        stages: dict[str, set[str]] = {}
        for leaf in self.leaves:
            stages.setdefault(leaf.module, set()).add(leaf.stage)
        found = (
            next((each for each in block.products if stages[each.leaf.module] != self.decoding), None)
            for block in self.blocks
            if block.part is Part.CROSS_ATTENTION
        )
        return frozenset(operator_of(first.leaf) for first in found if first is not None)


def _list_around(module: str) -> str | None:
    """Return the outermost list that a module lies in."""
    names = module.split(".")
    place = next((at for at, name in enumerate(names) if re.fullmatch(_ITEM, name)), None)
    return None if place is None else ".".join(names[:place])
