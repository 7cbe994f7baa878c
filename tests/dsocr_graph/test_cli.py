"""The command line: one clear message for a mistake, an exit status, and artefacts that are whole or untouched."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dsocr_graph import analyze, pipeline
from dsocr_graph.cli import main

Command = Callable[..., Any]
Refused = Callable[..., str]
TINY_PAGE = 'mode = "Tiny"\nnew_tokens = 3\npages = [{name = "a", width = 640, height = 640}]\n'


def _earlier(folder: Path) -> dict[str, bytes]:
    """Put artefacts of an earlier run into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"model.json": b"{}", "report.md": b"earlier", "graph.onnx": b"\x00"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a runner of the command line in this process: exit status, stdout, stderr."""

    def run_it(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # how argparse ends
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run_it


@pytest.fixture
def refused(run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Return a runner of `analyze` that must refuse before it captures anything, and returns its message."""
    out = tmp_path / "earlier"
    files = _earlier(out)

    def captured(*_: object, **__: object) -> None:
        raise AssertionError("the mistake was found only after the capture began")

    def run_it(*arguments: object) -> str:
        monkeypatch.setattr(pipeline, "compile_model", captured)
        status, stdout, err = run("analyze", "--out", out, *arguments)
        assert status == 2
        assert stdout == ""
        assert err.count("error: ") == 1
        assert "Traceback" not in err
        assert _bytes(out) == files
        return err.partition("error: ")[2]

    return run_it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no-such"], "unknown model 'no-such'; known models: deepseek-ocr"),
        (["--device", "no-such"], "no-such.*(known|are|choose).*H100"),
        (["--mode", "Gundamm"], "no mode 'Gundamm'; did you mean 'Gundam'"),
        (["--dtype", "bf17"], "bf17.*did you mean 'bf16'"),
        (["--dtype", ""], "dtype is ''.*bf16, fp16, fp32"),
        (["--attention", "sdpaa"], "attention 'sdpaa' is not supported; choose one of sdpa, eager, flash_attention_2"),
        (["--workload", "dsocr-standard-v0"], "dsocr-standard-v0.*dsocr-standard-v1"),
        (["--workload", "no-such.toml"], "no profile file 'no-such.toml'; check the path"),
        (["--batch", "0"], r"batch.* is 0; expected a whole number from 1 to 4,096"),
        (["--batch", "-3"], r"batch.* is -3; expected a whole number from 1 to 4,096"),
        (["--batch", "1000000000"], r"batch.* is 1,000,000,000; expected a whole number from 1 to 4,096"),
        (["--batch", "9" * 4000], "batch.* is a number of 13,288 bits; expected a whole number from 1 to 4,096"),
        (["--batch", "1.5"], "argument --batch: '1.5' is no whole number"),
        (["--batch", "9" * 5000], "argument --batch: '9+' is no whole number"),
        (["--new-tokens", "0"], r"new.tokens.* is 0; expected a whole number from 1 to 8,192"),
        (["--new-tokens", "-1"], r"new.tokens.* is -1; expected a whole number from 1 to 8,192"),
        (["--new-tokens", "8192"], "8,192"),
        (["--new-tokens", "many"], "'many' in the lengths 'many' is no whole number of tokens"),
        (["--image", "no-such.png"], "no page file 'no-such.png'; check the path"),
        (["--pdf", "."], "'.' is a directory; name the page files in it one by one"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_wrong_option_gives_one_message(refused: Refused, arguments: list[str], message: str) -> None:
    """Unknown names list the known ones, numbers say their range; nothing is captured or written."""
    assert re.search(message, refused(*arguments), re.DOTALL | re.IGNORECASE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'bathc = 2\npages = [{name = "a", width = 1, height = 1}]',
            "unknown workload key 'bathc'; did you mean 'batch'",
        ),
        (
            'pages = [{name = "a", width = 1, hieght = 1}]',
            "unknown key of a page with width 'hieght'; did you mean 'height'",
        ),
        (
            'pages = [{name = "a", width = -5, height = 1}]',
            "width in pixels of page 'a' is -5; expected .* 1 to 65,535",
        ),
        ('pages = [{name = "a", width = 1, height = 70000}]', "height .* is 70,000; expected a whole number from 1 to"),
        ('pages = [{name = "a", width = 1e9, height = 1}]', r"width .* is 1000000000.0 \(float\)"),
        ("pages = []", "no pages"),
        ("pages = [", "is not valid TOML"),
        ('pages = [{image = "gone.png"}]', "gone.png"),
        ('dtype = "int3"\npages = [{name = "a", width = 1, height = 1}]', "dtype is 'int3'"),
        ("", "no pages; add pages = "),
    ],
)
def test_a_wrong_profile_gives_one_message(refused: Refused, tmp_path: Path, text: str, message: str) -> None:
    """The message names the file, the key and what is allowed; sizes have a stated limit."""
    profile = tmp_path / "mine.toml"
    profile.write_text(text)
    said = refused("--workload", profile)
    assert re.search(message, said), said
    assert "mine.toml" in said


def _page_file(makers: ModuleType, kind: str) -> bytes:
    whole = makers._png(64, 64)
    pdf = makers._pdf([(612, 792)])
    return {
        "cut": whole[:-12],
        "flipped": whole[:45] + bytes([whole[45] ^ 1]) + whole[46:],
        "empty": b"",
        "text": b"hello, I am no page",
        "half a PDF": pdf[: len(pdf) // 2],
        "garbled PDF": b"%PDF-1.4\n" + b"\xff" * 300 + b"%%EOF\n",
        "locked": makers._pdf([(612, 792)], encrypted="password"),
        "PNG": whole,
        "PDF": pdf,
    }[kind]


@pytest.mark.parametrize(
    ("flag", "name", "kind", "message"),
    [
        ("--image", "a.png", "cut", "is damaged: the PNG is cut short"),
        ("--image", "a.png", "flipped", "is damaged: the checksum of a b'IDAT' chunk is wrong"),
        ("--image", "a.png", "empty", r"is empty \(0 bytes\); copy or export it again"),
        ("--image", "a.jpg", "text", "is named as a JPEG but does not begin as one"),
        ("--image", "a.doc", "text", "is of no known type .*Known types: PNG, JPEG, TIFF, PDF"),
        ("--image", "a.pdf", "PDF", "is a PDF, not an image.*Give it as a PDF"),
        ("--pdf", "a.png", "PNG", "is a PNG image, not a PDF. Give it as an image"),
        ("--pdf", "a.pdf", "empty", r"is empty \(0 bytes\)"),
        ("--pdf", "a.pdf", "half a PDF", "is damaged: the PDF is cut short"),
        ("--pdf", "a.pdf", "garbled PDF", "is damaged: no pages can be read from the PDF"),
        ("--pdf", "a.pdf", "locked", "is an encrypted PDF that asks for a password; save a copy without one"),
    ],
)
def test_a_bad_file_gives_one_message(
    refused: Refused, page_makers: ModuleType, tmp_path: Path, *, flag: str, name: str, kind: str, message: str
) -> None:
    """The file is named with what is wrong and what to do."""
    path = tmp_path / name
    path.write_bytes(_page_file(page_makers, kind))
    said = refused(flag, path)
    assert re.search(message, said, re.DOTALL), said
    assert name in said


def test_one_bad_file_of_several_stops_the_run(refused: Refused, page_makers: ModuleType, tmp_path: Path) -> None:
    """A good page before the bad one is not reported alone."""
    (tmp_path / "good.png").write_bytes(page_makers._png(64, 64))
    (tmp_path / "bad.pdf").write_bytes(b"")
    assert "bad.pdf" in refused("--image", tmp_path / "good.png", "--pdf", tmp_path / "bad.pdf")


def test_files_and_a_profile_together_are_refused(refused: Refused) -> None:
    """Pages have one source; the message says which options exclude each other."""
    said = refused("--image", "a.png", "--workload", "dsocr-standard-v1")
    assert said == "pages come from --workload or from --image, --pdf and --page, not from both; leave one out\n"


@pytest.fixture
def toy(toy_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the arguments that analyze a toy model on one small page, with a cache of its own."""
    toy_model()
    monkeypatch.setenv("DSOCR_GRAPH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "page.toml").write_text(TINY_PAGE)
    return ["analyze", "--model", "toy", "--workload", str(tmp_path / "page.toml")]


def test_a_run_shows_progress_and_a_summary(toy: list[str], run: Command, tmp_path: Path) -> None:
    """Progress goes to stderr with the seconds, the summary and the files to stdout, and the status is 0."""
    status, out, err = run(*toy, "--out", tmp_path / "new" / "deeper")
    assert status == 0
    assert re.match(r"\[ +\d+\.\d s\] building toy", err)
    assert "workload page: 1 documents" in out or "workload page: 1 document" in out
    listed = [line for line in out.splitlines() if line.startswith(str(tmp_path))]
    assert sorted(listed) == sorted(str(path) for path in (tmp_path / "new" / "deeper").iterdir())
    assert len(listed) == 6


def test_default_output_is_named_after_the_model(
    toy: list[str], run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --out the standard run goes to graphs/MODEL, and pages of one's own leave that folder alone."""
    monkeypatch.chdir(tmp_path)
    assert run("analyze", "--model", "toy")[0] == 0
    standard = _bytes(tmp_path / "graphs" / "toy")
    assert json.loads(standard["report.json"])["workload"] == "dsocr-standard-v1"
    assert run(*toy)[0] == 0
    assert json.loads((tmp_path / "graphs" / "toy-custom" / "report.json").read_text())["workload"] == "page"
    assert _bytes(tmp_path / "graphs" / "toy") == standard


def test_device_none_leaves_times_out(toy: list[str], run: Command, tmp_path: Path) -> None:
    """--device none reports work and bytes without a prediction."""
    assert run(*toy, "--device", "none", "--out", tmp_path / "out")[0] == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["prediction"] is None


def test_a_device_adds_times(toy: list[str], run: Command, tmp_path: Path) -> None:
    """--device puts a prediction, labelled as a roofline, into the report."""
    _, names, _ = run("devices")
    device = names.split()[0]
    assert run(*toy, "--device", device, "--out", tmp_path / "out")[0] == 0
    prediction = json.loads((tmp_path / "out" / "report.json").read_text())["prediction"]
    assert prediction["device"]["key"] == device
    assert "roofline" in prediction["method"]


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_an_output_that_is_a_file_is_refused(toy: list[str], run: Command, tmp_path: Path, below: str) -> None:
    """A file where the directory, or one above it, should be is named and left alone."""
    taken = tmp_path / "taken"
    taken.write_text("mine")
    status, out, err = run(*toy, "--out", taken / below)
    assert status == 2
    assert out == ""
    assert f"{taken} is a file, not a directory" in err
    assert "Traceback" not in err
    assert taken.read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that takes no directories")
def test_an_output_that_cannot_be_made_is_refused(toy: list[str], run: Command) -> None:
    """Where the system lets nobody make a directory, root included, the message says so."""
    status, out, err = run(*toy, "--out", "/proc/graphs")
    assert (status, out) == (2, "")
    assert "error: cannot write to /proc/graphs: " in err
    assert "choose another output directory" in err or "choose an output directory" in err


def test_a_full_disk_leaves_earlier_artefacts(
    toy: list[str], run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while the last artefact is written takes the others back."""
    out = tmp_path / "out"
    files = _earlier(out)
    real = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if "graph.onnx" in self.name:
            raise OSError(28, os.strerror(28))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    status, stdout, err = run(*toy, "--out", out)
    assert (status, stdout) == (2, "")
    assert "no space left on device; earlier files are as they were" in err
    assert _bytes(out) == files


def test_an_operator_without_a_rule_is_named(
    toy: list[str], toy_model: Callable[..., Any], run: Command, tmp_path: Path
) -> None:
    """The message lists operator, count and module and the two ways out; nothing is written.

    Each of the four stages calls airy_ai once.
    """
    import torch

    toy_model(torch.special.airy_ai)
    out = tmp_path / "out"
    files = _earlier(out)
    status, stdout, err = run(*toy, "--out", out)
    assert (status, stdout) == (2, "")
    assert err.partition("error: ")[2] == (
        "no lowering for 1 op:\n  aten::special_airy_ai  x4, first in (root)\n"
        'add a rule: a function with @dsocr_graph.lowering.lowers("NAME"), in dsocr_graph/lowering/ or in the file of '
        "your model; or run with --allow-unclassified to report them with their bytes and without FLOPs\n"
    )
    assert _bytes(out) == files


def test_allow_unclassified_reports_the_bytes(
    toy: list[str], toy_model: Callable[..., Any], run: Command, tmp_path: Path
) -> None:
    """With the flag the operator is in the coverage, with bytes and without FLOPs.

    airy_ai reads and writes 2 fp32 elements a row, 16 bytes: 15 rows of the one view, 83 of the prefill, and 83 + 84 of
    the two decode steps make 265 rows and 4,240 bytes, in four calls.
    """
    import torch

    toy_model(torch.special.airy_ai)
    assert run(*toy, "--out", tmp_path / "out", "--allow-unclassified")[0] == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["coverage"]["unclassified"] == {"calls": 4, "flops": 0, "bytes": 4240}
    assert report["total"]["categories"]["unclassified"]["bytes"] == 4240


def test_a_damaged_cache_entry_is_built_again(toy: list[str], run: Command, tmp_path: Path) -> None:
    """A flipped byte in the cache costs a capture, never a wrong report; the entry is whole afterwards."""
    assert run(*toy, "--out", tmp_path / "first")[0] == 0
    (entry,) = (tmp_path / "cache").iterdir()
    content = (entry / "model.json").read_bytes()
    (entry / "model.json").write_bytes(content.replace(b"1", b"2", 1))
    status, _, err = run(*toy, "--out", tmp_path / "second")
    assert status == 0
    assert "building toy" in err
    assert _bytes(tmp_path / "second") == _bytes(tmp_path / "first")
    assert (entry / "model.json").read_bytes() == content


def test_an_unwritable_cache_is_said_with_the_way_out(
    toy: list[str], run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on; what is said names the directory, the variable and --no-cache."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DSOCR_GRAPH_CACHE", str(tmp_path / "file"))
    status, _, err = run(*toy, "--out", tmp_path / "out")
    assert status == 0
    assert re.search(
        r"not cached: the cache directory .*file cannot be written .*DSOCR_GRAPH_CACHE, or pass --no-cache", err
    )
    assert len(list((tmp_path / "out").iterdir())) == 6
    assert "not cached" not in run(*toy, "--out", tmp_path / "out", "--no-cache")[2]


def test_300_pages_and_a_page_of_20000_pixels_work(
    standard_run: Any, python: Command, page_makers: ModuleType, tmp_path: Path
) -> None:
    """The full-size model on a 300-page PDF and a 20,000x20,000 image, warm: 301 items, and no pixel is decoded.

    Every page of 595x842 points is 1190x1684 at 144 dpi, rounded up. One such page costs what each other one does.
    """
    (tmp_path / "long.pdf").write_bytes(page_makers._pdf([(595, 842)] * 300))
    (tmp_path / "wide.png").write_bytes(page_makers._png(20_000, 20_000))
    pages = ["--pdf", "long.pdf", "--image", "wide.png", "--new-tokens", "100"]
    start = time.monotonic()
    result = python(
        "-m", "dsocr_graph.analyze", *pages, "--out", "out", cwd=tmp_path, DSOCR_GRAPH_CACHE=str(standard_run.cache)
    )
    assert result.returncode == 0, result.stderr
    assert "found in the cache" in result.stderr
    assert time.monotonic() - start < 60  # seconds; 2 on an idle machine
    items = json.loads((tmp_path / "out" / "report.json").read_text())["items"]
    sizes = [(item["facts"]["width"], item["facts"]["height"]) for item in items]
    assert sizes == [(20_000, 20_000)] + [(1190, 1684)] * 300
    assert len({item["breakdown"]["total"]["flops"] for item in items[1:]}) == 1


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is a signal")
def test_ctrl_c_during_the_capture_leaves_everything_as_it_was(
    process_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """SIGINT while the full-size model is captured: one line, status 130, no artefact, no cache entry."""
    files = _earlier(tmp_path / "out")
    # A shell that runs the tests in its background has them ignore SIGINT, which what they start would inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "dsocr_graph.analyze", "--out", "out"],
        cwd=tmp_path,
        env=process_environment(DSOCR_GRAPH_CACHE=str(tmp_path / "cache")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    with process:
        assert process.stderr is not None
        assert any("capturing vision_global" in line for line in iter(process.stderr.readline, ""))
        time.sleep(0.5)  # into the export itself
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines() == ["dsocr-graph: interrupted; no artefact was changed"]
    assert out == ""
    assert _bytes(tmp_path / "out") == files
    assert not (tmp_path / "cache").exists()


def test_a_process_ends_with_a_message_and_status_2(python: Command, tmp_path: Path) -> None:
    """Through the real entry: no traceback, nothing on stdout, nothing written, no heavy import to wait for."""
    result = python("-m", "dsocr_graph.analyze", "--device", "abacus", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("dsocr-graph: error: ")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_is_no_error(
    process_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """Output into a closed pipe, as `head` leaves it, ends quietly with the status of a broken pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from dsocr_graph.cli import main; sys.exit(main(['devices']))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=process_environment(PYTHONUNBUFFERED=""),  # output is held back until the end, as users have it
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


def test_help_names_every_option(run: Command) -> None:
    """Every parameter of analyze_model that a command line can give has its flag in --help; the status is 0."""
    import inspect

    status, out, _ = run("analyze", "--help")
    assert status == 0
    parameters = set(inspect.signature(pipeline.analyze_model).parameters) - {
        "progress",
        "cache",
        "inputs",
        "dims",
        "what_if",
    }
    assert [name for name in parameters if f"--{name.replace('_', '-')}" not in out] == []
    assert "--no-cache" in out


def test_help_lists_the_commands(run: Command) -> None:
    """Without a command there is a message with the status 2; --help lists the commands."""
    assert run()[0] == 2
    status, out, _ = run("--help")
    assert status == 0
    assert all(command in out for command in ("analyze", "models", "devices"))


def test_models_and_devices_are_listed(run: Command) -> None:
    """Both lists go to stdout, one entry per line; models say where they come from."""
    status, out, _ = run("models")
    assert status == 0
    assert out.startswith("deepseek-ocr  DeepSeek-OCR")
    assert "source: " in out
    status, out, _ = run("devices")
    assert status == 0
    assert len(out.splitlines()) > 3


def test_the_module_is_the_analyze_command(toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m dsocr_graph.analyze ARGUMENTS` is `dsocr-graph analyze ARGUMENTS`."""
    assert analyze.main([*toy[1:], "--out", str(tmp_path / "a")]) == 0
    assert main([*toy, "--out", str(tmp_path / "b")]) == 0
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")
    assert capsys.readouterr().out.count("report.md") == 2
