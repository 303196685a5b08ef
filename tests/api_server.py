"""The HTTP API on a real server and a loopback port, and clients of it with keys of their own."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any
from uuid import UUID

import httpx2
import uvicorn
from fastapi import FastAPI

from factories import World
from ppworker.api.app import create_app
from ppworker.monitoring import ports
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup import accounts
from ppworker.store import accounts as account_store

THREADS = 8


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Address of the application on a real server."""
    opened = ports.listen("127.0.0.1", 0, setting="a test's port")
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    until = time.monotonic() + 10
    while not server.started and time.monotonic() < until:
        time.sleep(0.005)
    try:
        yield ports.url(opened)
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


class Api:
    """The API on a database, with a world of one user in it."""

    def __init__(self, deps: Deps, world: World, address: str, stopping: Event) -> None:
        self.deps = deps
        self.world = world
        self.address = address
        self.stopping = stopping
        self._clients: list[httpx2.Client] = []
        self.me = self.client(world.user)
        self.dataset = f"/datasets/{world.dataset.id}"
        self.version = f"{self.dataset}/versions/{world.dataset.version_id}"
        self.split = f"{self.version}/splits/{world.train.id}"

    def client(self, user_id: UUID, **options: Any) -> httpx2.Client:
        """A client with a new key of a user."""
        key, _ = accounts.create_key(self.deps, user_id, **options)
        return self.with_header(f"Bearer {key}")

    def with_header(self, header: str | None) -> httpx2.Client:
        """A client that says so in its Authorization header."""
        headers = {} if header is None else {"Authorization": header}
        base = f"{self.address}/api/v1"
        made = httpx2.Client(base_url=base, headers=headers, timeout=60, trust_env=False)
        self._clients.append(made)
        return made

    def close(self) -> None:
        """Close every client."""
        for client in self._clients:
            client.close()

    def item(self, text: str = "hello") -> str:
        """Path of a new item of the world."""
        (id_,) = self.world.add(text)
        return f"{self.version}/items/{id_}"


@contextmanager
def served_api(deps: Deps, world: World) -> Iterator[Api]:
    """The API of a world."""
    stopping = Event()
    app = create_app(deps, threads=THREADS, stopping=stopping)
    with served(app) as address:
        api = Api(deps, world, address, stopping)
        try:
            yield api
        finally:
            api.close()


def new_user(deps: Deps, name: str) -> UUID:
    """Id of a new user."""
    with deps.db.begin() as tx:
        return account_store.create_user(tx, name).id
