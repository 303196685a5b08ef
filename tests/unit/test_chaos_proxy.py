"""The proxy that breaks links: what it lets through, and when it does not."""

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from ppworker.chaos.commits import Cut, Frontend, Message
from ppworker.chaos.proxy import Proxy, address_of, through

STARTUP = struct.pack("!II", 8, 196608)
READY = b"Z\x00\x00\x00\x05I"
COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00" + READY


def said(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def query(text: str) -> bytes:
    return said(b"Q", text.encode() + b"\0")


def parse(name: str, text: str) -> bytes:
    return said(b"P", f"{name}\0{text}\0".encode() + b"\0\0")


def bind(name: str) -> bytes:
    return said(b"B", f"\0{name}\0".encode() + b"\0" * 6)


class Echo:
    """A server that says what it is told, and remembers it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.heard: list[bytes] = []
        self.answer: bytes | None = None
        """Said to everything in place of the echo."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.listener.getsockname()
        return host, port

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with link:
            try:
                while data := link.recv(65536):
                    self.heard.append(data)
                    link.sendall(data if self.answer is None else self.answer)
            except OSError:
                return


@pytest.fixture
def server() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.listener.close()


@pytest.fixture
def proxy(server: Echo) -> Iterator[Proxy]:
    with Proxy(server.address) as running:
        yield running


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=20)


def ask(link: socket.socket, words: bytes) -> bytes:
    link.sendall(words)
    got = b""
    while len(got) < len(words):
        piece = link.recv(65536)
        if not piece:
            break
        got += piece
    return got


def is_broken(link: socket.socket) -> bool:
    try:
        return link.recv(1) == b""
    except ConnectionResetError:
        return True


def test_bytes_pass_in_both_directions_whole_and_in_order(proxy: Proxy) -> None:
    words = bytes(range(256)) * 4000
    with connect(proxy) as link:
        link.settimeout(30)
        sender = threading.Thread(target=link.sendall, args=(words,))
        sender.start()
        got = b""
        while len(got) < len(words):
            got += link.recv(65536)
        sender.join()
    assert got == words
    assert proxy.counts["opened"] == 1


def test_refusing_keeps_the_links_there_are_and_takes_no_new_ones(proxy: Proxy) -> None:
    with connect(proxy) as link:
        assert ask(link, b"one") == b"one"
        proxy.refuse()
        assert ask(link, b"two") == b"two"
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        proxy.listen()
        with connect(proxy) as other:
            assert ask(other, b"three") == b"three"


def test_dropping_breaks_every_link_and_takes_new_ones(proxy: Proxy) -> None:
    with connect(proxy) as one, connect(proxy) as two:
        assert (ask(one, b"x"), ask(two, b"y")) == (b"x", b"y")
        assert proxy.links == 2
        assert proxy.drop() == 2
        assert is_broken(one)
        assert is_broken(two)
    with connect(proxy) as link:
        assert ask(link, b"again") == b"again"


def test_a_black_hole_accepts_and_answers_nothing_until_it_flows(
    proxy: Proxy, server: Echo
) -> None:
    with connect(proxy) as old:
        assert ask(old, b"before") == b"before"
        proxy.stall()
        with connect(proxy) as new:
            old.sendall(b"o")
            new.sendall(b"n")
            for link in (old, new):
                link.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    link.recv(1)
                link.settimeout(20)
            assert server.heard == [b"before"]
            proxy.flow()
            assert (old.recv(1), new.recv(1)) == (b"o", b"n")


def test_a_black_hole_can_be_left_by_dropping(proxy: Proxy, server: Echo) -> None:
    with connect(proxy) as link:
        assert ask(link, b"x") == b"x"
        proxy.stall()
        link.sendall(b"never arrives")
        proxy.drop()
        proxy.flow()
        assert is_broken(link)
    assert server.heard == [b"x"]


def test_a_delay_is_paid_in_each_direction_and_once_for_words_said_together(proxy: Proxy) -> None:
    proxy.delay(0.1)
    with connect(proxy) as link:
        started = time.monotonic()
        for _ in range(20):
            link.sendall(b"word")
            time.sleep(0.001)
        got = 0
        while got < 80:
            got += len(link.recv(100))
        took_s = time.monotonic() - started
    assert took_s >= 0.2
    assert took_s < 2, "twenty pieces on the way at once do not wait for each other"


def test_a_server_that_is_away_breaks_the_link() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with Proxy(("127.0.0.1", port)) as proxy, connect(proxy) as link:
        assert is_broken(link)


def test_an_end_of_the_client_reaches_the_server_and_the_other_way_round(server: Echo) -> None:
    with Proxy(server.address) as proxy:
        with connect(proxy) as link:
            assert ask(link, b"x") == b"x"
        until = time.monotonic() + 20
        while proxy.links:
            assert time.monotonic() < until
            time.sleep(0.005)


def transaction(*texts: str) -> list[Message]:
    frontend = Frontend()
    data = STARTUP + b"".join(query(text) for text in texts)
    return list(frontend.feed(data))


def test_a_commit_is_seen_with_the_statements_of_its_transaction_only() -> None:
    messages = transaction("SELECT 0", "BEGIN", "UPDATE a", "select 1", "COMMIT", "SELECT 2")
    commits = [m.commits for m in messages if m.commits is not None]
    assert commits == [("UPDATE a", "select 1")]
    assert transaction("BEGIN", "x", "ROLLBACK", "BEGIN", "COMMIT")[-1].commits == ()
    assert transaction("BEGIN", "x", "ROLLBACK TO s", "commit;")[-1].commits == (
        "x",
        "ROLLBACK TO s",
    ), "a savepoint's rollback ends nothing"


def test_prepared_statements_are_known_by_their_text_and_pieces_of_any_size_do() -> None:
    data = STARTUP + parse("", "BEGIN") + bind("") + parse("_pg3_0", "UPDATE b") + bind("_pg3_0")
    data += said(b"S", b"") + bind("_pg3_0") + parse("c", "COMMIT") + bind("c")
    for size in (1, 3, 7, len(data)):
        frontend = Frontend()
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        messages = [message for piece in pieces for message in frontend.feed(piece)]
        assert b"".join(m.raw for m in messages) == data
        assert [m.commits for m in messages if m.commits is not None] == [("UPDATE b", "UPDATE b")]


def test_copied_data_and_long_messages_are_no_statements() -> None:
    frontend = Frontend()
    list(frontend.feed(STARTUP + query("BEGIN")))
    copied = said(b"d", b"COMMIT\0" * 30_000)
    assert [m.commits for m in frontend.feed(copied)] == [None]


@pytest.mark.parametrize("cut", Cut)
def test_a_chosen_commit_is_cut_as_it_was_chosen(server: Echo, cut: Cut) -> None:
    def choose(texts: object) -> Cut | None:
        return cut if texts == ("UPDATE jobs",) else None

    server.answer = COMMITTED
    with Proxy(server.address, choose=choose, late_s=0.05) as proxy:
        for text, is_cut in (("SELECT 1", False), ("UPDATE jobs", True)):
            with connect(proxy) as link:
                link.sendall(STARTUP)
                assert link.recv(100) == COMMITTED
                for each in ("BEGIN", text):
                    link.sendall(query(each))
                    assert link.recv(100) == COMMITTED
                link.sendall(query("COMMIT"))
                if is_cut:
                    assert is_broken(link)
                else:
                    assert link.recv(100) == COMMITTED
        until = time.monotonic() + 20
        while proxy.links:
            assert time.monotonic() < until
            time.sleep(0.005)
        heard = b"".join(server.heard).count(query("COMMIT"))
        assert heard == (1 if cut is Cut.BEFORE else 2)
        assert proxy.counts[cut] == 1
        assert proxy.counts[f"{cut} written"] == (0 if cut is Cut.BEFORE else 1)


def test_a_request_for_encryption_is_declined_and_not_passed_on(server: Echo) -> None:
    with Proxy(server.address, choose=lambda _: None) as proxy, connect(proxy) as link:
        link.sendall(struct.pack("!II", 8, 80877103))
        assert link.recv(1) == b"N"
        assert ask(link, STARTUP) == STARTUP
    assert server.heard == [STARTUP]


@pytest.mark.parametrize(
    ("url", "address", "url_through"),
    [
        (
            "postgresql+psycopg://ppworker@/ppworker?host=%2Frun%2Fx&port=5432",
            "/run/x/.s.PGSQL.5432",
            "postgresql+psycopg://ppworker@127.0.0.1:7/ppworker",
        ),
        (
            "postgresql://u:p%40x@db:6432/name",
            ("db", 6432),
            "postgresql://u:p%40x@127.0.0.1:7/name",
        ),
        ("unix:///run/redis.sock", "/run/redis.sock", "redis://127.0.0.1:7/0"),
        ("redis://cache:6379/2", ("cache", 6379), "redis://127.0.0.1:7/2"),
    ],
)
def test_addresses_of_urls(url: str, address: object, url_through: str) -> None:
    assert address_of(url) == address
    assert through(url, 7) == url_through
