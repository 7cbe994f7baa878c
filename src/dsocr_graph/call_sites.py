"""Call sites: which module and function of a model runs each operator while torch.export traces it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
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
        self.module, self.class_name, self.function, self.operator = "", type(model).__name__, "forward", "(none)"

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run `func` with the call site in fx's annotations."""
        if _asks_only(func):
            return func(*args, **(kwargs or {}))
        frame = inspect.currentframe()
        site = self._site(frame)
        self.operator = getattr(func, "__name__", str(func))
        self._number += 1
        self._note_held(frame)
        with fx_traceback.annotate({**site, "number": self._number}):
            result = func(*args, **(kwargs or {}))
        for tensor in _tensors_in(result):
            self._made[tensor] = self._number
        return result

    def _note_held(self, frame: FrameType | None) -> None:
        around: list[FrameType] = []
        end = 0
        while frame is not None:
            around.append(frame)
            if frame.f_code is self._outermost:
                end = len(around)
            frame = frame.f_back
        for inside in around[:end]:
            for value in inside.f_locals.values():
                for tensor in _tensors_in(value):
                    maker = self._made.get(tensor)
                    if maker is not None:
                        self.held[maker] = self._number

    def _site(self, frame: FrameType | None) -> dict[str, str]:
        names: list[str] = []
        while frame is not None:
            code = frame.f_code
            ours = code.co_name == "forward" or not code.co_filename.startswith(_TORCH_ROOT)
            if ours and not code.co_name.startswith(("<", "__")):
                names.append(code.co_name)
                owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
                path = self._paths.get(id(vars(owner))) if isinstance(owner, nn.Module) else None
                if path is not None:
                    self.module, self.class_name, self.function = path, type(owner).__name__, _function(names)
                    return {"module": path, "function": self.function}
            frame = frame.f_back
        return {"function": _function(names)}


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
