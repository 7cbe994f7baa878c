"""Pages to input tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from dsocr_graph.workloads import PageSize, read_image, read_pdf
from dsocr_graph.workloads.errors import CorruptPageError, PageSizeError, UnknownModeError
from dsocr_graph.workloads.pixels import load_page, preprocess

PdfMaker = Callable[..., bytes]
PngMaker = Callable[..., bytes]

GREY = (127 / 255 - 0.5) / 0.5  # -1/255


def _colour(tensor: torch.Tensor) -> list[float]:
    """Return the one colour of a view, as three values."""
    first = tensor[:, 0, 0]
    assert torch.equal(tensor, first[:, None, None].expand_as(tensor))
    return first.tolist()


def test_values_run_from_minus_one_to_one() -> None:
    """(x / 255 - 0.5) / 0.5: black is -1, white 1, 51 is (0.2 - 0.5) / 0.5 = -0.6."""
    view = preprocess(Image.new("RGB", (64, 64), (0, 255, 51)), "Base").global_view
    assert view.shape == (1, 3, 1024, 1024)
    assert view.dtype == torch.float32
    assert _colour(view[0]) == pytest.approx([-1.0, 1.0, -0.6])


def test_the_global_view_is_padded_with_grey() -> None:
    """A page of 800 x 200 in 1024: 1024 x 256 in the middle, 384 rows of 127 above and below."""
    view = preprocess(Image.new("RGB", (800, 200), "white"), "Base").global_view[0]
    assert _colour(view[:, :384]) == pytest.approx([GREY] * 3)
    assert _colour(view[:, 384:640]) == pytest.approx([1.0] * 3)
    assert _colour(view[:, 640:]) == pytest.approx([GREY] * 3)


@pytest.mark.parametrize(("mode", "side"), [("Tiny", 512), ("Small", 640)])
def test_small_modes_stretch_the_page(mode: str, side: int) -> None:
    """Without crops and up to 640, the aspect ratio is lost and nothing is padded."""
    inputs = preprocess(Image.new("RGB", (800, 200), "white"), mode)
    assert inputs.global_view.shape == (1, 3, side, side)
    assert _colour(inputs.global_view[0]) == [1.0, 1.0, 1.0]
    assert inputs.local_views is None


@pytest.mark.parametrize(("mode", "side"), [("Large", 1280), ("Gundam", 1024)])
def test_other_modes_keep_the_aspect_ratio(mode: str, side: int) -> None:
    """The first row of a wide page's global view is padding."""
    view = preprocess(Image.new("RGB", (600, 200), "white"), mode).global_view
    assert view.shape == (1, 3, side, side)
    assert view[0, :, 0, 0].tolist() == pytest.approx([GREY] * 3)


def test_crops_are_row_by_row() -> None:
    """[H, W]: rows first. A page of 1280 x 1280 is 2 x 2 crops, here each of one colour."""
    page = Image.new("RGB", (1280, 1280))
    colours = {(0, 0): (255, 0, 0), (0, 1): (0, 255, 0), (1, 0): (0, 0, 255), (1, 1): (255, 255, 255)}
    for (row, column), colour in colours.items():
        page.paste(colour, (640 * column, 640 * row, 640 * column + 640, 640 * row + 640))
    views = preprocess(page).local_views
    assert views is not None
    assert views.shape == (2, 2, 3, 640, 640)
    for (row, column), colour in colours.items():
        # No resizing, so no blending at the edges: 255 is 1, 0 is -1.
        assert _colour(views[row, column]) == [value / 127.5 - 1 for value in colour]


def test_crops_are_of_a_page_stretched_to_its_grid() -> None:
    """A slide becomes 4 x 2 crops of the page resized to 2560 x 1280, bicubic; checked through numpy."""
    page = Image.linear_gradient("L").resize((1920, 1080)).convert("RGB")
    views = preprocess(page).local_views
    assert views is not None
    assert views.shape == (2, 4, 3, 640, 640)
    stretched = np.asarray(page.resize((2560, 1280), Image.Resampling.BICUBIC), dtype=np.float32)
    expected = (stretched[640:1280, 1280:1920] / 255 - 0.5) / 0.5
    np.testing.assert_allclose(views[1, 2].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_a_small_page_has_no_crops() -> None:
    """Up to 640 on both sides there is only the global view."""
    assert preprocess(Image.new("RGB", (640, 640))).local_views is None


def test_the_dtype_is_chosen_and_other_image_modes_are_taken_as_rgb() -> None:
    """The published code runs in bfloat16; a grey image has three equal channels."""
    view = preprocess(Image.new("L", (10, 10), 255), "Tiny", dtype=torch.bfloat16).global_view
    assert view.dtype == torch.bfloat16
    assert _colour(view[0]) == [1.0, 1.0, 1.0]


def test_an_unknown_mode_is_an_error() -> None:
    """Modes are those of the model."""
    with pytest.raises(UnknownModeError, match="no mode 'Giant'"):
        preprocess(Image.new("RGB", (8, 8)), "Giant")


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_a_page_is_decoded_as_it_was_measured(tmp_path: Path, suffix: str) -> None:
    """Orientation 6 turns the left column of the file into the top row of the page."""
    path = tmp_path / f"turned{suffix}"
    image = Image.new("RGB", (4, 2), "black")
    image.paste("white", (0, 0, 1, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    (page,) = read_image(path)
    pixels = load_page(page)
    assert pixels.size == (page.width, page.height) == (2, 4)
    assert [pixels.getpixel((0, row)) for row in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


def test_the_chosen_image_of_a_tiff_is_decoded(tmp_path: Path) -> None:
    """Page 2 of a TIFF is its second image."""
    path = tmp_path / "fax.tiff"
    Image.new("RGB", (4, 2), "black").save(path, save_all=True, append_images=[Image.new("RGB", (3, 5), "white")])
    pixels = load_page(read_image(path)[1])
    assert (pixels.size, pixels.getpixel((0, 0))) == ((3, 5), (255, 255, 255))


def test_a_pdf_page_is_rendered_at_its_measured_size(tmp_path: Path, make_pdf: PdfMaker) -> None:
    """612 points at 150 dpi are 1275 pixels, rendered on white."""
    path = tmp_path / "blank.pdf"
    path.write_bytes(make_pdf([(100, 100), (612, 792)]))
    pixels = load_page(read_pdf(path, dpi=150)[1])
    assert pixels.size == (1275, 1650)
    assert pixels.getextrema() == ((255, 255), (255, 255), (255, 255))


def test_a_page_without_a_file_or_too_large_to_decode_is_an_error(tmp_path: Path, make_png: PngMaker) -> None:
    """A size has no pixels, and 400,000,000 of them are the limit, which the error states."""
    with pytest.raises(PageSizeError, match="'a' has a size but no file"):
        load_page(PageSize(name="a", width=5, height=5))
    path = tmp_path / "poster.png"
    path.write_bytes(make_png(20_001, 20_000))
    (page,) = read_image(path)
    with pytest.raises(PageSizeError, match=r"of 20,001 x 20,000 has more than the 400,000,000 pixels"):
        load_page(page)


def test_damage_inside_the_pixels_shows_when_they_are_decoded(tmp_path: Path) -> None:
    """A TIFF's compressed strips are only read here; the error names the file."""
    path = tmp_path / "worn.tiff"
    Image.effect_noise((64, 64), 50).save(path, compression="tiff_deflate")
    (page,) = read_image(path)
    data = bytearray(path.read_bytes())
    with TiffImageFile(path) as image:
        (start,) = image.tag_v2[273]
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(CorruptPageError, match=r"worn\.tiff' is damaged: page 1 cannot be decoded"):
        load_page(page)
