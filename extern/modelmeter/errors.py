"""Errors of modelmeter: one small tree; each class is also the builtin a caller expects."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ModelMeterError(Exception):
    """Base of every error that modelmeter raises for a user's mistake."""

    def __str__(self) -> str:
        """Return the message itself; a KeyError would quote it."""
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the finished message: worker processes send errors back pickled."""
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(kind: type[ModelMeterError], args: tuple[object, ...], state: dict[str, object]) -> ModelMeterError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class DimError(ModelMeterError, ValueError):
    """A dim, or the text of one, is not what it should be."""


class UnboundDimError(DimError, KeyError):
    """An expression was evaluated without a size for each of its dims."""

    def __init__(self, missing: Iterable[str], known: Iterable[str]) -> None:
        self.missing = tuple(sorted(missing))
        super().__init__(
            f"no size for dim {', '.join(self.missing)}: the expression is in {', '.join(sorted(known))}; "
            "pass one keyword per dim"
        )


class UnknownNameError(ModelMeterError, KeyError):
    """A name that no table holds; the message lists the names that exist.

    Parameters
    ----------
    kind : str
        What was looked up, e.g. ``"device"``.
    name : str
        The name as the caller spelt it.
    known : iterable of str
        Every name that would have worked.
    hint : str, optional
        A last sentence: what to do; given instead of names that are spelt alike.

    Examples
    --------
    >>> print(UnknownNameError("model", "deepsek-ocr", ["deepseek-ocr", "gpt2"]))
    unknown model 'deepsek-ocr'; did you mean deepseek-ocr? Known: deepseek-ocr, gpt2
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind = kind
        self.name = name
        self.known = tuple(sorted(known))
        # A hint knows better than spelling does.
        close = [] if hint else get_close_matches(str(name).lower(), self.known, n=3)
        meant = f"; did you mean {' or '.join(close)}?" if close else "."
        message = f"unknown {kind} {name!r}{meant} Known: {', '.join(self.known) or 'none'}"
        super().__init__(f"{message}. {hint}" if hint else message)


class UnknownDeviceError(UnknownNameError):
    """A device that the table does not hold, or a name that several devices share."""


class UnknownModelError(UnknownNameError):
    """A model that no entry point registers."""


class InvalidDeviceError(ModelMeterError, ValueError):
    """A device entry whose numbers cannot be right or carry no source."""
