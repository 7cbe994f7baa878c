"""Continuous batching at steady state: requests in flight at all ages, prefill and decode sharing one device.

The model, for B slots that are never empty. While each slot serves one request on average, a cycle, the device

- runs vision and prefill once per slot, alone: B * P seconds, P the mean at batch 1;
- runs as many decode steps as a request has after its first token, n in the mean, each with all B requests: n * D
  seconds, D the mean step at batch B over all lengths that a request passes through.

So a cycle takes B*P + n*D seconds and serves B requests. At B = 1 that is one request after the other. Iterations are
scheduled, not requests, as in Orca (Yu et al., OSDI 2022); a prefill runs by itself before the next step.
"""

from __future__ import annotations

from attrs import evolve

from modelmeter.capacity.clocks import clock_of, statement
from modelmeter.capacity.service import Service
from modelmeter.capacity.throughput import Performance, decisive_stage, longest, stage_times
from modelmeter.costs import Number, Time
from modelmeter.devices import DeviceSpec
from modelmeter.predict.time_model import TimeModel
from modelmeter.reports.memory import run_memory
from modelmeter.reports.report import RunMemory, StageMemory
from modelmeter.reports.serving import DECODE, serving_of_items


def serve_continuously(
    service: Service, slots: int, *, time: DeviceSpec | TimeModel, efficiency: float | None = None
) -> Performance:
    """Return what a device yields with so many requests in flight, a new one starting where another ends.

    With P the mean time of vision and prefill of one request, n its mean number of decode steps and D the mean step at
    B slots: a page takes ``P + n*D/B`` of the device, the next request in line waits as long at most for a slot, and a
    token takes ``(n*D + (B - 1)*P) / n``, as B - 1 prefills of others come between.

    Parameters
    ----------
    service : Service
        Asked for its workload at a batch of 1 and of `slots`.
    slots : int
        Requests in flight.
    time, efficiency
        As in `serve`.

    Raises
    ------
    CapacityError
        When there is no slot, pages have no tokens, or the efficiency is no fraction or given with a time model.
    ModelMeterError
        When the time model has no time for a run.
    """
    service.require_tokens("continuous batching")
    clock = clock_of(time, efficiency=efficiency)
    together = service.timed(slots, clock)
    alone = service.timed(1, clock)
    *pages, one = serving_of_items(alone)
    step = serving_of_items(together)[-1].tpot
    steps = one.output_tokens / one.documents - 1
    decoding = Time() if step is None else step * steps
    page = one.ttft + decoding * (1 / slots)
    stages = {stage: each * slots for stage, each in stage_times(alone).items() if stage != DECODE}
    if step is not None:
        stages[DECODE] = stage_times(together)[DECODE]
    return Performance(
        prediction=clock.facts,
        batch=slots,
        continuous=True,
        memory=continuous_memory(service, slots),
        page=page,
        ttft=page + longest(each.ttft for each in pages),
        tpot=None if step is None else (decoding + one.ttft * (slots - 1)) * (1 / steps),
        decided_by=decisive_stage(stages),
        assumptions=(
            statement(clock),
            "continuous batching: as many slots as the batch, never empty and evenly spread in age; vision and prefill "
            "run alone, one request at a time, and hold up the decode of all; a step takes the mean over all lengths",
            "requests: the kinds of pages come in equal shares",
            "TTFT: at most one wait for a slot by the next in line, then vision and prefill of the kind of page that "
            "takes longest; a queue before it is left out",
            "TPOT: the mean, prefills of others between tokens included",
            "memory: every slot at the longest length of all pages, which no steady state exceeds",
        ),
    )


def continuous_memory(service: Service, slots: int) -> RunMemory:
    """Return the memory with so many requests in flight: their keys and values, and the largest need beside them.

    Decode runs all slots at the longest length. Vision and prefill run for one request, while the others hold their
    keys and values of that length.

    Raises
    ------
    CapacityError
        When there is no slot, or pages have no tokens.
    """
    service.require_tokens("continuous batching")
    together = service.memory(slots)
    alone = service.memory(1)
    held = max(stage.kv_cache_bytes for stage in alone.stages) * (slots - 1)
    decode = [stage for stage in together.stages if stage.stage == DECODE]
    others = [_beside(stage, held) for stage in alone.stages if stage.stage != DECODE]
    return run_memory(service.model, (*others, *decode))


def _beside(stage: StageMemory, held: Number) -> StageMemory:
    """Return the memory of a stage while others' keys and values lie beside its own."""
    return evolve(
        stage,
        kv_cache_bytes=stage.kv_cache_bytes + held,
        peak_bytes=stage.peak_bytes + held,
        peak_kv_cache_bytes=stage.peak_kv_cache_bytes + held,
    )
