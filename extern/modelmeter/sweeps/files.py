"""Results of sweeps on disk: a part per chunk, joined into one CSV or Parquet file once all are there."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Protocol

from attrs import frozen

from modelmeter.sweeps.csv_text import csv_lines
from modelmeter.sweeps.errors import MissingPackageError, SweepError, SweepFileError
from modelmeter.sweeps.grid import Chunk, Grid
from modelmeter.sweeps.tables import Detail, Table, chunk_table

_MANIFEST = "sweep.json"


class FileFormat(Protocol):
    """How tables are written."""

    def part(self, table: Table) -> bytes:
        """Return the content of a part."""
        ...

    def join(self, parts: Sequence[Path], out: Path, first: Table) -> None:
        """Write all parts as one file; `first` has the file's columns."""
        ...


@frozen(kw_only=True)
class Csv:
    """Comma-separated text: a header, then a line per row; figures read back to the same numbers, NaN is empty.

    The header has the names of the columns alone; `Table.units` has their units.
    """

    def part(self, table: Table) -> bytes:
        """Return the lines of a table."""
        return csv_lines(table.columns.values())

    def join(self, parts: Sequence[Path], out: Path, first: Table) -> None:
        """Write the header and all lines."""
        with out.open("wb") as file:
            file.write((",".join(first.columns) + "\n").encode())
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file)


@frozen(kw_only=True)
class Parquet:
    """Parquet, a row group per part; each field's metadata has its unit, NaN is null."""

    def part(self, table: Table) -> bytes:
        """Return a Parquet file of one part."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        units = table.units
        arrays = [pa.array(values, from_pandas=True) for values in table.columns.values()]
        fields = [
            pa.field(name, array.type, metadata={"unit": units[name]} if name in units else None)  # labels have none
            for name, array in zip(table.columns, arrays, strict=True)
        ]
        content = io.BytesIO()
        pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), content)
        return content.getvalue()

    def join(self, parts: Sequence[Path], out: Path, first: Table) -> None:
        """Write a row group per part."""
        import pyarrow.parquet as pq

        with pq.ParquetWriter(out, pq.read_schema(parts[0])) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part))


def file_format(path: Path) -> FileFormat:
    """Return the format that a file's name asks for.

    Raises
    ------
    SweepError
        When its ending is neither .csv nor .parquet.
    MissingPackageError
        When it is .parquet and pyarrow is not installed.

    Examples
    --------
    >>> file_format(Path("sweep.csv"))
    Csv()
    """
    if path.suffix == ".csv":
        return Csv()
    if path.suffix != ".parquet":
        raise SweepError(f"cannot tell the format of {path}: give a file that ends in .csv or .parquet")
    try:
        import_module("pyarrow")  # said now, not after the first chunk
    except ImportError as error:
        raise MissingPackageError(
            f"{path} needs pyarrow, which is not installed; run pip install 'dsocr-graph[sweep]', or write .csv"
        ) from error
    return Parquet()


@frozen(kw_only=True)
class UnfinishedFile:
    """A result in the making: its parts in a folder beside it."""

    path: Path
    format: FileFormat
    fingerprint: str  # of the sweep: parts of another are not mixed in
    first: Table  # one row or a few: the columns

    @classmethod
    def at(cls, path: Path, form: FileFormat, *, grid: Grid, detail: Detail, chunk_points: int) -> UnfinishedFile:
        """Return the file of a sweep."""
        return cls(
            path=path,
            format=form,
            fingerprint=fingerprint(grid, detail, chunk_points),
            first=chunk_table(grid, next(grid.chunks(1)), detail),
        )

    @property
    def folder(self) -> Path:
        """Where the parts are."""
        return self.path.with_name(f"{self.path.name}.parts")

    def prepare(self, *, resume: bool) -> None:
        """Make the folder, or take over the one of an interrupted sweep.

        Raises
        ------
        SweepFileError
            When it cannot be made, or is of another sweep.
        """
        manifest = self.folder / _MANIFEST
        with self._told():
            if self.path.is_dir():
                raise SweepFileError(f"{self.path} is a directory; give the name of a file")
            if resume and manifest.exists():
                if json.loads(manifest.read_text(encoding="utf-8")).get("fingerprint") != self.fingerprint:
                    raise SweepFileError(
                        f"{self.folder} holds parts of another sweep: of other axes, options, figures or chunks; "
                        "repeat its options, or sweep without resuming, which discards them"
                    )
                return
            if manifest.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            _write(manifest, json.dumps({"fingerprint": self.fingerprint}).encode())

    def finished(self, chunks: int) -> frozenset[int]:
        """Return which chunks have a part."""
        return frozenset(index for index in range(chunks) if self._part(index).exists())

    def write(self, chunk: Chunk, table: Table) -> None:
        """Write the part of a chunk: all of it or nothing.

        Raises
        ------
        SweepFileError
            When it cannot be written.
        """
        with self._told():
            _write(self._part(chunk.index), self.format.part(table))

    def finish(self, chunks: int) -> None:
        """Join the parts, give the file its name and take the folder away.

        Raises
        ------
        SweepFileError
            When the file cannot be written; the parts then stay.
        """
        joined = self.folder / "joined"
        with self._told():
            self.format.join([self._part(index) for index in range(chunks)], joined, self.first)
            joined.replace(self.path)
            shutil.rmtree(self.folder)

    def _part(self, index: int) -> Path:
        return self.folder / f"{index:08d}{self.path.suffix}"

    @contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except SweepFileError:
            raise
        except OSError as error:
            raise SweepFileError(
                f"cannot write {self.path}: {error}; mend that, or choose another file. What is done stays in "
                f"{self.folder} and counts if the sweep is resumed"
            ) from error


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_bytes(content)
    partial.replace(path)


def fingerprint(grid: Grid, detail: Detail, chunk_points: int) -> str:
    """Return what tells sweeps apart: axes, rules and options, and the figures at the ends of each section.

    The figures stand for what else decides a result: the compiled model, the routing and the device.
    """
    ends = [
        chunk_table(grid, Chunk(index=0, section=index, start=point, stop=point + 1, first=point), detail).columns
        for index, section in enumerate(grid.sections)
        for point in (0, section.points - 1)
    ]
    sections = [(dict(part.labels), part.axes, part.rules, part.documents) for part in grid.sections]
    told = repr((sections, detail.value, chunk_points, [{k: v.tolist() for k, v in end.items()} for end in ends]))
    return hashlib.sha256(told.encode()).hexdigest()
