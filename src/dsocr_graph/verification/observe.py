"""A real run, observed: what hooks see of the modules and what is dispatched below them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from attrs import field, frozen
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from dsocr_graph.timing.module_calls import count_module_calls

Sized = tuple[tuple[int, ...], str]
"""Shape and type of a tensor, such as ((2, 3), "float32")."""


@frozen(kw_only=True)
class Observed:
    """What a run did. Modules are named by the first of their paths."""

    calls: Counter[str]
    edges: Counter[tuple[str, str]]  # caller and called; "" calls what the stage calls
    inputs: Mapping[str, frozenset[Sized]]  # of all calls of a module together
    outputs: Mapping[str, frozenset[Sized]]
    reads: Mapping[str, frozenset[Sized]]  # by operators in a module, made outside it; parameters left out
    operators: Counter[tuple[str, str]]  # innermost module that was called, and operator
    results: tuple[Tensor, ...] = field(repr=False)


def observe(module: nn.Module, root: nn.Module, inputs: Sequence[Any]) -> Observed:
    """Run a module once, with hooks on every module below `root`, and return what happened.

    Parameters
    ----------
    module : nn.Module
        The module of a stage, with weights.
    root : nn.Module
        The model in it; its paths name the modules.
    inputs : sequence
        Of the module.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    >>> with torch.no_grad():
    ...     seen = observe(model, model, [torch.ones(3, 4)])
    >>> dict(seen.edges), seen.outputs["0"]
    ({('', '0'): 1, ('', '1'): 1}, frozenset({((3, 2), 'float32')}))
    >>> dict(seen.operators)
    {('0', 'aten::t'): 1, ('0', 'aten::addmm'): 1, ('1', 'aten::relu'): 1}
    """
    modules = _Modules()
    with count_module_calls(root) as calls, modules.hooked(root), Dispatched(modules.dispatched):
        made = module(*inputs)
    return Observed(
        calls=calls,
        edges=modules.edges,
        inputs={path: frozenset(seen) for path, seen in modules.inputs.items()},
        outputs={path: frozenset(seen) for path, seen in modules.outputs.items()},
        reads={path: frozenset(seen) for path, seen in modules.reads.items()},
        operators=modules.operators,
        results=tensors_in(made),
    )


class _Modules:
    """Follows which module runs."""

    def __init__(self) -> None:
        self.stack: list[str] = []
        self.edges: Counter[tuple[str, str]] = Counter()
        self.inputs: dict[str, set[Sized]] = {}
        self.outputs: dict[str, set[Sized]] = {}
        self.reads: dict[str, set[Sized]] = {}
        self.operators: Counter[tuple[str, str]] = Counter()
        self._makers = WeakTensorKeyDictionary()  # of each tensor that lives: the modules that ran when it was made

    def dispatched(self, op: str, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        """Count an operator for the module that runs, and note what it reads from outside the modules around it."""
        self.operators[self._current, op] += 1
        for tensor in given:
            if not isinstance(tensor, nn.Parameter):
                makers: tuple[str, ...] = self._makers.get(tensor) or ()
                for path in self.stack:
                    if path not in makers:
                        self.reads.setdefault(path, set()).add(sized(tensor))
        for tensor in made:
            self._makers.setdefault(tensor, tuple(self.stack))  # what an operator changes in place stays where it is

    @property
    def _current(self) -> str:
        return self.stack[-1] if self.stack else ""

    @contextmanager
    def hooked(self, root: nn.Module) -> Generator[None]:
        hooks = [
            hook
            for path, module in root.named_modules()
            for hook in (
                module.register_forward_pre_hook(partial(self._enter, path), with_kwargs=True),
                module.register_forward_hook(partial(self._leave, path)),
            )
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, path: str, _: nn.Module, args: object, kwargs: object) -> None:
        if path:
            self.edges[self._current, path] += 1
        self.stack.append(path)
        self.inputs.setdefault(path, set()).update(map(sized, tensors_in((args, kwargs))))

    def _leave(self, path: str, _: nn.Module, args: object, result: object) -> None:
        self.stack.pop()
        self.outputs.setdefault(path, set()).update(map(sized, tensors_in(result)))


class Dispatched(TorchDispatchMode):
    """Tells what is dispatched below autograd while it is on.

    Parameters
    ----------
    note : callable
        Told the name of each operator, the tensors that it reads, and those that it returns.
    """

    def __init__(self, note: Callable[[str, Sequence[Tensor], Sequence[Tensor]], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        """Run an operator and note it."""
        schema: Any = func._schema  # pyright: ignore[reportPrivateUsage] - torch has no public name
        made = func(*args, **(kwargs or {}))
        self._note(schema.name, tensors_in((args, kwargs)), tensors_in(made))
        return made


def sized(tensor: Tensor) -> Sized:
    """Return shape and type of a tensor."""
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def tensors_in(tree: object) -> tuple[Tensor, ...]:
    """Return the tensors in tuples, lists and dicts, in order."""
    return tuple(leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
