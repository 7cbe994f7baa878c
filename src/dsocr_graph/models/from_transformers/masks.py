"""Attention as transformers runs it, not as it runs when it is exported: its masks, and its grouped heads."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def masks_as_run() -> Generator[None]:
    """Let transformers leave out the masks that it leaves out at run time; a stage's forward runs inside.

    With "sdpa" a run makes no mask for one query, nor for a prompt without a cache: the kernel is causal by itself.
    An exported model gets the mask all the same, which costs bytes and, with grouped queries, copies of keys and
    values. Windowed attention gets no mask below its window and one from there on; here it always gets one, since
    a graph holds for all lengths. So does a batch with padding.

    Decoders such as BART's make a mask of ones where they are given none, find that it holds every token, and make no
    mask of it; exported, they skip all of that. So does a run in here: the ones, a tensor of B by T, are in no figure.

    Where one query meets such a mask, a run folds the heads that share keys and values into the queries; an exported
    model repeats keys and values instead. Here it folds.

    Examples
    --------
    >>> from transformers import masking_utils
    >>> with masks_as_run():
    ...     masking_utils._ignore_causal_mask_sdpa(None, 1, 100, 99, 0)
    True
    """
    from transformers import masking_utils
    from transformers.integrations import sdpa_attention

    replaced: tuple[tuple[Any, str, object], ...] = (
        (masking_utils, "_ignore_causal_mask_sdpa", _causal_is_free),
        (masking_utils, "_ignore_bidirectional_mask_sdpa", _everything_is_seen),
        (sdpa_attention, "is_torchdynamo_compiling", _never),
        *_made_up_masks(),
    )
    before = [getattr(module, name) for module, name, _ in replaced]
    for module, name, rule in replaced:
        setattr(module, name, rule)
    try:
        yield
    finally:
        for (module, name, _), rule in zip(replaced, before, strict=True):
            setattr(module, name, rule)


def _causal_is_free(  # noqa: PLR0917 - called with transformers' positions
    padding_mask: object,
    q_length: int,
    kv_length: int,
    q_offset: int,
    kv_offset: int,
    local_attention_size: int | None = None,
) -> bool:
    return padding_mask is None and local_attention_size is None and q_length in (1, kv_length)


def _everything_is_seen(padding_mask: object, kv_length: int, local_attention_size: int | None = None) -> bool:
    return padding_mask is None and local_attention_size is None


def _never() -> bool:
    return False


def _always() -> bool:
    return True


def _made_up_masks() -> Iterator[tuple[Any, str, object]]:
    """Yield what says to the code of models that they are exported, as it is when they are."""
    switches = ("is_torchdynamo_compiling", "is_torchdynamo_exporting")
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models.") and ".modeling_" in name:
            yield from ((module, switch, _always) for switch in switches if switch in vars(module))
