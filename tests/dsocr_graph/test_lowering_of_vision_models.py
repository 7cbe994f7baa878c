"""Lowering of operators that vision models bring: volumes, checks of inputs, shapes taken from another tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from dsocr_graph.lowering import lower
from dsocr_graph.scopes import group_by_module


def leaf(captured: Callable[..., Any], what: Callable[..., object], *inputs: torch.Tensor) -> Any:
    """Return the only leaf of a function on `meta` tensors."""
    (found,) = lower(group_by_module(captured(what, *inputs))).leaves
    return found.layer


def moved(layer: Any) -> int:
    """Return the bytes that a layer reads and writes."""
    traffic = layer.traffic()
    return traffic.weights_read + traffic.activations_read + traffic.written


def meta(*shape: int) -> torch.Tensor:
    """Return a tensor without data, 4 bytes an element."""
    return torch.empty(*shape, device="meta")


def test_conv3d_counts_positions_and_taps(captured: Callable[..., Any]) -> None:
    """Patches of 2 x 4 x 4 in 5 volumes of 2 x 4 x 4: one position, 32 taps, 3 channels to 7."""
    layer = leaf(captured, functional.conv3d, meta(5, 3, 2, 4, 4), meta(7, 3, 2, 4, 4), meta(7))
    assert layer.matmul_flops() == 2 * 5 * 7 * 3 * 32
    assert layer.vector_flops() == 5 * 7
    assert moved(layer) == 4 * (5 * 3 * 32 + 7 * 3 * 32 + 7 + 5 * 7)


def test_conv3d_with_strides_and_groups(captured: Callable[..., Any]) -> None:
    """Kernel 2, stride 2 on 4 x 6 x 8 gives 2 x 3 x 4 positions; two groups halve the input channels of a filter."""
    layer = leaf(
        captured, lambda x, w: functional.conv3d(x, w, stride=2, groups=2), meta(1, 4, 4, 6, 8), meta(6, 2, 2, 2, 2)
    )
    assert layer.matmul_flops() == 2 * 24 * 6 * 2 * 8


def test_a_check_of_all_values_reads_them_once(captured: Callable[..., Any]) -> None:
    """12 booleans of one byte are read and one is written."""
    layer = leaf(captured, torch._is_all_true, torch.empty(3, 4, dtype=torch.bool, device="meta"))
    assert (layer.matmul_flops(), moved(layer)) == (0, 13)


@pytest.mark.parametrize(("transposed", "copied"), [(False, 0), (True, 2 * 12 * 4)])
def test_reshape_as_copies_only_what_cannot_be_viewed(
    captured: Callable[..., Any], transposed: bool, copied: int
) -> None:
    """A contiguous tensor is seen in another shape for nothing; a transposed one is read and written."""

    def reshaped(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return (x.t() if transposed else x).reshape_as(like)

    leaves = lower(group_by_module(captured(reshaped, meta(3, 4), meta(2, 6)))).leaves
    assert sum(moved(item.layer) for item in leaves) == copied
