"""Where and why code of unknown making does not run as the stages of its family run it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType

from torch import nn

from dsocr_graph.errors import CaptureError, DsocrGraphError


@contextmanager
def misfits_explained(model: nn.Module, family: str) -> Generator[None]:
    """Turn what a model raises while its stages are made into an error that names the module.

    Parameters
    ----------
    model : nn.Module
        The model whose code runs inside.
    family : str
        What its family is, such as "decoder-only language models".

    Raises
    ------
    CaptureError
        When the code raises anything but an error of this package.

    Examples
    --------
    >>> import torch
    >>> with torch.device("meta"):
    ...     model, x = nn.Sequential(nn.Linear(4, 4)), torch.empty(1, 5)
    >>> with misfits_explained(model, "toys"):
    ...     model(x)
    Traceback (most recent call last):
    dsocr_graph.errors.CaptureError: Sequential does not run as toys do: in module 0 (Linear): RuntimeError: ...
    """
    try:
        yield
    except DsocrGraphError:
        raise
    except Exception as error:  # the code may raise anything
        raise CaptureError(
            f"{type(model).__name__} does not run as {family} do: in module {_innermost(model, error.__traceback__)}: "
            f"{type(error).__name__}: {' '.join(str(error).split())}; correct its forward, or give a factory of your "
            "own, which says how it runs"
        ) from error


def _innermost(model: nn.Module, traceback: TracebackType | None) -> str:
    paths = {module: path for path, module in model.named_modules()}
    found = model
    while traceback is not None:
        owner = traceback.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner in paths:
            found = owner
        traceback = traceback.tb_next
    return f"{paths[found] or '(root)'} ({type(found).__name__})"
