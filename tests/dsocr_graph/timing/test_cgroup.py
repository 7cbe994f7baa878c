"""Memory limits of control groups, from files as the two versions of Linux's interface have them."""

from pathlib import Path

import pytest
import torch

from dsocr_graph.timing import memory_limits
from dsocr_graph.timing.cgroup import cgroup_available_bytes


def group(folder: Path, **files: object) -> None:
    """Write the files of one group; two underscores stand for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def available(mount: Path, own: str) -> int | None:
    """Return what is left to a process whose groups are these."""
    groups = mount / "own"
    groups.write_text(own)
    return cgroup_available_bytes(mount, groups)


def test_the_cache_of_files_is_not_used_up(tmp_path: Path) -> None:
    """1,000 less 700, of which 250 are files that were not touched lately: 550."""
    group(tmp_path / "job", memory__max=1000, memory__current=700, memory__stat="anon 400\ninactive_file 250")
    assert available(tmp_path, "0::/job\n") == 550


def test_the_tightest_group_around_counts(tmp_path: Path) -> None:
    """The job itself has no limit, its slice 100 left, the outermost group 500."""
    group(tmp_path / "slice" / "job", memory__max="max", memory__current=10)
    group(tmp_path / "slice", memory__max=300, memory__current=200)
    group(tmp_path, memory__max=900, memory__current=400)
    assert available(tmp_path, "0::/slice/job\n") == 100


def test_the_first_version_has_other_names(tmp_path: Path) -> None:
    """2,000 less 1,500, of which 300 are files: 800; other controllers have no memory."""
    group(
        tmp_path / "memory" / "job",
        memory__limit_in_bytes=2000,
        memory__usage_in_bytes=1500,
        memory__stat="cache 900\ntotal_inactive_file 300",
    )
    group(tmp_path / "cpuset" / "job", memory__limit_in_bytes=1)
    assert available(tmp_path, "7:cpuset:/job\n4:memory:/job\n0::/\n") == 800


def test_a_container_sees_its_own_group_at_the_mount(tmp_path: Path) -> None:
    """The path is the host's and not there; the limit is that of the mount itself."""
    group(tmp_path / "memory", memory__limit_in_bytes=64, memory__usage_in_bytes=4)
    assert available(tmp_path, "4:memory:/docker/12ab\n") == 60


def test_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    """A limit that was lowered: none, not less than none."""
    group(tmp_path, memory__max=10, memory__current=25)
    assert available(tmp_path, "0::/\n") == 0


def test_without_a_limit_there_is_none(tmp_path: Path) -> None:
    """Groups without a limit, and a system without groups."""
    group(tmp_path, memory__max="max", memory__current=25)
    assert available(tmp_path, "0::/\n") is None
    assert cgroup_available_bytes(tmp_path, tmp_path / "not there") is None


@pytest.mark.parametrize(("machine", "container", "expected"), [(9, 4, 4), (4, 9, 4), (9, None, 9), (None, None, None)])
def test_the_smaller_of_machine_and_container_is_available(
    monkeypatch: pytest.MonkeyPatch, machine: int | None, container: int | None, expected: int | None
) -> None:
    """A container on a large machine, a small machine with a generous limit, neither known."""
    monkeypatch.setattr(memory_limits, "_machine_available_bytes", lambda: machine)
    monkeypatch.setattr(memory_limits, "cgroup_available_bytes", lambda: container)
    assert memory_limits.available_bytes(torch.device("cpu")) == expected
