"""A safe view of a zip archive.

An archive comes from a stranger. Everything its directory says is checked before anything is read
(`ppworker.formats.archive_checks`), and every byte is read once, so that what is accepted here
cannot surprise anybody later. Members are never unpacked to a path made of their names.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from ppworker.errors import Invalid, TooLarge
from ppworker.formats import archive_checks as checks
from ppworker.formats.archive_checks import FIELD, Limits, broken, shown

_BLOCK = 256 * 1024
_MOST_JSON = 64 * 1024 * 1024
_SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
_UNREADABLE = (
    zipfile.BadZipFile, ValueError, EOFError, OverflowError, NotImplementedError, struct.error,
)  # fmt: skip


class Place(NamedTuple):
    """Where the bytes of a member lie in the file, so that it can be read without the directory."""

    start: int
    packed: int
    size: int
    method: int
    crc: int


class Archive:
    """Members of an archive that has been checked, by name. Folders and what operating systems
    leave in archives are not among them.

    ``name in archive``, ``for name in archive`` (in the archive's order) and ``len`` work on names.
    """

    def __init__(
        self, file: BinaryIO, zip_file: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]
    ) -> None:
        self._file = file
        self._zip = zip_file
        self._members = members

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def size(self, name: str) -> int:
        """Unpacked bytes of a member."""
        return self._members[name].file_size

    def place(self, name: str) -> Place:
        """Where a member lies."""
        info = self._members[name]
        start = checks.data_start(self._file, info)
        return Place(start, info.compress_size, info.file_size, info.compress_type, info.CRC)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A member, to be read piece by piece.

        Raises:
            Invalid: it is broken; names it. Also while it is read.
        """
        try:
            with self._zip.open(self._members[name]) as file:
                yield cast("BinaryIO", file)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise broken(name, error) from None

    def read(self, name: str, most_bytes: int = _MOST_JSON) -> bytes:
        """A whole member, for what must be held in memory.

        Raises:
            TooLarge: it is longer than that; names it.
            Invalid: it is broken; names it.
        """
        if self.size(name) > most_bytes:
            raise TooLarge(
                f"{shown(name)}: has {self.size(name)} bytes, more than {most_bytes}; "
                "split the archive",
                field=FIELD,
            )
        with self.open(name) as file:
            return file.read()

    def text(self, name: str, most_bytes: int = _MOST_JSON) -> str:
        """A whole member as UTF-8 text, a byte order mark left out.

        Raises:
            TooLarge: it is longer than that; names it.
            Invalid: it is broken, or no UTF-8; names it.
        """
        try:
            return self.read(name, most_bytes).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Invalid(f"{shown(name)}: is no UTF-8 text", field=FIELD) from None

    def lines(self, name: str, most_bytes: int = _MOST_JSON) -> Iterator[str]:
        """Lines of a member as UTF-8 text, without their ends, whatever the member's length.

        Raises:
            TooLarge: a line is longer than that; names member and line.
            Invalid: it is broken, or no UTF-8; names member and line.
        """
        with self.open(name) as file:
            number = 0
            while line := file.readline(most_bytes + 1):
                number += 1
                if len(line) > most_bytes:
                    raise TooLarge(
                        f"{shown(name)}: line {number} has more than {most_bytes} bytes",
                        field=FIELD,
                    )
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise Invalid(
                        f"{shown(name)}: line {number} is no UTF-8 text", field=FIELD
                    ) from None
                yield text.rstrip("\r\n")


@contextmanager
def open_archive(path: Path, limits: Limits, *, is_known: bool = False) -> Iterator[Archive]:
    """A file as an archive.

    Args:
        path: the file.
        limits: how large it may be.
        is_known: its content has been checked before; only names and sizes are looked at.

    Raises:
        Invalid: it is no archive, or a member is not acceptable; names the member.
        TooLarge: it breaks a limit.
    """
    with path.open("rb") as file:
        checks.check_count(file, limits)
        try:
            zip_file = zipfile.ZipFile(file)
        except _UNREADABLE as error:
            raise checks.not_a_zip(error) from None
        with zip_file:
            infos = zip_file.infolist()
            members = checks.check_names(infos)
            checks.check_sizes(infos, limits)
            if not is_known:
                checks.check_content(file, infos, zip_file.start_dir)
            kept = {name: info for name, info in members.items() if not _is_system_file(name)}
            yield Archive(file, zip_file, kept)


def _is_system_file(name: str) -> bool:
    first, last = name.partition("/")[0], name.rpartition("/")[2]
    return first == "__MACOSX" or last.lower() in _SYSTEM_FILES


def blocks(file: BinaryIO, place: Place) -> Iterator[bytes]:
    """The unpacked bytes of a member, piece by piece.

    Raises:
        Invalid: they are not what they were when the place was noted.
    """
    file.seek(place.start)
    unpack = zlib.decompressobj(-15) if place.method == zipfile.ZIP_DEFLATED else None
    left, crc, size = place.packed, 0, 0
    try:
        while left > 0 and (packed := file.read(min(_BLOCK, left))):
            left -= len(packed)
            while packed:
                block = packed if unpack is None else unpack.decompress(packed, _BLOCK)
                packed = b"" if unpack is None else unpack.unconsumed_tail
                crc, size = zlib.crc32(block, crc), size + len(block)
                yield block
        if unpack is not None:
            block = unpack.flush()
            crc, size = zlib.crc32(block, crc), size + len(block)
            yield block
    except zlib.error as error:
        raise broken("the archive", error) from None
    if (size, crc) != (place.size, place.crc):
        raise broken("the archive", "it was changed")
