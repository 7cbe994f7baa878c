"""User models: any nn.Module with example inputs, made in Python or by a factory named package.module:factory."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from attrs import field, frozen
from torch import Tensor, nn

from dsocr_graph.errors import FactoryError, ModelInputError
from dsocr_graph.models.declared_dims import declared_limits, dynamic_shapes
from dsocr_graph.models.eager import eager
from dsocr_graph.models.stage_spec import StageSpec, example_sizes

_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}

STAGE = "forward"
"""Name of the only stage of a model that is given with one set of inputs."""


@frozen(kw_only=True)
class UserModel:
    """A model and how it is run, as a user gives it.

    Attributes
    ----------
    name : str
        Its name in reports.
    module : nn.Module
        In evaluation mode, on `meta` or with weights.
    stages : tuple of StageSpec
        How it is run; `stage_of` makes one.
    """

    name: str
    module: nn.Module
    stages: tuple[StageSpec, ...] = field(converter=tuple[StageSpec, ...])

    @property
    def facts(self) -> Mapping[str, str]:
        """What reports say of the variant: the types of the weights, that of most elements first, or that none are."""
        elements = Counter[str]()
        for parameter in self.module.parameters():
            name = _DTYPES.get(parameter.dtype) or str(parameter.dtype).removeprefix("torch.")
            elements[name] += parameter.numel()
        return {"dtype": " and ".join(name for name, _ in elements.most_common())} if elements else {"weights": "none"}

    @property
    def sizes(self) -> Mapping[str, Mapping[str, int]]:
        """By stage, the size of each dim in the example inputs."""
        return {stage.name: example_sizes(stage) for stage in self.stages}

    @property
    def limits(self) -> Mapping[str, int]:
        """The largest size of each dim that every stage which has it bounds."""
        found: dict[str, list[int | None]] = {}
        for stage in self.stages:
            for name in example_sizes(stage):
                found.setdefault(name, []).append(stage.limits.get(name))
        return {
            name: max(largest for largest in sizes if largest is not None)
            for name, sizes in found.items()
            if None not in sizes
        }


def user_model(module: nn.Module, inputs: object, *, dims: object = None, name: str | None = None) -> UserModel:
    """Return a model with one stage, "forward".

    Parameters
    ----------
    module : nn.Module
        The model; it is put into evaluation mode.
    inputs : Tensor, sequence or mapping
        Example inputs of its `forward`: one tensor, the arguments in order, or by name. Tensors may be on `meta`.
    dims : mapping or sequence, optional
        Which axes stay symbolic, and the name of each: ``{"x": {0: "B"}}`` by the argument's name, or in order. A
        `torch.export.Dim` in the place of a name says how far a size may go, where the model bounds it.
        Without, all sizes are those of the example.
    name : str, optional
        Name in reports; the class's name by default.

    Raises
    ------
    ModelInputError
        When the module is no eager one, or inputs or dims do not fit its `forward`.

    Examples
    --------
    >>> import torch
    >>> model = user_model(nn.Linear(4, 2), torch.empty(3, 4), dims={"input": {0: "B"}})
    >>> model.name, model.sizes
    ('Linear', {'forward': {'B': 3}})
    """
    stage = stage_of(module, inputs, dims=dims)
    return UserModel(name=name or type(module).__name__, module=module.eval(), stages=(stage,))


def stage_of(
    module: nn.Module,
    inputs: object,
    *,
    dims: object = None,
    name: str = STAGE,
    description: str = "",
    root: str = "",
) -> StageSpec:
    """Return one way in which a module is run; other parameters and errors as `user_model`.

    Parameters
    ----------
    root : str
        The attribute that holds the model, where `module` only runs a part of it; "" when it is the model itself.

    Examples
    --------
    >>> import torch
    >>> stage = stage_of(nn.Linear(4, 2), torch.empty(3, 4), dims=[{0: "B"}], name="encode")
    >>> stage.name, stage.inputs[0].shape
    ('encode', torch.Size([3, 4]))
    """
    eager(module)
    arguments = _arguments(module, inputs)
    names = _names(module, len(arguments))
    shapes = dynamic_shapes(dims, dict(zip(names, arguments, strict=True)))
    rest = next((at for at, one in enumerate(_parameters(module)) if one.kind is one.VAR_POSITIONAL), len(shapes))
    if rest < len(shapes):  # torch.export takes those of `*arguments` as one entry
        shapes[rest:] = [tuple(shapes[rest:])]
    return StageSpec(
        name=name,
        description=description,
        module=module,
        inputs=arguments,
        dynamic_shapes=tuple(shapes),
        root=root,
        limits=declared_limits(dims),
    )


def load_factory(text: str) -> UserModel:
    """Call the factory that a text names, and return the model it makes.

    The module is imported, with the working directory on its path, which runs its code. The factory takes no
    arguments and returns a `UserModel`, or a tuple of the module, its example inputs and, with symbolic sizes, dims
    as `user_model` takes them.

    Parameters
    ----------
    text : str
        ``package.module:factory``.

    Raises
    ------
    FactoryError
        When the text names nothing that can be called, or the factory fails or returns something else.

    Examples
    --------
    >>> load_factory("torch.nn:no_such_factory")
    Traceback (most recent call last):
    dsocr_graph.errors.FactoryError: module torch.nn has no factory 'no_such_factory'; ...
    """
    made = _called(_factory(text), text)
    if isinstance(made, UserModel):
        return made
    if isinstance(made, tuple):
        module, *given = cast("tuple[Any, ...]", made) or (None,)
        if isinstance(module, nn.Module) and len(given) in {1, 2}:
            return user_model(module, given[0], dims=given[1] if len(given) == 2 else None)
    raise FactoryError(
        f"factory {text!r} returned {_kind(cast('object', made))}; return (module, inputs), (module, inputs, dims) or "
        "a dsocr_graph.models.user_model.UserModel"
    )


def _factory(text: str) -> Callable[[], object]:
    place, _, attribute = text.partition(":")
    if not place or not attribute.isidentifier():
        raise FactoryError(f"{text!r} names no factory; write package.module:factory")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` has it, so that a file beside the user is found
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(place)
    except Exception as error:
        raise FactoryError(
            f"module {place!r} of factory {text!r} cannot be imported: {type(error).__name__}: {error}; run from the "
            "directory that holds it, or install it"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        offered = ", ".join(name for name, value in vars(module).items() if inspect.isfunction(value)) or "none"
        raise FactoryError(f"module {place} has no factory {attribute!r}; its functions: {offered}")
    return cast("Callable[[], object]", found)


def _called(factory: Callable[[], object], text: str) -> object:
    try:
        return factory()
    except Exception as error:
        raise FactoryError(
            f"factory {text!r} failed: {type(error).__name__}: {error}; it is called without arguments and has to "
            "return (module, inputs) or (module, inputs, dims)"
        ) from error


def _kind(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple of ({', '.join(type(item).__name__ for item in cast('tuple[object, ...]', value))})"
    return f"a {type(value).__name__}"


# --- inputs


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    return list(inspect.signature(module.forward).parameters.values())


def _names(module: nn.Module, count: int) -> list[str]:
    """Return a name for each of so many arguments of `forward`."""
    names: list[str] = []
    for parameter in _parameters(module):
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}[{index}]" for index in range(count - len(names))]
        else:
            names.append(parameter.name)
    if count > len(names):
        raise ModelInputError(
            f"{count} inputs are given for {type(module).__name__}.forward, which takes {', '.join(names) or 'none'}"
        )
    return names[:count]


def _arguments(module: nn.Module, inputs: object) -> tuple[Any, ...]:
    """Return the inputs in the order of `forward`."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    if isinstance(inputs, Mapping):
        return _named_arguments(module, cast("Mapping[str, Any]", inputs))
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        return tuple(cast("Sequence[Any]", inputs))
    raise ModelInputError(
        f"inputs of {type(module).__name__} are a {type(inputs).__name__}; give a tensor, the arguments of forward in "
        "order, or a mapping from their names"
    )


def _named_arguments(module: nn.Module, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    try:
        bound = inspect.signature(module.forward).bind(**inputs)
    except TypeError as error:
        raise ModelInputError(
            f"inputs {', '.join(inputs)} do not fit {type(module).__name__}.forward: {error}; its arguments are "
            f"{', '.join(parameter.name for parameter in _parameters(module))}"
        ) from error
    bound.apply_defaults()
    if bound.kwargs:
        raise ModelInputError(
            f"{type(module).__name__}.forward takes {', '.join(bound.kwargs)} by keyword only, which capture does not; "
            "wrap it in a module whose forward takes tensors in order"
        )
    last = max((index for index, name in enumerate(bound.arguments) if name in inputs), default=-1)
    return bound.args[: last + 1]
