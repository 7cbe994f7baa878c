"""Blocks: which operators of an attention, a feed-forward or some experts are divided, and in which role."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import sympy
from attrs import frozen

from modelmeter.compare.roles import Part
from modelmeter.dims import product, simplify
from modelmeter.layers import (
    BaseLayer,
    DataMovement,
    Gather,
    GroupedLinear,
    LayerNorm,
    Linear,
    Matmul,
    Reduction,
    RMSNorm,
    ScaledDotProductAttention,
)
from modelmeter.model import Leaf
from modelmeter.parallel.errors import MissingPlanError
from modelmeter.parallel.plan import Role, Share
from modelmeter.signature import TensorArgument

Shared = Iterator[tuple[Leaf, Share]]
"""Operators that are divided, and how."""

_WHOLE_ROWS = (LayerNorm, RMSNorm, Reduction)


@frozen(kw_only=True)
class Product:
    """A product with weights."""

    at: int  # position in its block
    leaf: Leaf
    reads: int  # features
    makes: int  # features


@frozen(kw_only=True)
class Block:
    """What one part of a layer runs in a stage, in order."""

    model: str  # its name, for messages
    stage: str
    part: Part
    module: str  # the outermost of the part, or what holds several
    leaves: tuple[Leaf, ...]

    @cached_property
    def products(self) -> tuple[Product, ...]:
        """The products with weights, in order."""
        return tuple(
            Product(at=at, leaf=leaf, reads=int(leaf.layer.in_features), makes=int(leaf.layer.out_features))
            for at, leaf in enumerate(self.leaves)
            if isinstance(leaf.layer, Linear | GroupedLinear)
        )

    def refusal(self, reason: str) -> MissingPlanError:
        """Return the error that says why the block cannot be divided."""
        return MissingPlanError(self.model, f"{reason} (stage {self.stage!r})")


# --- attention


def attention_shares(block: Block) -> Shared:
    """Yield what is divided in an attention: by heads.

    Projections to heads are columns, the one back is the row. A projection to a latent, which later ones read, stays
    whole, since every head needs all of it; so does what runs on no heads.

    Raises
    ------
    MissingPlanError
        When the heads cannot be told, the output is no one product, or something runs on all heads at once.
    """
    attended = next(
        ((at, *found) for at, leaf in enumerate(block.leaves) if (found := _attended(leaf.layer)) is not None), None
    )
    if attended is None:
        raise block.refusal(f"{block.module} attends with no operator over two heads or more")
    at, count, width = attended
    rows = [each for each in block.products if each.at > at]
    projections = [each for each in block.products if each.at < at]
    if len(rows) != 1 or not projections:
        raise block.refusal(
            f"{block.module} has {len(projections)} products before its attention and {len(rows)} after it, where some "
            "and one are expected"
        )
    latents = _latents(projections) if block.part is Part.ATTENTION else ()
    columns = [each for each in projections if each not in latents]
    heads = _Heads.of(columns, rows[0], count=count, width=width)
    for each in columns:
        yield each.leaf, Share(role=Role.COLUMN, heads=heads.in_features(each.makes))
    yield rows[0].leaf, Share(role=Role.ROW)
    taken = {each.at for each in block.products}
    for between in range(columns[0].at, rows[0].at):
        if between not in taken and heads.run_on(block, block.leaves[between]):
            yield block.leaves[between], Share(role=Role.INNER)


def _attended(layer: BaseLayer) -> tuple[int, int] | None:
    """Return the heads, two or more, that an operator attends with, and the features of one."""
    if isinstance(layer, ScaledDotProductAttention):
        count, width = layer.heads, layer.head_dim
    elif isinstance(layer, Matmul) and not layer.right_weight:
        count, width = sympy.sympify(layer.batch).as_coeff_Mul()[0], layer.k
    else:
        return None
    sizes = [simplify(count), simplify(width)]
    known = [size for size in sizes if isinstance(size, int)]
    return (known[0], known[1]) if len(known) == 2 and known[0] > 1 else None


def _latents(products: Sequence[Product]) -> tuple[Product, ...]:
    """Return the projections of the stream to a latent: each the narrowest that has what a later projection reads."""
    stream = max(each.reads for each in products)
    taken: list[Product] = []
    for reader in products:
        if reader.reads == stream:
            continue
        wide = [
            each
            for each in products
            if each.at < reader.at and each.reads == stream and reader.reads <= each.makes < stream
        ]
        taken += sorted((each for each in wide if each not in taken), key=lambda each: each.makes)[:1]
    return tuple(taken)


@frozen(kw_only=True)
class _Heads:
    """How tensors with heads look."""

    count: int  # of the queries
    width: int  # features of one
    counts: frozenset[int]  # of an axis that is not the last, those of keys and values among them
    widths: frozenset[int]  # of the last axis, all heads together

    @classmethod
    def of(cls, columns: Sequence[Product], row: Product, *, count: int, width: int) -> _Heads:
        features = {each.makes for each in columns} | {row.reads}
        counts = {count} | {each // width for each in features if each % width == 0}
        return cls(
            count=count,
            width=width,
            counts=frozenset(counts - {1}),
            widths=frozenset(each for each in features if each > width),
        )

    def in_features(self, features: int) -> int:
        """Return the heads that some features form; where heads of keys and values have other sizes, all of them."""
        return self.count if features % self.width else features // self.width

    def run_on(self, block: Block, leaf: Leaf) -> bool:
        """Whether an operator takes or gives a tensor with heads."""
        if leaf.signature is None:
            raise block.refusal(
                f"{leaf.id} has no signature, which would tell whether it runs on heads: of a model under what-ifs, "
                "derive the plan from the captured one"
            )
        tensors = [each for each in leaf.signature.tensors if not each.weight and each.shape]
        if any(self._by_head(each) for each in tensors):
            return True
        together = any(each.shape[-1] in self.widths for each in tensors)
        if together and isinstance(leaf.layer, _WHOLE_ROWS):
            raise block.refusal(f"{leaf.id} needs the features of all heads, of which a tensor rank has a part")
        return together

    def _by_head(self, tensor: TensorArgument) -> bool:
        return not self.counts.isdisjoint(size for size in tensor.shape[:-1] if isinstance(size, int))


# --- feed-forward and experts


def feed_forward_shares(block: Block) -> Shared:
    """Yield what is divided in a feed-forward: its last product is the row; a single one, such as a gate, stays whole.

    Raises
    ------
    MissingPlanError
        When the products are no columns and a row.
    """
    if len(block.products) > 1:
        yield from _columns_and_row(block, Role.COLUMN, Role.ROW)


def expert_shares(block: Block) -> Shared:
    """Yield what is divided in experts: whole ones by expert rank, their features by spare tensor ranks.

    Raises
    ------
    MissingPlanError
        When the experts are no grouped products, or those are no columns and a row.
    """
    if len(block.products) < 2 or not all(isinstance(each.leaf.layer, GroupedLinear) for each in block.products):
        raise block.refusal(f"{block.module} runs its experts as something else than grouped products")
    yield from _columns_and_row(block, Role.EXPERT_COLUMN, Role.EXPERT_ROW)


def _columns_and_row(block: Block, column: Role, row: Role) -> Shared:
    """Yield the role of each operator from the first product to the last."""
    *makers, last = block.products
    strangers = [each for each in makers if each.reads != last.makes or each.makes % last.reads]
    if strangers:
        raise block.refusal(
            f"{last.leaf.id} makes {last.makes} features of {last.reads}, so that {strangers[0].leaf.id}, which makes "
            f"{strangers[0].makes} of {strangers[0].reads}, is no column before it"
        )
    positions = {each.at for each in makers}
    for at in range(makers[0].at, last.at):
        leaf = block.leaves[at]
        if isinstance(leaf.layer, _WHOLE_ROWS):
            raise block.refusal(f"{leaf.id} needs all features of a row, of which a tensor rank has a part")
        yield leaf, Share(role=column if at in positions else Role.INNER)
    yield last.leaf, Share(role=row)


def dispatching(block: Block) -> Leaf:
    """Return the operator that gathers the rows which experts read.

    Raises
    ------
    MissingPlanError
        When there is none before the first product.
    """
    first = block.products[0]
    assert isinstance(first.leaf.layer, GroupedLinear)
    elements = product((first.leaf.layer.rows, first.reads))
    for leaf in reversed(block.leaves[: first.at]):
        layer = leaf.layer
        if isinstance(layer, Gather | DataMovement) and any(each.elements == elements for each in layer.writes):
            return leaf
    raise block.refusal(f"no operator of {block.module} gathers the rows that {first.leaf.id} reads")
