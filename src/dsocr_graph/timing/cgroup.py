"""Control groups: what Linux lets a container or a job still allocate, by the files of versions 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def cgroup_available_bytes(mount: Path = _MOUNT, own_groups: Path = _OWN_GROUPS) -> int | None:
    """Return the bytes left below the tightest memory limit of this process's groups; None without a limit.

    A group's usage counts the cache of files, which is given up when memory is short: its inactive part is left out.

    Parameters
    ----------
    mount : Path
        Where the groups are mounted.
    own_groups : Path
        The file that names the groups of the process: a line "0::PATH" for version 2, "ID:memory:PATH" for version 1.

    Examples
    --------
    >>> cgroup_available_bytes(own_groups=Path("/does/not/exist")) is None
    True
    """
    if not own_groups.is_file():
        return None
    left: list[int] = []
    for line in own_groups.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            left += _left(mount, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            left += _left(mount / "memory", path, *files)
    return min(left, default=None)


def _left(mount: Path, path: str, limit_name: str, usage_name: str, inactive: str) -> Iterator[int]:
    """Yield what is left in a group and in those around it, which limit it as well."""
    group = mount / path.lstrip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(mount):
            return
        limit = _text(folder / limit_name)
        if limit.isdecimal():  # "max" is no limit
            cache = dict(line.split() for line in _text(folder / "memory.stat").splitlines()).get(inactive, "0")
            yield max(0, int(limit) - int(_text(folder / usage_name) or 0) + int(cache))


def _text(file: Path) -> str:
    """Return what a file says; nothing where the kernel has no such file, as in the outermost group."""
    return file.read_text(encoding="ascii").strip() if file.is_file() else ""
