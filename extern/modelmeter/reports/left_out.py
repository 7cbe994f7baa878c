"""Left out: the stages that a partial model is without, and why, as its provenance has them."""

from __future__ import annotations

from collections.abc import Mapping

WHY_WITHOUT = "why without "
"""What the names of such entries of a provenance begin with; the stage follows."""


def left_out_stages(provenance: Mapping[str, str]) -> dict[str, str]:
    """Return why each stage that a model is without was left out; nothing for a whole model.

    Examples
    --------
    >>> left_out_stages({"torch": "2.13.0", "why without classify": "it cannot be captured"})
    {'classify': 'it cannot be captured'}
    """
    return {
        name.removeprefix(WHY_WITHOUT): reason for name, reason in provenance.items() if name.startswith(WHY_WITHOUT)
    }
