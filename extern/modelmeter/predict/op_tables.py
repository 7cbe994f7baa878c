"""Measured op tables of GPUs that nobody here owns: one file per system, kind of operator, framework and version."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from attrs import frozen

from modelmeter.devices import DeviceSpec, load_device
from modelmeter.errors import InvalidDeviceError, ModelMeterError, UnknownNameError
from modelmeter.predict.lattice import Lattice
from modelmeter.predict.table_files import (
    PACKAGE,
    Columns,
    TablesFormatError,
    current_version,
    package_version,
    read_rows,
    read_yaml,
    systems_folder,
)

FRAMEWORKS = ("vllm", "sglang", "trtllm")
"""Serving frameworks whose kernels were measured."""

SYSTEMS: Mapping[str, str] = MappingProxyType(
    {
        "a100-80gb-pcie": "a100_pcie",
        "a100-80gb-sxm": "a100_sxm",
        "b200": "b200_sxm",
        "h100-pcie": "h100_pcie",
        "h100-sxm": "h100_sxm",
        "h200": "h200_sxm",
        "l4": "l4",
        "l40s": "l40s",
    }
)
"""The package's name of each device of devices.toml that it has a record of."""

# Every figure of both may be rounded: 989.4 and 989 TFLOP/s are one peak.
_TOLERANCE = 0.01

# Experts without a gate (two products instead of three, squared ReLU): the tables do not say which. These are the sizes
# of Nemotron 3 Nano, (hidden, intermediate) per expert, and the experts per token of its larger siblings.
_UNGATED_SIZES = frozenset({(2688, 1856)})
_UNGATED_PER_TOKEN = 22


class MissingTablesError(ModelMeterError, LookupError):
    """The installed package has no tables of a device, or none of one framework."""


@frozen(kw_only=True)
class DeviceRecord:
    """What the package says of a system: peaks, and how memory-bound kernels came out."""

    system: str
    matrix_flops: Mapping[str, float]  # dense FLOP/s by type: "bf16", "fp8"
    memory_bandwidth: float  # bytes per second
    memory_bytes: int  # as a program sees them
    power: float  # watts
    memory_efficiency: float  # share of the bandwidth that memory-bound kernels reach, by NVIDIA's observation
    kernel_latency: float  # seconds that a memory-bound kernel takes beside, by the same observation


@frozen(kw_only=True)
class ExpertSite:
    """Measured times of one shape of a mixture of experts, the whole block as one call: products, gate, sum."""

    hidden_size: int
    intermediate_size: int
    experts_per_token: int
    experts: int
    balanced: bool  # whether tokens went to the experts in turn; else by a power law, near to uniform draws
    times: Lattice  # one axis: tokens


@frozen(kw_only=True)
class OpTables:
    """Measured points of one device under one framework, in bf16.

    Attributes
    ----------
    source : mapping of str to str
        Where they come from, for reports: "tables" and "framework", each with its version.
    gemm : Lattice
        Products y[m, n] = x[m, k] w[n, k], by (n, k, m).
    context_attention : Lattice or None
        Causal attention of a prompt, by (head size, heads per key head, key heads, batch, length).
    generation_attention : Lattice or None
        Attention of one new token, by (head size, heads per key head, key heads, batch, keys).
    encoder_attention : Lattice or None
        Attention without a mask, by (head size, heads, batch, length); older systems have none.
    experts : tuple of ExpertSite
        Gated mixtures of experts on one GPU.
    """

    source: Mapping[str, str]
    gemm: Lattice
    context_attention: Lattice | None = None
    generation_attention: Lattice | None = None
    encoder_attention: Lattice | None = None
    experts: tuple[ExpertSite, ...] = ()


@frozen(kw_only=True)
class _Tables:
    """Where the tables of one system under one framework lie."""

    system: Path
    framework: str
    version: str

    def columns(self, family: str, name: str, names: Sequence[str], wanted: Mapping[str, str | int]) -> Columns | None:
        """Return columns and latencies of the rows with the wanted values, or None where there are none."""
        path = self.system / family / self.framework / self.version / f"{name}_perf.parquet"
        if not path.is_file():
            return None
        columns = read_rows(path, (*names, "latency"), wanted)
        return columns if len(columns["latency"]) else None


def available_table_devices() -> Mapping[str, str]:
    """Return the devices that the installed package has measured tables of: key to the package's name.

    Raises
    ------
    MissingTablesPackageError
        When the package is not installed.
    """
    folder = systems_folder()
    return {key: system for key, system in SYSTEMS.items() if (folder / "data" / system / "gemm").is_dir()}


def load_op_tables(device: str, framework: str = "vllm") -> OpTables:
    """Return the measured tables of a device.

    Parameters
    ----------
    device : str
        Key or alias of a device of devices.toml.
    framework : str
        Whose kernels: one of `FRAMEWORKS`. The version is the one that the package declares current.

    Raises
    ------
    MissingTablesPackageError
        When the package is not installed.
    MissingTablesError
        When it has no measurements of the device, or none under the framework.
    UnknownNameError
        When the framework is unknown.
    UnknownDeviceError
        When the device is.
    """
    if framework not in FRAMEWORKS:
        raise UnknownNameError("framework", framework, FRAMEWORKS)
    key = load_device(device).key
    known = available_table_devices()
    version = package_version()
    if key not in known:
        raise MissingTablesError(
            f"{PACKAGE} {version} has no measured tables of {key}; it has those of {', '.join(sorted(known))}. Take a "
            "near relative, or calibrate on the device itself"
        )
    files = _Tables(
        system=systems_folder() / "data" / known[key],
        framework=framework,
        version=current_version(known[key], framework),
    )
    gemm = files.columns("gemm", "gemm", ("n", "k", "m"), {"gemm_dtype": "bfloat16"})
    if gemm is None:
        having = sorted(path.name for path in (files.system / "gemm").iterdir())
        raise MissingTablesError(
            f"{PACKAGE} {version} has no products of {key} under {framework} {files.version}; it has some under "
            f"{', '.join(having)}"
        )
    return OpTables(
        source={"tables": f"{PACKAGE} {version}", "framework": f"{framework} {files.version}"},
        gemm=_lattice(gemm),
        context_attention=_grouped_attention(files, "context_attention", "isl"),
        generation_attention=_grouped_attention(files, "generation_attention", "step"),
        encoder_attention=_encoder_attention(files),
        experts=_expert_sites(files),
    )


def load_device_record(device: str) -> DeviceRecord:
    """Return the package's record of a device.

    Raises
    ------
    MissingTablesPackageError
        When the package is not installed.
    MissingTablesError
        When it has no record of the device.
    """
    folder = systems_folder()
    if device not in SYSTEMS:
        raise MissingTablesError(f"{PACKAGE} has no record of {device}; it has those of {', '.join(SYSTEMS)}")
    path = folder / f"{SYSTEMS[device]}.yaml"
    gpu = read_yaml(path).get("gpu", {})
    try:
        peaks = {"bf16": gpu["bfloat16_tc_flops"], "fp8": gpu.get("fp8_tc_flops")}
        return DeviceRecord(
            system=SYSTEMS[device],
            matrix_flops={dtype: float(peak) for dtype, peak in peaks.items() if peak is not None},
            memory_bandwidth=float(gpu["mem_bw"]),
            memory_bytes=int(gpu["mem_capacity"]),
            power=float(gpu["power"]),
            memory_efficiency=float(gpu["mem_bw_empirical_scaling_factor"]),
            kernel_latency=float(gpu["mem_empirical_constant_latency"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TablesFormatError(f"{path} has no figure {error}") from error


def check_against_tables(device: DeviceSpec) -> None:
    """Check that a device's peaks, bandwidth, memory and power agree with the installed package's record.

    Raises
    ------
    InvalidDeviceError
        When they differ by more than rounding does; for a peak that is twice the other, the message says that one of
        the two counts sparsity.
    MissingTablesPackageError, MissingTablesError
        When there is nothing to compare with.
    """
    record = load_device_record(device.key)
    pairs = {
        **{
            f"{dtype} peak": (device.matrix_flops.get(dtype, math.nan), peak)
            for dtype, peak in record.matrix_flops.items()
        },
        "bandwidth": (device.memory_bandwidth, record.memory_bandwidth),
        "power": (device.tdp, record.power),
    }
    problems = [
        f"{name} is {ours:g} here and {theirs:g} there{_sparsity_hint(ours / theirs)}"
        for name, (ours, theirs) in pairs.items()
        if not math.isclose(ours, theirs, rel_tol=_TOLERANCE)
    ]
    if not record.memory_bytes * (1 - _TOLERANCE) <= device.memory_bytes <= record.memory_bytes * 1.1:
        # what a program sees lies below what is built in: ECC and the driver take their part
        problems.append(f"memory is {device.memory_bytes} bytes here and {record.memory_bytes} there")
    if problems:
        raise InvalidDeviceError(
            f"device {device.key!r} disagrees with the record {record.system} of {PACKAGE}: {'; '.join(problems)}. "
            "Correct devices.toml, with a source for each figure"
        )


def _sparsity_hint(ratio: float) -> str:
    return ", so one of the two counts sparsity" if math.isclose(max(ratio, 1 / ratio), 2, rel_tol=_TOLERANCE) else ""


# --- tables


def _lattice(columns: Columns) -> Lattice:
    """Return the points of a table; its times are in milliseconds."""
    sizes = {name: column.tolist() for name, column in columns.items() if name != "latency"}
    return Lattice.from_columns(sizes, (columns["latency"] * 1e-3).tolist())


def _grouped_attention(files: _Tables, name: str, length: str) -> Lattice | None:
    names = ("head_dim", "num_heads", "num_key_value_heads", "batch_size", length)
    wanted = {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "window_size": 0}
    columns = files.columns("attention", name, names, wanted)
    if columns is None:
        return None
    return _lattice(
        {
            "head size": columns["head_dim"],
            "heads per key head": columns["num_heads"] // columns["num_key_value_heads"],
            "key heads": columns["num_key_value_heads"],
            "batch": columns["batch_size"],
            # a step attends to the tokens before it and to itself
            "length": columns[length] + 1 if length == "step" else columns[length],
            "latency": columns["latency"],
        }
    )


def _encoder_attention(files: _Tables) -> Lattice | None:
    names = ("head_dim", "num_heads", "batch_size", "isl")
    columns = files.columns("encoder_attention", "encoder_attention", names, {"attn_dtype": "bfloat16"})
    return None if columns is None else _lattice(columns)


def _expert_sites(files: _Tables) -> tuple[ExpertSite, ...]:
    names = ("hidden_size", "inter_size", "topk", "num_experts")
    one_gpu = {"moe_dtype": "bfloat16", "moe_tp_size": 1, "moe_ep_size": 1}
    for routing in ("balanced", "power_law_1.01"):
        columns = files.columns("moe", "moe", (*names, "num_tokens"), {**one_gpu, "distribution": routing})
        if columns is not None:
            shapes = np.stack([columns[name] for name in names], axis=1)
            return tuple(
                ExpertSite(
                    hidden_size=shape[0],
                    intermediate_size=shape[1],
                    experts_per_token=shape[2],
                    experts=shape[3],
                    balanced=routing == "balanced",
                    times=_lattice({name: columns[name][rows] for name in ("num_tokens", "latency")}),
                )
                for shape in np.unique(shapes, axis=0).tolist()
                if _is_gated(*shape)
                for rows in [(shapes == shape).all(axis=1)]
            )
    return ()


def _is_gated(hidden: int, intermediate: int, per_token: int, _experts: int) -> bool:
    return (hidden, intermediate) not in _UNGATED_SIZES and per_token != _UNGATED_PER_TOKEN
