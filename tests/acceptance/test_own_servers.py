"""The page on servers of one's own, step by step, on those that Debian packages bring."""

import os
import pwd
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from doc_commands import PROGRAM, Reader, blocks, commands, make_folder

PAGE = "docs/how-to/run-on-your-own-postgresql.md"
pytestmark = [pytest.mark.system, pytest.mark.slow]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.05)
        else:
            return


@contextmanager
def running(argv: list[str], port: int, log: Path, user: str | None) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, user=user)
    try:
        wait_until_open(port, process)
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def postgresql(tmp_path_factory) -> Iterator[int]:
    """Port of a PostgreSQL of Debian's, with a superuser named postgres."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    folder = Path("/tmp") / f"ppworker-own-{os.getpid()}"  # noqa: S108  short, and for another user
    user = "postgres" if os.geteuid() == 0 else None
    folder.mkdir(mode=0o700)
    try:
        if user is not None:
            account = pwd.getpwnam(user)
            os.chown(folder, account.pw_uid, account.pw_gid)
        subprocess.run(
            [programs[-1] / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-N"],
            check=True,
            capture_output=True,
            user=user,
            cwd="/",
        )
        port = free_port()
        options = ["-k", str(folder), "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
        argv = [str(programs[-1] / "postgres"), "-D", str(folder / "data"), *options]
        with running(argv, port, tmp_path_factory.mktemp("pg") / "log", user):
            until = time.monotonic() + 30
            while subprocess.run(
                [programs[-1] / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"], check=False
            ).returncode:
                assert time.monotonic() < until
                time.sleep(0.05)
            yield port
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def redis(tmp_path_factory) -> Iterator[int]:
    """Port of Debian's Redis, as the page wants it."""
    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    program = shutil.which("redis-server")
    assert program is not None
    argv = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    argv += ["--appendonly", "yes", "--maxmemory-policy", "noeviction"]
    with running(argv, port, folder / "log", None):
        yield port


def test_the_page_on_servers_of_ones_own_works_as_it_stands(tmp_path, postgresql, redis):
    (sql,) = blocks(PAGE, "sql")
    for statement in sql.split(";"):
        if statement.strip():
            subprocess.run(
                [
                    "psql",
                    "-h",
                    "127.0.0.1",
                    "-p",
                    str(postgresql),
                    "-U",
                    "postgres",
                    "-qc",
                    statement,
                ],
                check=True,
            )
    lines = commands(PAGE)
    exported = dict(re.findall(r"^export (\w+)=(.*)$", "\n".join(lines), re.MULTILINE))
    ports = {":5432/": f":{postgresql}/", ":6379/": f":{redis}/"}
    settings = {
        name: value.replace(port, ports[port])
        for name, value in exported.items()
        for port in ports
        if port in value
    }
    assert settings.keys() == {"PPWORKER_DATABASE_URL", "PPWORKER_REDIS_URL"}
    make_folder(tmp_path / "my-folder")

    migrate, doctor, serve = (line for line in lines if line.startswith(PROGRAM))
    reader = Reader(tmp_path, serve, **settings)
    with pytest.raises(AssertionError, match="run `ppworker migrate`"):
        reader.__enter__()
    reader.run(migrate)
    reader.run(doctor)
    with reader:
        assert f"redis      redis://127.0.0.1:{redis}" in reader.said()
        assert "(embedded)" not in reader.said()
        said = [reader.run(each) for each in commands("README.md", below="Your own files")[1:]]
        assert "3 items, 0 unlabelled, 3 annotations" in said[-1]
        assert "every invariant holds" in reader.run(f"{PROGRAM} verify")
        assert reader.stop() == 0
    assert not (tmp_path / ".ppworker" / "postgres").exists()
