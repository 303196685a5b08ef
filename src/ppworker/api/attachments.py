"""Stored files on their way out: as attachments, whole or in part, so that no browser ever shows a
stranger's file as a page of ours."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import HTTPException, Request
from fastapi.responses import FileResponse, Response

from ppworker.errors import NotFound

BYTES = "application/octet-stream"

_BINARY = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
_WORD = {"type": "string"}
_HEADERS = {
    "ETag": {"description": "Another one whenever the content is.", "schema": _WORD},
    "Content-Disposition": {"description": "An attachment, with its name.", "schema": _WORD},
}
ANSWERS: Mapping[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": _BINARY, "headers": _HEADERS},
    206: {"description": "The bytes that Range names", "content": _BINARY, "headers": _HEADERS},
    304: {"description": "It is still what If-None-Match names"},
}
"""The description of such answers for the published schema."""

# One range; what else a client may ask for is answered with the whole file, as the standard allows.
_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")
# What may stand as a type in a header.
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")


def of_file(request: Request, path: Path, *, tag: str, media_type: str, name: str) -> Response:
    """A file as an attachment; it is read piece by piece while it is sent.

    Args:
        request: what was asked; its Range, If-Range and If-None-Match are followed.
        path: the file.
        tag: another one for every content, such as its hash.
        media_type: what the file is.
        name: how the client shall call it.

    Raises:
        NotFound: the file is not there.
        HTTPException: 416, the range begins behind the end.
    """
    headers = _headers(tag, name)
    if _is_known(request, tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise NotFound("its file is not in this server's folder of files", field="file") from None
    _check_range(request, stat.st_size)
    return FileResponse(
        path,
        media_type=media_type if _MEDIA_TYPE.fullmatch(media_type) else BYTES,
        headers=headers,
        stat_result=stat,
    )


def of_text(request: Request, text: str, *, tag: str, name: str) -> Response:
    """A text as an attachment."""
    headers = _headers(tag, name)
    if _is_known(request, tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(text, media_type="text/plain; charset=utf-8", headers=headers)


def _headers(tag: str, name: str) -> dict[str, str]:
    plain = re.sub(r'[^ -~]|["\\%]', "_", name)
    return {
        "ETag": f'"{tag}"',
        # The older form for those who know no other, then the one that holds every letter.
        "Content-Disposition": (
            f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
        ),
        "Cache-Control": "private, no-cache",
        # Should it be shown after all, nothing in it runs.
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
    }


def _is_known(request: Request, tag: str) -> bool:
    known = request.headers.get("if-none-match", "")
    tags = [each.strip().removeprefix("W/") for each in known.split(",")]
    return f'"{tag}"' in tags or "*" in tags


def _check_range(request: Request, size: int) -> None:
    """Leave only a range that can be followed: others are as if nobody had asked."""
    asked = request.headers.get("range")
    if asked is None:
        return
    found = _RANGE.fullmatch(asked.strip())
    first, last = (found[1], found[2]) if found else (None, None)
    if found and size and not (first and last and int(last) < int(first)):
        if first is None or int(first) < size:
            return
        raise HTTPException(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"the file has {size} bytes",
            headers={"Content-Range": f"bytes */{size}"},
        )
    scope = request.scope
    scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"range"]
