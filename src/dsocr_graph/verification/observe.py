"""A real run, observed: what hooks see of the modules and what is dispatched below them."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

from attrs import define, field, frozen
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from dsocr_graph.timing.module_calls import count_module_calls
from dsocr_graph.verification.module_paths import ModulePaths
from dsocr_graph.verification.running_code import methods_around, writes_message

Sized = tuple[tuple[int, ...], str]
"""Shape and type of a tensor, such as ((2, 3), "float32")."""

LIFT = "aten::lift_fresh"
"""By which a constant of the code becomes a tensor of its own."""

DETACH = frozenset({"aten::detach", "aten::detach_"})
"""What such a tensor goes through then, as others may."""


@frozen(kw_only=True)
class Outside:
    """What operators read and made outside the calls of a module."""

    reads: frozenset[Sized] = frozenset()
    makes: frozenset[Sized] = frozenset()


@frozen(kw_only=True)
class Observed:
    """What a run did. Modules are named by the first of their paths."""

    calls: Counter[str]
    edges: Counter[tuple[str, str]]  # caller and called; "" calls what the stage calls
    inputs: Mapping[str, frozenset[Sized]]  # of all calls of a module together
    outputs: Mapping[str, frozenset[Sized]]
    reads: Mapping[str, frozenset[Sized]]  # by operators in a module, made outside it; parameters left out
    operators: Counter[tuple[str, str]]  # innermost module that was called, and operator
    messages: Counter[tuple[str, str]]  # those of them that ran while a tensor was written as text
    lifts: Counter[tuple[str, str]]  # those by which constants of the code became tensors
    constants: tuple[Tensor, ...] = field(repr=False)  # these tensors, in order, with the values they had then
    methods: Mapping[str, Outside]  # modules in whose methods operators ran outside any call of them
    parts: frozenset[str]  # modules in which others were called outside any call of them
    around: Outside  # operators of the stage that ran neither in a call of the model nor in a method of it
    results: tuple[Tensor, ...] = field(repr=False)


def observe(module: nn.Module, root: nn.Module, inputs: Sequence[Any]) -> Observed:
    """Run a module once, with hooks on every module below `root`, and return what happened.

    What the model's own forward hooks do belongs to the caller, as in a captured graph.

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
    modules = _Modules(root)
    with count_module_calls(root) as calls, modules.hooked(root), Dispatched(modules.dispatched):
        made = module(*inputs)
    return Observed(
        calls=calls,
        edges=modules.edges,
        inputs=_frozen(modules.inputs),
        outputs=_frozen(modules.outputs),
        reads=_frozen(modules.reads),
        operators=modules.operators,
        messages=modules.messages,
        lifts=modules.lifts,
        constants=tuple(modules.constants),
        methods={path: outside.seen() for path, outside in modules.methods.items()},
        parts=frozenset(modules.parts),
        around=modules.around.seen(),
        results=tensors_in(made),
    )


def _frozen(seen: Mapping[str, set[Sized]]) -> dict[str, frozenset[Sized]]:
    return {path: frozenset(sizes) for path, sizes in seen.items()}


@define(kw_only=True)
class _Outside:
    reads: set[Sized] = field(factory=set[Sized])
    makes: set[Sized] = field(factory=set[Sized])

    def note(self, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        self.reads.update(map(sized, given))
        self.makes.update(map(sized, made))

    def seen(self) -> Outside:
        return Outside(reads=frozenset(self.reads), makes=frozenset(self.makes))


class _Modules:
    """Follows which module runs."""

    def __init__(self, root: nn.Module) -> None:
        self.stack: list[str] = []
        self.edges: Counter[tuple[str, str]] = Counter()
        self.inputs: dict[str, set[Sized]] = {}
        self.outputs: dict[str, set[Sized]] = {}
        self.reads: dict[str, set[Sized]] = {}
        self.operators: Counter[tuple[str, str]] = Counter()
        self.messages: Counter[tuple[str, str]] = Counter()
        self.lifts: Counter[tuple[str, str]] = Counter()
        self.constants: list[Tensor] = []
        self.methods: dict[str, _Outside] = {}
        self.parts: set[str] = set()
        self.around = _Outside()
        self._makers = WeakTensorKeyDictionary()  # of each tensor that lives: the modules that ran when it was made
        self._lifted = WeakTensorKeyDictionary()  # constants of the code
        self._inherited: list[frozenset[str]] = []  # per call: the modules in whose methods it was made
        self._ids = {id(module): path for path, module in root.named_modules()}
        self._paths = ModulePaths.of(root)

    def dispatched(self, op: str, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        """Count an operator for the module that runs, and note what it reads from outside the modules around it."""
        key = self._current, op
        self.operators[key] += 1
        # The frame gets no name here: it would hold itself, and its tensors until they are collected.
        if writes_message(inspect.currentframe()):
            self.messages[key] += 1
        else:
            self._note_constant(key, given, made)
        for tensor in given:
            if not isinstance(tensor, nn.Parameter):
                makers: tuple[str, ...] = self._makers.get(tensor) or ()
                for path in self.stack:
                    if path not in makers:
                        self.reads.setdefault(path, set()).add(sized(tensor))
        for tensor in made:
            self._makers.setdefault(tensor, tuple(self.stack))  # what an operator changes in place stays where it is
        methods = self._methods(inspect.currentframe())
        for path in methods:
            self.methods.setdefault(path, _Outside()).note(given, made)
        if "" not in methods and "" not in self.stack:
            self.around.note(given, made)

    def _note_constant(self, key: tuple[str, str], given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        if key[1] == LIFT:
            self.constants += [tensor.clone() for tensor in made]
        elif key[1] not in DETACH or not all(tensor in self._lifted for tensor in given):
            return
        self.lifts[key] += 1
        for tensor in made:
            self._lifted[tensor] = True

    @property
    def _current(self) -> str:
        return self.stack[-1] if self.stack else ""

    def _methods(self, frame: FrameType | None, *, entering: bool = False) -> frozenset[str]:
        """Return the modules in whose methods something runs outside any call of them."""
        inherited = self._inherited[-1] if self._inherited else frozenset[str]()
        return inherited | methods_around(frame, self._ids, self.stack, skip=entering)

    @contextmanager
    def hooked(self, root: nn.Module) -> Generator[None]:
        hooks = [
            hook
            for path, module in root.named_modules()
            for hook in (
                module.register_forward_pre_hook(partial(self._enter, path), with_kwargs=True),
                module.register_forward_hook(partial(self._leave, path), prepend=True),
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
        around = map(self._paths.first.get, _prefixes(self._paths.filed(path, tuple(self.stack))))
        self.parts |= {each for each in around if each is not None} - {path, *self.stack}
        self._inherited.append(self._methods(inspect.currentframe(), entering=True) - {path})
        self.stack.append(path)
        self.inputs.setdefault(path, set()).update(map(sized, tensors_in((args, kwargs))))

    def _leave(self, path: str, _: nn.Module, args: object, result: object) -> None:
        self.stack.pop()
        self._inherited.pop()
        self.outputs.setdefault(path, set()).update(map(sized, tensors_in(result)))


def _prefixes(path: str) -> Iterator[str]:
    """Yield a path and those of all that hold it."""
    parts = path.split(".") if path else []
    yield from (".".join(parts[:end]) for end in range(len(parts) + 1))


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
