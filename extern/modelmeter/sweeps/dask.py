"""Chunks on Dask: the same tables, made by the workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from modelmeter.sweeps.errors import MissingPackageError, SchedulerError, SweepError
from modelmeter.sweeps.grid import Chunk, Grid
from modelmeter.sweeps.tables import Detail, chunk_table

LOCAL = "local"
_ANSWER_WITHIN = "10s"
_PER_WORKER = 2  # chunks under way: one in work, one ready


@contextmanager
def on_dask(grid: Grid, detail: Detail, scheduler: str, workers: int) -> Generator[tuple[Callable[[Chunk], Any], int]]:
    """Yield how to start a chunk on a cluster, and how many may be under way.

    The grid, compiled models included, is sent once to every worker.

    Parameters
    ----------
    grid, detail
        What `chunk_table` takes.
    scheduler : str
        An address such as ``tcp://host:8786``, or "local" for worker processes of this machine.
    workers : int
        Processes of a local cluster.

    Raises
    ------
    MissingPackageError
        When Dask is not installed.
    SchedulerError
        When nothing answers at the address.
    SweepError
        When the scheduler is no address.
    """
    if scheduler != LOCAL and "://" not in scheduler:
        raise SweepError(f"scheduler is {scheduler!r}; give {LOCAL!r}, or an address such as tcp://host:8786")
    with _client(scheduler, workers) as client:
        held = client.scatter(grid, broadcast=True)

        def submit(chunk: Chunk) -> Any:  # noqa: ANN401 - distributed.Future is untyped
            return client.submit(chunk_table, held, chunk, detail, pure=False)

        yield submit, _PER_WORKER * max(1, len(client.scheduler_info(n_workers=-1)["workers"]))


@contextmanager
def _client(scheduler: str, workers: int) -> Generator[Any]:
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise MissingPackageError(
            f"scheduler {scheduler!r} needs dask.distributed, which is not installed; "
            "run pip install 'dsocr-graph[sweep]', or leave the scheduler out"
        ) from error
    if scheduler == LOCAL:
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = Client(scheduler, timeout=_ANSWER_WITHIN)
    except (OSError, ValueError) as error:
        raise SchedulerError(
            f"no Dask scheduler answers at {scheduler}: {error}; start one with `dask scheduler`, or leave the "
            "scheduler out to sweep in this process"
        ) from error
    with client:
        yield client
