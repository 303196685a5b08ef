"""Takes many files out of a multipart body, straight into an archive on the disk."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from ppworker.api.uploads import PART, Form, boundary_of, feed, parser_of
from ppworker.errors import Invalid, TooLarge
from ppworker.formats.archive_writer import ArchiveWriter
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.transfer.bulk import PackedFile
from ppworker.store import blobs

SPLIT = "split_id"
"""Name of the part that names the split."""
_MOST_WORD = 400
_IN_MEMORY = 1024 * 1024
_WRITE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What a body held."""

    path: Path
    """The archive, inside the blob store until the request is over."""
    files: list[PackedFile]
    split: str


@dataclass(slots=True)
class _Files(Form):
    """A form of many files, each packed as soon as it is whole."""

    archive: ArchiveWriter | None = None
    total_limit: int = 0
    files: list[PackedFile] = field(default_factory=list)
    split: bytearray = field(default_factory=bytearray)
    total: int = 0

    def headers_finished(self) -> None:
        """All headers of the part are known."""
        Form.headers_finished(self)
        if self._is_file:
            self.size = 0
            self.out.close()
            spool = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  closed when it is whole
            self.out = cast("BinaryIO", spool)

    def data(self, data: bytes, start: int, end: int) -> None:
        """A piece of the part's content."""
        Form.data(self, data, start, end)
        if self._is_file:
            self.total += end - start
            if self.total > self.total_limit:
                raise TooLarge(
                    f"the files have more than {self.total_limit} bytes together; send several "
                    "requests, or raise PPWORKER_MAX_ARCHIVE_BYTES",
                    field=PART,
                )
        elif self.part_name == SPLIT:
            self.split += data[start:end]
            if len(self.split) > _MOST_WORD:
                raise Invalid("is no id or name of a split", field=SPLIT)

    def end_part(self) -> None:
        """A file is whole."""
        if self._is_file and self.archive is not None:
            member = self.archive.reserve("files", self.file_name or "unnamed")
            self.archive.add(member, self.out)
            self.out.close()
            self.files.append(PackedFile(member=member, name=self.file_name))

    def too_many(self) -> Invalid:
        """The error of a body with more files than it may have."""
        return TooLarge(
            f"the body holds more than {self.most_files} files; send several requests, or raise "
            "PPWORKER_MAX_BULK_ITEMS",
            field=PART,
        )


async def pack(request: Request, deps: Deps) -> AsyncIterator[Packed]:
    """Read the body; the archive is gone when the request is over, unless somebody kept it.

    Raises:
        Malformed: the body is no multipart form, or breaks off.
        Invalid: it holds no file.
        TooLarge: it holds too many, or too large ones.
    """
    boundary = boundary_of(request.headers.get("content-type", ""))
    settings = deps.settings
    with deps.blobs.incoming() as (path, _), _writer(path) as archive:
        form = _Files(
            BytesIO(),
            limit=settings.max_file_bytes,
            most_files=min(settings.max_bulk_items, settings.max_archive_members),
            archive=archive,
            total_limit=settings.max_archive_bytes,
        )
        parser = parser_of(boundary, form)
        try:
            async for block in _blocks(request):
                await run_in_threadpool(feed, parser, block)
        finally:
            form.out.close()
        form.check_end()
        await run_in_threadpool(archive.close)
        split = form.split.decode("utf-8", "replace").strip()
        yield Packed(path=path, files=form.files, split=split)


@contextmanager
def _writer(path: Path) -> Iterator[ArchiveWriter]:
    with path.open("r+b") as out:
        archive = ArchiveWriter(out)
        try:
            yield archive
        finally:
            archive.discard()


async def receive_lines(request: Request, deps: Deps) -> AsyncIterator[Path]:
    """Read a body of lines to the disk; the file is gone when the request is over.

    Raises:
        TooLarge: it is longer than files may be.
    """
    limit, size = deps.settings.max_file_bytes, 0
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise blobs.too_large(limit)
    with deps.blobs.incoming() as (path, out):
        async for block in _blocks(request):
            size += len(block)
            if size > limit:
                raise blobs.too_large(limit)
            await run_in_threadpool(out.write, block)
        out.flush()
        yield path


async def _blocks(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces that are worth a thread of their own."""
    waiting = bytearray()
    async for chunk in request.stream():
        waiting += chunk
        if len(waiting) >= _WRITE_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)
