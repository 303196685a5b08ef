"""Finds out what a file is from its bytes, without trusting its name or decoding its content.

Any content is accepted: what cannot be measured stays None with a note, and the job that needs it
fails later with a clear reason. Sounds, documents and all but plain images are looked into in a
process of their own (`ppworker.runners.inspector`), for which several files share an `Inspection`.
"""

import codecs
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import puremagic

from ppworker.domain.post_processor import TEXT_DOCUMENTS
from ppworker.errors import RunnerError
from ppworker.pipeline.uploads.names import extension_of
from ppworker.pipeline.uploads.signatures import (
    EXTENSIONS,
    OLE,
    by_signature,
    ole_type,
    text_type,
)
from ppworker.runners import inspector, pictures, word
from ppworker.runners.base import RunnerInput
from ppworker.runners.inspector import Inspection

EMPTY = "application/x-empty"
UNKNOWN = "application/octet-stream"
MIN_CONFIDENCE = 0.4
"""Least confidence of a guess by puremagic: a signature of about four bytes."""

_PLAIN_BYTES = 16 * 1024 * 1024
"""Most bytes of an image that is measured here: some readers hold all of it, twice."""
_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 8192
_TAIL_BYTES = 65_536
# Control characters that plain text files do contain: tab, line ends, form feed, escape.
_TEXT_CONTROLS = b"\t\n\x0b\x0c\r\x1b"
_OTHER_CONTROLS = bytes(set(range(32)) - set(_TEXT_CONTROLS)) + b"\x7f"


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
    """Of a PDF or a TIFF."""
    duration_s: float | None = None
    """Of the sound, or of the sound of a video."""
    text: str | None = None
    """Of a document whose text is not its bytes."""
    is_text_too_long: bool = False
    """Whether that text was not taken because it is longer than allowed."""
    size_bytes: int
    sha256: str
    """Of the bytes, in hexadecimal."""
    note: str = ""
    """Why a size, page count, duration or text is missing where one is to be expected."""


@dataclass(frozen=True, slots=True)
class _Content:
    head: bytes
    tail: bytes
    size_bytes: int
    sha256: str
    is_text: bool


def type_of(path: Path, name: str) -> str:
    """Media type of the file alone.

    Raises:
        OSError: the file cannot be read.
    """
    return _media_type(_read(path), extension_of(name))


def inspect(path: Path, name: str, look_into: Inspection) -> Media:
    """Facts about the file, in bounded memory.

    Args:
        path: the file to read.
        name: as the client calls it.
        look_into: for what is not to be trusted with this process.

    Raises:
        OSError: the file cannot be read. Content, however broken, raises nothing.
    """
    content = _read(path)
    extension = extension_of(name)
    media_type = _media_type(content, extension)
    facts: dict[str, Any] = {}
    if _is_plain_image(media_type, content.size_bytes):
        facts = pictures.measure(path, pictures.FORMATS[media_type])
    elif media_type in inspector.MEDIA_TYPES:
        facts = _inner_facts(path, media_type, look_into)
    media_type = facts.pop("media_type", media_type)
    return Media(
        media_type=media_type,
        extension=extension or EXTENSIONS.get(media_type, ""),
        size_bytes=content.size_bytes,
        sha256=content.sha256,
        **facts,
    )


def _read(path: Path) -> _Content:
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    head, tail, size_bytes, is_text = b"", b"", 0, True
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            head = head or chunk[:_HEAD_BYTES]
            tail = (tail + chunk)[-_TAIL_BYTES:]
            size_bytes += len(chunk)
            digest.update(chunk)
            is_text = is_text and _goes_on_as_text(chunk, decoder)
    if is_text:
        is_text = _goes_on_as_text(b"", decoder, final=True)
    return _Content(head, tail, size_bytes, digest.hexdigest(), is_text)


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
    if found := by_signature(content.head, content.tail):
        return found
    if content.head.startswith(OLE):
        return ole_type(extension)
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


def _is_plain_image(media_type: str, size_bytes: int) -> bool:
    """Whether measuring it costs next to nothing, whatever it holds.

    A TIFF leads its reader from table to table, for as long as it likes.
    """
    return (
        media_type in pictures.FORMATS and media_type != "image/tiff" and size_bytes <= _PLAIN_BYTES
    )


def _inner_facts(path: Path, media_type: str, look_into: Inspection) -> dict[str, Any]:
    found = look_into.look(RunnerInput(key="", media_type=media_type, path=path))
    if isinstance(found, RunnerError):
        is_document = media_type in TEXT_DOCUMENTS
        return {
            "note": str(found),
            "is_text_too_long": is_document and found.code == word.TEXT_TOO_LONG,
        }
    return _sound_facts(media_type, found.raw) if "duration_s" in found.raw else dict(found.raw)


def _sound_facts(media_type: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    # The same container serves sounds and videos; only what is in it tells.
    is_sound = media_type == "video/mp4" and not raw["has_video"]
    facts = {"duration_s": raw["duration_s"]}
    return facts | ({"media_type": "audio/mp4"} if is_sound else {})
