"""Artefacts are written all together or not at all."""

import errno
import os
from pathlib import Path

import pytest

from dsocr_graph.emit.files import require_writable, write_artefacts
from dsocr_graph.errors import DsocrGraphError, OutputError


def listing(directory: Path) -> dict[str, str]:
    """Return the files below a directory with their content."""
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_text_bytes_and_functions_are_written_in_order(tmp_path: Path) -> None:
    """Text goes out as UTF-8 with its line ends as they are, bytes as they are, functions by what they return."""
    target = tmp_path / "new" / "deeper"
    paths = write_artefacts(target, {"a.md": "1 µs\n", "b.bin": b"\x00\r\n", "c.json": lambda: "{}"})
    assert [path.name for path in paths] == ["a.md", "b.bin", "c.json"]
    assert [path.read_bytes() for path in paths] == [b"1 \xc2\xb5s\n", b"\x00\r\n", b"{}"]
    assert sorted(path.name for path in target.iterdir()) == ["a.md", "b.bin", "c.json"]


def test_earlier_files_are_replaced_not_written_into(tmp_path: Path) -> None:
    """Somebody who has an earlier artefact open goes on reading the earlier one, whole."""
    write_artefacts(tmp_path, {"a.txt": "first"})
    with (tmp_path / "a.txt").open() as held:
        write_artefacts(tmp_path, {"a.txt": "second"})
        assert held.read() == "first"
    assert listing(tmp_path) == {"a.txt": "second"}


def test_files_have_the_rights_of_any_new_file(tmp_path: Path) -> None:
    """Artefacts are as readable as the umask says, not private as temporary files often are."""
    before = os.umask(0o022)
    try:
        (path,) = write_artefacts(tmp_path, {"a.txt": "x"})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [RuntimeError("no such rule"), KeyboardInterrupt(), FileNotFoundError(2, "x", "/y")])
def test_an_error_half_way_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    """When the second of two files cannot be made, neither is written, and the error comes through as it is."""
    write_artefacts(tmp_path, {"a.txt": "old a", "b.txt": "old b"})

    def fail() -> str:
        raise error

    with pytest.raises(type(error)) as raised:
        write_artefacts(tmp_path, {"a.txt": "new a", "b.txt": fail})
    assert raised.value is error
    assert listing(tmp_path) == {"a.txt": "old a", "b.txt": "old b"}


def test_directories_made_for_nothing_are_taken_away(tmp_path: Path) -> None:
    """A failed run leaves no empty directories behind, and takes away none that it did not make."""
    (tmp_path / "mine").mkdir()

    def fail() -> str:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_artefacts(tmp_path / "mine" / "new" / "deeper", {"a.txt": "x", "b.txt": fail})
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    """An output directory that is a file, or lies below one, is refused by name; the file stays."""
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OutputError) as raised:
        write_artefacts(tmp_path / "taken" / below, {"a.txt": "x"})
    assert f"{tmp_path / 'taken'} is a file, not a directory" in str(raised.value)
    assert listing(tmp_path) == {"taken": "mine"}


def test_a_directory_in_place_of_a_file_is_found_before_anything_is_renamed(tmp_path: Path) -> None:
    """When one name is taken by a directory, the other artefacts stay the earlier ones."""
    write_artefacts(tmp_path, {"a.txt": "old"})
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(OutputError, match=r"b\.txt is a directory, not a file"):
        write_artefacts(tmp_path, {"a.txt": "new", "b.txt": "new"})
    assert listing(tmp_path) == {"a.txt": "old"}


@pytest.mark.parametrize(
    ("number", "named", "said"),
    [
        (errno.EACCES, True, "permission denied"),
        (errno.EROFS, True, "read-only file system"),
        (errno.ENOSPC, False, "no space left on device; earlier files are as they were"),
        (errno.ENAMETOOLONG, True, "File name too long"),
    ],
)
def test_what_the_system_refuses_is_said_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, named: bool, said: str
) -> None:
    """A refused or full disk is an OutputError with where and why; the file that was complete is taken away too."""
    write = Path.write_bytes

    def refuse(path: Path, content: bytes) -> int:
        if path.name.startswith(".b"):
            write(path, content[:1])  # as a full disk does: the file is there, cut off
            raise OSError(number, os.strerror(number), *([str(path)] if named else []))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OutputError) as raised:
        write_artefacts(tmp_path, {"a.txt": "new", "b.txt": "new"})
    assert said in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert isinstance(raised.value, DsocrGraphError)
    assert isinstance(raised.value, OSError)
    assert listing(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_directory_without_write_permission_is_refused(tmp_path: Path) -> None:
    """A directory that may not be written to is said to be so."""
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="permission denied"):
        write_artefacts(tmp_path, {"a.txt": "x"})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b.txt", "../a.txt", "/tmp/a.txt"])
def test_only_plain_file_names_are_taken(tmp_path: Path, name: str) -> None:
    """A name that leads elsewhere is refused before anything is written."""
    with pytest.raises(ValueError, match="no plain file name"):
        write_artefacts(tmp_path / "new", {"a.txt": "x", name: "x"})
    assert not (tmp_path / "new").exists()


# --- before the work


def test_a_file_that_can_be_written_leaves_no_trace_of_the_trial(tmp_path: Path) -> None:
    """No directory is made, and a file that is there stays as it is."""
    (tmp_path / "there.txt").write_text("mine")
    require_writable(tmp_path / "there.txt")
    require_writable(tmp_path / "new" / "deeper" / "a.txt")
    assert [path.name for path in tmp_path.rglob("*")] == ["there.txt"]
    assert listing(tmp_path) == {"there.txt": "mine"}


@pytest.mark.parametrize("name", ["", ".", "..", "new/.."])
def test_a_directory_is_no_file_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A path that leads to a directory, there or not, is refused with what to give."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="it is a directory; give the name of a file"):
        require_writable(name)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_trial_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot be written to: the directories that were made for the trial go again."""

    def refuse(path: Path, _content: bytes) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OutputError, match=r"read-only file system: .*choose an output directory you may write to"):
        require_writable(tmp_path / "new" / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_the_directory_is_named_before_the_work(tmp_path: Path) -> None:
    """As it is when the files are written."""
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OutputError, match="taken is a file, not a directory"):
        require_writable(tmp_path / "taken" / "a.txt")
