"""Export errors: why torch.export refuses a stage, each kind of reason with its place in the model and what to do."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from itertools import islice, takewhile
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import (
    ConstraintViolationError,
    GuardOnDataDependentSymNode,
    PendingUnbackedSymbolNotFound,
)
from torch.utils._pytree import tree_leaves, tree_map_only

from dsocr_graph.errors import CaptureError
from dsocr_graph.models.stage_spec import StageSpec, declared_leaves
from dsocr_graph.tracing.call_sites import CallSites, Site

_DATA = (
    GuardOnDataDependentSymNode,
    DataDependentOutputException,
    DynamicOutputShapeException,
    PendingUnbackedSymbolNotFound,
)
# Lines of torch's messages that lead into torch, or say where in which file: the rest of a message has the module.
_ASIDE = ("For more", "For extended", "For C++", "If you suspect", "Caused by", "consider using", "(Size-like")
_CUT = re.compile(r" For more information| If you're using mark_dynamic| \(unhinted")  # the rest of a line
_REST = ("User stack", "The following call raised", "The error above occurred")
# What a user of a configuration can do about dims that are declared for him.
_FAULT = (
    "that is a fault of how dsocr_graph describes such models, not of the configuration: report it with the "
    "configuration, or describe the stages yourself by a factory (package.module:function)"
)
_NO_VALUES = (
    "change that module so that none does (no .item(), .tolist(), nonzero or boolean indexing), or choose an "
    "implementation that can be exported"
)
_NO_FORWARD = 'is missing the required "forward" function'  # of torch, for a module that defines none
_NO_KERNEL = ("no fake impl", "Could not run", "with Meta tensors", "doesn't have a kernel", "no meta")
_MOST_LINES = 6  # of what torch says
_MOST_ELEMENTS = 2**24  # of parameters, buffers and inputs of a module that is run to see whether it does
_MOST_INPUTS = 6  # of the example inputs, by shape


@frozen(kw_only=True)
class FixedDim:
    """A declared dim that a model holds for a number."""

    size: int  # elements
    site: Site | None  # the operator that made it one, where that is in the model


@frozen(kw_only=True)
class _Reason:
    what: str
    advice: str
    site: Site | None


def require_inputs(stage: StageSpec) -> None:
    """Do nothing unless a stage's inputs are not the arguments of its module's forward, or its dims not theirs.

    Raises
    ------
    CaptureError
        When an argument without a default is missing, one is left over, or dims are declared for more or fewer tensors.

    Examples
    --------
    >>> stage = StageSpec(name="forward", description="", module=torch.nn.Bilinear(2, 2, 2), inputs=(torch.ones(3, 2),))
    >>> require_inputs(stage)
    Traceback (most recent call last):
    dsocr_graph.errors.CaptureError: stage 'forward' cannot be captured: 1 example input does not fit ...
    """
    signature = inspect.signature(stage.module.forward)
    try:
        signature.bind(*stage.inputs)
    except TypeError as error:
        count = len(stage.inputs)
        given = f"{count} example input does" if count == 1 else f"{count} example inputs do"
        raise CaptureError(
            f"stage {stage.name!r} cannot be captured: {given} not fit {type(stage.module).__name__}.forward: "
            f"{error}; its arguments are {', '.join(signature.parameters)}. Give an example of each without a "
            "default, in order"
        ) from error
    tensors, declared = len(tree_leaves(stage.inputs)), len(list(declared_leaves(stage.dynamic_shapes)))
    if stage.dynamic_shapes is not None and tensors != declared:
        raise CaptureError(
            f"stage {stage.name!r} cannot be captured: it declares dims for {declared} inputs and has {tensors}; "
            "declare a mapping from axis to dim, or None, for each, those inside of lists and mappings included"
        )


def explained(error: Exception, stage: StageSpec, sites: CallSites, fixed: Mapping[str, FixedDim]) -> CaptureError:
    """Return what an error of torch.export means.

    Parameters
    ----------
    error : Exception
        What the export of a stage raised.
    stage : StageSpec
        The stage.
    sites : CallSites
        The recorder that was active; the error's traceback leads to a place in the model through it.
    fixed : mapping of str to FixedDim
        The dims that became numbers on the way.
    """
    reason = _reason(error, stage, sites, fixed)
    place = f"  in {reason.site.text}\n" if reason.site else ""
    said = "\n    ".join(_said(error))
    return CaptureError(
        f"stage {stage.name!r} cannot be captured: {reason.what}\n{place}  {type(error).__name__}: {said}\n"
        f"  {reason.advice}"
    )


_LOGS = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")


@contextmanager
def nothing_printed() -> Generator[None]:
    """Keep torch from printing the graph up to where an export fails, and from logging what it fails at.

    The error says what of it matters. Nor does it matter to costs that a module assigns tensors to itself while it
    runs, as `torch.nn.LSTM` does with its weights.
    """
    trace: Any = importlib.import_module("torch.export._trace")
    logs = [logging.getLogger(name) for name in _LOGS]
    before = [log.disabled for log in logs]
    trace.print = lambda *values, **options: None
    for log in logs:
        log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The tensor attributes? .* assigned during export")
            yield
    finally:
        for log, disabled in zip(logs, before, strict=True):
            log.disabled = disabled
        del trace.print


def _reason(error: Exception, stage: StageSpec, sites: CallSites, fixed: Mapping[str, FixedDim]) -> _Reason:
    from torch._dynamo.exc import TorchDynamoException, UserError, UserErrorType

    kind = error.error_type if isinstance(error, UserError) else None
    site = sites.raised(error)
    if isinstance(error, _DATA) or kind is UserErrorType.DYNAMIC_CONTROL_FLOW:
        return _Reason(what="a shape or a branch depends on the values of tensors", advice=_NO_VALUES, site=site)
    if isinstance(error, ConstraintViolationError) or kind is UserErrorType.CONSTRAINT_VIOLATION:
        refused = _dims_refused(fixed)
        return evolve(refused, advice=_FAULT) if stage.configured else refused
    if kind is UserErrorType.INVALID_INPUT:
        return _Reason(
            what="the dims that it declares do not fit its inputs",
            advice="declare them in the order of the inputs, or by the names of forward's arguments",
            site=None,
        )
    if isinstance(error, NotImplementedError) and _NO_FORWARD in str(error):
        return _Reason(
            what="a module is called that has no forward, such as an nn.ModuleList",
            advice="call its parts there, or give it a forward",
            site=site,
        )
    if isinstance(error, UnsupportedOperatorException) or _lacks_kernel(error):
        return _Reason(
            what="an operator has no implementation for tensors without data",
            advice="give a custom operator one by torch.library.register_fake, or choose another",
            site=site,
        )
    if isinstance(error, TorchDynamoException):
        return _Reason(
            what="what it gives to a higher-order operator, such as torch.cond, cannot be traced",
            advice="let branches, bodies of loops and the functions of flex_attention hold operators on tensors alone",
            site=site,
        )
    without_data = _error_without_data(stage)
    runs = without_data is None or _runs_as_given(stage)
    follow = "its forward runs on the example inputs, and torch.export cannot follow it"
    if runs is not False and isinstance(without_data, _DATA):
        follow = follow if runs else "torch.export cannot follow its forward"
        return _Reason(what=f"{follow}: it depends on the values of tensors", advice=_NO_VALUES, site=site)
    if runs:
        return _Reason(
            what=follow,
            advice="change that module to operators on tensors, or choose an implementation that can be exported",
            site=site,
        )
    if runs is None:  # neither is known
        return _Reason(
            what=f"torch.export cannot follow its forward on the example inputs, {_shapes(stage)}",
            advice=_FAULT
            if stage.configured
            else "see that the module runs on them; if it does, change it to operators on tensors",
            site=site,
        )
    return _Reason(
        what=f"its forward fails on the example inputs, {_shapes(stage)}",
        advice=_FAULT if stage.configured else "give inputs that the module runs on, or correct the module",
        site=site,
    )


def _lacks_kernel(error: Exception) -> bool:
    """Whether torch says that an operator has no implementation; code of the user's may raise the same class."""
    return any(text in str(error) for text in _NO_KERNEL)


def _dims_refused(fixed: Mapping[str, FixedDim]) -> _Reason:
    if not fixed:
        return _Reason(
            what="the dims that it declares are not as free as declared",
            advice="declare them as torch says: one name for sizes that are always equal, none for a size that the "
            "model fixes, torch.export.Dim(NAME, max=SIZE) for one that it bounds",
            site=None,
        )
    sizes = ", ".join(f"{name} to {dim.size}" for name, dim in fixed.items())
    return _Reason(
        what=f"the model fixes {sizes}",
        advice=f"declare no dim there (leave {', '.join(fixed)} out of dims), or change that module so that it takes "
        "its sizes from its inputs",
        site=next(iter(fixed.values())).site,
    )


def _said(error: Exception) -> list[str]:
    """Return the lines of a message that say something of the model."""
    lines = takewhile(lambda line: not line.startswith(_REST), map(str.strip, str(error).splitlines()))
    kept = [_CUT.split(line)[0] for line in lines if line and not line.startswith(_ASIDE)]
    return kept[:_MOST_LINES] or ["no message"]


def _error_without_data(stage: StageSpec) -> Exception | None:
    """Return what a stage's module raises on its example inputs where nothing is traced and nothing computed."""
    try:
        with torch.no_grad(), nothing_printed(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            stage.module(*_fake(mode, stage.inputs))
    except Exception as error:
        return error
    return None


def _runs_as_given(stage: StageSpec) -> bool | None:
    """Whether a stage's module runs on its example inputs as they are; None where asking would take long.

    On `meta` a run is free. With data it is of use where shapes follow from values, which fake tensors do not have.
    """
    held = [*stage.module.parameters(), *stage.module.buffers()]
    tensors = [*held, *(leaf for leaf in tree_leaves(stage.inputs) if isinstance(leaf, Tensor))]
    if sum(tensor.numel() for tensor in tensors if not tensor.is_meta) > _MOST_ELEMENTS:
        return None
    try:
        with torch.no_grad(), nothing_printed(), torch.random.fork_rng(devices=[]):
            stage.module(*stage.inputs)
    except Exception:
        return False
    return True


def _fake(mode: FakeTensorMode, inputs: tuple[Any, ...]) -> Any:  # noqa: ANN401 - of the same structure
    return tree_map_only(Tensor, mode.from_tensor, inputs)


def _shapes(stage: StageSpec) -> str:
    leaves = tree_leaves(stage.inputs)
    shown = ", ".join(_shape(leaf) for leaf in islice(leaves, _MOST_INPUTS))
    left = len(leaves) - _MOST_INPUTS
    return f"{shown} and {left} more" if left > 0 else shown or "none"


def _shape(leaf: object) -> str:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    return f"{str(leaf.dtype).removeprefix('torch.')}[{', '.join(map(str, leaf.shape))}]"
