"""Which code of a model runs: methods of its modules that no call by a hook shows, and messages being written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, nn

_CALL = nn.Module._call_impl.__code__  # pyright: ignore[reportPrivateUsage] - what hooks are called from
_MESSAGE = frozenset({Tensor.__format__.__code__, Tensor.__repr__.__code__})


def writes_message(frame: FrameType | None) -> bool:
    """Whether some code runs while a tensor is written as text.

    Examples
    --------
    >>> import inspect
    >>> writes_message(inspect.currentframe())
    False
    """
    return any(each.f_code in _MESSAGE for each in _outwards(frame))


def methods_around(
    frame: FrameType | None, paths: Mapping[int, str], called: Iterable[str], *, skip: bool = False
) -> frozenset[str]:
    """Return the modules in whose methods some code runs although they are not among those that are called.

    The search ends at the innermost call of a module, since hooks show what is further out.

    Parameters
    ----------
    frame : FrameType or None
        Of the code.
    paths : mapping of int to str
        Identity of each module of the model -> its path.
    called : iterable of str
        The paths of the modules that hooks show.
    skip : bool
        Whether that innermost call is the code's own, as in a hook, and the one around it is meant.

    Examples
    --------
    >>> import inspect
    >>> class Model(nn.Module):
    ...     def method(self):
    ...         return methods_around(inspect.currentframe(), {id(self): "layer"}, [])
    >>> Model().method()
    frozenset({'layer'})
    """
    found: set[str] = set()
    for each in _in_call(frame, skip=skip):
        code = each.f_code
        # What is in f_locals lives as long as the frame, and a tensor that others hold is not quite as one of its own.
        owner: Any = each.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(owner, nn.Module) and id(owner) in paths and _is_method(owner, code):
            found.add(paths[id(owner)])
    return frozenset(found - set(called))


def _is_method(owner: nn.Module, code: CodeType) -> bool:
    """Whether some code is of a method of an object, and not of a function that was given the object."""
    for each in type(owner).__mro__:
        function: Any = vars(each).get(code.co_name)
        function = function.fget if isinstance(function, property) else function
        while function is not None:
            if getattr(function, "__code__", None) is code:
                return True
            function = getattr(function, "__wrapped__", None)
    return False


def _in_call(frame: FrameType | None, *, skip: bool) -> list[FrameType]:
    """Return the frames inside a call of a module, its own forward left out."""
    found: list[FrameType] = []
    for each in _outwards(frame):
        if each.f_code is not _CALL:
            found.append(each)
        elif skip:
            skip = False
            found.clear()
        else:
            if found and found[-1].f_code.co_name == "inner":  # of a module with hooks, and so of each here
                found.pop()
            if found and found[-1].f_code.co_name == "forward":
                found.pop()
            break
    return found


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
