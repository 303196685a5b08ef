"""Measures images and counts pages without decoding a pixel."""

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

FORMATS = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/gif": "GIF",
    "image/webp": "WEBP",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
    "image/avif": "AVIF",
    "image/x-icon": "ICO",
}
"""Media types of images that can be measured, with Pillow's name of the format."""

PDF = "application/pdf"

MAX_PIXELS = 178_956_970
"""Images with more pixels are not measured: decoding them would need half a gigabyte or more."""
MAX_PAGES = 10_000
"""Pages of an image that are counted; one with more has no page count."""

_COUNT_S = 5.0


def measure(path: Path, image_format: str) -> dict[str, Any]:
    """Size of the upright image, pages of a TIFF; or a note that says why not. Raises nothing."""
    try:
        # Only the header is read, and only by the reader of this one format.
        with Image.open(path, formats=[image_format]) as image:
            width, height = image.size
            is_turned = _is_turned(image)
            if not 0 < width * height <= MAX_PIXELS:
                return {"note": "too many pixels" if width * height else "no pixels"}
            pages = _pages_of(image) if image_format == "TIFF" else {}
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return {"note": "too many pixels"}
    except Exception as error:  # noqa: BLE001  readers of hostile bytes may fail in any way
        return {"note": f"unreadable image ({type(error).__name__})"}
    if is_turned:
        width, height = height, width
    return {"width": width, "height": height, **pages}


def count_pages(path: Path) -> dict[str, Any]:
    """Pages of a PDF, or a note that says why they are not counted."""
    if find_spec("pypdfium2") is None:
        return {"note": "pages not counted: pypdfium2 is not installed"}
    import pypdfium2  # noqa: PLC0415  an extra, and slow to load

    try:
        document = pypdfium2.PdfDocument(path)
    except (pypdfium2.PdfiumError, ValueError) as error:
        return {"note": f"unreadable PDF ({error})"}
    try:
        return {"page_count": len(document)}
    finally:
        document.close()


def _pages_of(image: Image.Image) -> dict[str, Any]:
    """How many pages there are: by walking from one to the next, for no header counts them."""
    count = 1
    until = time.monotonic() + _COUNT_S
    try:
        while count <= MAX_PAGES and time.monotonic() < until:
            image.seek(count)
            count += 1
    except EOFError:
        return {"page_count": count}
    except Exception as error:  # noqa: BLE001  as above; the first page may be read nevertheless
        return {"note": f"page {count + 1} is unreadable ({type(error).__name__})"}
    return {"note": "too many pages"}


def _is_turned(image: Image.Image) -> bool:
    """Whether the upright image has width and height exchanged."""
    if image.format == "TIFF":
        return False  # Pillow gives the upright size of these itself
    try:
        # The method of the base class: that of PNG would decode the whole image first.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  broken EXIF data does not make the image unreadable
        return False
    return orientation in {5, 6, 7, 8}
