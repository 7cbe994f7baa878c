"""apply: a model under what-ifs is another model; each option is one pass, in a fixed order."""

from __future__ import annotations

from attrs import evolve, frozen

from modelmeter.defaults import EXPERT_LOOP
from modelmeter.expert_counts import distinct_experts
from modelmeter.model import AnalyticModel, Leaf, Stage
from modelmeter.routing import UNIFORM, Histogram, NamedRouting
from modelmeter.whatif.cache import find_cache, in_place, without_double_buffer
from modelmeter.whatif.change import Change, change_between, with_layer
from modelmeter.whatif.element_types import activations_pass, kv_dtype_pass, weights_pass
from modelmeter.whatif.errors import UnsupportedWhatIfError
from modelmeter.whatif.expert_loop import with_expert_loop
from modelmeter.whatif.logits import find_heads, with_last_logits, with_last_peaks
from modelmeter.whatif.options import LAST, PREALLOCATED, Options
from modelmeter.whatif.passes import PEAKS_ASSUMED, Passed, cache_of, in_stages, with_known_peaks


@frozen(kw_only=True)
class WhatIf:
    """A model under what-ifs, to be evaluated with `routing`, and what was changed for it."""

    model: AnalyticModel
    changes: tuple[Change, ...]  # in the order in which they were made
    routing: NamedRouting

    @property
    def peaks_are_lower_bounds(self) -> bool:
        """Whether what runs now may need more memory than the model says.

        Examples
        --------
        >>> import modelmeter
        >>> model = modelmeter.load("deepseek-ocr")
        >>> [apply(model, Options(logits=which)).peaks_are_lower_bounds for which in ("all", "last")]
        [False, True]
        """
        return any(change.lower_bound_of_peaks for change in self.changes)


def apply(model: AnalyticModel, options: Options) -> WhatIf:
    """Return a model as it would be under some options, and what each of them changed.

    Nothing is captured anew: layers are stated in other types or sizes and their costs follow. Where an option leaves
    a leaf as it was, so is its record. Tensors between modules (`AnalyticModel.edges`) keep their captured bytes.

    Parameters
    ----------
    model : AnalyticModel
        A captured model; its variant says which element type it was captured in.
    options : Options
        The what-ifs.

    Raises
    ------
    UnsupportedWhatIfError
        When an option asks for a part that cannot be told in the model, such as the KV cache of one without.
    RoutingError
        When a histogram counts other layers than the model's.

    Examples
    --------
    >>> import modelmeter
    >>> eight_bits = apply(modelmeter.load("deepseek-ocr"), Options(kv_dtype="int8"))
    >>> str(eight_bits.model.stage("prefill").kv_cache_bytes)
    '30720*B*S'
    """
    if isinstance(options.routing, Histogram):
        options.routing.require_layers_of(model)
    passes = (activations_pass, weights_pass, kv_dtype_pass, _kv_growth, _logits, _moe)
    changed, changes = model, list[Change]()
    for change in passes:
        changed, made = change(model, changed, options)
        changes += made
    if options.routing != UNIFORM:
        _require_experts(model, options.routing)
        changes.append(Change(option="routing", what=options.routing.statement, assumes=()))
    if changed is not model:
        facts = {each.option: str(getattr(options, each.option)) for each in changes if each.option != "routing"}
        changed = evolve(changed, variant={**model.variant, **facts})
    return WhatIf(model=changed, changes=tuple(changes), routing=options.routing)


def _require_experts(model: AnalyticModel, routing: NamedRouting) -> None:
    if not any(distinct_experts.__name__ in leaf.cost.weight_bytes_read.text for leaf in model.leaves):
        raise UnsupportedWhatIfError(
            f"{model.name} sends no tokens to experts, so that routing {routing.name} changes nothing; leave it out"
        )


def _kv_growth(captured: AnalyticModel, model: AnalyticModel, options: Options) -> Passed:
    if options.kv_growth != PREALLOCATED:
        return model, ()
    cache = find_cache(captured)
    if not any(found.growing for found in cache.values()):
        raise UnsupportedWhatIfError(
            f"no stage of {captured.name} grows its KV cache by concatenation; leave kv_growth as captured"
        )

    def changed(stage: str, at: int, leaf: Leaf) -> Leaf:
        return with_layer(leaf, in_place(leaf.layer)) if at in cache[stage].growing else leaf

    after = in_stages(model, dict.fromkeys(cache, changed))
    growing = [name for name in cache if cache[name].growing]
    stages = tuple(without_double_buffer(stage) if stage.name in growing else stage for stage in after.stages)
    after = with_known_peaks(evolve(after, stages=stages), cache, growing)
    what = "a step writes its new keys and values into the cache; it neither copies the old ones nor holds both"
    assumes = (
        "the cache counts with the tokens in it; room kept for later ones is not counted",
        PEAKS_ASSUMED,
    )
    change = change_between(model, after, option="kv_growth", what=what, assumes=assumes, lower_bound_of_peaks=True)
    return after, (change,)


def _logits(captured: AnalyticModel, model: AnalyticModel, options: Options) -> Passed:
    if options.logits != LAST:
        return model, ()
    heads = find_heads(captured)

    def leaves_of(stage: Stage) -> tuple[Leaf, ...]:
        leaves = model.leaves_by_stage[stage.name]
        return with_last_logits(leaves, heads[stage.name]) if stage.name in heads else leaves

    leaves = tuple(leaf for stage in model.stages for leaf in leaves_of(stage))
    stages = tuple(
        with_last_peaks(stage, heads[stage.name]) if stage.name in heads else stage for stage in model.stages
    )
    after = with_known_peaks(evolve(model, leaves=leaves, stages=stages), cache_of(captured), heads)
    what = f"logits are made for the last position of each document, in {', '.join(heads)}"
    assumes = ("the norm before the head runs for all positions as captured", PEAKS_ASSUMED)
    change = change_between(model, after, option="logits", what=what, assumes=assumes, lower_bound_of_peaks=True)
    return after, (change,)


def _moe(captured: AnalyticModel, model: AnalyticModel, options: Options) -> Passed:
    if options.moe != EXPERT_LOOP:
        return model, ()
    after = with_expert_loop(model)
    what = (
        "experts multiply one after the other, each in calls of its own; the rows of each are counted where the "
        "grouped form searches for the experts' ends, and the experts' results are joined"
    )
    assumes = (
        "calls of the experts that run stand in one row of their kind and move as much together as the grouped call",
        "the host waits in each layer for the counts, copied to it: no bytes of memory are counted for the copy, and a "
        "roofline has no host; a calibration predicts both",
        PEAKS_ASSUMED,
    )
    change = change_between(model, after, option="moe", what=what, assumes=assumes, lower_bound_of_peaks=True)
    return after, (change,)
