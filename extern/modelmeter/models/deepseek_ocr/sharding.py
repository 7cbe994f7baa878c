"""How devices share DeepSeek-OCR: heads and features by tensor rank, experts by expert rank, layers by stage."""

from __future__ import annotations

from modelmeter.parallel.links import Operation
from modelmeter.parallel.plan import Exchange, Group, Role, Rule, ShardingPlan

PLAN = ShardingPlan(
    rules=(
        Rule(pattern="model.embed_tokens*", role=Role.VOCABULARY),
        Rule(pattern="lm_head*", role=Role.COLUMN),
        Rule(pattern="model.layers.*.self_attn.[qkv]_proj*", role=Role.COLUMN),
        Rule(pattern="model.layers.*.self_attn.o_proj*", role=Role.ROW),
        Rule(pattern="model.layers.*.self_attn/*", role=Role.INNER),
        # The third grouped product of the experts is their down projection.
        Rule(pattern="model.layers.*.mlp.experts/grouped_linear.2", role=Role.EXPERT_ROW),
        Rule(pattern="model.layers.*.mlp.experts/grouped_linear*", role=Role.EXPERT_COLUMN),
        Rule(pattern="model.layers.*.mlp.experts.*.down_proj", role=Role.EXPERT_ROW),
        Rule(pattern="model.layers.*.mlp.experts.*_proj", role=Role.EXPERT_COLUMN),
        # Every expert rank has its rows of what lies between its products.
        Rule(pattern="model.layers.*.mlp.experts/silu", role=Role.INNER),
        Rule(pattern="model.layers.*.mlp.experts/mul", role=Role.INNER),
        Rule(pattern="model.layers.*.down_proj*", role=Role.ROW),
        Rule(pattern="model.layers.*.gate_proj*", role=Role.COLUMN),
        Rule(pattern="model.layers.*.up_proj*", role=Role.COLUMN),
        Rule(pattern="model.layers.*.act_fn/silu", role=Role.INNER),
        Rule(pattern="model.layers.*.mlp/mul", role=Role.INNER),
        Rule(pattern="model.layers.*.shared_experts/mul", role=Role.INNER),
    ),
    exchanges=(
        Exchange(
            pattern="model.embed_tokens/embedding",
            operation=Operation.ALL_REDUCE,
            group=Group.TENSOR,
            what="embeddings",
        ),
        Exchange(
            pattern="model.layers.*.self_attn.o_proj/linear",
            operation=Operation.ALL_REDUCE,
            group=Group.TENSOR,
            what="attention output",
        ),
        # The first layer has one MLP; the others add their experts to the shared ones and reduce the sum.
        Exchange(
            pattern="model.layers.*.mlp.down_proj/linear",
            operation=Operation.ALL_REDUCE,
            group=Group.TENSOR,
            what="MLP output",
        ),
        Exchange(
            pattern="model.layers.*.mlp/add",
            operation=Operation.ALL_REDUCE,
            group=Group.TENSOR,
            what="MLP output",
        ),
        Exchange(
            pattern="model.layers.*.mlp.experts/index",
            operation=Operation.ALL_TO_ALL,
            group=Group.EXPERT,
            what="expert dispatch",
        ),
        Exchange(
            pattern="model.layers.*.mlp.experts/grouped_linear.2",
            operation=Operation.ALL_TO_ALL,
            group=Group.EXPERT,
            what="expert combine",
        ),
        Exchange(pattern="lm_head/linear", operation=Operation.ALL_GATHER, group=Group.TENSOR, what="logits"),
    ),
    layers="model.layers",
    stream="add.1",
    vision=("vision_global", "vision_local"),
    features="model/masked_scatter_",
)
"""Megatron's split (Shoeybi et al. 2019, section 3): a column and a row layer per block, one all-reduce after each."""
