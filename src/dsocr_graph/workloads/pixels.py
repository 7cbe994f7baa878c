"""Pages to input tensors, as the published preprocessing makes them; the only file here with torch."""

from __future__ import annotations

from typing import Any

import torch
from attrs import field, frozen
from PIL import Image, ImageOps

from dsocr_graph.workloads.errors import CorruptPageError, PageSizeError
from dsocr_graph.workloads.image_files import DECODER_ERRORS, opened_image
from dsocr_graph.workloads.limits import MAX_DECODED_PIXELS
from dsocr_graph.workloads.modes import Mode, mode_named
from dsocr_graph.workloads.pages import PageSize, open_pdf
from dsocr_graph.workloads.tiling import CROP_SIZE, tile

PAD_COLOR = (127, 127, 127)  # the published mean of 0.5 times 255, cut to an int
MEAN = 0.5
STD = 0.5
_STRETCH_UP_TO = 640  # pixels; in modes without crops, images of this size and less lose their aspect ratio


@frozen(kw_only=True, eq=False)
class PixelInputs:
    """The model's view of one page."""

    global_view: torch.Tensor  # [1, 3, base, base]
    local_views: torch.Tensor | None = field(default=None)  # [H, W, 3, 640, 640]; None when the page is not cropped


def load_page(page: PageSize) -> Image.Image:
    """Return the pixels of a page as RGB, orientation applied; a PDF page is rendered on white.

    Parameters
    ----------
    page
        A page with a source, as `read_image` and `read_pdf` return it.

    Raises
    ------
    PageSizeError
        A page without a source, or one of more than 400,000,000 pixels.
    CorruptPageError
        Pixels that cannot be decoded.
    WorkloadError
        A file that can no longer be read.
    """
    if page.source is None:
        raise PageSizeError(f"page {page.name!r} has a size but no file; read it from an image or a PDF")
    if page.width * page.height > MAX_DECODED_PIXELS:
        raise PageSizeError(
            f"page {page.name!r} of {page.width:,} x {page.height:,} has more than the "
            f"{MAX_DECODED_PIXELS:,} pixels that are decoded; scale it down, or use its size alone"
        )
    return _rendered(page) if page.source.dpi is not None else _decoded(page)


def preprocess(image: Image.Image, mode: str | Mode = "Gundam", *, dtype: torch.dtype = torch.float32) -> PixelInputs:
    """Return the global view and the local crops of a page.

    The global view keeps the page's aspect ratio and is padded with grey to a square; in Tiny and Small the
    page is stretched to it. Cropped pages are stretched to their grid and cut row by row. Resizing is
    bicubic. Values are (x / 255 - 0.5) / 0.5.

    Parameters
    ----------
    image
        The page, any mode of Pillow; it is taken as RGB.
    mode
        Tiny, Small, Base, Large or Gundam.
    dtype
        Type of the tensors; the published code runs in bfloat16.

    Returns
    -------
    PixelInputs
        global_view [1, 3, base, base]; local_views [H, W, 3, 640, 640] or None.

    Raises
    ------
    UnknownModeError, PageSizeError
        No such mode, or a side out of range.

    Examples
    --------
    A page twice as wide as high is cropped 2 x 1; its global view has grey bars above and below.

    >>> inputs = preprocess(Image.new("RGB", (800, 400), "white"))
    >>> inputs.global_view.shape, inputs.local_views.shape
    (torch.Size([1, 3, 1024, 1024]), torch.Size([1, 2, 3, 640, 640]))
    >>> [round(inputs.global_view[0, 0, row, 512].item(), 3) for row in (0, 512)]
    [-0.004, 1.0]
    """
    chosen = mode if isinstance(mode, Mode) else mode_named(mode)
    page = image.convert("RGB")
    tiling = tile(page.width, page.height, chosen)
    square = (chosen.base_size, chosen.base_size)
    whole = page
    if not chosen.crop and chosen.image_size <= _STRETCH_UP_TO:
        whole = page.resize((chosen.image_size, chosen.image_size), Image.Resampling.BICUBIC)
    padded = ImageOps.pad(whole, square, Image.Resampling.BICUBIC, color=PAD_COLOR)
    global_view = _normalised(padded, dtype)[None]
    if not tiling.views:
        return PixelInputs(global_view=global_view)
    grid = page.resize((CROP_SIZE * tiling.columns, CROP_SIZE * tiling.rows), Image.Resampling.BICUBIC)
    crops = [
        _normalised(grid.crop((left, top, left + CROP_SIZE, top + CROP_SIZE)), dtype)
        for top in range(0, grid.height, CROP_SIZE)
        for left in range(0, grid.width, CROP_SIZE)
    ]
    local_views = torch.stack(crops).unflatten(0, (tiling.rows, tiling.columns))
    return PixelInputs(global_view=global_view, local_views=local_views)


def _normalised(image: Image.Image, dtype: torch.dtype) -> torch.Tensor:
    """Return [3, height, width]: RGB scaled to 0..1, less the mean, over the deviation."""
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    pixels = values.view(image.height, image.width, 3).permute(2, 0, 1)
    return (pixels.to(torch.float32).div(255).sub(MEAN).div(STD)).to(dtype).contiguous()


def _decoded(page: PageSize) -> Image.Image:
    assert page.source is not None
    path = page.source.path
    with opened_image(path) as (image, _):
        try:
            image.seek(page.source.index)
            return ImageOps.exif_transpose(image).convert("RGB")
        except DECODER_ERRORS as error:
            raise CorruptPageError(
                f"{str(path)!r} is damaged: page {page.source.index + 1} cannot be decoded ({error}). "
                "Copy or export it again."
            ) from error


def _rendered(page: PageSize) -> Image.Image:
    import pypdfium2
    from pypdfium2 import raw

    assert page.source is not None
    assert page.source.dpi is not None
    path = page.source.path
    document = open_pdf(path)
    try:
        pdf_page: Any = document[page.source.index]
        # Not page.render, which rounds by its own rule: the size that the token counts were made from holds.
        bitmap = pypdfium2.PdfBitmap.new_native(page.width, page.height, raw.FPDFBitmap_BGR)
        bitmap.fill_rect((255, 255, 255, 255), 0, 0, page.width, page.height)
        raw.FPDF_RenderPageBitmap(bitmap, pdf_page, 0, 0, page.width, page.height, 0, raw.FPDF_ANNOT)
        return bitmap.to_pil().convert("RGB")
    except pypdfium2.PdfiumError as error:
        raise CorruptPageError(
            f"{str(path)!r} is damaged: page {page.source.index + 1} cannot be rendered. Export it again."
        ) from error
    finally:
        document.close()
