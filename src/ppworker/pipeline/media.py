"""Finds out what a file is from its bytes, without trusting its name or decoding its content.

Any content is accepted: what cannot be measured stays None with a note, and the job that needs it
fails later with a clear reason.
"""

import codecs
import hashlib
import threading
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import puremagic
from PIL import ExifTags, Image

from ppworker.pipeline.names import extension_of
from ppworker.pipeline.signatures import EXTENSIONS, IMAGE_FORMATS, by_signature, text_type

EMPTY = "application/x-empty"
UNKNOWN = "application/octet-stream"
MAX_IMAGE_PIXELS = 178_956_970
"""Images with more pixels are not measured: decoding them would need half a gigabyte or more."""
MIN_CONFIDENCE = 0.4
"""Least confidence of a guess by puremagic: a signature of about four bytes."""

_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 8192
# Control characters that plain text files do contain: tab, line ends, form feed, escape.
_TEXT_CONTROLS = b"\t\n\x0b\x0c\r\x1b"
_OTHER_CONTROLS = bytes(set(range(32)) - set(_TEXT_CONTROLS)) + b"\x7f"
# pdfium must not be entered by two threads at once.
_pdfium_lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """Facts about a file."""

    media_type: str
    """From the bytes; the extension decides only among types of text."""
    extension: str
    """In lower case without dot: that of the name, else the usual one of the media type."""
    width: int | None = None
    """Of the image as it stands upright (EXIF orientation applied), in pixels."""
    height: int | None = None
    page_count: int | None = None
    """Of a PDF."""
    size_bytes: int
    sha256: str
    """Of the bytes, in hexadecimal."""
    note: str = ""
    """Why a size or page count is missing where one is to be expected."""


@dataclass(frozen=True, slots=True)
class _Content:
    head: bytes
    size_bytes: int
    sha256: str
    is_text: bool


def inspect(path: Path, name: str) -> Media:
    """Facts about the file, in bounded memory.

    Args:
        path: the file to read.
        name: as the client calls it.

    Raises:
        OSError: the file cannot be read. Content, however broken, raises nothing.
    """
    content = _read(path)
    extension = extension_of(name)
    media_type = _media_type(content, extension)
    width = height = page_count = None
    note = ""
    if media_type in IMAGE_FORMATS:
        width, height, note = _image_size(path, IMAGE_FORMATS[media_type])
    elif media_type == "application/pdf":
        page_count, note = _page_count(path)
    return Media(
        media_type=media_type,
        extension=extension or EXTENSIONS.get(media_type, ""),
        width=width,
        height=height,
        page_count=page_count,
        size_bytes=content.size_bytes,
        sha256=content.sha256,
        note=note,
    )


def _read(path: Path) -> _Content:
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    head, size_bytes, is_text = b"", 0, True
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            head = head or chunk[:_HEAD_BYTES]
            size_bytes += len(chunk)
            digest.update(chunk)
            is_text = is_text and _goes_on_as_text(chunk, decoder)
    if is_text:
        is_text = _goes_on_as_text(b"", decoder, final=True)
    return _Content(head, size_bytes, digest.hexdigest(), is_text)


def _goes_on_as_text(
    chunk: bytes, decoder: codecs.IncrementalDecoder, *, final: bool = False
) -> bool:
    # Deleting the forbidden bytes shortens a chunk that holds any; far faster than a loop.
    if len(chunk.translate(None, _OTHER_CONTROLS)) != len(chunk):
        return False
    try:
        decoder.decode(chunk, final)
    except UnicodeDecodeError:
        return False
    return True


def _media_type(content: _Content, extension: str) -> str:
    if content.size_bytes == 0:
        return EMPTY
    if found := by_signature(content.head):
        return found
    if content.is_text:
        return text_type(content.head, extension)
    return _guess(content.head)


def _guess(head: bytes) -> str:
    try:
        matches = puremagic.magic_string(head)
    except Exception:  # noqa: BLE001  a library that reads hostile bytes may fail in any way
        return UNKNOWN
    for match in matches:
        # Text was looked for before, by reading all of it.
        if match.confidence >= MIN_CONFIDENCE and "/" in match.mime_type:
            return UNKNOWN if match.mime_type.startswith("text/") else str(match.mime_type)
    return UNKNOWN


def _image_size(path: Path, image_format: str) -> tuple[int | None, int | None, str]:
    try:
        # Only the header is read, and only by the reader of this one format.
        with Image.open(path, formats=[image_format]) as image:
            width, height = image.size
            is_turned = _is_turned(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None, None, "too many pixels"
    except Exception as error:  # noqa: BLE001  readers of hostile bytes may fail in any way
        return None, None, f"unreadable image ({type(error).__name__})"
    if not 0 < width * height <= MAX_IMAGE_PIXELS:
        return None, None, "too many pixels" if width * height else "no pixels"
    return (height, width, "") if is_turned else (width, height, "")


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


def _page_count(path: Path) -> tuple[int | None, str]:
    if find_spec("pypdfium2") is None:
        return None, "pages not counted: pypdfium2 is not installed"
    import pypdfium2  # noqa: PLC0415  an extra, and slow to load

    with _pdfium_lock:
        try:
            document = pypdfium2.PdfDocument(path)
        except (pypdfium2.PdfiumError, ValueError) as error:
            return None, f"unreadable PDF ({error})"
        try:
            return len(document), ""
        finally:
            document.close()
