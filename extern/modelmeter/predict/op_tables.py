"""Measured op tables of GPUs that nobody here owns: one file per system, kind of operator, framework and version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from attrs import frozen

from modelmeter.devices import load_device
from modelmeter.errors import UnknownNameError
from modelmeter.expert_counts import uniform_routing
from modelmeter.predict.device_records import SYSTEMS, MissingTablesError
from modelmeter.predict.kernel_calls import Experts
from modelmeter.predict.lattice import Lattice, Sizes
from modelmeter.predict.table_files import (
    PACKAGE,
    Columns,
    current_version,
    package_version,
    read_rows,
    systems_folder,
)

FRAMEWORKS = ("vllm", "sglang", "trtllm")
"""Serving frameworks whose kernels were measured."""

_SHAPE = ("hidden_size", "inter_size", "topk", "num_experts")

# Experts without a gate (two products instead of three, squared ReLU): the tables do not say which. These are the sizes
# of Nemotron 3 Nano, (hidden, intermediate) per expert, and the experts per token of its larger siblings.
_UNGATED_SIZES = frozenset({(2688, 1856)})
_UNGATED_PER_TOKEN = 22


@frozen(kw_only=True)
class ExpertSite:
    """Measured times of one shape of a mixture of experts, the whole block as one call: products, gate, sum."""

    hidden_size: int
    intermediate_size: int
    experts_per_token: int
    experts: int
    balanced: bool  # whether tokens went to the experts in turn; else by a power law, near to uniform draws
    times: Lattice  # one axis: tokens

    def block_at(self, sizes: Sizes) -> Experts:
        """Return the block at a point of its times, with as many active experts as the tokens of the table reached."""
        (tokens,) = sizes
        in_turn = min(self.experts, tokens * self.experts_per_token)
        return Experts(
            tokens=tokens,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            experts_per_token=self.experts_per_token,
            experts=self.experts,
            active_experts=in_turn
            if self.balanced
            else uniform_routing(self.experts, self.experts_per_token, int(tokens)),
        )


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
    """Return the shapes that were measured with balanced tokens, or else with those by a power law."""
    one_gpu = {"moe_dtype": "bfloat16", "moe_tp_size": 1, "moe_ep_size": 1}
    for routing in ("balanced", "power_law_1.01"):
        columns = files.columns("moe", "moe", (*_SHAPE, "num_tokens"), {**one_gpu, "distribution": routing})
        if columns is not None:
            return tuple(_sites(columns, balanced=routing == "balanced"))
    return ()


def _sites(columns: Columns, *, balanced: bool) -> Iterator[ExpertSite]:
    shapes = np.stack([columns[name] for name in _SHAPE], axis=1)
    for shape in np.unique(shapes, axis=0).tolist():
        hidden_size, intermediate_size, per_token, experts = shape
        if _is_gated(hidden_size, intermediate_size, per_token):
            rows = (shapes == shape).all(axis=1)
            yield ExpertSite(
                hidden_size=hidden_size,
                intermediate_size=intermediate_size,
                experts_per_token=per_token,
                experts=experts,
                balanced=balanced,
                times=_lattice({name: columns[name][rows] for name in ("num_tokens", "latency")}),
            )


def _is_gated(hidden: int, intermediate: int, per_token: int) -> bool:
    return (hidden, intermediate) not in _UNGATED_SIZES and per_token != _UNGATED_PER_TOKEN
