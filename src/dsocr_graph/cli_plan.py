"""The subcommand `plan`: which devices and batches meet targets on pages, or whether a batch fits; needs no torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dsocr_graph.cli_options import AddArgument, add_model
from dsocr_graph.errors import OptionError

if TYPE_CHECKING:
    from dsocr_graph.workloads import Profile
    from modelmeter.capacity import Prices, Service
    from modelmeter.devices import DeviceSpec
    from modelmeter.predict import TimeModel

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]


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
    add_model(parser.add_argument)
    targets = parser.add_argument_group("targets")
    targets.add_argument("--pages-per-day", type=float, metavar="N", help="pages in 24 hours, of all devices together")
    targets.add_argument("--ttft", type=float, metavar="SECONDS", help="longest time to first token")
    targets.add_argument("--tpot", type=float, metavar="SECONDS", help="longest time per output token after the first")
    targets.add_argument("--max-devices", type=int, metavar="N", help="most devices of one kind")
    targets.add_argument("--fits", action="store_true", help="ask about memory alone: no targets, no times")
    _add_search(parser.add_argument_group("search").add_argument)
    pages = parser.add_argument_group("pages, in equal shares (default: the profile dsocr-standard-v1)")
    pages.add_argument("--workload", metavar="PROFILE", help="a shipped profile by name, or a TOML file")
    pages.add_argument("--image", action="append", default=[], metavar="FILE", help="PNG, JPEG or TIFF; repeatable")
    pages.add_argument("--pdf", action="append", default=[], metavar="FILE", help="PDF; repeatable")
    pages.add_argument("--mode", help="Tiny, Small, Base, Large or Gundam")
    pages.add_argument("--new-tokens", type=int, metavar="N", help="tokens generated per page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every candidate to this file too")
    parser.set_defaults(run=_run)


def _add_search(add: AddArgument) -> None:
    add("--device", metavar="NAME[,NAME...]", help="only these (default: all that have times)")
    add("--batch", metavar="N[,N...]", help="requests in flight (default: 1, 2, 4, ... 512)")
    add("--continuous", action="store_true", help="start a request where another ends, instead of whole batches")
    add("--usable", type=float, default=0.9, metavar="FRACTION", help="of device memory (default: %(default)s)")
    add("--price", metavar="NAME=AMOUNT[,...]", help="of a device hour: rank by cost")
    add("--currency", default="USD", help="of the prices (default: %(default)s)")
    add("--efficiency", type=float, metavar="FRACTION", help="of every peak that a device reaches (default: a bound)")
    add("--runtime", help="engine: times from measured tables, instead of a datasheet's roofline")
    add("--physical", action="store_true", help="allow peak rates for what no table has")
    add("--calibration", metavar="FILE", help="times for the machine of this file alone")


def _run(options: argparse.Namespace) -> int:
    service = _service(options)
    if options.fits:
        lines, document = _answer_fits(service, options)
    else:
        lines, document = _answer_plan(service, options)
    print("\n".join(lines))
    if options.json is not None:
        from dsocr_graph.emit.files import write_artefacts

        write_artefacts(options.json.parent, {options.json.name: json.dumps(document, indent=1) + "\n"})
        print(options.json)
    return 0


# --- what is asked


def _service(options: argparse.Namespace) -> Service:
    import modelmeter
    from dsocr_graph.workloads import bind_profile, override
    from modelmeter.capacity import Service

    profile = _profile(options)
    model = modelmeter.load(options.model, profile.mode.name.lower())
    if profile.dtype != model.variant["dtype"]:
        raise OptionError(
            f"profile {profile.name!r} is in {profile.dtype}, the shipped model in {model.variant['dtype']}; choose a "
            f"profile in {model.variant['dtype']}"
        )
    return Service(model=model, workload_of=lambda batch: bind_profile(override(profile, batch=batch)))


def _profile(options: argparse.Namespace) -> Profile:
    from dsocr_graph.workloads import STANDARD, load_profile, override, profile_from_pages, read_image, read_pdf

    changes = {"mode": options.mode, "new_tokens": options.new_tokens}
    files = [*options.image, *options.pdf]
    if not files:
        return override(load_profile(STANDARD if options.workload is None else options.workload), **changes)
    if options.workload is not None:
        raise OptionError("pages come from --workload or from --image and --pdf, not from both; leave one out")
    pages = [page for path in options.image for page in read_image(path)]
    pages += [page for path in options.pdf for page in read_pdf(path)]
    return profile_from_pages(pages, name=Path(files[0]).stem if len(files) == 1 else "pages", **changes)


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


def _clocks(options: argparse.Namespace) -> list[TimeModel]:
    from dsocr_graph.time_models import choose_time_model
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
    clocks = (choose_time_model(device=name, **chosen) for name in names)
    return [clock for clock in clocks if clock is not None]


def _batches(options: argparse.Namespace) -> tuple[int, ...]:
    from modelmeter.capacity import BATCHES

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
        return None
    per_hour: dict[str, float] = {}
    for entry in options.price.split(","):
        name, _, amount = entry.partition("=")
        try:
            per_hour[modelmeter.load_device(name).key] = float(amount)
        except ValueError:
            raise OptionError(
                f"price {entry!r} has no amount; write a device and what its hour costs, such as --price h200=3.5"
            ) from None
    return Prices(currency=options.currency, per_hour=per_hour)


# --- what is answered


def _answer_fits(service: Service, options: argparse.Namespace) -> tuple[list[str], object]:
    from dsocr_graph.emit.capacity_text import fit_lines, fit_row, largest_line
    from modelmeter.capacity import continuous_memory, fit, largest_batch

    timed = ("pages_per_day", "ttft", "tpot", "max_devices", "price", "efficiency", "runtime", "calibration")
    given = ", ".join("--" + name.replace("_", "-") for name in timed if getattr(options, name) is not None)
    if given:
        raise OptionError(f"--fits asks about memory alone, {given} about more; leave one of them out")
    memory_of = partial(continuous_memory, service) if options.continuous else service.memory
    lines: list[str] = []
    rows: list[object] = []
    for device in _devices(options):
        for batch in () if options.batch is None else _batches(options):
            found = fit(memory_of(batch), device=device, usable=options.usable)
            lines += fit_lines(found, batch)
            rows.append({"batch": batch, **fit_row(found)})
        largest = largest_batch(memory_of, device=device, usable=options.usable)
        lines += fit_lines(largest.fit, largest.batch) if options.batch is None else []
        lines.append(largest_line(largest))
        rows.append({"largest_batch": largest.batch, "limit": largest.limit, **fit_row(largest.fit)})
    return lines, {"fits": rows}


def _answer_plan(service: Service, options: argparse.Namespace) -> tuple[list[str], object]:
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
        clocks=_clocks(options),
        batches=_batches(options),
        continuous=options.continuous,
        usable=options.usable,
        prices=_prices(options),
    )
    return plan_lines(found), plan_document(found)
