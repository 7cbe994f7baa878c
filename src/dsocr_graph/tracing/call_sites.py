"""Call sites: which module and function of a model runs each operator while torch.export traces it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from attrs import frozen
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

_TORCH_ROOT = str(Path(torch.__file__).parent) + os.sep
_TENSOR_ATTRIBUTES = frozenset({"T", "H", "mT", "mH", "data", "grad", "real", "imag", "_base"})
_QUESTIONS = frozenset(
    {"__set__", "size", "stride", "dim", "numel", "device", "storage_offset", "untyped_storage", "element_size"}
    | {"_set_grad_enabled"}  # torch's own, when an error unwinds its context managers
    | {"is_inference", "is_conj", "is_neg", "is_contiguous", "is_floating_point", "is_complex", "_is_view"}
)


@frozen(kw_only=True)
class Site:
    """A place in a model's code.

    Examples
    --------
    >>> Site(module="layers.0", class_name="Block", function="scaled", operator="mul").text
    'module layers.0 (Block), function scaled, operator mul'
    """

    module: str  # path; "" is the model itself
    class_name: str  # of the module
    function: str  # those between the module's forward and this place, outermost first
    operator: str | None = None  # of torch, where one runs

    @property
    def text(self) -> str:
        """The place in words."""
        operator = f", operator {self.operator}" if self.operator else ""
        return f"module {self.module or '(root)'} ({self.class_name}), function {self.function}{operator}"


class CallSites(TorchFunctionMode):
    """Annotates each fx node with its number and with the module and the function whose code runs it.

    `nn_module_stack` knows only modules entered by `__call__`; a method called on a submodule would be
    attributed to the caller.

    `held` says until when Python keeps a result: for the number of a call, that of the last call during which a
    variable of a running function held its result. Arguments of modules are variables of `nn.Module.__call__`.
    """

    def __init__(self, model: nn.Module, outermost: nn.Module) -> None:
        super().__init__()
        # Further out are torch's own frames, whose lists of all parameters would take minutes to search.
        self._outermost = inspect.unwrap(type(outermost).forward).__code__
        self.held: dict[int, int] = {}
        self._number = 0
        self._made = WeakIdKeyDictionary()  # tensor -> number of the call that made it
        # By attributes: torch puts a proxy, which shares them, in the place of a module with several paths.
        self._paths = {id(vars(module)): path for path, module in model.named_modules()}

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run `func` with the call site in fx's annotations."""
        if torch.compiler.is_dynamo_compiling():  # true in what Dynamo traces of this: higher-order operators run it
            return func(*args, **(kwargs or {}))
        if _asks_only(func):
            return func(*args, **(kwargs or {}))
        frame = inspect.currentframe()
        module, function = self._place(_outwards(frame))
        site = {"function": function} if module is None else {"module": self._path(module), "function": function}
        self._number += 1
        self._note_held(frame)
        with fx_traceback.annotate({**site, "number": self._number}):
            result = func(*args, **(kwargs or {}))
        for tensor in _tensors_in(result):
            self._made[tensor] = self._number
        return result

    def outside(self, frame: FrameType | None) -> Site | None:
        """Return the place in the model that calls a frame, None when nothing in it does."""
        return self._site([*_outwards(frame)][1:])

    def raised(self, error: BaseException) -> Site | None:
        """Return the place in the model that raised an error, by the error's own traceback; None outside of it."""
        cause: BaseException | None = error
        while cause is not None:
            site = self._site([frame for frame, _ in walk_tb(cause.__traceback__)][::-1])
            if site is not None:
                return site
            cause = cause.__cause__ or cause.__context__
        return None

    def _site(self, inner_first: list[FrameType]) -> Site | None:
        module, function = self._place(inner_first)
        if module is None:
            return None
        return Site(
            module=self._path(module),
            class_name=type(module).__name__,
            function=function,
            operator=next(filter(None, map(self._operator, inner_first)), None),
        )

    def _operator(self, frame: FrameType) -> str | None:
        """Return the operator that a frame runs, if it is this recorder's own."""
        if frame.f_code is not CallSites.__torch_function__.__code__ or frame.f_locals["self"] is not self:
            return None
        func = frame.f_locals["func"]
        return None if _asks_only(func) else getattr(func, "__name__", str(func))

    def _note_held(self, frame: FrameType | None) -> None:
        around: list[FrameType] = []
        end = 0
        for outer in _outwards(frame):
            around.append(outer)
            if outer.f_code is self._outermost:
                end = len(around)
        for inside in around[:end]:
            for value in inside.f_locals.values():
                for tensor in _tensors_in(value):
                    maker = self._made.get(tensor)
                    if maker is not None:
                        self.held[maker] = self._number

    def _place(self, inner_first: Iterable[FrameType]) -> tuple[nn.Module | None, str]:
        """Return the innermost module of the model among frames, and the functions inside of it."""
        names: list[str] = []
        for frame in inner_first:
            code = frame.f_code
            ours = code.co_name == "forward" or not code.co_filename.startswith(_TORCH_ROOT)
            if ours and not code.co_name.startswith(("<", "__")):
                names.append(code.co_name)
                owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
                if isinstance(owner, nn.Module) and id(vars(owner)) in self._paths:
                    return owner, _function(names)
            if code is self._outermost:  # further out runs what captures
                break
        return None, _function(names)

    def _path(self, module: nn.Module) -> str:
        return self._paths[id(vars(module))]


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _asks_only(func: Callable[..., Any]) -> bool:
    """Whether a function reads a property of a tensor and makes none; nine in ten calls do, most of them torch's."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") not in _TENSOR_ATTRIBUTES
    return name in _QUESTIONS


def _tensors_in(value: object) -> tuple[torch.Tensor, ...]:
    """Return a tensor, or the tensors of a tuple, list or dict of them."""
    if isinstance(value, torch.Tensor):
        return (value,)
    if isinstance(value, dict):
        value = tuple(value.values())
    return tuple(item for item in value if isinstance(item, torch.Tensor)) if isinstance(value, tuple | list) else ()


def _function(names: list[str]) -> str:
    """Return the functions between a module's forward and an operator, outermost first."""
    inner = [name for name in reversed(names) if name != "forward"]
    return ".".join(inner) or "forward"
