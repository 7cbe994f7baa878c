"""How far the op tables of the engine runtime are off: points left out of a table and predicted from the rest.

For each device and family of kernels, by what was left out: the median and the 90th percentile of
|predicted/measured - 1|, the signed median, and the standard deviation of the logarithm that the 90th percentile stands
for, from which `LOG_SPREADS` of modelmeter/predict/table_times.py is chosen. Needs the extra `tables`, no GPU. Prints a
table and writes benchmarks/results/table_error.json.

    python benchmarks/accuracy/table_error.py [--device h200 ...] [--framework vllm]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from attrs import asdict, evolve, frozen

from modelmeter.devices import load_device
from modelmeter.predict.device_records import load_device_record
from modelmeter.predict.kernel_calls import Attention, Call, Gemm
from modelmeter.predict.lattice import Lattice, Sizes
from modelmeter.predict.op_tables import (
    FRAMEWORKS,
    OpTables,
    available_table_devices,
    load_op_tables,
)
from modelmeter.predict.table_files import PACKAGE, package_version
from modelmeter.predict.table_times import TableTimes

RESULT = Path(__file__).parent.parent / "results" / "table_error.json"
MOST_POINTS = 3000  # of one figure; more are thinned out evenly
Logs = list[float]  # logarithms of predicted over measured time


@frozen(kw_only=True)
class ErrorRow:
    """The error of one way to predict, over points that were left out."""

    device: str
    framework: str
    family: str
    left_out: str
    points: int
    median: float  # of |predicted/measured - 1|
    p90: float
    signed: float  # median of predicted/measured - 1
    log_spread: float  # of a normal distribution with this p90


def error_rows(device: str, framework: str) -> Iterator[ErrorRow]:
    """Yield the errors of one device's tables."""
    spec = load_device(device)
    tables = load_op_tables(device, framework)
    times = TableTimes(device=spec, tables=tables, record=load_device_record(spec.key))
    for family, left_out, logs in (
        ("gemm", "another collection", _collections(device, framework)),
        ("gemm", "every second m", _products(times, lambda n, k, m: m)),
        ("gemm", "every second n", _products(times, lambda n, k, m: n)),
        ("gemm", "every second n, every second k", _products(times, lambda n, k, m: n, lambda n, k, m: k)),
        ("gemm", "largest n", _largest_product(times)),
        *_attention_errors(times),
        ("experts", "one shape of many", _experts(times)),
    ):
        if logs:
            yield _row(spec.key, tables.source["framework"], family, left_out, logs)


def _row(device: str, framework: str, family: str, left_out: str, logs: Logs) -> ErrorRow:
    errors, p90 = np.expm1(logs), float(np.quantile(np.abs(logs), 0.9))
    return ErrorRow(
        device=device,
        framework=framework,
        family=family,
        left_out=left_out,
        points=len(logs),
        median=round(float(np.median(np.abs(errors))), 4),
        p90=round(float(np.quantile(np.abs(errors), 0.9)), 4),
        signed=round(float(np.median(errors)), 4),
        log_spread=round(p90 / 1.645, 4),  # 90 % of a normal distribution lie within 1.645 standard deviations
    )


# --- families


def _collections(device: str, framework: str) -> Logs:
    """Compare the products of another framework: the same library, collected again with other versions."""
    mine = load_op_tables(device, framework).gemm.points
    usual = [sizes for sizes in mine if _is_usual(sizes)]
    other = load_op_tables(device, next(name for name in FRAMEWORKS if name != framework)).gemm.points
    # each of the two errs by itself, so one errs by the share of a standard deviation
    return [math.log(mine[sizes] / other[sizes]) / math.sqrt(2) for sizes in _thinned(usual) if sizes in other]


def _products(times: TableTimes, *axes: Callable[[float, float, float], float]) -> Logs:
    """Leave out the products whose size along every given axis is every second one, and predict them."""
    gemm = times.tables.gemm
    odd = [_every_second({axis(*sizes) for sizes in gemm.points}) for axis in axes]
    tested = [
        sizes
        for sizes in gemm.points
        if _is_usual(sizes) and all(axis(*sizes) in left for axis, left in zip(axes, odd, strict=True))
    ]
    kept = {
        sizes: seconds
        for sizes, seconds in gemm.points.items()
        if not any(axis(*sizes) in left for axis, left in zip(axes, odd, strict=True))
    }
    return _errors(times, evolve(times.tables, gemm=evolve(gemm, points=kept)), _thinned(tested), gemm, Gemm.at)


def _largest_product(times: TableTimes) -> Logs:
    gemm = times.tables.gemm
    usual = [sizes for sizes in gemm.points if _is_usual(sizes)]
    largest = max(n for n, _, _ in usual)
    tested = [sizes for sizes in usual if sizes[0] == largest]
    kept = {sizes: seconds for sizes, seconds in gemm.points.items() if sizes[0] < largest}
    return _errors(times, evolve(times.tables, gemm=evolve(gemm, points=kept)), _thinned(tested), gemm, Gemm.at)


def _attention_errors(times: TableTimes) -> Iterator[tuple[str, str, Logs]]:
    """Yield the errors of the three attention tables, without every second length or number of heads."""
    tables = times.tables
    kinds: Mapping[str, tuple[Lattice | None, Callable[[Sizes], Call], int]] = {
        "context_attention": (tables.context_attention, Attention.prompt_at, 2),
        "generation_attention": (tables.generation_attention, Attention.step_at, 2),
        "encoder_attention": (tables.encoder_attention, Attention.encoder_at, 1),
    }
    for name, (lattice, call, heads) in kinds.items():
        if lattice is None:
            continue
        for left_out, axis in (("every second length", -1), ("every second number of heads", heads)):
            odd = _every_second({sizes[axis] for sizes in lattice.points})
            kept = {sizes: seconds for sizes, seconds in lattice.points.items() if sizes[axis] not in odd}
            tested = [sizes for sizes in lattice.points if sizes[axis] in odd and sizes[0] <= 128]
            thinner = evolve(tables, **{name: evolve(lattice, points=kept)})
            yield name.replace("_", " "), left_out, _errors(times, thinner, _thinned(tested), lattice, call)


def _experts(times: TableTimes) -> Logs:
    """Leave out one shape after the other; those of hidden size up to 4096, which are near to others."""
    logs: Logs = []
    for site in times.tables.experts:
        if site.hidden_size > 4096:
            continue
        others = tuple(other for other in times.tables.experts if other is not site)
        logs += _errors(times, evolve(times.tables, experts=others), list(site.times.points), site.times, site.block_at)
    return logs


# --- points


def _errors(
    times: TableTimes, tables: OpTables, tested: Iterable[Sizes], measured: Lattice, call: Callable[[Sizes], Call]
) -> Logs:
    rest = evolve(times, tables=tables)
    found = [(sizes, rest.time(call(sizes))) for sizes in tested]
    return [math.log(time.seconds / measured.points[sizes]) for sizes, time in found if time is not None]


def _every_second(sizes: set[float]) -> set[float]:
    return set(sorted(sizes)[1:-1:2])


def _is_usual(sizes: Sizes) -> bool:
    """Whether a product is of the sizes that models have."""
    n, k, m = sizes
    return 512 <= n <= 16384 and 512 <= k <= 8192 and m <= 8192


def _thinned(sizes: Sequence[Sizes]) -> list[Sizes]:
    """Return some of many sizes, the same ones in every run."""
    chosen = np.random.default_rng(0).permutation(len(sizes))[:MOST_POINTS]
    return [sizes[index] for index in chosen]


def main() -> int:
    """Print the errors and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", nargs="*", default=list(available_table_devices()))
    parser.add_argument("--framework", default="vllm", choices=FRAMEWORKS)
    options = parser.parse_args()
    rows: list[ErrorRow] = []
    print(f"{'device':<14} {'family':<21} {'left out':<31} {'points':>6} {'median':>7} {'p90':>7} {'signed':>7}  sigma")
    for device in options.device:
        for row in error_rows(device, options.framework):
            rows.append(row)
            errors = f"{row.median:>7.1%} {row.p90:>7.1%} {row.signed:>+7.1%} {row.log_spread:>6.3f}"
            print(f"{row.device:<14} {row.family:<21} {row.left_out:<31} {row.points:>6} {errors}")
    RESULT.parent.mkdir(exist_ok=True)
    document = {"tables": f"{PACKAGE} {package_version()}", "rows": [asdict(row) for row in rows]}
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
