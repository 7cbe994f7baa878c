"""Op tables: files of the installed package, found, read and checked; what is missing says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from modelmeter.devices import load_device
from modelmeter.errors import InvalidDeviceError, UnknownNameError
from modelmeter.predict import device_records, op_tables, table_files
from modelmeter.predict.device_records import SYSTEMS, MissingTablesError, check_against_tables, load_device_record
from modelmeter.predict.op_tables import available_table_devices, load_op_tables
from modelmeter.predict.table_files import MissingTablesPackageError, TablesFormatError, read_rows, read_yaml

MEASURED = ("h200", "h100-sxm", "a100-80gb-sxm", "l40s", "b200")


def _installed() -> bool:
    try:
        distribution("aiconfigurator-core")
    except PackageNotFoundError:
        return False
    return find_spec("pyarrow") is not None


with_package = pytest.mark.skipif(not _installed(), reason="needs the extra `tables`: pip install -e '.[tables]'")
with_parquet = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs the extra `tables`")

RECORD = """
gpu:
  mem_bw: 4800000000000
  mem_bw_empirical_scaling_factor: 0.8
  mem_empirical_constant_latency: 0.000003
  mem_capacity: 151397597184
  bfloat16_tc_flops: 989000000000000
  fp8_tc_flops: 1978000000000000
  power: 700
"""
VERSIONS = "defaults: {vllm: {current: '1.0'}, sglang: {current: '2.0'}}\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a small package: a record of the H200 and, as a test writes them, its tables."""
    pytest.importorskip("yaml")
    (tmp_path / "h200_sxm.yaml").write_text(RECORD, encoding="utf-8")
    (tmp_path / "query_versions.yaml").write_text(VERSIONS, encoding="utf-8")
    (tmp_path / "data" / "h200_sxm" / "gemm").mkdir(parents=True)
    for module in (table_files, device_records, op_tables):
        monkeypatch.setattr(module, "systems_folder", lambda: tmp_path)
    for module in (table_files, op_tables):
        monkeypatch.setattr(module, "package_version", lambda: "0.12.0")
    return tmp_path


def write_table(package: Path, path: str, columns: Mapping[str, list[Any]]) -> Path:
    """Write a table of the H200 as the package has it."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    target = package / "data" / "h200_sxm" / f"{path}_perf.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table(dict(columns)), target)
    return target


GEMM = {"gemm_dtype": ["bfloat16", "fp8"], "m": [1, 1], "n": [64, 64], "k": [32, 32], "latency": [0.005, 0.004]}


# --- without the package


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is an ImportError too."""

    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(table_files, "distribution", absent)
    with pytest.raises(ImportError, match=r"pip install 'dsocr-graph\[tables\]'") as caught:
        load_op_tables("h200")
    assert isinstance(caught.value, MissingTablesPackageError)


def test_a_missing_reader_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow the tables cannot be read, though the package is there."""

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(table_files, "import_module", absent)
    with pytest.raises(MissingTablesPackageError, match="not all of what it needs"):
        read_rows(tmp_path / "gemm_perf.parquet", ("m",), {})


def test_an_unknown_framework_is_named_with_the_known() -> None:
    """The three frameworks are listed."""
    with pytest.raises(UnknownNameError, match=r"vlm.*vllm.*Known: sglang, trtllm, vllm"):
        load_op_tables("h200", "vlm")


# --- a small package


@with_parquet
def test_rows_in_bf16_are_read_in_seconds(package: Path) -> None:
    """0.005 ms is 5 us; the row in fp8 is left out."""
    write_table(package, "gemm/vllm/1.0/gemm", GEMM)
    tables = load_op_tables("h200")
    assert tables.gemm.points == {(64, 32, 1): pytest.approx(5e-6)}
    assert tables.source == {"tables": "aiconfigurator-core 0.12.0", "framework": "vllm 1.0"}
    assert (tables.context_attention, tables.encoder_attention, tables.experts) == (None, None, ())


@with_parquet
def test_a_step_attends_to_its_own_token_too(package: Path) -> None:
    """Step 3 finds three cached tokens and attends to four; a sliding window is another operator."""
    write_table(package, "gemm/vllm/1.0/gemm", GEMM)
    columns: dict[str, list[Any]] = {
        "attn_dtype": ["bfloat16", "bfloat16"],
        "kv_cache_dtype": ["bfloat16", "bfloat16"],
        "window_size": [0, 128],
        "batch_size": [2, 2],
        "num_heads": [8, 8],
        "num_key_value_heads": [4, 4],
        "head_dim": [64, 64],
        "step": [3, 3],
        "latency": [0.01, 0.02],
    }
    write_table(package, "attention/vllm/1.0/generation_attention", columns)
    lattice = load_op_tables("h200").generation_attention
    assert lattice is not None
    assert lattice.points == {(64, 2, 4, 2, 4): pytest.approx(1e-5)}


@with_parquet
def test_experts_without_a_gate_are_left_out(package: Path) -> None:
    """Two products are not three: the sizes of Nemotron would stand for experts that are half as long again."""
    write_table(package, "gemm/vllm/1.0/gemm", GEMM)
    columns: dict[str, list[Any]] = {
        "moe_dtype": ["bfloat16"] * 2,
        "moe_tp_size": [1, 1],
        "moe_ep_size": [1, 1],
        "distribution": ["balanced"] * 2,
        "hidden_size": [2688, 2048],
        "inter_size": [1856, 768],
        "topk": [6, 8],
        "num_experts": [128, 128],
        "num_tokens": [1, 1],
        "latency": [0.1, 0.2],
    }
    write_table(package, "moe/vllm/1.0/moe", columns)
    (site,) = load_op_tables("h200").experts
    assert (site.hidden_size, site.balanced, site.times.points) == (2048, True, {(1,): pytest.approx(2e-4)})


@with_parquet
def test_a_framework_without_tables_names_those_with(package: Path) -> None:
    """vLLM has a table, SGLang has none."""
    write_table(package, "gemm/vllm/1.0/gemm", GEMM)
    with pytest.raises(MissingTablesError, match=r"no products of h200 under sglang 2.0; it has some under vllm"):
        load_op_tables("h200", "sglang")


@with_parquet
def test_a_table_without_a_column_is_of_another_version(package: Path) -> None:
    """The file and the column are named, and the version that is known."""
    write_table(package, "gemm/vllm/1.0/gemm", {name: column for name, column in GEMM.items() if name != "k"})
    with pytest.raises(TablesFormatError, match=r"gemm_perf.parquet has no column k; .*aiconfigurator-core==0.12"):
        load_op_tables("h200")


@with_parquet
def test_a_broken_table_is_named(package: Path) -> None:
    """A file that was cut off cannot be read."""
    path = write_table(package, "gemm/vllm/1.0/gemm", GEMM)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TablesFormatError, match=r"cannot read .*gemm_perf.parquet"):
        load_op_tables("h200")


def test_a_device_without_tables_names_those_with(package: Path) -> None:
    """The L4 has a record and no measurements."""
    with pytest.raises(MissingTablesError, match="no measured tables of l4; it has those of h200"):
        load_op_tables("l4")


def test_a_device_without_a_record_names_those_with(package: Path) -> None:
    """The package knows no consumer cards."""
    with pytest.raises(MissingTablesError, match="no record of rtx-4090; it has those of a100-80gb-pcie"):
        load_device_record("rtx-4090")


def test_a_record_is_read_in_base_units(package: Path) -> None:
    """Bytes, seconds and FLOP/s, as the file has them."""
    record = load_device_record("h200")
    assert record.matrix_flops == {"bf16": 989e12, "fp8": 1978e12}
    assert (record.memory_bandwidth, record.memory_efficiency, record.kernel_latency) == (4.8e12, 0.8, 3e-6)


def test_a_record_without_a_figure_is_of_another_version(package: Path) -> None:
    """The figure is named."""
    (package / "h200_sxm.yaml").write_text("gpu: {mem_bw: 1}\n", encoding="utf-8")
    read_yaml.cache_clear()
    with pytest.raises(TablesFormatError, match="no figure 'bfloat16_tc_flops'"):
        load_device_record("h200")


def test_a_record_that_cannot_be_read_is_named(package: Path) -> None:
    """The file is not there."""
    (package / "h200_sxm.yaml").unlink()
    with pytest.raises(TablesFormatError, match=r"cannot read .*h200_sxm.yaml"):
        load_device_record("h200")


# --- checks of devices.toml


def test_a_device_that_agrees_passes(package: Path) -> None:
    """devices.toml has 1,979 TFLOP/s in fp8, the record 1,978: one peak, rounded."""
    check_against_tables(load_device("h200"))


def test_a_sparse_peak_is_told(package: Path) -> None:
    """Twice every dense peak passes the ratios of types; only a second source tells."""
    h200 = load_device("h200")
    chip = evolve(h200.architecture, bf16_flops_per_clock=8192)
    sparse = evolve(h200, architecture=chip, matrix_flops={name: 2 * peak for name, peak in h200.matrix_flops.items()})
    with pytest.raises(
        InvalidDeviceError, match=r"bf16 peak is 1.978e.15 here and 9.89e.14 there, so one of the two co"
    ):
        check_against_tables(sparse)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_bandwidth": 3.35e12}, "bandwidth is 3.35e.12 here and 4.8e.12 there"),
        ({"tdp": 350.0}, "power is 350 here and 700 there"),
        ({"memory_bytes": 80 << 30}, "memory is 85899345920 bytes here and 151397597184 there"),
    ],
)
def test_another_figure_is_told(package: Path, change: Mapping[str, float], message: str) -> None:
    """Both figures stand in the message."""
    with pytest.raises(InvalidDeviceError, match=message):
        check_against_tables(evolve(load_device("h200"), **change))


# --- the package itself


@with_package
@pytest.mark.parametrize("key", sorted(SYSTEMS))
def test_the_shipped_devices_agree_with_the_package(key: str) -> None:
    """Every device that both have, the ones without measurements too."""
    check_against_tables(load_device(key))


@with_package
def test_the_devices_with_tables() -> None:
    """At least these five."""
    assert set(MEASURED) <= set(available_table_devices())


@with_package
@pytest.mark.parametrize("key", MEASURED)
def test_the_tables_of_a_device_are_whole_and_in_seconds(key: str) -> None:
    """4096^3 takes 2 * 4096^3 FLOPs: at least their time at the peak, at most three times it; nothing is empty."""
    tables, device = load_op_tables(key), load_device(key)
    limit = 2 * 4096**3 / device.peak_flops("bf16")
    assert limit < tables.gemm.points[4096, 4096, 4096] < 3 * limit
    assert len(tables.gemm.points) > 9000
    assert tables.context_attention is not None
    assert tables.generation_attention is not None
    assert len(tables.experts) >= 5
