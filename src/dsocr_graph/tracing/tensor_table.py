"""Tensor table: the tensors of an exported stage as specs, which of them share memory, their sizes in declared dims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from attrs import define, field

from dsocr_graph.errors import CaptureError
from dsocr_graph.ir import Role, TensorSpec
from dsocr_graph.tracing.torch_terms import dtype_of, size_in
from modelmeter.dims import Dim


@define(kw_only=True)
class TensorTable:
    """The tensors of one stage, in the order in which they are read.

    Attributes
    ----------
    symbols : mapping of sympy.Symbol to sympy.Expr
        The declared dim for each of torch's symbols.
    where : str
        The call that is being read, for messages.
    """

    stage: str
    symbols: Mapping[sympy.Symbol, sympy.Expr] = field(factory=dict)
    where: str = ""
    tensors: list[TensorSpec] = field(factory=list[TensorSpec])
    _storages: dict[int, int] = field(factory=dict[int, int])  # torch's identity of a storage -> ours

    def add(self, value: torch.Tensor, name: str, role: Role) -> int:
        """Add a tensor, and return its id.

        Raises
        ------
        CaptureError
            When a size depends on data, or the dtype has no counterpart.
        """
        tensor = len(self.tensors)
        storage = self._storages.setdefault(storage_key(value), len(self._storages))
        self.tensors.append(
            TensorSpec(
                id=tensor,
                name=name,
                shape=tuple(self.dim(size) for size in value.shape),
                strides=tuple(self.dim(size) for size in value.stride()),
                dtype=dtype_of(value.dtype, name),
                role=role,
                storage=storage,
                storage_bytes=self.dim(value.untyped_storage().nbytes()),
            )
        )
        return tensor

    def share(self, value: object, tensor: object) -> None:
        """Let a tensor of one graph be the same memory as one that is in the table, by id; anything else is no tensor.

        Graphs inside of graphs have tensors of their own for what they are given and for what they return.
        """
        if isinstance(value, torch.Tensor) and isinstance(tensor, int):
            self._storages[storage_key(value)] = self.tensors[tensor].storage

    def state(self) -> tuple[int, dict[int, int]]:
        """Return what `restore` takes to forget what is added from now on."""
        return len(self.tensors), dict(self._storages)

    def restore(self, state: tuple[int, dict[int, int]]) -> None:
        """Forget what was added since a state."""
        length, self._storages = state
        del self.tensors[length:]

    def dim(self, size: int | torch.SymInt) -> Dim:
        """Return a size in declared dims.

        Raises
        ------
        CaptureError
            When it depends on data.
        """
        if isinstance(size, int):
            return size
        expr = size.node.expr
        unknown = expr.free_symbols - self.symbols.keys()
        if unknown:
            raise CaptureError(
                f"stage {self.stage!r}: a size depends on data ({expr}) at {self.where}; "
                "use operators whose result sizes follow from the input sizes"
            )
        return size_in(expr, self.symbols)


def storage_key(value: torch.Tensor) -> int:
    """Return what tensors share that share memory; without data, a storage has no other identity."""
    storage: Any = value.untyped_storage()
    return storage._cdata
