"""A small proxy between ppworker and its servers, on the loopback address, that breaks links."""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit

from ppworker.chaos.commits import SSL_REQUEST, Choose, Cut, Frontend, is_answered, is_committed

T = TypeVar("T")
Address = str | tuple[str, int]
"""Path of a Unix socket, or host and port."""

_CHUNK = 64 * 1024
_CHUNKS_ON_THE_WAY = 64
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing tells the other side that the link broke
_PLAIN_PLEASE = b"N"


class Proxy:
    """Passes the bytes of every link on, until it is told otherwise.

    All methods may be called from any thread; each returns when it is so.

    Args:
        server: where the real server is.
        choose: for PostgreSQL: asked at every COMMIT whether to cut the link there.
        late_s: seconds by which a COMMIT comes late with ``Cut.LATE``.

    Attributes:
        port: of the loopback address; the same as long as the proxy lives.
        counts: links opened and dropped, and for each kind of ``Cut`` the COMMITs cut
            (``before``, ``after``, ``late``) and how many the server then said to be written
            (``after written``, ``late written``).
    """

    def __init__(
        self, server: Address, *, choose: Choose | None = None, late_s: float = 0.2
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.choose = choose
        self.late_s = late_s
        self.delay_s = 0.0
        self._server = server
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0
        self._listener: asyncio.Server | None = None
        self.listen()

    def listen(self) -> None:
        """Take new links, again."""
        self._call(self._listen())

    def refuse(self) -> None:
        """Refuse new links; those there are stay."""
        self._call(self._refuse())

    def drop(self) -> int:
        """Break every link there is now; returns how many."""
        return self._call(self._drop())

    def stall(self) -> None:
        """Accept everything and pass nothing on, in either direction: a black hole."""
        self._call(self._stall())

    def flow(self) -> None:
        """Pass on again, beginning with what was held."""
        self._call(self._flow())

    def delay(self, seconds: float) -> None:
        """Let everything take so many seconds on its way, in each direction."""
        self.delay_s = seconds

    @property
    def links(self) -> int:
        """Links there are now."""
        return len(self._links)

    def close(self) -> None:
        """Break all links and end the thread."""
        self.refuse()
        self.drop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _stall(self) -> None:
        self._flowing.clear()

    async def _flow(self) -> None:
        self._flowing.set()

    async def _drop(self) -> int:
        links = list(self._links)
        for link in links:
            link.breaks()
        self.counts["dropped"] += len(links)
        await asyncio.gather(*(link.ended.wait() for link in links))
        return len(links)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self, self._flowing, reader, writer)
        self._links.add(link)
        self.counts["opened"] += 1
        try:
            await link.run(self._server)
        finally:
            self._links.discard(link)
            link.ended.set()


class _Link:
    """A client's connection and its counterpart to the server."""

    def __init__(
        self,
        proxy: Proxy,
        flowing: asyncio.Event,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.ended = asyncio.Event()
        self._proxy = proxy
        self._flowing = flowing
        self._client = (reader, writer)
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._frontend = Frontend() if proxy.choose else None
        self._cut: Cut | None = None
        self._withheld: bytes | None = None
        """The answer to a COMMIT that the client shall not get."""
        self._work: asyncio.Future[Any] | None = None

    async def run(self, server: Address) -> None:
        """Live until either side ends or the link is broken."""
        self._work = asyncio.ensure_future(self._pass_on(server))
        with suppress(asyncio.CancelledError, OSError):
            await self._work
        for side in (self._client, self._server):
            if side is not None:
                side[1].close()

    def breaks(self) -> None:
        """End it in the middle of a word, for both sides."""
        for side in (self._client, self._server):
            if side is not None:
                _reset(side[1])
        if self._work is not None:
            self._work.cancel()

    async def _pass_on(self, server: Address) -> None:
        await self._flowing.wait()
        self._server = await _connect(server)
        ways = (
            self._carry(self._client[0], self._from_client),
            self._carry(self._server[0], self._from_server),
        )
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(
        self, reader: asyncio.StreamReader, deliver: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """One direction, in order, each piece as late as the delay says, until its end."""
        loop = asyncio.get_running_loop()
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_ON_THE_WAY)

        async def read() -> None:
            data = None
            while data != b"":
                data = b""
                with suppress(OSError):  # broken from there, which is an end too
                    data = await reader.read(_CHUNK)
                await on_the_way.put((loop.time() + self._proxy.delay_s, data))

        reading = asyncio.ensure_future(read())
        try:
            while True:
                due_at, data = await on_the_way.get()
                await self._flowing.wait()
                if (early_s := due_at - loop.time()) > 0:
                    await asyncio.sleep(early_s)
                if not data:
                    return
                await deliver(data)
        finally:
            reading.cancel()

    async def _from_client(self, data: bytes) -> None:
        if self._frontend is None:
            await self._tell_server(data)
            return
        for message in self._frontend.feed(data):
            if message.kind == SSL_REQUEST:
                self._client[1].write(_PLAIN_PLEASE)
                continue
            cut = None
            if message.commits is not None and self._proxy.choose is not None:
                cut = self._proxy.choose(message.commits)
            if cut is not None:
                self._proxy.counts[cut] += 1
            if cut is Cut.BEFORE:
                raise self._broken()
            if cut is not None:
                self._cut, self._withheld = cut, b""
            if cut is Cut.LATE:
                _reset(self._client[1])
                await asyncio.sleep(self._proxy.late_s)
            await self._tell_server(message.raw)
            if cut is not None:
                await asyncio.Event().wait()  # until the answer is there, which ends the link

    async def _tell_server(self, data: bytes) -> None:
        if self._server is not None:
            self._server[1].write(data)
            await self._server[1].drain()

    async def _from_server(self, data: bytes) -> None:
        if self._withheld is None:
            self._client[1].write(data)
            await self._client[1].drain()
            return
        self._withheld += data
        if is_answered(self._withheld):
            if is_committed(self._withheld):
                self._proxy.counts[f"{self._cut} written"] += 1
            raise self._broken()

    def _broken(self) -> ConnectionResetError:
        for side in (self._client, self._server):
            if side is not None:
                _reset(side[1])
        return ConnectionResetError()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with suppress(OSError):  # closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def _connect(server: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(server, str):
        return await asyncio.open_unix_connection(server)
    return await asyncio.open_connection(*server)


def address_of(url: str) -> Address:
    """Where the server of a URL listens: of PostgreSQL or of redis, on a Unix socket or not."""
    parsed = urlsplit(url)
    if parsed.scheme == "unix":
        return parsed.path
    words = parse_qs(parsed.query)
    folder = words.get("host", [""])[0]
    port = parsed.port or int(words.get("port", ["5432"])[0])
    if folder.startswith("/"):
        return f"{folder}/.s.PGSQL.{port}"
    return (parsed.hostname or "127.0.0.1", port)


def through(url: str, port: int) -> str:
    """The URL with the loopback address and a proxy's port in place of the server's."""
    parsed = urlsplit(url)
    if parsed.scheme == "unix":
        return f"redis://127.0.0.1:{port}/{parse_qs(parsed.query).get('db', ['0'])[0]}"
    who = f"{parsed.netloc.rpartition('@')[0]}@" if "@" in parsed.netloc else ""
    return urlunsplit((parsed.scheme, f"{who}127.0.0.1:{port}", parsed.path, "", ""))
