"""A careful writer of zip archives that can stop after any member and go on in another process.

Python's own keeps every entry in memory until the end, and cannot go on. Here the directory and
what is gathered for the last members lie in files beside the archive, so that memory is bounded,
and a few sizes say all that must be known to go on.
"""

import hashlib
import io
import os
import shutil
import struct
import unicodedata
import zlib
from array import array
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

_BLOCK = 256 * 1024
_MOST_PART = 120
"""Characters of one part of a member's name; three of them still make a path."""
_MOST_ENDING = 16
_STORED, _DEFLATED = 0, 8
_UTF8 = 0x800
_DATE = 0x21
"""The first of January 1980: equal content makes equal bytes."""
_LARGE = 0xFFFF_FFFF
_MANY = 0xFFFF
_BEHIND = "\n"
"""Marks the second part of a member; no name has it."""
_SURELY_SMALL = _LARGE - (1 << 24)
_MODE = 0o100644 << 16
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s4B4H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_PACKED = frozenset(
    {"jpg", "jpeg", "png", "gif", "webp", "avif", "heic", "zip", "gz", "mp3", "mp4", "m4a", "ogg",
     "flac", "mov", "mkv", "webm", "docx", "pdf"}
)  # fmt: skip
"""Endings of what does not become smaller."""
_FORBIDDEN = frozenset('<>:"/\\|?*')
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"})
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))}
)


class ArchiveWriter:
    """Writes a zip file: names are cleaned and made unique, equal content makes equal bytes.

    Args:
        out: the archive, open to be read and written, at its end.
        folder: where the parts lie that are not in the archive yet; by default one that goes with
            this writer, from which nobody can go on.

    Close it or discard it.
    """

    def __init__(self, out: BinaryIO, folder: Path | None = None) -> None:
        self._open = ExitStack()
        if folder is None:
            folder = Path(self._open.enter_context(TemporaryDirectory(prefix="ppworker-archive-")))
        self._out = out
        self._folder = folder
        self._entries = 0
        self._directory = self._part("directory")
        self._names = self._part("names")
        self._taken: set[int] = set()
        self._next: dict[str, int] = {}
        self._spools: dict[str, BinaryIO] = {}

    def reserve(self, *parts: str) -> str:
        """The name that a member in these folders may have: each part cleaned, no other has it.

        ``reserve("train", "cat", "a.jpg")`` is ``train/cat/a.jpg``, or ``train/cat/a-2.jpg`` where
        that is taken.
        """
        folder = ""
        for part in parts[:-1]:
            folder += self._free(folder, clean_part(part), "file") + "/"
            self._take("folder", folder[:-1])
        name = folder + self._free(folder, clean_part(parts[-1]), "file", "folder")
        self._take("file", name)
        return name

    def has(self, name: str) -> bool:
        """Whether a member of exactly that name, case apart, was reserved."""
        return self._is_taken(name, ("file",))

    def add(self, name: str, content: bytes | str | BinaryIO) -> None:
        """Write a member at once; its name is one that ``reserve`` gave."""
        if isinstance(content, str):
            content = content.encode("utf-8", "replace")
        source = io.BytesIO(content) if isinstance(content, bytes) else content
        size = source.seek(0, io.SEEK_END)
        source.seek(0)
        is_packed = name.rpartition(".")[2].lower() in _PACKED or size > _SURELY_SMALL
        method = _STORED if is_packed or not size else _DEFLATED
        offset = self._out.seek(0, io.SEEK_END)
        encoded = name.encode()
        is_large = size > _SURELY_SMALL
        self._out.write(_local(encoded, method, is_large=is_large))
        crc, packed, size = self._copy(source, method)
        end = self._out.tell()
        self._out.seek(offset)
        self._out.write(_local(encoded, method, crc, packed, size, is_large=is_large))
        self._out.seek(end)
        self._directory.write(_entry(encoded, method, crc, packed, size, offset))
        self._entries += 1

    def append(self, name: str, text: str, *, is_behind: bool = False) -> None:
        """Add text to the end of a member that is written when the archive is closed.

        Its name is one that ``reserve`` gave. Kept on the disk, so it may grow long.

        Args:
            name: of the member.
            text: what is added.
            is_behind: to a second part of the member, which stands behind all of the first.
        """
        key = name + _BEHIND if is_behind else name
        if key not in self._spools:
            self._spools[key] = self._part(f"spool-{len(self._spools)}")
            _cut(self._spools[key], 0)  # of what a chunk that died left in it
        self._spools[key].write(text.encode("utf-8", "replace"))

    def checkpoint(self) -> dict[str, Any]:
        """What ``restore`` must be told to go on from here, as plain values; all before it is on
        the disk."""
        sizes = {}
        for file in (self._out, self._directory, self._names, *self._spools.values()):
            file.flush()
            os.fsync(file.fileno())
        for name, file in self._spools.items():
            sizes[name] = file.tell()
        return {
            "out": self._out.seek(0, io.SEEK_END),
            "directory": self._directory.tell(),
            "names": self._names.tell(),
            "entries": self._entries,
            "spools": sizes,
        }

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of another writer with the same files.

        Raises:
            EOFError: a file is shorter than it was then.
        """
        _cut(self._out, checkpoint["out"])
        _cut(self._directory, checkpoint["directory"])
        _cut(self._names, checkpoint["names"])
        self._entries = checkpoint["entries"]
        for name, size in checkpoint["spools"].items():
            self._spools[name] = self._part(f"spool-{len(self._spools)}")
            _cut(self._spools[name], size)
        self._names.seek(0)
        self._taken = set(array("Q", self._names.read()))

    def close(self) -> None:
        """Write what was appended, and the directory."""
        for name, spool in self._spools.items():
            if name.endswith(_BEHIND):
                spool.seek(0)
                shutil.copyfileobj(spool, self._spools[name.removesuffix(_BEHIND)], _BLOCK)
        for name, spool in self._spools.items():
            if not name.endswith(_BEHIND):
                self.add(name, spool)
        start = self._out.seek(0, io.SEEK_END)
        size = self._directory.tell()
        self._directory.seek(0)
        shutil.copyfileobj(self._directory, self._out, _BLOCK)
        self._out.write(_end(self._entries, start, size))
        self._out.flush()
        self.discard()

    def discard(self) -> None:
        """Close the parts; the archive is not finished by this writer."""
        self._open.close()

    def _part(self, name: str) -> BinaryIO:
        path = self._folder / name
        path.touch()
        file = self._open.enter_context(path.open("r+b"))
        file.seek(0, io.SEEK_END)
        return file

    def _copy(self, source: BinaryIO, method: int) -> tuple[int, int, int]:
        crc = packed = size = 0
        pack = zlib.compressobj(6, zlib.DEFLATED, -15) if method == _DEFLATED else None
        while block := source.read(_BLOCK):
            crc = zlib.crc32(block, crc)
            size += len(block)
            made = block if pack is None else pack.compress(block)
            packed += self._out.write(made)
        if pack is not None:
            packed += self._out.write(pack.flush())
        return crc, packed, size

    def _free(self, folder: str, wanted: str, *kinds: str) -> str:
        """The name, or the first numbered one that nobody has."""
        if not self._is_taken(folder + wanted, kinds):
            return wanted
        stem, dot, ending = wanted.rpartition(".")
        if not stem:
            stem, dot, ending = wanted, "", ""
        number = self._next.get(folder + wanted, 2)
        while self._is_taken(f"{folder}{stem}-{number}{dot}{ending}", kinds):
            number += 1
        self._next[folder + wanted] = number + 1
        return f"{stem}-{number}{dot}{ending}"

    def _is_taken(self, name: str, kinds: tuple[str, ...]) -> bool:
        return any(_number(kind, name) in self._taken for kind in kinds)

    def _take(self, kind: str, name: str) -> None:
        number = _number(kind, name)
        if number not in self._taken:
            self._taken.add(number)
            self._names.write(array("Q", [number]).tobytes())


def clean_part(part: str) -> str:
    """One part of a member's name, such that every system can make a file of it."""
    kept = "".join(
        "_" if character in _FORBIDDEN else character
        for character in part
        if unicodedata.category(character) not in _INVISIBLE
    )
    kept = kept.strip(" ").rstrip(". ") or "_"
    if len(kept) > _MOST_PART:
        stem, dot, ending = kept.rpartition(".")
        tail = dot + ending if stem and len(ending) <= _MOST_ENDING else ""
        kept = kept[: _MOST_PART - len(tail)].rstrip(". ") + tail
    return "_" + kept if kept.partition(".")[0].lower() in _RESERVED else kept


def _number(kind: str, name: str) -> int:
    """A name as a number: case apart, so that no system takes two names for one."""
    form = unicodedata.normalize("NFC", name).casefold()
    digest = hashlib.blake2b(f"{kind}:{form}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _cut(file: BinaryIO, size: int) -> None:
    if file.seek(0, io.SEEK_END) < size:
        raise EOFError
    file.truncate(size)
    file.seek(size)


def _local(
    name: bytes, method: int, crc: int = 0, packed: int = 0, size: int = 0, *, is_large: bool
) -> bytes:
    extra = struct.pack("<2H2Q", 1, 16, size, packed) if is_large else b""
    if is_large:
        packed = size = _LARGE
    version = 45 if is_large else 20
    return (
        _LOCAL.pack(
            b"PK\x03\x04", version, _UTF8, method, 0, _DATE, crc, packed, size, len(name),
            len(extra),
        )
        + name
        + extra
    )  # fmt: skip


def _entry(name: bytes, method: int, crc: int, packed: int, size: int, offset: int) -> bytes:
    wide = [value for value in (size, packed, offset) if value >= _LARGE]
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    size, packed, offset = (min(value, _LARGE) for value in (size, packed, offset))
    version = 45 if wide else 20
    return (
        _ENTRY.pack(
            b"PK\x01\x02", version, 3, version, 0, _UTF8, method, 0, _DATE, crc, packed, size,
            len(name), len(extra), 0, 0, 0, _MODE, offset,
        )
        + name
        + extra
    )  # fmt: skip


def _end(entries: int, start: int, size: int) -> bytes:
    made = b""
    if entries >= _MANY or start >= _LARGE or size >= _LARGE:
        made += _END64.pack(
            b"PK\x06\x06", _END64.size - 12, 45, 45, 0, 0, entries, entries, size, start
        )
        made += _LOCATOR.pack(b"PK\x06\x07", 0, start + size, 1)
    entries, start, size = min(entries, _MANY), min(start, _LARGE), min(size, _LARGE)
    return made + _END.pack(b"PK\x05\x06", 0, 0, entries, entries, size, start, 0)
