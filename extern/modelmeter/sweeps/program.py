"""Program: an AnalyticModel compiled to matrices, so that the costs at many points are one product of arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from attrs import frozen

from modelmeter.categories import Category
from modelmeter.dtypes import DType
from modelmeter.model import AnalyticModel, Leaf, Stage, UnknownStageError
from modelmeter.sweeps.errors import SweepOverflowError
from modelmeter.sweeps.polynomial import Monomial, Polynomial, is_whole, polynomial, weighted_sum
from modelmeter.sweeps.sizes import Numbers, Sizes, depends_on, power_sum, summed_over_steps

QUANTITIES: Mapping[str, tuple[str, ...]] = {
    "flops": ("matmul_flops", "vector_flops"),
    "tensor_core_flops": ("tensor_core_flops",),
    "cuda_core_flops": ("cuda_core_flops",),
    "bytes": ("bytes",),
    "fused_bytes": ("fused_bytes",),
    "weight_bytes_read": ("weight_bytes_read",),
}
"""What a sweep reports of costs, as sums of fields of `LeafCost`; the first three are integers."""

INTEGER_QUANTITIES = 3

EXACT_FLOAT = 2.0**53
"""Integers up to here are floats too, so matrices of floats add them exactly."""

LARGEST_INTEGER = 2.0**63


@frozen(kw_only=True)
class Executions:
    """How often a stage runs at each point, and the dim that grows by one with each execution."""

    sizes: Sizes  # of the first execution
    count: Numbers  # int64, at least 1
    sweep: str | None = None

    def sum(self, monomial: Monomial) -> Numbers:
        """Return the sum of a product over all executions at each point; exact for products of dims."""
        sweep = self.sweep
        if sweep is None:
            return self.sizes.product(monomial) * self.count
        if depends_on(monomial, sweep):
            return summed_over_steps(self.sizes, sweep, self.count, lambda each: each.product(monomial) * one(each))
        power = monomial.count(sweep)
        rest = self.sizes.product(tuple(name for name in monomial if name != sweep))
        return rest * power_sum(self.sizes.columns[sweep], self.count, power)

    def largest(self, monomial: Monomial) -> float:
        """Return a bound of the sum, and of every integer on the way to it."""
        most = float(self.count.max(initial=0))
        if self.sweep is None:
            return self.sizes.largest(monomial) * most
        last = self.sizes.moved(self.sweep, int(most))
        # Power sums of degree k pass through k + 1 times what they come to, at most.
        return last.largest(monomial) * most * math.factorial(monomial.count(self.sweep) + 1)

    def last(self) -> Sizes:
        """Return the sizes of the last execution."""
        return self.sizes if self.sweep is None else self.sizes.moved(self.sweep, self.count - 1)


def one(sizes: Sizes) -> Numbers:
    """Return 1 at each point: what makes an array of a product without factors."""
    return np.ones(sizes.points, dtype=np.int64)


@frozen(kw_only=True)
class Matrix:
    """Rows of polynomials over common monomials; row i is ``coefficients[i] @ monomials / denominator``."""

    labels: tuple[str, ...]  # what each row is, for messages
    monomials: tuple[Monomial, ...]
    coefficients: Numbers  # int64, [row, monomial]
    denominator: int

    @classmethod
    def of(cls, rows: Sequence[Polynomial], labels: Sequence[str]) -> Matrix:
        """Return the matrix of some polynomials.

        Raises
        ------
        SweepOverflowError
            When a coefficient is no 64-bit integer.
        """
        monomials = tuple(dict.fromkeys(key for terms in rows for key in terms))
        denominator = math.lcm(*(value.denominator for terms in rows for value in terms.values()))
        exact = [[int(terms.get(key, 0) * denominator) for key in monomials] for terms in rows]
        largest = max((abs(value) for row in exact for value in row), default=0)
        if largest >= LARGEST_INTEGER:
            raise SweepOverflowError(
                f"a coefficient of {largest:,} is over 2**63 - 1, the largest that a sweep holds; evaluate the points "
                "one by one with modelmeter.evaluate"
            )
        coefficients = np.array(exact, dtype=np.int64).reshape(len(rows), len(monomials))
        return cls(labels=tuple(labels), monomials=monomials, coefficients=coefficients, denominator=denominator)

    def values(self, sizes: Sizes) -> Numbers:
        """Return every row at each point, of one execution, as floats: [row, point]."""
        return self.sums(Executions(sizes=sizes, count=one(sizes)))

    def sums(self, executions: Executions) -> Numbers:
        """Return every row at each point, over all executions, as floats: [row, point]; exact integers to 2**53."""
        basis = np.empty((len(self.monomials), executions.sizes.points))
        for row, monomial in enumerate(self.monomials):
            basis[row] = executions.sum(monomial)
        found = self._floats @ basis
        return found if self.denominator == 1 else found / self.denominator

    def integer_sums(self, executions: Executions, rows: int) -> Numbers:
        """Return the first rows, whose values are integers, in 64-bit integers: [row, point]."""
        found = np.zeros((rows, executions.sizes.points), dtype=np.int64)
        for column, monomial in enumerate(self.monomials):
            coefficients = self.coefficients[:rows, column]
            if coefficients.any():
                found += coefficients[:, None] * executions.sum(monomial)
        return found // self.denominator

    def bound(self, executions: Executions, rows: int, where: str) -> float:
        """Return a bound of the sums of the first rows, having checked that 64-bit integers hold each.

        Raises
        ------
        SweepOverflowError
            When a sum may pass 2**63 - 1.
        """
        of_monomials = np.array([executions.largest(monomial) for monomial in self.monomials])
        bounds = np.abs(self._floats[:rows]) @ of_monomials
        worst = int(bounds.argmax())
        if bounds[worst] >= LARGEST_INTEGER:
            sizes = {name: int(column.max()) for name, column in executions.sizes.columns.items()}
            raise SweepOverflowError(
                f"{self.labels[worst]} of {where} may reach {bounds[worst]:.3g} at sizes up to {sizes} and "
                f"{int(executions.count.max()):,} executions, over 2**63 - 1, the largest integer of a sweep; make the "
                "grid's axes smaller, or evaluate those points one by one with modelmeter.evaluate"
            )
        return float(bounds[worst])

    @cached_property
    def _floats(self) -> Numbers:
        return self.coefficients.astype(np.float64)


@frozen(kw_only=True)
class Kernels:
    """Leaves of equal work, which have equal roofline times."""

    dtype: DType | None
    first: str  # id of the first such leaf, for messages
    calls: int  # executions in one run of the stage, all such leaves together
    work: tuple[Polynomial, Polynomial, Polynomial]  # tensor-core FLOPs, CUDA-core FLOPs, bytes, of one execution


@frozen(kw_only=True)
class StageProgram:
    """A stage, compiled: its total, its cells of module and category, its memory and its kernels."""

    name: str
    dims: tuple[str, ...]
    cells: tuple[tuple[str, Category], ...]
    calls: tuple[int, ...]  # operator calls of each cell, in one execution
    total: Matrix  # a row per quantity
    table: Matrix  # a row per quantity and cell, all cells of a quantity together
    memory: Matrix  # the KV cache left behind, then the bytes at each point that can decide the peak
    kernels: tuple[Kernels, ...]

    @classmethod
    def of(cls, model: AnalyticModel, stage: Stage) -> StageProgram:
        """Compile one stage of a model.

        Raises
        ------
        SweepFormulaError
            When a cost is no sum of products.
        """
        cells: dict[tuple[str, Category], list[Leaf]] = {}
        leaves = model.leaves_by_stage[stage.name]
        for leaf in leaves:
            cells.setdefault((leaf.module, leaf.category), []).append(leaf)
        sums = {quantity: [_summed(held, quantity) for held in cells.values()] for quantity in QUANTITIES}
        peaks = [weighted_sum((polynomial(text), 1) for text in peak.texts) for peak in stage.peaks]
        return cls(
            name=stage.name,
            dims=stage.dims,
            cells=tuple(cells),
            calls=tuple(sum(leaf.calls for leaf in held) for held in cells.values()),
            total=Matrix.of([weighted_sum((row, 1) for row in rows) for rows in sums.values()], tuple(QUANTITIES)),
            table=Matrix.of(
                [row for rows in sums.values() for row in rows],
                [f"{quantity} of {module or 'the model'}" for quantity in sums for module, _ in cells],
            ),
            memory=Matrix.of(
                [polynomial(stage.kv_cache_text), *peaks],
                ["kv_cache_bytes", *(peak.at for peak in stage.peaks)],
            ),
            kernels=_kernels(leaves),
        )

    @cached_property
    def counts_are_whole(self) -> bool:
        """Whether FLOPs are integers: no router decides how many."""
        counts = self.table.coefficients[: INTEGER_QUANTITIES * len(self.cells)]
        used = [self.table.monomials[column] for column in np.flatnonzero(counts.any(axis=0))]
        return all(is_whole(factor) for monomial in used for factor in monomial)


@frozen(kw_only=True)
class Program:
    """A compiled model: plain data, which pickles and needs no model file.

    Examples
    --------
    >>> import modelmeter
    >>> program = Program.of(modelmeter.load("deepseek-ocr", "gundam"))
    >>> [len(stage.cells) for stage in program.stages]
    [52, 54, 45, 45]
    """

    model: str
    variant: Mapping[str, str]
    dims: Mapping[str, str]  # legend of the dims
    limits: Mapping[str, int]  # largest size of a dim, where the model has one
    held_bytes: int  # parameters and buffers
    load_bytes: int  # bytes alive while the weights are loaded
    stages: tuple[StageProgram, ...]

    @classmethod
    def of(cls, model: AnalyticModel) -> Program:
        """Compile a model.

        Raises
        ------
        SweepFormulaError
            When a cost is no sum of products.
        SweepOverflowError
            When a coefficient is no 64-bit integer.
        """
        return cls(
            model=model.name,
            variant=model.variant,
            dims=model.dims,
            limits=model.limits,
            held_bytes=model.held_bytes,
            load_bytes=model.load_bytes,
            stages=tuple(StageProgram.of(model, stage) for stage in model.stages),
        )

    def stage(self, name: str) -> StageProgram:
        """Return a stage by name.

        Raises
        ------
        UnknownStageError
            When the model has none of that name.
        """
        found = next((stage for stage in self.stages if stage.name == name), None)
        if found is None:
            raise UnknownStageError("stage", name, [stage.name for stage in self.stages])
        return found


def _summed(leaves: Sequence[Leaf], quantity: str) -> Polynomial:
    return weighted_sum(
        (polynomial(getattr(leaf.cost, name).text), leaf.calls) for leaf in leaves for name in QUANTITIES[quantity]
    )


def _kernels(leaves: Sequence[Leaf]) -> tuple[Kernels, ...]:
    equal: dict[tuple[DType | None, tuple[str, str, str]], list[Leaf]] = {}
    for leaf in leaves:
        cost = leaf.cost
        work = (cost.tensor_core_flops.text, cost.cuda_core_flops.text, cost.bytes.text)
        equal.setdefault((leaf.dtype, work), []).append(leaf)
    return tuple(
        Kernels(
            dtype=dtype,
            first=held[0].id,
            calls=sum(leaf.calls for leaf in held),
            work=(polynomial(tensor), polynomial(cuda), polynomial(moved)),
        )
        for (dtype, (tensor, cuda, moved)), held in equal.items()
    )
