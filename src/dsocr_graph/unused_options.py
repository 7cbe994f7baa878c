"""Options that say nothing of a model are refused, each with what to do instead: none is ignored."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from dsocr_graph.errors import OptionError

VIEWS = frozenset({"mode", "crops"})
"""Options on how a page is cut into views."""


def flags(names: Collection[str]) -> str:
    """Return parameters as the options of the command line.

    Examples
    --------
    >>> flags(["prompt_tokens", "batch"])
    '--batch, --prompt-tokens'
    """
    return ", ".join("--" + name.replace("_", "-") for name in sorted(names))


def takes_views(variant: Mapping[str, str]) -> bool:
    """Whether a variant reads views of the sizes that modes name, as DeepSeek-OCR does; others know other sizes.

    Examples
    --------
    >>> takes_views({"base_size": "1024", "dtype": "bf16"}), takes_views({"dtype": "bf16"})
    (True, False)
    """
    return "base_size" in variant


def refuse_views(name: str, variant: Mapping[str, str], given: Collection[str]) -> None:
    """Do nothing unless options on views are given for a model whose pages are not cut by modes.

    Raises
    ------
    OptionError
        When they are.

    Examples
    --------
    >>> refuse_views("qwen3-8b", {"dtype": "bf16"}, {"mode", "batch"})
    Traceback (most recent call last):
    dsocr_graph.errors.OptionError: --mode would say nothing of qwen3-8b: ...
    """
    unused = VIEWS & set(given)
    if unused and not takes_views(variant):
        raise OptionError(
            f"{flags(unused)} would say nothing of {name}: modes and crops are how DeepSeek-OCR cuts a page, "
            f"other models have a way of their own; leave out {flags(unused)}"
        )


def refuse_beside_points(given: Collection[str]) -> None:
    """Do nothing unless options on pages are given beside points.

    Raises
    ------
    OptionError
        When they are.
    """
    unused = set(given) - {"mode"}  # the mode decides which variant is captured
    if unused:
        raise OptionError(
            f"--points gives the sizes themselves, so that {flags(unused)} would say nothing; leave out one or the "
            "other"
        )


def refuse_of_built(name: str, given: Collection[str]) -> None:
    """Do nothing unless options on pages or variants are given for a model that a user built.

    Raises
    ------
    OptionError
        When they are.
    """
    if given:
        raise OptionError(
            f"{flags(given)} would say nothing of {name}, which comes as it is; give --points STAGE:DIM=SIZE for other "
            "sizes than its example's, and build it otherwise for another variant"
        )
