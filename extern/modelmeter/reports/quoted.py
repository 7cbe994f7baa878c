"""Quoted figures: KV bytes per token and weight bytes per decode step, each with the assumption that it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from modelmeter.binding import Binding
from modelmeter.costs import Number
from modelmeter.errors import DimError
from modelmeter.expert_counts import Routing
from modelmeter.formulas import active_parameters, kv_cache_bytes_per_token
from modelmeter.formulas.of_model import CACHED_TOKENS, NoDecoderError, kv_cache_bytes_per, kv_cache_growth_past_windows
from modelmeter.model import AnalyticModel
from modelmeter.routing import FEWEST, MOST, UNIFORM, NamedRouting, Zipf, routed_layers

BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""Documents decoded together for which weight bytes are quoted."""

ROUTINGS: tuple[NamedRouting, ...] = (UNIFORM, Zipf(exponent=1.0), FEWEST, MOST)
"""Routing models that are quoted unless others are asked for."""


@frozen(kw_only=True)
class WeightStep:
    """Parameters that one decode step reads under one routing model, between the bounds of any routing."""

    batch: int  # documents, one token each
    routing: str
    distinct_experts: float | None  # in each layer that routes; None where there is none, or layers differ
    weight_bytes: Number  # bytes of parameters read
    fewest_bytes: Number  # every token picks the same k experts
    most_bytes: Number  # min(E, T*k) experts


@frozen(kw_only=True)
class QuotedFigures:
    """What is often quoted of a model, with what it assumes; of one without a decoder, its parameters alone."""

    kv_bytes_per_token: int | None  # bytes, of one document; None without a decoder
    kv_bytes_per_token_past: Mapping[int, int]  # the same from so many cached tokens on, past each window
    kept_bytes_per_document: int | None  # bytes kept whatever the tokens, as for cross-attention; None likewise
    kept_bytes_per_size: Mapping[str, int]  # of one document, for each of another dim of a step, by dim
    active_parameters: int | None  # multiplied with one token; None likewise
    parameters: int  # all of them
    parameter_bytes: int  # bytes of all parameters
    steps: tuple[WeightStep, ...]  # batch by batch, under each routing; empty without a decoder
    assumptions: tuple[str, ...]


def quoted_figures(
    model: AnalyticModel, *, batches: Sequence[int] = BATCHES, routings: Sequence[NamedRouting] = ROUTINGS
) -> QuotedFigures:
    """Return the quoted figures of a model, captured or under what-ifs.

    Parameters
    ----------
    model : AnalyticModel
        Figures of tokens and steps are of its stage "decode" of a batch B and T cached tokens, where it has one.
    batches : sequence of int
        Documents decoded together.
    routings : sequence of NamedRouting
        How tokens choose experts.

    Raises
    ------
    DimError
        When a batch is no whole number from 1 up.

    Examples
    --------
    >>> import modelmeter
    >>> figures = quoted_figures(modelmeter.load("deepseek-ocr"), batches=(1,), routings=(UNIFORM,))
    >>> figures.kv_bytes_per_token, figures.active_parameters, figures.steps[0].distinct_experts
    (61440, 574095360, 6.0)
    """
    wrong = [batch for batch in batches if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1]
    if wrong:
        raise DimError(f"batch is {wrong[0]!r}; it must be a whole number of documents from 1 up")
    try:
        per_token = kv_cache_bytes_per_token(model)
    except NoDecoderError as error:
        return QuotedFigures(
            kv_bytes_per_token=None,
            kv_bytes_per_token_past={},
            kept_bytes_per_document=None,
            kept_bytes_per_size={},
            active_parameters=None,
            parameters=model.parameters,
            parameter_bytes=model.parameter_bytes,
            steps=(),
            assumptions=(f"no figures of tokens and steps: {error}",),
        )
    others = [dim for dim in model.stage("decode").dims if dim not in {"B", CACHED_TOKENS}]
    per_size = {dim: kv_cache_bytes_per(model, dim) for dim in others}
    routed = bool(routed_layers(model))
    chosen = routings if routed else (UNIFORM,)  # without experts all are alike
    return QuotedFigures(
        kv_bytes_per_token=per_token,
        kv_bytes_per_token_past=kv_cache_growth_past_windows(model),
        kept_bytes_per_document=_kept_bytes(model, {**per_size, CACHED_TOKENS: per_token}),
        kept_bytes_per_size=per_size,
        active_parameters=active_parameters(model),
        parameters=model.parameters,
        parameter_bytes=model.parameter_bytes,
        steps=tuple(_step(model, batch, routing) for batch in batches for routing in chosen),
        assumptions=(
            "KV bytes per token: keys and values of every layer in the type that the cache is kept in; no scales, no "
            "padding of pages",
            "active parameters: those of linear layers, the chosen experts' alone; embedding and norms multiply none",
            "weight bytes: each kernel of one step reads its parameters once, nothing stays in a cache between "
            "kernels; the embedding reads one row per document",
            *(f"every other size of a step is 1: {dim}, {model.dims.get(dim, 'size')}" for dim in others),
            *(f"{routing.name}: {routing.statement}" for routing in chosen if routed),
        ),
    )


def _kept_bytes(model: AnalyticModel, per_size: Mapping[str, int]) -> int:
    """Return what a document keeps whatever the sizes: a step with one cached token leaves two of them."""
    stage = model.stage("decode")
    left = dict.fromkeys(stage.dims, 1) | {CACHED_TOKENS: 2}
    return int(stage.kv_cache_bytes_at(dict.fromkeys(stage.dims, 1))) - sum(
        left[dim] * count for dim, count in per_size.items()
    )


def _step(model: AnalyticModel, batch: int, routing: NamedRouting) -> WeightStep:
    shapes = set(routed_layers(model).values())
    (experts, top_k) = next(iter(shapes)) if len(shapes) == 1 else (0, 0)
    return WeightStep(
        batch=batch,
        routing=routing.name,
        distinct_experts=routing(experts, top_k, batch) if experts else None,
        weight_bytes=_weight_bytes(model, batch, routing),
        fewest_bytes=_weight_bytes(model, batch, FEWEST),
        most_bytes=_weight_bytes(model, batch, MOST),
    )


def _weight_bytes(model: AnalyticModel, batch: int, routing: Routing) -> Number:
    ones = dict.fromkeys(model.stage("decode").dims, 1)  # weights do not depend on the cached tokens
    step = Binding(bindings={**ones, "B": batch}, routing=routing)
    return sum(leaf.calls * step.sum(leaf.cost.weight_bytes_read.text) for leaf in model.leaves_by_stage["decode"])
