"""The servers of one run, with their default durability, and empty databases on them."""

from pathlib import Path
from urllib.parse import unquote

import psycopg
import redis
import sqlalchemy as sa

from benchmarks import processes
from ppworker import embedded


class Servers:
    """PostgreSQL and Redis of our own, in a folder that goes away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._servers = embedded.acquire(folder)
        if self._servers.redis_url is None:
            raise RuntimeError("; ".join(self._servers.notes))
        self.redis_url = self._servers.redis_url
        self._redis_path = unquote(self.redis_url.removeprefix("unix://"))
        self._admin = psycopg.connect(self.dsn("ppworker"), autocommit=True)

    def url(self, database: str) -> str:
        """Address of a database as ppworker takes it."""
        url = sa.make_url(self._servers.database_url).set(database=database)
        return url.set(drivername="postgresql").render_as_string(hide_password=False)

    def dsn(self, database: str) -> str:
        """The same as psycopg takes it."""
        return self.url(database)

    def fresh_database(self, name: str) -> str:
        """Make an empty database, dropping the one of that name; returns its URL."""
        self._admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self._admin.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def redis(self) -> redis.Redis:
        """A client of our Redis."""
        return redis.Redis(unix_socket_path=self._redis_path)

    def settle(self, database: str) -> None:
        """Fresh statistics and a checkpoint, so that every drain begins from the same state."""
        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")

    def facts(self) -> dict[str, str]:
        """What the servers are and how durable."""
        asked = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
        row = self._admin.execute(
            "SELECT " + ", ".join(f"current_setting('{name}')" for name in asked)
        ).fetchone()
        assert row is not None
        info = self.redis().info("server")
        found = dict(zip(("PostgreSQL", *asked[1:]), map(str, row), strict=True))
        return {**found, "Redis": str(info["redis_version"]), "appendonly": "yes"}

    def postgres_pids(self) -> list[int]:
        """All processes of PostgreSQL."""
        first = (self.folder / "postgres" / "postmaster.pid").read_text().splitlines()[0]
        return [int(first), *processes.descendants(int(first))]

    def redis_pids(self) -> list[int]:
        """The process of Redis."""
        return [int(self.redis().info("server")["process_id"])]

    def close(self) -> None:
        """Stop the servers."""
        self._admin.close()
        self._servers.close()
