"""Module: a composite of layers, each called some times."""

from __future__ import annotations

from collections.abc import Callable

import sympy
from attrs import converters, field, frozen

from modelmeter.dims import Dim, product, total
from modelmeter.layers.base import BaseLayer, Traffic, as_dim


@frozen(kw_only=True)
class Child:
    """A layer of a module, and how often one execution of the module calls it.

    Examples
    --------
    >>> from modelmeter.dtypes import DType
    >>> from modelmeter.layers import Linear
    >>> Child(layer=Linear(rows=1, in_features=4, out_features=4, bias=False, dtype=DType.BF16)).calls
    1
    """

    layer: BaseLayer
    calls: Dim = field(default=1, converter=as_dim)


@frozen(kw_only=True)
class Module(BaseLayer):
    """A composite: sums its children, each times its calls, tensor-core and CUDA-core work apart.

    Two figures are no such sums:

    - weights are held once, however often a child is called; layers that share weights are one child with
      calls;
    - the memory of the results is the given peak. Without one it is the largest child's results: a lower
      bound
      of the peak, since results of earlier children may be freed, which only the order of the calls can tell.

    Activations kept for a backward pass add up over all calls. A module has no category; its children do.

    Attributes
    ----------
    children : tuple of Child
        Layers or modules; at least one is not required.
    peak_activation_bytes : Dim or None
        Peak bytes of results alive at once, as a liveness analysis finds it.

    Examples
    --------
    >>> from modelmeter.dtypes import DType
    >>> from modelmeter.layers import Linear
    >>> linear = Linear(rows=3, in_features=4, out_features=4, bias=False, dtype=DType.BF16)
    >>> block = Module(children=(Child(layer=linear, calls=2),))
    >>> block.matmul_flops(), block.weight_bytes(), block.activation_bytes()
    (192, 32, 24)
    """

    children: tuple[Child, ...]
    peak_activation_bytes: Dim | None = field(default=None, converter=converters.optional(as_dim))  # bytes

    def matmul_flops(self) -> Dim:
        """Sum over children. Unit: FLOPs."""
        return self._sum(lambda layer: layer.matmul_flops())

    def vector_flops(self) -> Dim:
        """Sum over children. Unit: FLOPs."""
        return self._sum(lambda layer: layer.vector_flops())

    def traffic(self) -> Traffic:
        """Sum over children."""
        return self._sum_traffic(lambda layer: layer.traffic())

    def weight_bytes(self) -> Dim:
        """Sum over children, each held once."""
        return total(child.layer.weight_bytes() for child in self.children)

    def activation_bytes(self) -> Dim:
        """The given peak, or the largest child's results."""
        if self.peak_activation_bytes is not None:
            return self.peak_activation_bytes
        return _largest([child.layer.activation_bytes() for child in self.children])

    def kvcache_bytes(self) -> Dim:
        """Sum over children: every call keeps its own."""
        return self._sum(lambda layer: layer.kvcache_bytes())

    def backward_matmul_flops(self) -> Dim:
        """Sum over children. Unit: FLOPs."""
        return self._sum(lambda layer: layer.backward_matmul_flops())

    def backward_vector_flops(self) -> Dim:
        """Sum over children. Unit: FLOPs."""
        return self._sum(lambda layer: layer.backward_vector_flops())

    def backward_traffic(self) -> Traffic:
        """Sum over children."""
        return self._sum_traffic(lambda layer: layer.backward_traffic())

    def backward_weight_bytes(self) -> Dim:
        """Sum over children, each held once."""
        return total(child.layer.backward_weight_bytes() for child in self.children)

    def backward_activation_bytes(self) -> Dim:
        """Sum over children: every call keeps its own."""
        return self._sum(lambda layer: layer.backward_activation_bytes())

    def backward_kvcache_bytes(self) -> Dim:
        """Sum over children: every call keeps its own."""
        return self._sum(lambda layer: layer.backward_kvcache_bytes())

    def tensor_core_flops(self) -> Dim:
        """Sum over children, each by its own dtype. Unit: FLOPs."""
        return self._sum(lambda layer: layer.tensor_core_flops())

    def cuda_core_flops(self) -> Dim:
        """Sum over children, each by its own dtype. Unit: FLOPs."""
        return self._sum(lambda layer: layer.cuda_core_flops())

    def backward_tensor_core_flops(self) -> Dim:
        """Sum over children, each by its own dtype. Unit: FLOPs."""
        return self._sum(lambda layer: layer.backward_tensor_core_flops())

    def backward_cuda_core_flops(self) -> Dim:
        """Sum over children, each by its own dtype. Unit: FLOPs."""
        return self._sum(lambda layer: layer.backward_cuda_core_flops())

    def runs_on_tensor_cores(self) -> bool:
        """Whether any child's products run on tensor cores."""
        return any(child.layer.runs_on_tensor_cores() for child in self.children)

    def _sum(self, cost: Callable[[BaseLayer], Dim]) -> Dim:
        return total(product((child.calls, cost(child.layer))) for child in self.children)

    def _sum_traffic(self, traffic: Callable[[BaseLayer], Traffic]) -> Traffic:
        moved = [(child.calls, traffic(child.layer)) for child in self.children]
        return Traffic(
            weights_read=total(product((calls, each.weights_read)) for calls, each in moved),
            activations_read=total(product((calls, each.activations_read)) for calls, each in moved),
            written=total(product((calls, each.written)) for calls, each in moved),
        )


def _largest(sizes: list[Dim]) -> Dim:
    number = max((size for size in sizes if not isinstance(size, sympy.Expr)), default=0)
    expressions = {size for size in sizes if isinstance(size, sympy.Expr)}
    if not expressions:
        return number
    sizes_to_compare = [*expressions, number] if number else [*expressions]
    if len(sizes_to_compare) == 1:
        return sizes_to_compare[0]
    # unevaluated: comparing many expressions takes sympy seconds, binding them takes microseconds
    return sympy.Max(*sizes_to_compare, evaluate=False)
