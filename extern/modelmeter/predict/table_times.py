"""TableTimes: the time of one fused kernel on one device, from the measured op tables.

What is compared between calls is the slowdown: seconds over the limit. The limit is the time that FLOPs and bytes take
at the device's peak rates, and a floor beside, since no call of a table is free. With it, products outside of what was
measured come out within 4 % when left out of the tables, without it within 8 % (median, H200).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from attrs import evolve, field, frozen

from modelmeter.devices import DeviceSpec
from modelmeter.predict.device_records import DeviceRecord
from modelmeter.predict.kernel_calls import Attention, Call, Experts, Gemm, KernelWork, Product, Streaming, Untabled
from modelmeter.predict.kernel_time import KernelTime, Method
from modelmeter.predict.lattice import Lattice, Sizes, Surrounding
from modelmeter.predict.op_tables import ExpertSite, OpTables
from modelmeter.predict.spread import Spread

LOG_SPREADS: Mapping[Method, float] = MappingProxyType(
    {
        # Two collections of one device's products: 0.05 (A100) to 0.10 (L40S).
        Method.EXACT: 0.08,
        # Every second size left out: products 0.07 (H200) to 0.17 (L40S), attention along its length 0.05 to 0.16. The
        # gaps are then twice as wide as they are.
        Method.BRACKET: 0.10,
        # Every second width left out: 0.06 (H200), 0.07, 0.13, 0.17 (L40S); shapes of experts 0.04 to 0.15.
        Method.BLEND: 0.13,
        # The widest products from the next smaller ones: 0.06 (H200), 0.08, 0.13 (L40S), 0.23 (A100).
        Method.HOLD: 0.15,
        # A roofline with a floor is off by 7 % (median) and 23 % (p90) on products; more on what it was not fitted to.
        Method.PHYSICAL: 0.3,
    }
)
"""Standard deviation of the logarithm of true over predicted time, which the 90th percentile of the error stands for.

The figures are those that benchmarks/accuracy/table_error.py prints, of vLLM's tables.
"""

BORROWED_SPREAD = 0.3
"""The same for a call that has the efficiency of another operator: a convolution that of a product, and the like."""

NEAREST_SITES = 3
"""Expert shapes that a blend weighs; with two or four, sites left out come out about as well."""

KERNELS_PER_EXPERT_BLOCK = 4
"""Kernels of a block of experts, each with a floor: sorting, two grouped products, the sum."""

STREAMING_CEILING = 0.9
"""Share of the bandwidth that streaming weights reaches at most (4.29 of 4.8 TB/s observed on an H200)."""


@frozen(kw_only=True)
class _Reference:
    """A table to compare a call with."""

    lattice: Lattice
    call_at: Callable[[Sizes], Call]  # at one of its points
    kinds: int  # the first axes, which tell calls apart that are not sizes of one another

    @property
    def floor(self) -> float:
        """Seconds of the table's fastest call."""
        return self.lattice.fastest


@frozen(kw_only=True)
class TableTimes:
    """Times of kernels in bf16 or fp16 on one device.

    The order of resolution: the very point; between two measured sizes of the call, linear in the logarithms; the
    slowdown of the nearest measured calls; outside, the slowdown at the edge. No answer is below what matrix units need
    at their peak, or weights from memory at `STREAMING_CEILING`: where a table says less, the loop that measured it
    found the weights in cache.

    Attributes
    ----------
    device : DeviceSpec
    tables : OpTables
    record : DeviceRecord

    Examples
    --------
    >>> from modelmeter.devices import load_device
    >>> square = Lattice(axes=("n", "k", "m"), points={(1024, 1024, 64): 4e-6, (1024, 1024, 256): 5e-6})
    >>> record = DeviceRecord(
    ...     system="h200_sxm", matrix_flops={"bf16": 989e12}, memory_bandwidth=4.8e12, memory_bytes=141 << 30,
    ...     power=700, memory_efficiency=0.8, kernel_latency=3e-6,
    ... )
    >>> times = TableTimes(device=load_device("h200"), tables=OpTables(source={}, gemm=square), record=record)
    >>> found = times.time(Gemm(rows=128, out_features=1024, in_features=1024))
    >>> found.method.value, round(found.seconds * 1e6, 1)
    ('bracket', 4.4)
    """

    device: DeviceSpec
    tables: OpTables
    record: DeviceRecord
    _found: dict[Call, KernelTime | None] = field(factory=dict, init=False, eq=False, repr=False)

    def time(self, call: Call) -> KernelTime | None:
        """Return the time of a call, or None where no table is of its kind.

        Raises
        ------
        MissingTablesError
            When the framework has no table of products on the device.
        """
        if call not in self._found:
            self._found[call] = self._look_up(call)
        return self._found[call]

    def physical(self, call: Call) -> KernelTime:
        """Return the time of a call at the rates of the device's record, which NVIDIA fitted to memory-bound kernels.

        They fit products too: a roofline with a floor came to 0.82 of the matrix peak, 0.77 of the bandwidth and 3.8 us
        on an H200.
        """
        share = self.record.memory_efficiency
        return KernelTime(
            seconds=self.record.kernel_latency + max(self.parts(call).values()) / share,
            method=Method.PHYSICAL,
            family=call.family,
            group=f"{call.family} by rates",
            spread=Spread(stated=LOG_SPREADS[Method.PHYSICAL]),
        )

    def parts(self, call: Call) -> Mapping[str, float]:
        """Return the seconds at peak rates by what bounds them: "matrix_units", "vector_units" and "memory"."""
        matrix, vector = call.work.flops, 0.0
        if isinstance(call, Streaming):
            vector = call.vector_flops
        elif isinstance(call, Untabled) and not call.on_matrix_units:
            matrix, vector = 0.0, call.work.flops
        return {
            "matrix_units": matrix / self._peak,
            "vector_units": vector / self.device.vector_fp32_flops,
            "memory": call.work.bytes / self.device.memory_bandwidth,
        }

    def _limit(self, work: KernelWork, floor: float) -> float:
        """Return the seconds that work takes at peak rates, and a floor beside."""
        return floor + max(work.flops / self._peak, work.bytes / self.device.memory_bandwidth)

    @property
    def _peak(self) -> float:
        return self.device.peak_flops("bf16")

    def _look_up(self, call: Call) -> KernelTime | None:
        match call:
            case Gemm():
                return self._answer(call, self._products, call.sizes)
            case Product():
                return self._borrowed(call, self._products, call.like.sizes)
            case Attention():
                return self._attention(call)
            case Experts():
                return self._experts(call)
            case _:
                return None

    # --- families

    @property
    def _products(self) -> _Reference:
        return _Reference(lattice=self.tables.gemm, call_at=Gemm.at, kinds=2)

    def _attention(self, call: Attention) -> KernelTime | None:
        """Return the time of an attention; a mask is in no table, so its bytes come on top."""
        grouped = (call.head_dim, call.heads / call.kv_heads, call.kv_heads, call.batch, call.key_length)
        causal, encoder = self.tables.context_attention, self.tables.encoder_attention
        if call.query_length == 1 and not call.mask_bytes:
            lattice = self.tables.generation_attention
            return lattice and self._answer(
                call, _Reference(lattice=lattice, call_at=Attention.step_at, kinds=3), grouped
            )
        if call.query_length != call.key_length:
            return None
        if call.causal or encoder is None:  # older systems have no encoder table: as efficient as a causal kernel
            reference = causal and _Reference(lattice=causal, call_at=Attention.prompt_at, kinds=3)
            answer = self._answer if call.causal and not call.mask_bytes else self._borrowed
            return reference and answer(call, reference, grouped)
        reference = _Reference(lattice=encoder, call_at=Attention.encoder_at, kinds=2)
        answer = self._borrowed if call.mask_bytes else self._answer
        return answer(call, reference, (call.head_dim, call.heads, call.batch, call.key_length))

    def _experts(self, call: Experts) -> KernelTime | None:
        """Return the time of a mixture of experts: sites are compared at equal rows per expert."""
        if not self.tables.experts:
            return None
        nearest = _nearest_sites(self.tables.experts, call)
        arounds = [
            site.times.around((call.rows_per_expert * site.experts / site.experts_per_token,)) for _, site in nearest
        ]
        floor = KERNELS_PER_EXPERT_BLOCK * self.tables.gemm.fastest
        slowdown = sum(
            share * self._slowdown(around, site.block_at, floor)
            for (share, site), around in zip(nearest, arounds, strict=True)
        )
        methods = {_method(around, kinds=0) for around in arounds}
        method = methods.pop() if len(nearest) == 1 else Method.HOLD if Method.HOLD in methods else Method.BLEND
        points = [(site.hidden_size, site.intermediate_size, site.experts) for _, site in nearest]
        return self._timed(call, self._limit(call.work, floor) * math.exp(slowdown), method, points)

    # --- resolution

    def _answer(self, call: Call, reference: _Reference, sizes: Sizes) -> KernelTime:
        around = reference.lattice.around(sizes)
        method = _method(around, reference.kinds)
        slowdown = self._slowdown(around, reference.call_at, reference.floor)
        points = [neighbour.sizes for neighbour in around.neighbours]
        return self._timed(call, self._limit(call.work, reference.floor) * math.exp(slowdown), method, points)

    def _borrowed(self, call: Call, reference: _Reference, sizes: Sizes) -> KernelTime:
        """Return the time of a call that has the efficiency of another operator: at best a blend, all err together."""
        found = self._answer(call, reference, sizes)
        return evolve(
            found,
            method=Method.HOLD if found.method is Method.HOLD else Method.BLEND,
            group=call.family,
            spread=Spread(stated=BORROWED_SPREAD),
        )

    def _slowdown(self, around: Surrounding, call_at: Callable[[Sizes], Call], floor: float) -> float:
        """Return the mean logarithm of seconds over the limit."""
        return sum(
            neighbour.weight * math.log(neighbour.seconds / self._limit(call_at(neighbour.sizes).work, floor))
            for neighbour in around.neighbours
        )

    def _timed(self, call: Call, seconds: float, method: Method, points: Sequence[Sizes]) -> KernelTime:
        """Return a time that rests on some points, as one that is no faster than possible."""
        found = KernelTime(
            seconds=seconds,
            method=method,
            family=call.family,
            group=" ".join((call.family, *("x".join(f"{size:g}" for size in sizes) for sizes in points))),
            spread=Spread(stated=LOG_SPREADS[method]),
        )
        cold = call.work.cold_bytes / self.device.memory_bandwidth / STREAMING_CEILING
        least = max(call.work.flops / self._peak, cold)
        return found if found.seconds >= least else evolve(found, seconds=least, method=Method.HOLD)


def _method(around: Surrounding, kinds: int) -> Method:
    if around.beyond:
        return Method.HOLD
    if any(axis < kinds for axis in around.between):
        return Method.BLEND
    return Method.BRACKET if around.between else Method.EXACT


def _nearest_sites(sites: Sequence[ExpertSite], call: Experts) -> list[tuple[float, ExpertSite]]:
    """Return the sites that are nearest in the logarithms of their sizes, with shares; the very one alone."""

    def distance(site: ExpertSite) -> float:
        pairs = (
            (site.hidden_size, call.hidden_size),
            (site.intermediate_size, call.intermediate_size),
            (site.experts_per_token, call.experts_per_token),
            (site.experts, call.experts),
        )
        return sum(math.log(theirs / ours) ** 2 for theirs, ours in pairs)

    ordered = sorted(sites, key=distance)[:NEAREST_SITES]
    if distance(ordered[0]) == 0:
        return [(1.0, ordered[0])]
    closeness = [1 / distance(site) for site in ordered]
    return [(near / sum(closeness), site) for near, site in zip(closeness, ordered, strict=True)]
