"""Assumptions: what a division over devices leaves out or takes for granted, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator

from modelmeter.devices.spec import Link
from modelmeter.parallel.layout import Layout
from modelmeter.parallel.links import Latency
from modelmeter.parallel.plan import ShardingPlan


def assumptions_of(plan: ShardingPlan, layout: Layout, link: Link | None, latency: Latency) -> tuple[str, ...]:
    """Return what holds for a layout of a plan.

    Examples
    --------
    >>> import modelmeter
    >>> from modelmeter.parallel import NCCL_RING, derived_plan
    >>> for sentence in assumptions_of(derived_plan(modelmeter.load("qwen3-8b")), Layout(), None, NCCL_RING):
    ...     print(sentence)
    Times of compute are the device's datasheet roofline: a bound.
    Stages run one after the other and do not overlap.
    """
    return tuple(_sentences(plan, layout, link, latency))


def _sentences(plan: ShardingPlan, layout: Layout, link: Link | None, latency: Latency) -> Iterator[str]:
    yield "Times of compute are the device's datasheet roofline: a bound."
    yield "Stages run one after the other and do not overlap."
    if link is None:
        return
    yield (
        f"A collective takes {latency.call * 1e6:g} us, {latency.step * 1e6:g} us for each step of a ring, and the "
        f"time of the bytes that a device sends over one direction of {link.name}, which is half of the stated "
        f"{link.bandwidth / 1e9:g} GB/s; latencies: {latency.source}."
    )
    yield "Every pair of devices has that link to itself, and none is slowed by another: one node, no network."
    yield "Communication does not overlap with compute."
    yield "Activation peaks are those of the whole graph at a replica's batch, though a device has a part of it."
    yield "Fused bytes keep on chip what one device keeps there, where that can be told, and nothing else."
    yield from plan.assumptions
    yield from _of_decoder(layout)
    if (plan.features or plan.states) and (layout.vision_data > 1 or layout.data > 1):
        yield (
            f"What the {plan.encoder} makes is spread evenly over its devices and gathered by the decoder's first "
            "ones, as if none encoded its own documents."
        )


def _of_decoder(layout: Layout) -> Iterator[str]:
    if layout.tensor > 1:
        yield "Norms, routers and what lies between layers run alike on every tensor rank."
        yield "Every tensor rank adds the bias of a product whose partial results are summed."
        yield "A tensor rank looks up every token in its part of the vocabulary; the parts' rows are all-reduced."
        yield "Logits are gathered whole on every tensor rank, which all choose the next token."
    if layout.expert > 1:
        yield "Experts get equal shares of the tokens; the busiest expert rank is not modelled."
        yield "A token that meets several experts on one device is sent once for each of them."
    if layout.pipeline > 1:
        yield "What runs outside of the layers does so before the first or after the last of them."
        yield "Every pipeline stage sends whole hidden states, each tensor rank to its peer."
        yield "A decode has one batch in flight, so that pipeline stages take turns; only a prefill is cut."
        yield "A sampled token's way back to the first pipeline stage is left out."
    if layout.data > 1 or layout.micro_batches > 1:
        yield "Replicas and parts of a batch have equal shares of the documents, and all repeat what no batch changes."
