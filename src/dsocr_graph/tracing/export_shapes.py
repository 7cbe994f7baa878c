"""Shapes of some results for the time of an export, where torch would fix a size that may stay symbolic."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_KEYS = ("AutogradMeta", "AutogradCPU", "AutogradCUDA")  # where torch would take the operator apart


@contextmanager
def symbolic_shapes() -> Generator[None]:
    """Give the shapes of lstm, gru, rnn and max_pool1d results without a size that torch's own way would fix.

    torch finds out the shapes of recurrent layers by unrolling them, which fixes the number of steps to that of the
    example and takes time in proportion to it, and takes the length of max_pool1d's operand for a number. The operators
    themselves stay whole in the graph either way.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     layer, x = torch.nn.GRU(4, 3, bidirectional=True), torch.empty(5, 2, 4)
    >>> with torch.no_grad(), symbolic_shapes():
    ...     [tuple(result.shape) for result in layer(x)]
    [(5, 2, 6), (2, 2, 3)]
    """
    # A plain Library has no public way to take its rules back.
    with torch.library._scoped_library("aten", "IMPL") as library:  # pyright: ignore[reportPrivateUsage]
        for name, shapes in _SHAPES.items():
            for key in _KEYS:
                library.impl(name, shapes, key)
        yield


def _lstm(x: Tensor, hx: Sequence[Tensor], *arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states of the last layer at all steps, and the last states of all layers, without values."""
    state, cell = hx
    return _states(x, state, *arguments), torch.empty_like(state), torch.empty_like(cell)


def _one_state(x: Tensor, hx: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    return _states(x, hx, *arguments), torch.empty_like(hx)


def _states(x: Tensor, state: Tensor, *arguments: object) -> Tensor:
    """Return the result of a stack, [steps, batch, width] in memory also where the batch comes first."""
    *_, bidirectional, batch_first = arguments  # the last of the operator's schema
    width = state.shape[-1] * (2 if bidirectional else 1)
    steps, batch = (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])
    made = x.new_empty((steps, batch, width))
    return made.transpose(0, 1) if batch_first else made


def _max_pool1d(x: Tensor, kernel_size: Sequence[int], *rest: Any) -> Tensor:  # noqa: ANN401 - as its schema has it
    """Return the result of the same pool over a picture of height 1."""
    stride, padding, dilation, ceil_mode = (*rest, *_POOL_DEFAULTS[len(rest) :])
    sizes = ((1, *kernel_size), (1, *(stride or kernel_size)), (0, *padding), (1, *dilation))
    return torch.max_pool2d(x.unsqueeze(-2), *sizes, ceil_mode=ceil_mode).squeeze(-2)


_POOL_DEFAULTS: tuple[Any, ...] = ((), (0,), (1,), False)  # stride, padding, dilation, ceil_mode


_SHAPES: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "lstm.input": _lstm,
    "gru.input": _one_state,
    "rnn_tanh.input": _one_state,
    "rnn_relu.input": _one_state,
    "max_pool1d": _max_pool1d,
}
