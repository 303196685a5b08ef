"""Opens images and PDF files as upright pages of RGB pixels, with limits before work."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from ppworker.errors import FileMissing, UnreadableInput, UnsupportedMedia

MEDIA_TYPES = (
    "image/png",
    "image/jpeg",
    "image/tiff",
    "image/webp",
    "image/bmp",
    "image/gif",
    "application/pdf",
)
"""What ``pages`` can open. Of an animation the first picture counts, of a TIFF every page."""

MAX_PIXELS = 50_000_000
"""Most pixels of one page; a page of A4 has 35 million at 600 dpi."""

# Only these: Pillow would hand some other kinds to programs of their own.
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
_PDF_HEAD = 1024
_PDF_PASSWORD_ERROR = 4
_POINTS_PER_INCH = 72


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page, upright; coordinates in it are what a person sees."""

    index: int
    """From 0."""
    image: Image.Image
    """RGB."""
    dpi: int | None = None
    """Resolution it was rendered with, None for images."""


def pages(
    path: Path,
    media_type: str = "",
    *,
    dpi: int = 150,
    side: int | None = None,
    max_pages: int | None = 50,
) -> Iterator[Page]:
    """The pages of a file, one in memory at a time.

    Whether it is a PDF or an image is told by its content; ``media_type`` only words the error.

    Args:
        path: the file.
        media_type: what it is said to be.
        dpi: resolution of the pages of a PDF.
        side: who needs a small picture only, of so many pixels, gets pages that are not much
            larger where that saves work; it goes before ``dpi``.
        max_pages: a file with more is refused; None for those who do not read to the end.

    Raises:
        UnreadableInput: broken, encrypted, or above a limit (code ``too_large``).
        UnsupportedMedia: neither an image of a known kind nor a PDF.
        FileMissing: the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_PDF_HEAD)
    except OSError as error:
        raise FileMissing(f"the file cannot be opened: {error.strerror}") from error
    if not head:
        raise UnreadableInput("the file is empty")
    if b"%PDF-" in head or media_type == "application/pdf":
        return _pdf_pages(path, dpi, side, max_pages)
    return _image_pages(path, media_type, side, max_pages)


def _image_pages(
    path: Path, media_type: str, side: int | None, max_pages: int | None
) -> Iterator[Page]:
    try:
        with _opened_image(path) as image:
            several = image.format == "TIFF"
            if max_pages is not None:  # no header tells: they are counted one by one
                _refuse_too_many(getattr(image, "n_frames", 1) if several else 1, max_pages)
            if side is not None:
                image.draft(None, (side, side))  # in the mode it has
            frames = ImageSequence.Iterator(image) if several else iter([image])
            for index, frame in enumerate(frames):
                _refuse_too_big(*frame.size)
                yield Page(index=index, image=_rgb(ImageOps.exif_transpose(frame)))
    except UnidentifiedImageError:
        if media_type in {"", *MEDIA_TYPES}:
            raise UnreadableInput("the image is broken: its kind cannot be recognised") from None
        raise UnsupportedMedia(f"neither an image nor a PDF: {media_type}") from None
    except Image.DecompressionBombError:
        raise _too_big() from None
    except (UnreadableInput, MemoryError):
        raise
    except Exception as error:  # decoders fail on broken data in every way there is
        raise UnreadableInput(f"the image is broken or cut short: {error}") from error


def _opened_image(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        # Our own limit is checked before a pixel is decoded.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=_FORMATS)


def _rgb(image: Image.Image) -> Image.Image:
    """On white where it is transparent, for most text is dark; 16 bits and more scaled to 8."""
    if image.mode.startswith(("I", "F")):
        low, high = image.getextrema()
        darkest, brightest = float(low), float(high)  # type: ignore[arg-type]  # one band
        scale = 255.0 / (brightest - darkest) if brightest > darkest else 0.0
        image = image.convert("F").point(lambda value: value * scale - darkest * scale)
        return image.convert("L").convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(paper, layer).convert("RGB")
    return image.convert("RGB")


def _pdf_pages(path: Path, dpi: int, side: int | None, max_pages: int | None) -> Iterator[Page]:
    import pypdfium2  # noqa: PLC0415  images need no PDF library

    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == _PDF_PASSWORD_ERROR:
            raise UnreadableInput("the PDF is encrypted: its password is not known") from None
        raise UnreadableInput(f"the PDF is broken or cut short: {error}") from error
    with contextlib.closing(document):
        count = len(document)
        if not count:
            raise UnreadableInput("the PDF has no pages")
        if max_pages is not None:
            _refuse_too_many(count, max_pages)
        if document.get_formtype():
            document.init_forms()  # or the words in the fields of a form would be missing
        for index in range(count):
            try:
                image = _rendered(document, index, dpi, side)
            except pypdfium2.PdfiumError as error:
                raise UnreadableInput(f"page {index + 1} of the PDF is broken: {error}") from error
            yield Page(index=index, image=image, dpi=None if side else dpi)


def _rendered(document: Any, index: int, dpi: int, side: int | None) -> Image.Image:
    with contextlib.closing(document[index]) as page:
        width, height = page.get_size()
        scale = dpi / _POINTS_PER_INCH if side is None else side / max(width, height, 1)
        _refuse_too_big(width * scale, height * scale)
        with contextlib.closing(page.render(scale=scale)) as bitmap:
            # A copy, for the bitmap's own memory goes with it.
            image: Image.Image = bitmap.to_pil().convert("RGB").copy()
        return image


def _refuse_too_many(count: int, max_pages: int) -> None:
    if count > max_pages:
        raise UnreadableInput(
            f"the document has {count} pages, more than runner_config.max_pages ({max_pages})",
            code="too_large",
        )


def _refuse_too_big(width: float, height: float) -> None:
    if width * height > MAX_PIXELS:
        raise _too_big(f": {width:.0f} x {height:.0f}")


def _too_big(size: str = "") -> UnreadableInput:
    return UnreadableInput(
        f"the page has too many pixels{size}, above the limit of {MAX_PIXELS}", code="too_large"
    )
