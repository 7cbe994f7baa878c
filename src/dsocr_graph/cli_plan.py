"""The subcommand `plan`: which devices and batches meet targets on pages, or whether a batch fits; needs no torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dsocr_graph.cli_options import AddArgument, add_capture, add_pages, add_trust, given, page_options
from dsocr_graph.errors import OptionError
from dsocr_graph.whatif_options import add_whatif_arguments, whatif_from
from modelmeter.defaults import BATCHES, USABLE

if TYPE_CHECKING:
    from dsocr_graph.models.named_model import NamedModel
    from dsocr_graph.workloads import Profile
    from modelmeter.capacity import Prices, Service
    from modelmeter.devices import DeviceSpec
    from modelmeter.predict import TimeModel
    from modelmeter.whatif import WhatIf

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

_CURRENCY = "USD"


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand to those of a command line.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_parser(parser.add_subparsers())
    >>> parser.parse_args(["plan", "--pages-per-day", "1e6", "--ttft", "2"]).pages_per_day
    1000000.0
    """
    parser = commands.add_parser(
        "plan",
        help="find devices and batches that meet targets, or say whether a batch fits",
        description="Try devices at batches and rank what meets the targets; or, with --fits, say what memory a batch "
        "needs and the largest that has room.",
    )
    parser.add_argument(
        "--model", default="deepseek-ocr", help="by name, or path of a config.json (default: %(default)s)"
    )
    add_trust(parser.add_argument)
    targets = parser.add_argument_group("targets")
    targets.add_argument("--pages-per-day", type=float, metavar="N", help="pages in 24 hours, of all devices together")
    targets.add_argument("--ttft", type=float, metavar="SECONDS", help="longest time to first token")
    targets.add_argument("--tpot", type=float, metavar="SECONDS", help="longest time per output token after the first")
    targets.add_argument("--max-devices", type=int, metavar="N", help="most devices of one kind")
    targets.add_argument("--fits", action="store_true", help="ask about memory alone: no targets, no times")
    _add_search(parser.add_argument_group("search").add_argument)
    pages = parser.add_argument_group("pages, in equal shares (default: the profile dsocr-standard-v1)")
    add_pages(pages.add_argument)
    add_capture(parser.add_argument_group("variant").add_argument, dtype=None)
    add_whatif_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every candidate to this file too")
    parser.set_defaults(run=_run)


def _add_search(add: AddArgument) -> None:
    add("--device", metavar="NAME[,NAME...]", help="only these (default: all that have times)")
    add("--batch", metavar="N[,N...]", help=f"requests in flight (default: {_few(BATCHES)})")
    add("--continuous", action="store_true", help="start a request where another ends, instead of whole batches")
    add("--usable", type=float, default=USABLE, metavar="FRACTION", help="of device memory (default: %(default)s)")
    add("--price", metavar="NAME=AMOUNT[,...]", help="of a device hour: rank by cost")
    add("--currency", help=f"of the prices (default: {_CURRENCY})")
    add("--efficiency", type=float, metavar="FRACTION", help="of every peak that a device reaches (default: a bound)")
    add("--runtime", help="engine: times from measured tables, instead of a datasheet's roofline")
    add("--physical", action="store_true", help="allow peak rates for what no table has")
    add("--calibration", metavar="FILE", help="times for the machine of this file alone")


def _few(batches: Sequence[int]) -> str:
    first, second, third, *_, last = batches
    return f"{first}, {second}, {third}, ... {last}"


def _run(options: argparse.Namespace) -> int:
    from dsocr_graph.emit.progress import progress_lines
    from dsocr_graph.emit.what_ifs import change_lines
    from dsocr_graph.subjects import named_or_configured
    from dsocr_graph.workloads import choose_profile

    profile = choose_profile(**page_options(options), dtype=options.dtype)
    named = named_or_configured(options.model, trust_remote_code=options.trust_remote_code, progress=progress_lines())
    what_if = _what_if(named, profile, options)
    service = _service(named, profile, what_if)
    if options.fits:
        lines, document = _answer_fits(service, options)
    else:
        lines, document = _answer_plan(service, options, profile.dtype)
    changed = [*(f"{name}: {text}" for name, text in profile.lengths.items()), *change_lines(what_if.changes)]
    if changed:
        lines += ["what-ifs", *(f"  {line}" for line in changed)]
    print("\n".join(lines))
    if options.json is not None:
        from dsocr_graph.emit.files import write_artefacts

        text = json.dumps({**document, "what_ifs": changed}, indent=1) + "\n"
        write_artefacts(options.json.parent, {options.json.name: text})
        print(options.json)
    return 0


# --- what is asked


def _what_if(named: NamedModel, profile: Profile, options: argparse.Namespace) -> WhatIf:
    from dsocr_graph.compiling import shipped_or_compiled
    from dsocr_graph.emit.progress import progress_lines
    from dsocr_graph.unused_options import VIEWS, refuse_views
    from modelmeter.whatif import apply

    variant = named.variant(profile, options.attention or named.attention)
    refuse_views(named.name, variant.facts(), given(options, VIEWS))
    return apply(shipped_or_compiled(named, variant, progress=progress_lines()), whatif_from(options))


def _service(named: NamedModel, profile: Profile, what_if: WhatIf) -> Service:
    from dsocr_graph.workloads import override
    from modelmeter.capacity import Service

    return Service(
        model=what_if.model,
        workload_of=lambda batch: named.workload(override(profile, batch=batch)),
        routing=what_if.routing,
        peaks_are_lower_bounds=what_if.peaks_are_lower_bounds,
    )


def _devices(options: argparse.Namespace) -> tuple[DeviceSpec, ...]:
    import modelmeter
    from modelmeter.predict.op_tables import available_table_devices

    if options.device is not None:
        names: Sequence[str] = options.device.split(",")
    elif options.runtime == "engine":
        names = tuple(available_table_devices())
    else:
        names = modelmeter.available_devices()
    devices = {device.key: device for device in map(modelmeter.load_device, names)}
    return tuple(devices.values())


def _clocks(options: argparse.Namespace, model: str, dtype: str) -> list[TimeModel]:
    from dsocr_graph.pipeline import require_measured_calls
    from dsocr_graph.time_models import choose_time_model, require_calibrated
    from modelmeter.capacity import clock_of

    chosen = {"calibration": options.calibration, "runtime": options.runtime, "physical": options.physical}
    given = ", ".join(f"--{name}" for name, value in chosen.items() if value)
    if options.efficiency is not None and given:
        raise OptionError(
            f"--efficiency scales a datasheet's roofline, {given} chooses other times; leave one of them out"
        )
    if options.efficiency is not None:
        return [clock_of(device, efficiency=options.efficiency) for device in _devices(options)]
    # A calibration is of one machine and refuses a device beside it.
    names = [options.device] if options.calibration is not None else [device.key for device in _devices(options)]
    moe = "grouped" if options.calibration is None else options.moe  # else it is a what-if
    clocks = [choose_time_model(device=name, moe=moe, **chosen) for name in names]
    for clock in clocks:
        require_calibrated(clock, model, physical=options.physical)
        require_measured_calls(clock, whatif_from(options), dtype)
    return [clock for clock in clocks if clock is not None]


def _batches(options: argparse.Namespace) -> tuple[int, ...]:
    if options.batch is None:
        return BATCHES
    try:
        return tuple(int(text) for text in options.batch.split(","))
    except ValueError:
        raise OptionError(f"batch is {options.batch!r}; write whole numbers, such as --batch 1,8,64") from None


def _prices(options: argparse.Namespace) -> Prices | None:
    import modelmeter
    from modelmeter.capacity import Prices

    if options.price is None:
        if options.currency is not None:
            raise OptionError("--currency is of prices, and there are none; give --price NAME=AMOUNT, or leave it out")
        return None
    per_hour: dict[str, float] = {}
    for entry in options.price.split(","):
        name, _, amount = entry.partition("=")
        device = modelmeter.load_device(name).key
        if device in per_hour:
            raise OptionError(f"--price names {device} twice, last as {entry!r}; give one price for each device")
        try:
            per_hour[device] = float(amount)
        except ValueError:
            raise OptionError(
                f"price {entry!r} has no amount; write a device and what its hour costs, such as --price h200=3.5"
            ) from None
    return Prices(currency=options.currency or _CURRENCY, per_hour=per_hour)


# --- what is answered

_NOT_OF_MEMORY = (
    *("pages_per_day", "ttft", "tpot", "max_devices", "price", "currency"),
    *("efficiency", "runtime", "physical", "calibration"),
)


def _answer_fits(service: Service, options: argparse.Namespace) -> tuple[list[str], dict[str, object]]:
    from dsocr_graph.emit.capacity_text import fit_lines, fit_row, largest_line
    from modelmeter.capacity import continuous_memory, fit, largest_batch

    given = ", ".join("--" + name.replace("_", "-") for name in _NOT_OF_MEMORY if getattr(options, name))
    if given:
        raise OptionError(f"--fits asks about memory alone, {given} about more; leave one of them out")
    memory_of = partial(continuous_memory, service) if options.continuous else service.memory
    how = {"usable": options.usable, "lower_bound": service.peaks_are_lower_bounds}
    lines: list[str] = []
    rows: list[object] = []
    for device in _devices(options):
        for batch in () if options.batch is None else _batches(options):
            found = fit(memory_of(batch), device=device, **how)
            lines += fit_lines(found, batch)
            rows.append({"batch": batch, **fit_row(found)})
        largest = largest_batch(memory_of, device=device, **how)
        lines += fit_lines(largest.fit, largest.batch) if options.batch is None else []
        lines.append(largest_line(largest))
        rows.append({"largest_batch": largest.batch, "limit": largest.limit, **fit_row(largest.fit)})
    return lines, {"fits": rows}


def _answer_plan(service: Service, options: argparse.Namespace, dtype: str) -> tuple[list[str], dict[str, object]]:
    from dsocr_graph.emit.capacity_text import plan_document, plan_lines
    from modelmeter.capacity import Targets, find_plan

    if options.pages_per_day is None:
        raise OptionError(
            "how many devices it takes depends on the pages: give --pages-per-day N, or ask about memory with --fits"
        )
    targets = Targets(
        pages_per_day=options.pages_per_day, ttft=options.ttft, tpot=options.tpot, max_devices=options.max_devices
    )
    found = find_plan(
        service,
        targets,
        clocks=_clocks(options, service.model.name, dtype),
        batches=_batches(options),
        continuous=options.continuous,
        usable=options.usable,
        prices=_prices(options),
    )
    return plan_lines(found), plan_document(found)
