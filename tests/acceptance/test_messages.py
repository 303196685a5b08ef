"""Commands by message, seen from outside: other programs, real workers, kills and outages."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker

from factories import World
from live_workers import Start, wait_for
from ppworker.embedded import EmbeddedServers

PRODUCER = Path(__file__).parents[2] / "examples" / "producer.py"
KNOWN = ["dramatiq", "redis", *(["async_timeout"] if sys.version_info < (3, 11, 3) else [])]
OUTAGE_S = float(os.environ.get("PPWORKER_TEST_OUTAGE_S", "8"))
"""Seconds that PostgreSQL is away; `make outage` takes two minutes."""

Send = Callable[..., Any]


@pytest.fixture
def queue(servers: EmbeddedServers) -> Iterator[redis.Redis]:
    if servers.redis_url is None:
        pytest.fail("this platform has no redis wheel; messages need a real redis")
    with redis.Redis.from_url(servers.redis_url) as client:
        yield client


@pytest.fixture
def send(queue: redis.Redis) -> Send:
    broker = RedisBroker(client=queue, namespace="ppworker", middleware=[])

    def take(actor_name: str, **fields: object) -> None:
        broker.enqueue(
            dramatiq.Message(
                queue_name="commands", actor_name=actor_name, args=(), kwargs=fields, options={}
            )
        )

    return take


def left(queue: redis.Redis) -> int:
    return int(queue.hlen("ppworker:commands.msgs"))


def username(world: World) -> str:
    return str(world.sql("SELECT username FROM users WHERE id = :id", id=world.user)[0][0])


def count(world: World, table: str) -> int:
    return int(world.sql(f"SELECT count(*) FROM {table}")[0][0])


def upload(world: World, key: str) -> dict[str, object]:
    return {
        "schema_version": 1,
        "key": key,
        "user": username(world),
        "split": str(world.train.id),
        "items": [{"name": f"{key}.txt", "text": f"words of {key}"}],
    }


def test_the_example_producer_imports_nothing_but_dramatiq_and_redis() -> None:
    found = {
        (name or "").partition(".")[0]
        for node in ast.walk(ast.parse(PRODUCER.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert found - sys.stdlib_module_names == {"dramatiq", "redis"}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code in a Python that has the standard library, dramatiq and redis, and nothing else."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in KNOWN:
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        shutil.copytree(Path(spec.origin).parent, packages / name)

    def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                # Isolated: neither site-packages, nor the environment's, nor this folder's modules.
                *(sys.executable, "-I", "-S", "-c"),
                f"import sys; sys.path.insert(0, {str(packages)!r}); {code}",
                *arguments,
            ],
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.mark.timeout(120)
def test_the_example_producer_uploads_items_and_triggers_a_retry(
    live: World, servers: EmbeddedServers, start: Start, elsewhere, tmp_path, monkeypatch
) -> None:
    for name in ("ppworker", "sqlalchemy", "pydantic"):
        assert "ModuleNotFoundError" in elsewhere(f"import {name}").stderr
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "page.txt").write_text("a page from the inbox")
    monkeypatch.setenv("PPWORKER_INBOX_DIR", str(inbox))
    broken = tmp_path / "broken"
    broken.touch()
    processor = live.processor(
        runner="scripted_runners:FlakyRunner", runner_config={"path": str(broken)}, max_attempts=1
    )
    start()

    def produce(*arguments: str) -> list[dict[str, str]]:
        done = elsewhere(
            f"import runpy; sys.argv[0] = 'producer.py'; runpy.run_path({str(PRODUCER)!r}, "
            "run_name='__main__')",
            *arguments,
            PPWORKER_REDIS_URL=servers.redis_url,
            PPWORKER_USER=username(live),
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    split = f"{live.dataset.name}/train"
    arguments = ("upload", "--split", split, "--text", "a text", "--inbox", "page.txt")
    assert produce(*arguments)[0]["sent"] == "take_upload"
    produce(*arguments)  # a producer that is not sure sends again
    wait_for(lambda: live.statuses(processor) == ["failed"] * 2, seconds=30, what="the failure")
    texts = {row[0] for row in live.sql("SELECT text FROM dataset_items")}
    assert texts == {"a text", "a page from the inbox"}

    broken.unlink()
    first, second = live.jobs(processor)
    produce("retry", str(first.id))
    wait_for(
        lambda: live.statuses(processor) == ["completed", "failed"], seconds=30, what="the retry"
    )
    produce("retry", str(second.id), str(first.id))
    wait_for(lambda: live.statuses(processor) == ["completed"] * 2, seconds=30, what="the others")
    assert count(live, "dead_letters") == 0
    live.check()


def postgres_pid(folder: Path) -> int:
    (path,) = folder.rglob("postmaster.pid")
    return int(path.read_text().splitlines()[0])


@pytest.mark.slow
@pytest.mark.timeout(int(240 + OUTAGE_S))
def test_postgresql_away_under_a_thousand_uploads_each_becomes_an_item_once(
    live: World, servers: EmbeddedServers, start: Start, queue, send: Send, tmp_path: Path
) -> None:
    processor = live.processor(runner="scripted_runners:EchoRunner")
    workers = [start(), start()]
    wait_for(lambda: count(live, "workers") == 2, seconds=60, what="both workers")
    fields = [upload(live, f"upload-{number}") for number in range(1000)]
    for each in fields[:300]:
        send("take_upload", **each)
    wait_for(lambda: count(live, "dataset_items") > 20, seconds=30, what="the first uploads")

    os.kill(postgres_pid(tmp_path / "d"), signal.SIGQUIT)  # no time to say goodbye
    went_at = time.monotonic()
    for each in fields[300:]:
        send("take_upload", **each)
    assert left(queue) > 700
    while time.monotonic() - went_at < OUTAGE_S:
        time.sleep(0.2)
        assert [worker.poll() for worker in workers] == [None, None]
    waiting = left(queue)
    assert waiting > 700
    servers.ensure()
    back_at = time.monotonic()
    live.deps.db.close()  # the test's own connections, which are dead
    wait_for(lambda: left(queue) == 0, seconds=60, what="the rest of the uploads")
    print(
        f"PostgreSQL away for {back_at - went_at:.0f} s: {waiting} messages waited, followed "
        f"{time.monotonic() - back_at:.1f} s after it was back"
    )
    for _ in range(2):
        for each in fields:
            send("take_upload", **each)
    wait_for(lambda: left(queue) == 0, seconds=90, what="the repetitions")

    assert count(live, "dataset_items") == 1000
    names = {row[0] for row in live.sql("SELECT name FROM dataset_items")}
    assert names == {f"upload-{number}.txt" for number in range(1000)}
    wait_for(
        lambda: live.statuses(processor) == ["completed"] * 1000, seconds=60, what="their jobs"
    )
    assert count(live, "dead_letters") == 0
    assert queue.zcard("ppworker:commands.XQ") == 0
    live.check()


class HeldKey:
    """A key that somebody is about to use: whoever wants it waits in the middle of its command."""

    def __init__(self, world: World, key: str) -> None:
        self.connection = world.deps.db.engine.connect()
        self.transaction = self.connection.begin()
        self.connection.exec_driver_sql(
            "INSERT INTO idempotency_keys (user_id, key, request_sha256, ids) "
            "VALUES (%(user)s, %(key)s, '', '{}')",
            {"user": world.user, "key": key},
        )

    def let_go(self) -> None:
        self.transaction.rollback()
        self.connection.close()


def is_waiting(world: World) -> bool:
    return bool(
        world.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")[0][0]
    )


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_command_in_hand_of_a_killed_worker_is_followed_once_by_another_soon(
    live: World, start: Start, queue, send: Send
) -> None:
    processor = live.processor(runner="scripted_runners:EchoRunner")
    fields = upload(live, uuid4().hex)
    held = HeldKey(live, str(fields["key"]))
    victim = start()
    send("take_upload", **fields)
    wait_for(lambda: is_waiting(live), seconds=30, what="the middle of the command")
    assert queue.llen("ppworker:commands") == 0
    victim.kill()
    killed_at = time.monotonic()
    victim.wait()
    held.let_go()
    start()
    wait_for(lambda: left(queue) == 0, seconds=40, what="the redelivery")
    print(f"followed {time.monotonic() - killed_at:.1f} s after the kill")
    wait_for(lambda: live.statuses(processor) == ["completed"], seconds=20, what="its job")
    assert count(live, "dataset_items") == 1
    assert count(live, "dead_letters") == 0


@pytest.mark.timeout(90)
def test_a_command_in_hand_of_a_stopped_worker_goes_back_at_once(
    live: World, start: Start, queue, send: Send, monkeypatch
) -> None:
    fields = upload(live, uuid4().hex)
    held = HeldKey(live, str(fields["key"]))
    monkeypatch.setenv("PPWORKER_GRACE_S", "0.5")
    worker = start()
    send("take_upload", **fields)
    wait_for(lambda: is_waiting(live), seconds=30, what="the middle of the command")
    worker.terminate()
    assert worker.wait(15) == 0
    assert queue.llen("ppworker:commands") == 1
    held.let_go()
    start()
    wait_for(lambda: left(queue) == 0, seconds=20, what="the next worker")
    assert count(live, "dataset_items") == 1
