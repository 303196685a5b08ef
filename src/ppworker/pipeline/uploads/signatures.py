"""Table of the first bytes by which kinds of files are known."""

from ppworker.domain.post_processor import TEXT_DOCUMENTS

EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/bmp": "bmp",
    "image/tiff": "tif",
    "image/avif": "avif",
    "image/heic": "heic",
    "image/x-icon": "ico",
    "image/svg+xml": "svg",
    "application/pdf": "pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/msword": "doc",
    "application/zip": "zip",
    "application/gzip": "gz",
    "audio/wav": "wav",
    "audio/mpeg": "mp3",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
    "audio/mp4": "m4a",
    "audio/aac": "aac",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/x-msvideo": "avi",
    "video/x-matroska": "mkv",
    "video/webm": "webm",
    "text/plain": "txt",
    "text/html": "html",
    "text/xml": "xml",
}
"""Usual extension of a media type, for files without one."""

_PREFIXES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"II+\x00", "image/tiff"),
    (b"MM\x00+", "image/tiff"),
    (b"\x00\x00\x01\x00", "image/x-icon"),
    (b"%PDF-", "application/pdf"),
    (b"ID3\x02", "audio/mpeg"),
    (b"ID3\x03", "audio/mpeg"),
    (b"ID3\x04", "audio/mpeg"),
    (b"fLaC", "audio/flac"),
    (b"\x1f\x8b\x08", "application/gzip"),
    (b"\xfd7zXZ\x00", "application/x-xz"),
    (b"BZh91AY&SY", "application/x-bzip2"),
    (b"\x28\xb5\x2f\xfd", "application/zstd"),
    (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (b"Rar!\x1a\x07", "application/vnd.rar"),
    (b"\x7fELF", "application/x-elf"),
    (b"SQLite format 3\x00", "application/vnd.sqlite3"),
)

_RIFF = {b"WAVE": "audio/wav", b"WEBP": "image/webp", b"AVI ": "video/x-msvideo"}

_BRANDS = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heif",
    b"M4A ": "audio/mp4",
    b"M4B ": "audio/mp4",
    b"qt  ": "video/quicktime",
}
"""Major brands of ISO media files; every other is taken for MP4 video."""

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""Container of the old office formats, and of new ones that are locked by a password."""

_DOCX, _DOC = TEXT_DOCUMENTS
_OLE_TYPES = {
    "docx": _DOCX,
    "xls": "application/vnd.ms-excel",
    "ppt": "application/vnd.ms-powerpoint",
    "msg": "application/vnd.ms-outlook",
    "msi": "application/x-msi",
}

_OFFICE = (
    (b"word/", _DOCX),
    (b"xl/", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    (b"ppt/", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
)

_TEXT_BY_EXTENSION = {
    "css": "text/css",
    "csv": "text/csv",
    "htm": "text/html",
    "html": "text/html",
    "js": "text/javascript",
    "json": "application/json",
    "jsonl": "application/x-ndjson",
    "md": "text/markdown",
    "ndjson": "application/x-ndjson",
    "py": "text/x-python",
    "srt": "application/x-subrip",
    "toml": "application/toml",
    "tsv": "text/tab-separated-values",
    "vtt": "text/vtt",
    "xml": "text/xml",
    "yaml": "application/yaml",
    "yml": "application/yaml",
}


def by_signature(head: bytes, tail: bytes = b"") -> str | None:
    """Media type of a file that begins and ends with these bytes, None where the table knows none.

    The last bytes of a ZIP file name what is in it, in whatever order it was written.
    """
    for prefix, media_type in _PREFIXES:
        if head.startswith(prefix):
            return media_type
    return _by_container(head, tail) or _by_weak_signature(head)


def ole_type(extension: str) -> str:
    """Media type of a file that begins with `OLE`: what is in it only its extension tells."""
    return _OLE_TYPES.get(extension, _DOC)


def _by_container(head: bytes, tail: bytes) -> str | None:
    """Kinds whose first bytes name a container, and later ones what is in it."""
    if head.startswith(b"RIFF"):
        return _RIFF.get(head[8:12])
    if head.startswith(b"OggS"):
        return "video/ogg" if b"theora" in head[:512] else "audio/ogg"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "video/webm" if b"webm" in head[:64] else "video/x-matroska"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_type(head, tail)
    return None


def text_type(head: bytes, extension: str) -> str:
    """Media type of bytes known to be text; its beginning is a sign stronger than the extension."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:512].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "text/html"
    if start.startswith((b"<svg", b"<?xml", b"<!--")) and b"<svg" in head.lower():
        return "image/svg+xml"
    if start.startswith(b"<?xml"):
        return "text/xml"
    return _TEXT_BY_EXTENSION.get(extension, "text/plain")


def _zip_type(head: bytes, tail: bytes) -> str:
    # Documents of the OpenDocument family and EPUB name their type in a first, unpacked entry.
    if head[30:38] == b"mimetype":
        declared = head[38 : 38 + int.from_bytes(head[18:22], "little")]
        if declared.isascii() and len(declared) < 100 and declared.count(b"/") == 1:  # noqa: PLR2004
            return declared.decode("ascii").strip()
    names = head + tail
    if b"[Content_Types].xml" in names:
        for folder, media_type in _OFFICE:
            if folder in names:
                return media_type
    return "application/zip"


def _by_weak_signature(head: bytes) -> str | None:
    """Short signatures, each held against another sign, since chance meets two bytes easily."""
    if head.startswith(b"BM") and head[6:10] == b"\x00\x00\x00\x00" and head[15:18] == bytes(3):
        return "image/bmp"
    if len(head) > 2 and head[0] == 0xFF:  # noqa: PLR2004
        if head[1] & 0xF6 == 0xF0:  # noqa: PLR2004  sync word of ADTS, layer 0
            return "audio/aac"
        if head[1] & 0xE6 == 0xE2 and head[2] >> 4 not in {0, 15}:  # noqa: PLR2004  MPEG layer III
            return "audio/mpeg"
    return None
