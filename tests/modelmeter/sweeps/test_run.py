"""Running sweeps: order, files, interruption, Dask."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modelmeter.sweeps import (
    Chunk,
    Detail,
    Grid,
    MissingPackageError,
    SchedulerError,
    SweepError,
    SweepFileError,
    chunk_table,
)
from modelmeter.sweeps import run as running
from modelmeter.sweeps.run import sweep, sweep_to_file


class InterruptedSweepError(Exception):
    """Stands for Ctrl-C."""


def joined(grid: Grid, **options: object) -> dict[str, list[object]]:
    """Return all rows of a sweep."""
    tables = list(sweep(grid, **options))
    return {name: [value for table in tables for value in table.columns[name].tolist()] for name in tables[0].columns}


def fail_after(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a sweep fail at one of its chunks."""

    def table(grid: Grid, chunk: Chunk, detail: Detail) -> object:
        if chunk.index >= chunks:
            raise InterruptedSweepError
        return chunk_table(grid, chunk, detail)

    monkeypatch.setattr(running, "chunk_table", table)


def same(left: dict[str, list[object]], right: dict[str, list[object]]) -> bool:
    """Whether tables are equal value for value, NaN like NaN."""
    return repr(left) == repr(right)


def test_chunks_and_threads_change_nothing(grid: Grid) -> None:
    """Rows come in the order of the grid, device by device, the last axis fastest."""
    one = joined(grid, workers=1, chunk_points=1000)
    two = joined(grid, workers=2, chunk_points=7)
    assert one["device"] == ["h200"] * 225 + ["l4"] * 225
    assert one["new"][:6] == [1, 2, 3, 100, 1100, 1]
    assert all(one[name] == two[name] for name in ("device", "views", "batch", "prompt", "new", "flops"))
    assert np.allclose(one["page_seconds"], two["page_seconds"], rtol=1e-12)


@pytest.mark.parametrize("detail", ["totals", "modules"])
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_an_interrupted_sweep_goes_on_to_the_same_file(
    plain_grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detail: str, ending: str
) -> None:
    """After three of its 23 chunks it stops; resumed, only the others are made, and the bytes are the same."""
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    options = {"detail": detail, "chunk_points": 10, "workers": 1}
    whole = sweep_to_file(plain_grid, tmp_path / f"whole{ending}", **options)
    broken = tmp_path / f"broken{ending}"
    with monkeypatch.context() as patched:
        fail_after(3, patched)
        with pytest.raises(InterruptedSweepError):
            sweep_to_file(plain_grid, broken, **options)
    assert not broken.exists()
    said: list[str] = []
    sweep_to_file(plain_grid, broken, resume=True, progress=said.append, **options)
    assert said[0] == "30 of 225 points are there already"
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [broken.name, whole.name]


def test_parts_of_another_sweep_are_not_mixed_in(
    grid: Grid, plain_grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resuming with other options is an error; without resuming, what is left of the other sweep is discarded."""
    out = tmp_path / "sweep.csv"
    with monkeypatch.context() as patched:
        fail_after(1, patched)
        with pytest.raises(InterruptedSweepError):
            sweep_to_file(grid, out, chunk_points=50)
    with pytest.raises(SweepFileError, match="parts of another sweep"):
        sweep_to_file(plain_grid, out, chunk_points=50, resume=True)
    sweep_to_file(plain_grid, out, chunk_points=50)
    assert len(out.read_text(encoding="utf-8").splitlines()) == 226


def test_parquet_has_the_values_of_csv(grid: Grid, tmp_path: Path) -> None:
    """Both files read back to the same numbers, integers as integers; Parquet names the units."""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(sweep_to_file(grid, tmp_path / "sweep.parquet"))
    with sweep_to_file(grid, tmp_path / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert table.num_rows == len(rows) == 450
    for name in table.column_names:
        read: Callable[[str], object] = {"int64": int, "double": float, "string": str}[
            str(table.schema.field(name).type)
        ]
        assert [read(row[name]) if row[name] else None for row in rows] == table[name].to_pylist(), name
    assert table.schema.field("flops").metadata == {b"unit": b"FLOPs"}
    assert table.schema.field("prefill_seconds").metadata == {b"unit": b"seconds"}
    assert table.schema.field("batch").metadata == {b"unit": b"pages"}
    assert table.schema.field("rows").metadata == {b"unit": b"1"}
    assert [name for name in table.column_names if table.schema.field(name).metadata is None] == ["device"]
    assert table["tpot_seconds"][0].as_py() is None  # one new token: no decode


def test_what_a_file_reads_back_is_what_was_swept(plain_grid: Grid, tmp_path: Path) -> None:
    """A CSV keeps every digit."""
    with sweep_to_file(plain_grid, tmp_path / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    swept = joined(plain_grid)
    assert [int(row["flops"]) for row in rows] == swept["flops"]
    assert [float(row["bytes"]) for row in rows] == swept["bytes"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_dask_makes_the_same_rows(grid: Grid) -> None:
    """A local cluster of two processes returns the table of this process, row for row."""
    pytest.importorskip("distributed")
    here = joined(grid, chunk_points=100)
    assert same(joined(grid, chunk_points=100, scheduler="local", workers=2), here)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detail": "all"}, "detail is 'all'; choose one of totals, modules"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": True}, "workers is True; expected a whole number"),
        ({"chunk_points": 0}, "chunk_points is 0"),
        ({"chunk_points": 1.5}, "chunk_points is 1.5; expected a whole number"),
        ({"scheduler": "host"}, "scheduler is 'host'; give 'local', or an address such as tcp://"),
    ],
)
def test_options_are_checked(plain_grid: Grid, options: dict[str, object], message: str) -> None:
    """An option that cannot be is named with what can."""
    with pytest.raises(SweepError, match=message):
        next(sweep(plain_grid, **options))


@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_that_is_not_there(plain_grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens at port 9 of this machine: the message says how to start a scheduler."""
    pytest.importorskip("distributed")
    monkeypatch.setattr("modelmeter.sweeps.dask._ANSWER_WITHIN", "1s")
    with pytest.raises(SchedulerError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        next(sweep(plain_grid, scheduler="tcp://127.0.0.1:9"))


def test_what_is_not_installed_is_named(plain_grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow or Dask, the message says what to install and what works without."""
    for name in ("pyarrow", "distributed"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match="needs pyarrow"):
        sweep_to_file(plain_grid, tmp_path / "sweep.parquet")
    with pytest.raises(MissingPackageError, match=r"needs dask\.distributed"):
        next(sweep(plain_grid, scheduler="local"))


def test_files_that_cannot_be(plain_grid: Grid, tmp_path: Path) -> None:
    """An unknown ending, a directory in the way and a parent that is a file are refused before anything is swept."""
    with pytest.raises(SweepError, match=r"ends in \.csv or \.parquet"):
        sweep_to_file(plain_grid, tmp_path / "sweep.xlsx")
    (tmp_path / "taken.csv").mkdir()
    with pytest.raises(SweepFileError, match="is a directory"):
        sweep_to_file(plain_grid, tmp_path / "taken.csv")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SweepFileError, match="cannot write"):
        sweep_to_file(plain_grid, tmp_path / "file" / "sweep.csv")


def test_nothing_else_is_left_after_a_sweep(plain_grid: Grid, tmp_path: Path) -> None:
    """The folder of parts is gone, and its manifest with it."""
    sweep_to_file(plain_grid, tmp_path / "sweep.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.csv"]
