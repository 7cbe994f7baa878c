"""Values kept as a file has them until somebody asks: reading must not build thousands of expressions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from modelmeter.dim_binding import bind_text
from modelmeter.dim_text import parse, to_text
from modelmeter.dims import Dim
from modelmeter.expert_counts import Routing, uniform_routing

if TYPE_CHECKING:
    from modelmeter.layers.base import BaseLayer


class StoredDim:
    """A dim in two forms, text and expression, each made when it is first asked for.

    Parameters
    ----------
    value : int, float, sympy.Expr or None
        The dim as a number or an expression.
    text : str or None
        The dim as a Python expression; give one of the two.

    Examples
    --------
    >>> StoredDim(text="2*B*S").at({"B": 4, "S": 913})
    7304
    """

    __slots__ = ("_text", "_value")

    def __init__(self, value: Dim | None = None, *, text: str | None = None) -> None:
        if (value is None) == (text is None):
            raise TypeError("give either a value or a text")
        self._value = value
        self._text = text

    @property
    def value(self) -> Dim:
        """The dim as a number or an expression."""
        if self._value is None:
            self._value = parse(self.text)
        return self._value

    @property
    def text(self) -> str:
        """The dim as a Python expression; equal dims have equal texts."""
        if self._text is None:
            self._text = to_text(self.value)
        return self._text

    @property
    def plain(self) -> int | float | str:
        """The dim as JSON has it: a number, or a text where it is an expression."""
        value = self.text if self._value is None else self._value
        return value if isinstance(value, int | float | str) else self.text

    def at(self, bindings: Mapping[str, int], *, routing: Routing = uniform_routing) -> int | float:
        """Return the number at some sizes.

        Raises
        ------
        UnboundDimError
            When a dim has no size.
        """
        if isinstance(self._value, int | float):
            return self._value
        return bind_text(self.text, bindings, routing=routing)

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, StoredDim) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"StoredDim({self.text})"


def stored(value: Dim | StoredDim) -> StoredDim:
    """Return a dim in its stored form; what is stored already stays as it is."""
    return value if isinstance(value, StoredDim) else StoredDim(value)


class StoredLayer:
    """A layer as a file has it, built when it is first asked for.

    Parameters
    ----------
    document : mapping
        The layer's type and fields, in JSON's types.
    build : callable
        Makes the layer of the document.
    """

    __slots__ = ("_build", "_layer", "document")

    def __init__(self, document: Mapping[str, Any], build: Callable[[Mapping[str, Any]], BaseLayer]) -> None:
        self.document = document
        self._build = build
        self._layer: BaseLayer | None = None

    @property
    def layer(self) -> BaseLayer:
        """The layer itself."""
        if self._layer is None:
            self._layer = self._build(self.document)
        return self._layer
