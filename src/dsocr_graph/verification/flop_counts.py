"""FLOPs of matrix products as torch's counter has them, in all, below each call of a module, and by path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from dsocr_graph.models.from_transformers.value_checks import values_unchecked
from dsocr_graph.verification.fused_attention import fused_attention
from dsocr_graph.verification.module_paths import ModulePaths, inside

Shape = tuple[int, ...]


def _attention(query: Shape, key: Shape, value: Shape, *_: object, out_shape: object = None, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


# Torch has the formula for the kernels of other devices alone.
_CPU_FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}

_REAL_PRODUCTS = 4
"""Of a complex one: a sum of (a + bi)(c + di) = (ac - bd) + (ad + bc)i takes 4 multiply-adds of real numbers a term."""


def _of_numbers(formula: Callable[..., int]) -> Callable[..., int]:
    """Return a formula of torch's counter that heeds the type: the counter's own look at shapes alone."""

    def flops(*args: object, out_val: object = None, **kwargs: object) -> int:
        complex_result = isinstance(out_val, Tensor) and out_val.is_complex()
        return formula(*args, out_val=out_val, **kwargs) * (_REAL_PRODUCTS if complex_result else 1)

    return flops


@frozen(kw_only=True)
class CountedFlops:
    """FLOPs of matrix products of a run. Modules are named by the first of their paths."""

    total: int
    called: Mapping[str, int]  # during the calls of each module that was called
    filed: Mapping[str, int]  # of what a module contains, wherever it was called from, as the graph files it


def count_flops(module: nn.Module, root: nn.Module, inputs: Sequence[Any]) -> CountedFlops:
    """Run a module and count FLOPs by torch's formulas, a product of complex numbers as four of real ones.

    Parameters
    ----------
    module : nn.Module
        The module of a stage.
    root : nn.Module
        The model in it; its paths name the modules.
    inputs : sequence
        Of the module, on its device.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 2, device="meta"), nn.ReLU())
    >>> counted = count_flops(model, model, [torch.empty(3, 4, device="meta")])  # 2*3*4*2
    >>> counted.total, dict(counted.called)
    (48, {'0': 48, '1': 0, '': 48})
    >>> model = nn.Linear(4, 2, dtype=torch.complex64, device="meta")
    >>> count_flops(model, model, [torch.empty(3, 4, dtype=torch.complex64, device="meta")]).total  # 8*3*4*2
    192
    """
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_FORMULAS)
    counter.flop_registry = {op: _of_numbers(formula) for op, formula in counter.flop_registry.items()}
    calls = _Calls(counter=counter, paths=ModulePaths.of(root))
    with ExitStack() as contexts:
        for path, each in root.named_modules():
            contexts.callback(each.register_forward_pre_hook(partial(calls.enter, path)).remove)
            contexts.callback(each.register_forward_hook(partial(calls.leave, path), prepend=True).remove)
        for context in (torch.no_grad(), values_unchecked(), fused_attention(allowed=False), counter):
            contexts.enter_context(context)
        module(*inputs)
        total = counter.get_total_flops()
    return CountedFlops(total=total, called=dict(calls.called), filed=calls.filed())


def counted_operators() -> frozenset[str]:
    """Return the names of the operators that torch's counter has a formula for.

    Examples
    --------
    >>> "aten::mm" in counted_operators(), "aten::mv" in counted_operators()
    (True, False)
    """
    packets: list[Any] = [*flop_registry, *_CPU_FORMULAS]
    return frozenset(name for each in packets if isinstance(name := getattr(each, "_qualified_op_name", None), str))


@define(kw_only=True)
class _Call:
    path: str
    before: int  # FLOPs in all when it began
    inner: int = 0  # FLOPs of the calls in it


@define(kw_only=True)
class _Calls:
    """Follows which module runs, and what it adds to the count."""

    counter: FlopCounterMode
    paths: ModulePaths
    called: Counter[str] = field(factory=Counter[str])
    own: Counter[str] = field(factory=Counter[str])  # by the path under which the graph has it
    stack: list[_Call] = field(factory=list[_Call])

    def enter(self, path: str, *_: object) -> None:
        self.stack.append(_Call(path=path, before=self.counter.get_total_flops()))

    def leave(self, path: str, *_: object) -> None:
        call = self.stack.pop()
        flops = self.counter.get_total_flops() - call.before
        callers = tuple(each.path for each in self.stack)
        if path not in callers:
            self.called[path] += flops
        self.own[self.paths.filed(path, callers)] += flops - call.inner
        if self.stack:
            self.stack[-1].inner += flops

    def filed(self) -> dict[str, int]:
        return {
            name: sum(flops for path, flops in self.own.items() if any(inside(path, around) for around in paths))
            for name, paths in self.paths.all.items()
        }
