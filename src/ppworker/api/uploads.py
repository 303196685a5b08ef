"""Takes one file out of a multipart body, straight to the disk and never into memory."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import Depends, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from ppworker.api.auth import Caller, Room
from ppworker.errors import Invalid, Malformed, TooLarge
from ppworker.pipeline.deps import Deps
from ppworker.store import blobs

PART = "file"
"""Name of the part that holds the file."""

_MAX_HEADERS = 16 * 1024
_MAX_OTHER = 1024 * 1024
"""Bytes of parts nobody asked for that are read over."""
_WRITE_BYTES = 256 * 1024

BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [PART],
                    "properties": {PART: {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}
"""The description of such a body for the published schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A file of a client, inside the blob store until the request is over."""

    path: Path
    name: str
    """As the client calls it."""


async def receive(request: Request, deps: Room, _: Caller) -> AsyncIterator[Received]:
    """Read the body; the file is gone when the request is over, unless somebody kept it.

    Raises:
        Malformed: the body is no multipart form, or breaks off.
        Invalid: it holds no file, or several.
        TooLarge: the file is longer than files may be.
    """
    async for received in take(request, deps, limit=deps.settings.max_file_bytes):
        yield received


async def take(request: Request, deps: Deps, *, limit: int) -> AsyncIterator[Received]:
    """The same, for files that have a limit of their own."""
    boundary = boundary_of(request.headers.get("content-type", ""))
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit + _MAX_OTHER:
        raise blobs.too_large(limit)
    with deps.blobs.incoming() as (path, out):
        form = Form(out, limit=limit)
        parser = parser_of(boundary, form)
        waiting = bytearray()
        async for chunk in request.stream():
            waiting += chunk
            if len(waiting) >= _WRITE_BYTES:
                # In a thread: the disk must not keep other requests waiting.
                await run_in_threadpool(feed, parser, bytes(waiting))
                waiting.clear()
        await run_in_threadpool(feed, parser, bytes(waiting))
        form.check_end()
        await run_in_threadpool(partial(blobs.sync, out))
        yield Received(path=path, name=form.file_name)


OneFile = Annotated[Received, Depends(receive)]


def boundary_of(content_type: str) -> bytes:
    """What parts the body of a multipart form.

    Raises:
        Malformed: it is none.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise Malformed(
            f"the body must be multipart/form-data with a part named {PART}", field=PART
        )
    return boundary


def parser_of(boundary: bytes, form: "Form") -> MultipartParser:
    """A parser that tells a form what it finds.

    Raises:
        Malformed: the boundary cannot be one.
    """
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_part_data": form.data,
                "on_part_end": form.end_part,
                "on_header_field": form.header_name,
                "on_header_value": form.header_value,
                "on_header_end": form.header_end,
                "on_headers_finished": form.headers_finished,
                "on_end": form.end,
            },
        )
    except FormParserError:
        raise Malformed("the boundary of the body is too long", field=PART) from None


def feed(parser: MultipartParser, chunk: bytes) -> None:
    """Give the parser a piece of the body.

    Raises:
        Malformed: it is no multipart form.
    """
    try:
        parser.write(chunk)
    except FormParserError as error:
        raise Malformed(f"the body is no multipart form: {error}", field=PART) from None


@dataclass(slots=True)
class Form:
    """What the parser finds, piece by piece."""

    out: BinaryIO
    limit: int
    most_files: int = 1
    part_name: str = ""
    file_name: str = ""
    size: int = 0
    _other: int = 0
    _files: int = 0
    _is_file: bool = False
    _is_over: bool = False
    _name: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _headers: dict[bytes, bytes] = field(default_factory=dict)

    def begin(self) -> None:
        """A part begins."""
        self._headers = {}
        self._is_file = False

    def header_name(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's name."""
        self._name += data[start:end]
        self._check_headers()

    def header_value(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's value."""
        self._value += data[start:end]
        self._check_headers()

    def header_end(self) -> None:
        """A header is whole."""
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def headers_finished(self) -> None:
        """All headers of the part are known."""
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self.part_name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = kind == b"form-data" and self.part_name == PART
        if not self._is_file:
            return
        self._files += 1
        if self._files > self.most_files:
            raise self.too_many()
        self.file_name = options.get(b"filename", b"").decode("utf-8", "replace")

    def too_many(self) -> Invalid:
        """The error of a body with more files than it may have."""
        return Invalid("the body holds several files; send one at a time", field=PART)

    def data(self, data: bytes, start: int, end: int) -> None:
        """A piece of the part's content."""
        if not self._is_file:
            self._other += end - start
            if self._other > _MAX_OTHER:
                raise TooLarge(f"the body holds too much beside {PART}", field=PART)
            return
        self.size += end - start
        if self.size > self.limit:
            raise blobs.too_large(self.limit)
        self.out.write(data[start:end])

    def end_part(self) -> None:
        """The one file is whole when the body is."""

    def end(self) -> None:
        """The body is whole."""
        self._is_over = True

    def check_end(self) -> None:
        """Make sure that there was a file, and all of it.

        Raises:
            Malformed: the body broke off.
            Invalid: it holds no file.
        """
        if not self._is_over:
            raise Malformed("the body ends before its last boundary", field=PART)
        if not self._files:
            raise Invalid(f"the body has no part named {PART}", field=PART)

    def _check_headers(self) -> None:
        told = sum(len(name) + len(value) for name, value in self._headers.items())
        if told + len(self._name) + len(self._value) > _MAX_HEADERS:
            raise Malformed("a part of the body has too many headers", field=PART)
