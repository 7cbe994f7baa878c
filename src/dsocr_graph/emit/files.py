"""Writing files: refused before the work that fills them, or all written under temporary names and then renamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dsocr_graph.errors import OutputError

Content = bytes | str
Artefact = Content | Callable[[], Content]
"""The content of a file, or a function that makes it; text is written as UTF-8."""


def require_writable(path: str | Path) -> None:
    """Refuse a file that cannot be written, before the work that is to fill it.

    It is tried: the directory and an empty file under a temporary name are made and taken away again.

    Parameters
    ----------
    path : str or Path
        The file; it and its directory need not be there.

    Raises
    ------
    OutputError
        When the path names a directory, or the directory cannot be made or written to.

    Examples
    --------
    >>> require_writable("no/such/directory/yet.json")
    >>> Path("no").exists()
    False
    >>> require_writable(".")
    Traceback (most recent call last):
    dsocr_graph.errors.OutputError: cannot write '.': it is a directory; give the name of a file
    """
    target = Path(path)
    if target.name in {"", ".."} or target.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: it is a directory; give the name of a file")
    made: list[Path] = []
    probe = _temporary(target)
    try:
        _make_directory(target.parent, made)
        probe.write_bytes(b"")
    except OSError as error:
        raise OutputError(_message(error, target.parent)) from error
    finally:
        _take_away([probe], made)


def write_artefacts(directory: str | Path, artefacts: Mapping[str, Artefact]) -> tuple[Path, ...]:
    """Write some files into a directory, all of them or none.

    Every file is written under a temporary name in the directory; only when the last is complete are they renamed,
    in order. Whatever ends the writing before that, an error or Ctrl-C, leaves earlier files as they were and takes
    temporary files and new directories away. A rename replaces an earlier file in one step.

    Parameters
    ----------
    directory : str or Path
        Where to; it and its parents are made if missing.
    artefacts : mapping of str to bytes, str or callable
        Plain file names and their content. A callable is called when its turn comes.

    Returns
    -------
    tuple of Path
        The files, in order.

    Raises
    ------
    OutputError
        When the directory cannot be made or written to, or a name is taken by a directory.
    ValueError
        When a name is no plain file name.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as top:
    ...     (path,) = write_artefacts(f"{top}/new/deeper", {"a.txt": lambda: "one line"})
    ...     path.read_text(encoding="utf-8")
    'one line'
    """
    target = Path(directory)
    for name in artefacts:
        if not name or name in {".", ".."} or Path(name).name != name:
            raise ValueError(f"{name!r} is no plain file name; artefacts go straight into one directory")
    made: list[Path] = []
    temporary: dict[Path, Path] = {}  # temporary -> final
    try:
        _make_directory(target, made)
        for name, artefact in artefacts.items():
            final = target / name
            if final.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
            content = artefact() if callable(artefact) else artefact
            partial = _temporary(final)
            temporary[partial] = final
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
        for partial, final in temporary.items():
            partial.replace(final)
    except BaseException as error:
        _take_away(temporary, made)
        # An OSError of a callable is its own affair: it says what it could not read.
        if isinstance(error, OSError) and not isinstance(error, OutputError) and _is_ours(error, target):
            raise OutputError(_message(error, target)) from error
        raise
    return tuple(temporary.values())


def _temporary(final: Path) -> Path:
    return final.with_name(f".{final.name}.{os.getpid()}.tmp")


def _take_away(files: Iterable[Path], directories: Sequence[Path]) -> None:
    """Remove files, and directories that were made one in the other."""
    for file in files:
        with suppress(OSError):
            file.unlink(missing_ok=True)
    for directory in reversed(directories):
        with suppress(OSError):
            directory.rmdir()


def _make_directory(target: Path, made: list[Path]) -> None:
    missing: list[Path] = []
    level = target
    while not level.exists() and level != level.parent:
        missing.append(level)
        level = level.parent
    if not level.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(level))
    for level in reversed(missing):
        level.mkdir(exist_ok=True)
        made.append(level)


def _is_ours(error: OSError, target: Path) -> bool:
    """Whether an error is about the directory, one of its parents or a file in it."""
    if error.filename is None:
        return error.errno in _SPACE  # a write names no file
    path = Path(str(error.filename))
    return path == target or path in target.parents or path.parent == target


_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def _message(error: OSError, target: Path) -> str:
    where = f"cannot write to {target}"
    culprit = error.filename
    if error.errno in {errno.ENOTDIR, errno.EEXIST}:
        return f"{where}: {culprit} is a file, not a directory; move it away, or choose another output directory"
    if error.errno == errno.EISDIR:
        return f"{where}: {culprit} is a directory, not a file; move it away, or choose another output directory"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        reason = os.strerror(error.errno).lower()
        return f"{where}: {reason}: {culprit}; choose an output directory you may write to"
    if error.errno in _SPACE:
        reason = os.strerror(error.errno or errno.EIO).lower()
        return f"{where}: {reason}; earlier files are as they were. Make room, or choose an output directory elsewhere"
    return f"{where}: {error.strerror or error}; choose another output directory"
