"""Routing models from text, such as an option of a command line."""

from __future__ import annotations

from modelmeter.model import AnalyticModel
from modelmeter.routing.histogram import read_histogram
from modelmeter.routing.models import (
    FEWEST,
    LARGEST_EXPONENT,
    MOST,
    UNIFORM,
    NamedRouting,
    RoutingError,
    UnknownRoutingError,
    Zipf,
)


def parse_routing(text: str, model: AnalyticModel | None = None) -> NamedRouting:
    """Return the routing model of a text: ``uniform``, ``zipf:1.1``, ``top-k``, ``most`` or ``histogram:FILE``.

    Parameters
    ----------
    text : str
        One of the five.
    model : AnalyticModel, optional
        Whose layers a histogram must name; without one, `modelmeter.whatif.apply` sees to that.

    Raises
    ------
    UnknownRoutingError
        When it is none of them.
    RoutingError
        When a Zipf exponent or a histogram cannot be.

    Examples
    --------
    >>> parse_routing("zipf:1.1")
    Zipf(exponent=1.1)
    """
    kind, _, argument = text.partition(":")
    if text in _RULED:
        return _RULED[text]
    if kind == "zipf":
        return Zipf(exponent=_exponent(argument))
    if kind == "histogram" and argument:
        return read_histogram(argument, model)
    raise UnknownRoutingError("routing", text, [*_RULED, "zipf:EXPONENT", "histogram:FILE"])


_RULED = {routing.name: routing for routing in (UNIFORM, FEWEST, MOST)}


def _exponent(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RoutingError(
            f"the Zipf exponent is {text!r}; it must be a finite number from 0 (uniform) to {LARGEST_EXPONENT:g}, "
            "as in zipf:1.1"
        ) from None
