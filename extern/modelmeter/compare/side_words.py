"""What differs between two sides as wholes, in words: their variants, devices, versions, and what one leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from modelmeter.compare.group import DECODE_PHASE, HELD, PREFILL_PHASE, Group, Key
from modelmeter.compare.roles import Part, Tower
from modelmeter.compare.side import BANDWIDTH, MATRIX_PEAK, PIXELS, ROUTING, VARIANT, VERSION, WORKLOAD, Side

CLOCK_FACTS = ("device", BANDWIDTH, MATRIX_PEAK, "times", "runtime", "driver", "threads")
"""Facts that decide a time and nothing else."""

_ATTENTION = (Part.ATTENTION, Part.CROSS_ATTENTION)
_OF_EXPERTS = (Part.EXPERTS, Part.ROUTER, Part.FEED_FORWARD)


def _reads_cache(key: Key) -> bool:
    return key[0] in {PREFILL_PHASE, DECODE_PHASE} and (key[1].part in _ATTENTION or key[1].tower is Tower.WHOLE)


# What a what-if changes, where that is not everything.
_SCOPES: Mapping[str, Callable[[Key], bool]] = {
    "kv_dtype": _reads_cache,
    "kv_growth": _reads_cache,
    "logits": lambda key: key[1].tower in {Tower.HEAD, Tower.WHOLE},
    "moe": lambda key: key[1].part in _OF_EXPERTS,
    "activation_dtype": lambda key: key[0] != HELD,
}


def variant_words(old: Side, new: Side, key: Key, without: Sequence[str] = ()) -> Iterator[str]:
    """Yield the facts that tell two variants of one model apart and that may change a part of it."""
    for name in dict.fromkeys((*old.facts, *new.facts)):
        a, b = old.facts.get(name), new.facts.get(name)
        fact = name.removeprefix(VARIANT)
        if not name.startswith(VARIANT) or a == b or fact in without:
            continue
        if fact in _SCOPES and not _SCOPES[fact](key):
            continue
        if a is None or b is None:
            yield f"{fact} {b if a is None else a} in {(new if a is None else old).label} alone"
        else:
            yield f"{fact} {a} → {b}"


def routing_words(old: Side, new: Side, key: Key) -> Iterator[str]:
    """Yield how tokens choose experts on both sides, if that differs and the part holds experts."""
    if key[0] != HELD and key[1].part in _OF_EXPERTS:
        yield from facts_differing(old, new, (ROUTING,))


def facts_differing(old: Side, new: Side, names: Sequence[str]) -> Iterator[str]:
    """Yield facts that both sides have and that differ: one that is not known explains nothing."""
    for name in names:
        a, b = old.facts.get(name), new.facts.get(name)
        if a is not None and b is not None and a != b:
            yield f"{name.removeprefix(VERSION)} {a} → {b}"


def versions_differing(old: Side, new: Side) -> Iterator[str]:
    """Yield the packages whose versions differ."""
    yield from facts_differing(old, new, [name for name in old.facts if name.startswith(VERSION)])


def pixels_differing(old: Side, new: Side, stage: str) -> Iterator[str]:
    """Yield the sizes of the views that a stage takes, if they are known and differ."""
    a, b = (side.facts.get(f"{WORKLOAD}{PIXELS}{stage}") for side in (old, new))
    if a is not None and b is not None and a != b:
        yield f"views of {a} → {b}"


def left_out_words(old: Group, new: Group) -> Iterator[str]:
    """Yield what one side alone leaves out of the stages of a group."""
    a, b = ([each.text for each in group.side.uncounted if each.stage in group.stages] for group in (old, new))
    for group, texts, others in ((old, a, b), (new, b, a)):
        yield from (f"{group.side.label} leaves out {text}" for text in texts if text not in others)
