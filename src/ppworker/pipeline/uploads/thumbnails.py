"""Small pictures of stored files: made when somebody first asks, by few processes, and kept.

They are derived: the folder may be deleted at any time. A picture is known by the hash of its
file, so equal files share one and a replaced file gets another. Who may see it is the caller's to
know.
"""

import base64
import binascii
import contextlib
import os
import queue
import tempfile
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from ppworker.errors import BadResponse, RunnerError, RunnerUnavailable
from ppworker.runners import thumbnails
from ppworker.runners.base import RunnerInput
from ppworker.runners.child import ChildRunner
from ppworker.store.blobs import BlobStore

MEDIA_TYPES = thumbnails.MEDIA_TYPES
"""What there are small pictures of."""

FOLDER = "thumbnails"
"""Where they lie in the data folder."""

MOST_KEPT = 256 * 256
"""Most pictures that are kept; most have 10 to 50 KB."""

_PROCESSES = 2
_WAITING = 1000
_SHELF = MOST_KEPT // 256
_IDLE_S = 15.0
_TIMEOUT_S = 20.0
_MOST_ANSWER_BYTES = 4 << 20
_REFUSED_S = 600.0
_MOST_REFUSED = 10_000


@dataclass(frozen=True, slots=True)
class _Wish:
    sha256: str
    media_type: str
    answer: "Future[Path]"


class Thumbnails:
    """Makes and keeps them, for one process that serves many; close it.

    Args:
        blobs: the files.
        data_dir: the data folder.
    """

    def __init__(self, blobs: BlobStore, data_dir: Path) -> None:
        self._blobs = blobs
        self._folder = data_dir / FOLDER
        self._lock = threading.Lock()
        self._wishes: queue.Queue[_Wish] = queue.Queue(_WAITING)
        self._asked: dict[str, Future[Path]] = {}
        self._refused: dict[str, tuple[float, RunnerError]] = {}
        self._children: set[ChildRunner] = set()
        self._workers = 0
        self._is_closed = False

    def ask(self, sha256: str, media_type: str) -> "Future[Path]":
        """A file with the small picture, at once or later; waits for nothing.

        The result may be a ``RunnerError``: not retryable where the file is at fault.
        """
        kept = self._path(sha256)
        if kept.is_file():
            with contextlib.suppress(OSError):
                os.utime(kept)  # the shelf loses what nobody asks for
            return _over(kept)
        with self._lock:
            if self._is_closed:
                return _over(RunnerUnavailable("the server is stopping"))
            if refusal := self._refusal(sha256):
                return _over(refusal)
            if found := self._asked.get(sha256):
                return found
            wish = _Wish(sha256, media_type, Future())
            try:
                self._wishes.put_nowait(wish)
            except queue.Full:
                return _over(RunnerUnavailable("too many pictures are being made; ask again"))
            self._asked[sha256] = wish.answer
            if self._workers < _PROCESSES:
                self._workers += 1
                threading.Thread(target=self._work, name="thumbnails", daemon=True).start()
        return wish.answer

    def close(self) -> None:
        """End the processes; who waits for a picture gets none."""
        with self._lock:
            self._is_closed = True
            children = list(self._children)
        for child in children:
            child.close()
        with contextlib.suppress(queue.Empty):
            while True:
                self._tell(self._wishes.get_nowait(), RunnerUnavailable("the server is stopping"))

    def _path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / f"{sha256}.jpg"

    def _refusal(self, sha256: str) -> RunnerError | None:
        """What the file was refused for not long ago: a decoder that hangs need not hang twice."""
        until, error = self._refused.get(sha256, (0.0, None))
        return error if until > time.monotonic() else None

    def _work(self) -> None:
        """Make pictures until nobody wants any for a while."""
        child = ChildRunner(
            f"{thumbnails.Thumbnailer.__module__}:{thumbnails.Thumbnailer.__qualname__}",
            {},
            max_answer_bytes=_MOST_ANSWER_BYTES,
        )
        with self._lock:
            self._children.add(child)
        try:
            while wish := self._next():
                self._tell(wish, self._made(child, wish))
        finally:
            child.close()
            with self._lock:
                self._children.discard(child)

    def _next(self) -> _Wish | None:
        with contextlib.suppress(queue.Empty):
            return self._wishes.get(timeout=_IDLE_S)
        with self._lock:  # a wish that comes now must find either this worker or a new one
            with contextlib.suppress(queue.Empty):
                return self._wishes.get_nowait()
            self._workers -= 1
            return None

    def _made(self, child: ChildRunner, wish: _Wish) -> Path | RunnerError:
        given = RunnerInput(key="", media_type=wish.media_type, path=self._blobs.path(wish.sha256))
        try:
            (found,) = child.predict([given], _TIMEOUT_S)
            if isinstance(found, RunnerError):
                return found
            return self._keep(wish.sha256, _jpeg(found.raw.get("jpeg")))
        except RunnerError as error:
            return error
        except OSError as error:
            return RunnerUnavailable(f"the picture cannot be kept: {error.strerror}")
        except Exception as error:  # noqa: BLE001  somebody waits for the answer, whatever it is
            return RunnerError(f"{type(error).__name__}: {error}")

    def _keep(self, sha256: str, jpeg: bytes) -> Path:
        path = self._path(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path.parent)
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(jpeg)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
        return path

    def _tell(self, wish: _Wish, answer: Path | RunnerError) -> None:
        with self._lock:
            self._asked.pop(wish.sha256, None)
            if isinstance(answer, RunnerError) and not isinstance(answer, RunnerUnavailable):
                if len(self._refused) >= _MOST_REFUSED:
                    self._refused.clear()
                self._refused[wish.sha256] = (time.monotonic() + _REFUSED_S, answer)
        _settle(wish.answer, answer)


def _over(answer: Path | RunnerError) -> "Future[Path]":
    done: Future[Path] = Future()
    _settle(done, answer)
    return done


def _settle(future: "Future[Path]", answer: Path | RunnerError) -> None:
    # Nobody cancels them for all: who waits no longer just goes.
    if isinstance(answer, RunnerError):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _jpeg(given: object) -> bytes:
    """The picture in an answer: the process that decodes hostile files may say anything."""
    try:
        found = base64.b64decode(str(given), validate=True)
    except binascii.Error:
        found = b""
    if not found.startswith(b"\xff\xd8\xff"):
        raise BadResponse("the answer holds no picture")
    return found


def _make_room(shelf: Path) -> None:
    """Have a full shelf lose the quarter that was asked for longest ago."""
    names = [each.name for each in shelf.iterdir()]
    if len(names) < _SHELF:
        return
    kept = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # another process made room too
            kept.append(((shelf / name).stat().st_mtime, name))
    for _, name in sorted(kept)[: _SHELF // 4]:
        (shelf / name).unlink(missing_ok=True)
