"""CallSteps: what one call of a stage costs host and device, from a calibration, with its sampled errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from attrs import frozen

from modelmeter.costs import Draws
from modelmeter.expert_counts import Routing, uniform_routing
from modelmeter.model import FreeOps, Leaf
from modelmeter.predict.calibration import Calibration
from modelmeter.predict.draws import COUNT
from modelmeter.predict.expert_draws import active_expert_draws
from modelmeter.predict.expert_loop import (
    GROUPED,
    Routed,
    calls_in_loop,
    loop_work,
    routing_sizes,
    spread_evenly,
    waits_for_host,
)
from modelmeter.predict.host import host_class
from modelmeter.predict.kernel_table import KernelTable
from modelmeter.predict.kernel_time import KernelTime, Work
from modelmeter.predict.schedule import signature_at
from modelmeter.predict.spread import Spread
from modelmeter.predict.timeline import Step

HOST_SPREAD = 0.06
"""Stated, of the host's time as a whole: its clock, and what else it does. A calibration keeps one figure of each host
cost, so nothing can be seen of it there."""

MACHINE_SPREAD = 0.05
"""Stated, of a machine as a whole from one process to the next: where its memory lies, who shares it. A calibration is
one process, so it shows only how far the machine changes within it."""


@frozen(kw_only=True)
class CallSteps:
    """Costs of single calls on the calibrated machine.

    In an array of seconds column 0 is the centre and the others are the sampled runs.

    Attributes
    ----------
    calibration : Calibration
    loop : bool
        Multiply expert by expert, as the published code does; else all experts in one call.
    physical : bool
        As in `modelmeter.predict.kernel_table.KernelTable`.
    """

    calibration: Calibration
    loop: bool = False
    physical: bool = False

    def loops(self, leaves: Sequence[Leaf], bindings: Mapping[str, int], routing: Routing) -> Mapping[str, Routed]:
        """Return how rows are spread over experts, by the module that loops over them; none where nothing does."""
        found: dict[str, Routed] = {}
        for leaf in leaves if self.loop else ():
            if leaf.op == GROUPED:
                experts, per_token, tokens = routing_sizes(signature_at(leaf, bindings))
                active = _expert_counts(leaf, bindings, routing)[0]
                found[leaf.module] = spread_evenly(tokens, per_token, experts, active)
        return found

    def kernels(
        self, leaves: Sequence[Leaf], bindings: Mapping[str, int], routing: Routing
    ) -> Iterator[tuple[Leaf, KernelTime]]:
        """Yield what each leaf runs, at the expected number of experts, with its time.

        Raises
        ------
        MissingKernelTimeError
            When a call has no measured relative.
        UnscheduledModelError
            When a leaf does not say which operands it takes.
        """
        loops = self.loops(leaves, bindings, routing)
        for leaf in leaves:
            routed = loops.get(leaf.module)
            found = (
                self._at_counts(leaf, bindings, routing)[:1] if routed is None else self._looped(leaf, bindings, routed)
            )
            yield from ((leaf, time) for time in found)

    def step(
        self,
        record: Leaf | FreeOps,
        bindings: Mapping[str, int],
        routing: Routing,
        routed: Routed | None,
        between: float,
    ) -> Step:
        """Return what one call costs.

        Parameters
        ----------
        record : Leaf or FreeOps
            The call.
        bindings, routing
            Sizes of the run, and which experts are picked.
        routed : Routed or None
            How its module loops over experts, if it does (`loops`): the loop's calls stand in one step.
        between : float
            Seconds that the host spends between two calls, such as entering a module.

        Raises
        ------
        MissingKernelTimeError, UnscheduledModelError
            As `kernels`.
        """
        classes = self.calibration.host.classes
        if isinstance(record, FreeOps):
            host = classes.get("view", 0.0) + classes.get("turn", 0.0) + between
            return Step(host=host * self._host_factors, device=np.zeros(1 + COUNT), launches=0)
        call = signature_at(record, bindings)
        if routed is None:
            calls, device = (call,), self._device(record, bindings, routing)
        else:
            calls = calls_in_loop(call, routed)
            device = sum((_drawn(time) for time in self._looped(record, bindings, routed)), np.zeros(1 + COUNT))
        host, launches = between, 0
        if self.calibration.machine.kind == "cpu":  # the time of a call contains its host's, with its code in cache
            host += classes.get("turn", 0.0) * len(calls)
        else:
            host += sum(classes[host_class(each.op)] for each in calls)
            # A copy that the driver makes is no kernel, but it is queued and runs like one.
            launches = sum(max(1, self._table.launches(each)) for each in calls)
        return Step(
            host=host * self._host_factors,
            device=device * self._machine_factors,
            launches=launches,
            syncs=routed is not None and waits_for_host(call),
        )

    def bound(self, record: Leaf | FreeOps, bindings: Mapping[str, int], seconds: float) -> str:
        """Return what bounds a call: "host", "matrix_units", "vector_units" or "memory".

        On a CPU the time of a call contains its host's: where a view in turn with other calls takes more than half as
        long, the host bounds it.

        Parameters
        ----------
        record : Leaf or FreeOps
            The call.
        bindings
            Sizes of the run.
        seconds : float
            What the device takes for it.
        """
        if isinstance(record, FreeOps):
            return "host"
        classes = self.calibration.host.classes
        dispatch = classes.get("view", 0.0) + classes.get("turn", 0.0)
        if self.calibration.machine.kind == "cpu" and seconds < 2 * dispatch:
            return "host"
        peaks, cost = self.calibration.peaks, record.cost
        dtype = record.dtype.value if record.dtype is not None else ""
        matrix = cost.matmul_flops.at(bindings) / peaks.matrix_flops.get(dtype, max(peaks.matrix_flops.values()))
        vector = cost.vector_flops.at(bindings) / peaks.vector_flops
        memory = cost.bytes.at(bindings) / peaks.bandwidth
        return max({"matrix_units": matrix, "vector_units": vector, "memory": memory}.items(), key=lambda it: it[1])[0]

    # --- device times

    def _device(self, leaf: Leaf, bindings: Mapping[str, int], routing: Routing) -> Draws:
        found = self._at_counts(leaf, bindings, routing)
        if len(found) == 1:
            return _drawn(found[0])
        return np.array([time.seconds for time in found]) * _with_centre(found[0].factors)

    def _at_counts(self, leaf: Leaf, bindings: Mapping[str, int], routing: Routing) -> Sequence[KernelTime]:
        """Return the time of a call, or one per column where it depends on the experts that are picked."""
        if leaf.op != GROUPED:
            return (self._kernel(leaf, bindings, uniform_routing, {}),)
        counts = _expert_counts(leaf, bindings, routing)
        by_count = {
            count: self._kernel(leaf, bindings, lambda *_, count=count: float(count), {"active_experts": count})
            for count in dict.fromkeys(counts)
        }
        return [by_count[count] for count in counts]

    def _kernel(
        self, leaf: Leaf, bindings: Mapping[str, int], routing: Routing, conditions: Mapping[str, int]
    ) -> KernelTime:
        work = Work(
            flops=leaf.cost.matmul_flops.at(bindings) + leaf.cost.vector_flops.at(bindings),
            bytes=leaf.cost.bytes.at(bindings, routing=routing),
        )
        return self._table.time(signature_at(leaf, bindings), work, conditions)

    def _looped(self, leaf: Leaf, bindings: Mapping[str, int], routed: Routed) -> Sequence[KernelTime]:
        """Return the times of the calls of the loop over experts that stand where the grouped form has one."""
        return [self._table.time(each, loop_work(each)) for each in calls_in_loop(signature_at(leaf, bindings), routed)]

    @cached_property
    def _table(self) -> KernelTable:
        return KernelTable(calibration=self.calibration, physical=self.physical)

    # --- errors that all calls share

    @cached_property
    def _host_factors(self) -> Draws:
        return _with_centre(Spread(stated=HOST_SPREAD).factors("the host"))

    @cached_property
    def _machine_factors(self) -> Draws:
        return _with_centre(machine_spread(self.calibration).factors("the machine"))


def machine_spread(calibration: Calibration) -> Spread:
    """Return how far a machine as a whole may be off: by its sentinels, each against its own median."""
    by_name: dict[str, list[float]] = {}
    for sentinel in calibration.sentinels:
        by_name.setdefault(sentinel.name, []).append(sentinel.seconds)
    residuals = [np.log(np.array(seconds) / np.median(seconds)) for seconds in by_name.values()]
    return Spread(stated=MACHINE_SPREAD, residuals=tuple(float(each) for some in residuals for each in some))


def _expert_counts(leaf: Leaf, bindings: Mapping[str, int], routing: Routing) -> Sequence[int]:
    """Return how many experts a grouped product touches: the expectation, then the sampled runs.

    Runs are sampled under uniform routing; another routing says itself how many there are.
    """
    experts, per_token, tokens = routing_sizes(signature_at(leaf, bindings))
    if routing is not uniform_routing:
        return (round(routing(experts, per_token, tokens)),) * (1 + COUNT)
    return active_expert_draws(experts, per_token, tokens, layers=leaf.calls)


def _drawn(time: KernelTime) -> Draws:
    return time.seconds * _with_centre(time.factors)


def _with_centre(factors: Draws) -> Draws:
    """Return factors of error with that of the centre, 1, in front."""
    return np.concatenate(([1.0], factors))
