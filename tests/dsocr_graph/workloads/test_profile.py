"""Workload profiles: the shipped one, TOML files, files of pages, overrides and mistakes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dsocr_graph.workloads import (
    PageSize,
    Profile,
    available_profiles,
    load_profile,
    override,
    profile_from_images,
    profile_from_pages,
    profile_from_pdf,
)
from dsocr_graph.workloads.errors import (
    ContextTooLongError,
    InvalidProfileError,
    PageFileNotFoundError,
    PageFileUnreadableError,
    PageSizeError,
    UnknownModeError,
    UnknownProfileError,
    WorkloadError,
)

PdfMaker = Callable[..., bytes]
Loader = Callable[[str], Profile]

PAGE = '{name = "a", width = 640, height = 480, new_tokens = 5}'


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    """Return a function that loads a profile from TOML text."""

    def load_text(text: str) -> Profile:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return load_profile(path)

    return load_text


def test_the_standard_profile_is_as_published() -> None:
    """Mode, dtype, batch, prompt and the five pages of dsocr-standard-v1."""
    profile = load_profile("dsocr-standard-v1")
    assert (profile.name, profile.mode.name, profile.dtype, profile.batch) == (
        "dsocr-standard-v1",
        "Gundam",
        "bf16",
        1,
    )
    assert (profile.mode.base_size, profile.mode.image_size, profile.greedy) == (1024, 640, True)
    assert profile.prompt == "<image>\n<|grounding|>Convert the document to markdown."
    assert profile.prompt_tokens == 10
    pages = [(p.page.name, p.page.width, p.page.height, p.new_tokens) for p in profile.pages]
    assert pages == [
        ("letter", 1275, 1650, 1100),
        ("a4", 1654, 2339, 900),
        ("slide", 1920, 1080, 400),
        ("receipt", 600, 1800, 250),
        ("figure", 640, 480, 120),
    ]
    assert available_profiles() == ("dsocr-standard-v1",)


def test_what_a_file_leaves_out_is_as_in_the_standard_profile(load: Loader) -> None:
    """A file with pages alone is a profile named after the file."""
    profile = load("pages = [{name = 'a', width = 100, height = 200}]")
    standard = load_profile("dsocr-standard-v1")
    assert profile.name == "mine"
    assert profile.pages[0].new_tokens == 1100
    for key in ("mode", "dtype", "batch", "prompt", "prompt_tokens", "greedy", "new_tokens"):
        assert getattr(profile, key) == getattr(standard, key)


def test_a_file_may_state_everything(load: Loader) -> None:
    """Every key of a profile is taken."""
    profile = load(
        f"""
        name = "invoices"
        mode = "base"
        dtype = "fp32"
        batch = 8
        greedy = true
        prompt = "<image>\\nFree OCR."
        prompt_tokens = 5
        new_tokens = 64
        pages = [{PAGE}, {{name = "b", width = 1, height = 65535}}]
        """
    )
    assert (profile.name, profile.mode.name, profile.dtype, profile.batch) == ("invoices", "Base", "fp32", 8)
    assert (profile.prompt, profile.prompt_tokens) == ("<image>\nFree OCR.", 5)
    assert [entry.new_tokens for entry in profile.pages] == [5, 64]


def test_files_are_found_beside_the_profile(tmp_path: Path, make_pdf: PdfMaker) -> None:
    """Paths of images and PDFs are relative to the TOML file, not to where the program runs."""
    folder = tmp_path / "job"
    (folder / "scans").mkdir(parents=True)
    Image.new("L", (70, 40)).save(folder / "scans" / "one.png")
    Image.new("L", (30, 40)).save(folder / "two.tif", save_all=True, append_images=[Image.new("L", (31, 40))])
    (folder / "doc.pdf").write_bytes(make_pdf([(72, 144), (100, 100), (200, 100)]))
    (folder / "job.toml").write_text(
        """
        new_tokens = 9
        [[pages]]
        image = "scans/one.png"
        [[pages]]
        image = "two.tif"
        name = "fax"
        new_tokens = 7
        [[pages]]
        pdf = "doc.pdf"
        page_range = "1,3"
        dpi = 36
        """
    )
    profile = load_profile(str(folder / "job.toml"))
    pages = [(p.page.name, p.page.width, p.page.height, p.new_tokens) for p in profile.pages]
    assert pages == [
        ("one", 70, 40, 9),
        ("fax-p1", 30, 40, 7),
        ("fax-p2", 31, 40, 7),
        ("doc-p1", 36, 72, 9),
        ("doc-p3", 100, 50, 9),
    ]


def test_images_become_a_profile(tmp_path: Path) -> None:
    """Pages of one name from two folders are kept apart; the rest is as in the standard profile."""
    paths = [tmp_path / "a" / "page.png", tmp_path / "b" / "page.png"]
    for path in paths:
        path.parent.mkdir()
        Image.new("L", (70, 40)).save(path)
    profile = profile_from_images(paths, batch=2, mode="tiny", dtype="fp32", new_tokens=3)
    assert [entry.page.name for entry in profile.pages] == ["page", "page-2"]
    assert (profile.name, profile.batch, profile.mode.name, profile.dtype) == ("images", 2, "Tiny", "fp32")
    assert {entry.new_tokens for entry in profile.pages} == {3}
    assert profile_from_images(paths[:1]).name == "page"
    assert profile_from_images(paths[:1]).pages[0].new_tokens == 1100


def test_a_pdf_becomes_a_profile(tmp_path: Path, make_pdf: PdfMaker) -> None:
    """A PDF's chosen pages at a resolution."""
    path = tmp_path / "doc.pdf"
    path.write_bytes(make_pdf([(72, 144), (100, 100), (200, 100)]))
    profile = profile_from_pdf(path, page_range="2-", dpi=72, new_tokens=4)
    pages = [(p.page.name, p.page.width, p.page.height) for p in profile.pages]
    assert (profile.name, pages) == ("doc", [("doc-p2", 100, 100), ("doc-p3", 200, 100)])


def test_no_pages_is_an_error() -> None:
    """A profile without pages runs nothing."""
    with pytest.raises(InvalidProfileError, match="has no pages"):
        profile_from_images([])
    with pytest.raises(InvalidProfileError, match="expected a list of files"):
        profile_from_images("page.png")


def test_overrides_replace_values_of_all_pages() -> None:
    """None leaves a value; the profile that was given stays as it was."""
    standard = load_profile("dsocr-standard-v1")
    changed = override(standard, new_tokens=7, batch=3, mode="Large", dtype="fp32")
    assert {entry.new_tokens for entry in changed.pages} == {7}
    assert (changed.batch, changed.mode.name, changed.dtype) == (3, "Large", "fp32")
    assert override(standard) == standard == load_profile("dsocr-standard-v1")


BAD_COUNTS = [0, -1, 10**9, 1.5, float("nan"), True, "3"]


@pytest.mark.parametrize("bad", BAD_COUNTS)
@pytest.mark.parametrize("key", ["new_tokens", "batch"])
def test_counts_out_of_range_are_refused(key: str, bad: object) -> None:
    """Batch and new tokens are whole numbers from 1; the error names the limit."""
    limit = {"new_tokens": "8,192", "batch": "4,096"}[key]
    with pytest.raises(InvalidProfileError, match=rf"{key}.* is .*; expected a whole number from 1 to {limit}"):
        load_profile("dsocr-standard-v1", **{key: bad})


def test_an_unknown_dtype_or_mode_lists_the_known_ones() -> None:
    """The message names what would work."""
    with pytest.raises(InvalidProfileError, match=r"dtype is 'int7'; .*Known: bf16, fp16, fp32, fp8"):
        load_profile("dsocr-standard-v1", dtype="int7")
    with pytest.raises(UnknownModeError, match=r"no mode 'huge'; Known: Tiny, Small, Base, Large, Gundam"):
        load_profile("dsocr-standard-v1", mode="huge")


def test_the_context_is_limited_to_the_models_positions() -> None:
    """283 context tokens leave room for 8,192 - 283 = 7,909 new ones, and not for one more."""
    page = PageSize(name="figure", width=640, height=480)
    assert profile_from_pages([page], name="x", new_tokens=7909).pages[0].new_tokens == 7909
    with pytest.raises(
        ContextTooLongError,
        match=r"page 'figure' needs 8,193 tokens \(273 of the image, 10 of the prompt, 7,910 new\), "
        r"over the model's 8,192 positions; ask for at most 7,909 new tokens",
    ):
        profile_from_pages([page], name="x", new_tokens=7910)


def test_a_prompt_longer_than_the_context_is_refused(load: Loader) -> None:
    """8,000 prompt tokens leave no room beside 273 image tokens."""
    text = f'prompt = "<image> long"\nprompt_tokens = 8000\npages = [{PAGE}]'
    with pytest.raises(ContextTooLongError, match="shorten the prompt"):
        load(text)


def test_an_unknown_profile_lists_the_known_ones() -> None:
    """A near miss is suggested; KeyError is what a caller expects."""
    with pytest.raises(UnknownProfileError, match=r"^no workload profile 'dsocr-standard'; did you mean") as caught:
        load_profile("dsocr-standard")
    assert isinstance(caught.value, KeyError)
    with pytest.raises(UnknownProfileError, match="Known: dsocr-standard-v1"):
        load_profile("x" * 5000)


def test_a_missing_or_unreadable_profile_file_is_an_error(tmp_path: Path) -> None:
    """A path without a profile says so."""
    with pytest.raises(PageFileNotFoundError, match=r"no profile file .*none\.toml"):
        load_profile(str(tmp_path / "none.toml"))
    with pytest.raises(PageFileUnreadableError, match="is a directory; name the profile files"):
        load_profile(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidProfileError, match=r"binary\.toml' is not valid TOML"):
        load_profile(binary)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pages = [", "is not valid TOML"),
        ("", "no pages; add pages"),
        ("pages = []", "has no pages"),
        ("pages = 5", r"pages is 5 \(int\); expected a list"),
        ("pages = [5]", r"page 1 is 5 \(int\); expected a table"),
        (
            f"pages = [{PAGE}]\nbathc = 3",
            r"unknown workload key 'bathc'; did you mean 'batch'\? Known: name, mode",
        ),
        (f"pages = [{PAGE}]\nx = 3\ny = 4", r"unknown workload key 'x', 'y'"),
        (f"pages = [{PAGE}, {PAGE}]", r"two pages called 'a'; give one another name"),
        (f"pages = [{PAGE}]\nmode = 3", r"mode is 3; expected text"),
        (f"pages = [{PAGE}]\nmode = 'Giant'", r"no mode 'Giant'"),
        (f"pages = [{PAGE}]\ndtype = 'int8'", r"dtype is 'int8'"),
        (f"pages = [{PAGE}]\ndtype = ['bf16']", r"dtype is \['bf16'\]"),
        (f"pages = [{PAGE}]\nbatch = 0", r"batch is 0"),
        (f"pages = [{PAGE}]\nbatch = 0x{'f' * 5000}", r"batch is a number of 20,000 bits; expected"),
        (f"pages = [{PAGE}]\nbatch = {'9' * 5000}", r"is not valid TOML"),
        (f"pages = {'[' * 100_000}", r"is not valid TOML"),
        (f"pages = [{PAGE}]\nbatch = true", r"batch is True \(bool\)"),
        (f"pages = [{PAGE}]\nbatch = nan", r"batch is nan \(float\)"),
        (f"pages = [{PAGE}]\nname = 5", r"name is 5 \(int\)"),
        (f"pages = [{PAGE}]\nname = ''", r"name is '' \(str\); expected text that is not blank"),
        (f"pages = [{PAGE}]\ngreedy = false", r"greedy is False; only greedy decoding"),
        (f"pages = [{PAGE}]\ngreedy = 1", r"greedy is 1; only greedy decoding"),
        (f"pages = [{PAGE}]\nnew_tokens = -4", r"new_tokens is -4"),
        (f"pages = [{PAGE}]\nprompt_tokens = 0", r"prompt_tokens is 0"),
        (f"pages = [{PAGE}]\nprompt = '<image> hi'", r"prompt without prompt_tokens; add its count"),
        (f"pages = [{PAGE}]\nprompt = 5\nprompt_tokens = 5", r"prompt is 5 \(int\); expected text"),
        (f"pages = [{PAGE}]\nprompt = 'hi'\nprompt_tokens = 5", r"with 0 of <image>; put it in once"),
        ("pages = [{name = 'a', width = 5}]", r"page 1 has no height"),
        ("pages = [{width = 5, height = 5}]", r"page 1 has no name"),
        ("pages = [{}]", r"page 1 has no name, width, height"),
        (
            "pages = [{name = 'a', widht = 5}]",
            r"unknown key of a page with width 'widht'; did you mean 'width'",
        ),
        ("pages = [{image = 'a.png', dpi = 5}]", r"page 1: unknown key of a page with image 'dpi'"),
        ("pages = [{image = 'a.png', pdf = 'b.pdf'}]", r"unknown key of a page with image 'pdf'"),
        ("pages = [{image = 5}]", r"page 1: image = 5 and name = None; expected text for both"),
        ("pages = [{pdf = 'a.pdf', name = 5}]", r"expected text for both"),
        (
            "pages = [{name = 'a', width = 5, height = 5, new_tokens = 1.0}]",
            r"new_tokens of page 'a' is 1\.0",
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_clear_message(load: Loader, text: str, message: str) -> None:
    """Each mistake says what is wrong in which file, on one line."""
    with pytest.raises(WorkloadError, match=message) as caught:
        load(text)
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InvalidProfileError | UnknownModeError)


@pytest.mark.parametrize("side", ["0", "-5", "65536", "1e3", "nan", "true", "'640'"])
def test_a_page_size_in_a_file_is_a_whole_number_in_range(load: Loader, side: str) -> None:
    """Sides that are no sides name the file, the page and the limit."""
    with pytest.raises(PageSizeError, match=r"mine\.toml: height in pixels of page 'a' is .* from 1 to 65,535"):
        load(f"pages = [{{name = 'a', width = 5, height = {side}}}]")


@pytest.mark.parametrize("form", ["image", "pdf"])
def test_a_file_that_a_profile_names_has_to_exist(load: Loader, form: str) -> None:
    """The error names the path."""
    with pytest.raises(PageFileNotFoundError, match=r"gone\.bin"):
        load(f"pages = [{{{form} = 'gone.bin'}}]")


def test_the_standard_workload_is_bound_without_heavy_imports() -> None:
    """Loading and binding a profile imports no torch, and no reader of images or PDFs."""
    script = (
        "import sys\n"
        "from dsocr_graph.workloads import bind_profile, load_profile\n"
        "assert len(bind_profile(load_profile('dsocr-standard-v1')).items) == 5\n"
        "heavy = ('torch', 'PIL', 'pypdfium2', 'numpy', 'networkx')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
