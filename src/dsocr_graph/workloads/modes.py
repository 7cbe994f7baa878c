"""The resolution modes of DeepSeek-OCR: Tiny, Small, Base, Large and Gundam."""

from __future__ import annotations

from attrs import frozen

from dsocr_graph.workloads.errors import UnknownModeError
from dsocr_graph.workloads.limits import suggestion

CELL = 64  # pixels per side of one vision token: patches of 16, downsampled by 4


@frozen(kw_only=True)
class Mode:
    """How a page becomes views.

    The size of the local crops is `image_size`; it matters in crop mode only. In the other modes it equals
    `base_size`.

    Examples
    --------
    >>> mode_named("Base").global_tokens
    273
    """

    name: str
    base_size: int  # pixels per side of the global view
    image_size: int  # pixels per side of a local crop
    crop: bool  # whether large pages are cut into local views

    @property
    def global_tokens(self) -> int:
        """Tokens of the global view: its rows, a newline after each row, and the view separator."""
        side = self.base_size // CELL
        return side * (side + 1) + 1


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode(name="Tiny", base_size=512, image_size=512, crop=False),
        Mode(name="Small", base_size=640, image_size=640, crop=False),
        Mode(name="Base", base_size=1024, image_size=1024, crop=False),
        Mode(name="Large", base_size=1280, image_size=1280, crop=False),
        Mode(name="Gundam", base_size=1024, image_size=640, crop=True),
    )
}


def mode_named(name: str) -> Mode:
    """Return the mode of that name, upper or lower case.

    Raises
    ------
    UnknownModeError
        No mode of that name; the message lists them.

    Examples
    --------
    >>> mode_named("gundam").crop
    True
    """
    for mode in MODES.values():
        if isinstance(name, str) and mode.name.lower() == name.lower():
            return mode
    raise UnknownModeError(f"no mode {name!r}; {suggestion(str(name).capitalize(), MODES)}")
