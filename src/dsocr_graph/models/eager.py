"""Eager modules: only these can be captured; scripted, compiled, exported and replicated ones are refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import nn
from torch.export import ExportedProgram

from dsocr_graph.errors import ModelInputError


def eager(module: object) -> nn.Module:
    """Return a model if it is an eager module in all its parts.

    Raises
    ------
    ModelInputError
        When it is no module, has no forward, or a part of it is scripted, compiled or replicated; the message says what
        to give.

    Examples
    --------
    >>> eager(nn.Linear(4, 2))
    Linear(in_features=4, out_features=2, bias=True)
    >>> eager(len)
    Traceback (most recent call last):
    dsocr_graph.errors.ModelInputError: the model is a builtin_function_or_method; give an nn.Module, with ...
    """
    if isinstance(module, ExportedProgram):
        raise ModelInputError(
            "the model is an ExportedProgram, whose modules are gone; give the nn.Module that was exported"
        )
    if not isinstance(module, nn.Module):
        what = f"the class {module.__name__}" if inspect.isclass(module) else f"a {type(module).__name__}"
        raise ModelInputError(
            f"the model is {what}; give an nn.Module, with what runs as its forward, such as one built without "
            "weights under torch.device('meta')"
        )
    for path, part in module.named_modules():
        for kind, remedy in _other_than_eager(part):
            where = f"module {path} of the model" if path else "the model"
            raise ModelInputError(f"{where} is {kind} ({type(part).__name__}); {remedy}")
    if getattr(module.forward, "__func__", None) is nn.Module.forward:
        raise ModelInputError(
            f"the model is a {type(module).__name__}, which has no forward and runs nothing by itself; give a module "
            "whose forward calls its parts, such as an nn.Sequential of them"
        )
    return module


def _other_than_eager(part: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield what a module is instead, and what to give in its place; nothing for an eager one."""
    from torch._dynamo import OptimizedModule

    if isinstance(part, torch.jit.ScriptModule):
        yield "scripted or traced by torch.jit, so that its Python code is gone", "give the nn.Module it was made from"
    elif isinstance(part, OptimizedModule):
        yield "compiled by torch.compile", "give the module before it, which is its attribute _orig_mod"
    elif vars(part).get("_compiled_call_impl") is not None:
        yield "compiled in place by its method compile", "leave that call out"
    elif isinstance(part, nn.DataParallel | nn.parallel.DistributedDataParallel):
        yield "replicated over devices", "give its attribute module, and divide the costs by the devices it runs on"
