"""Metrics and health of real processes: before, during and after a load, killed and cut off."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from factories import World
from live_workers import TESTS, wait_for
from ppworker import settings, wiring
from ppworker.embedded import EmbeddedServers
from ppworker.store import schema
from ppworker.store.db import Database

PROGRAM = [sys.executable, "-m", "ppworker"]
ECHO = "scripted_runners:EchoRunner"
Figures = dict[tuple[str, ...], float]


class Group:
    """A supervisor with its processes, asked through its port."""

    def __init__(self, servers: EmbeddedServers, folder: Path, *arguments: str, **more: str):
        self.environment = os.environ | {
            "PPWORKER_DATABASE_URL": servers.database_url,
            "PPWORKER_DATA_DIR": str(folder),
            "PPWORKER_LEASE_S": "2",
            "PPWORKER_SWEEP_S": "0.5",
            "PPWORKER_POLL_S": "0.3",
            "PPWORKER_LOG_FORMAT": "json",
            "PYTHONPATH": str(TESTS),
            "TMPDIR": str(folder.parent),
        }
        if servers.redis_url:
            self.environment["PPWORKER_REDIS_URL"] = servers.redis_url
        self.environment |= more
        self.log = folder.parent / "group.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*PROGRAM, *arguments, "--json", "--port", "0"],
                env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.ready = json.loads(line)
        self.address = str(self.ready["address"])

    def ask(self, path: str, *, method: str = "GET", body: Any = None, key: str = "") -> Any:
        """Status and body of an answer, decoded where it is JSON."""
        parts = urlsplit(self.address)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(text) if is_json else text

    def post(self, path: str, body: Any = None) -> Any:
        status, answer = self.ask(path, method="POST", body=body, key=str(self.ready["key"]))
        assert status < 300, answer
        return answer

    def figures(self) -> Figures:
        """Samples of a scrape by name and labels in the order of their names."""
        status, text = self.ask("/metrics")
        assert status == 200
        return {
            (sample.name.removeprefix("ppworker_"), *(v for _, v in sorted(sample.labels.items()))):
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }  # fmt: skip

    def health(self, check: str) -> int:
        return int(self.ask(f"/health/{check}")[0])

    def workers(self) -> list[dict[str, Any]]:
        """Worker processes as the detail tells of them."""
        status, found = self.ask("/health/detail", key=str(self.ready["key"]))
        assert status == 200
        return list(found["workers"])

    def children(self, role: str) -> list[int]:
        """Pids of the supervisor's processes of a role."""
        pid = self.process.pid
        path = Path(f"/proc/{pid}/task/{pid}/children")
        return [
            int(child)
            for child in path.read_text().split()
            if f"ppworker.process\0{role}\0" in Path(f"/proc/{child}/cmdline").read_text()
        ]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()  # its children stop by themselves
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


Start = Callable[..., Group]


@pytest.fixture
def local(servers: EmbeddedServers, tmp_path: Path) -> Iterator[World]:
    """The datasets of the user whose key `up` prints."""
    db = Database(servers.database_url, connections=4)
    schema.migrate(db)
    given = settings.load(database_url=servers.database_url, data_dir=tmp_path / "d")
    yield World(wiring.build_deps(given, db, emit=lambda _: None), username="local")
    db.close()


@pytest.fixture
def begin(servers: EmbeddedServers, tmp_path: Path) -> Iterator[Start]:
    begun: list[Group] = []

    def start(*arguments: str, **more: str) -> Group:
        begun.append(Group(servers, tmp_path / "d", *arguments, **more))
        return begun[-1]

    yield start
    for group in begun:
        group.end()


def upload(group: Group, world: World, texts: list[str]) -> None:
    """Items by HTTP, several at a time."""
    ids = f"/api/v1/datasets/{world.dataset.id}/versions/{world.train.version_id}/items"
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda text: group.post(ids, {"name": "item", "text": text}), texts))


def drain(world: World) -> None:
    live = "SELECT 1 FROM post_processor_jobs WHERE status IN ('pending','processing') LIMIT 1"
    wait_for(lambda: not world.sql(live), seconds=60, what="the drain")


def counted(world: World, statement: str) -> Counter[tuple[str, ...]]:
    return Counter({tuple(key): n for *key, n in world.sql(statement)})


def named(figures: Figures, name: str) -> Counter[tuple[str, ...]]:
    """Samples of one name by their labels, in the order of the labels' names."""
    return +Counter({key[1:]: int(value) for key, value in figures.items() if key[0] == name})


def is_counter(key: tuple[str, ...]) -> bool:
    return key[0].endswith(("_total", "_count", "_sum", "_bucket"))


JOBS = "FROM post_processor_jobs j JOIN post_processors p ON p.id = j.post_processor_id"


@pytest.mark.slow
def test_scrapes_before_during_and_after_a_load_add_up_to_the_database(
    local: World, begin: Start, tmp_path: Path
) -> None:
    group = begin("up", "--processes", "2", "--threads", "2")
    gate = tmp_path / "gate"
    local.processor("echo", runner=ECHO)
    local.processor(
        "slow", order=1, runner="scripted_runners:GatedRunner",
        runner_config={"gate": str(gate)}, batch_size=20,
    )  # fmt: skip
    before = group.figures()
    assert not {key for key in before if is_counter(key) and "processor" in key[0]}
    assert before["worker_slots",] == 4
    assert before["jobs_due", "echo"] == 0

    texts = [f"{'UNREADABLE' if n % 10 == 0 else 'word'} {n}" for n in range(120)]
    upload(group, local, texts)
    during = [before]

    def busy() -> bool:
        during.append(group.figures())
        return during[-1].get(("jobs_in_progress", "slow"), 0.0) > 0

    wait_for(busy, seconds=60, what="slow's jobs in progress")
    gate.touch()
    while local.sql("SELECT 1 FROM post_processor_jobs WHERE status <> 'completed' "
                    "AND status <> 'failed' LIMIT 1"):  # fmt: skip
        during.append(group.figures())
        time.sleep(0.05)
    failed = local.sql(f"SELECT j.id, j.item_id {JOBS} WHERE j.status = 'failed'")
    assert len(failed) == 24
    items = f"/api/v1/datasets/{local.dataset.id}/versions/{local.train.version_id}/items"
    for job_id, item_id in failed[:15]:
        group.post(f"{items}/{item_id}/jobs/{job_id}/retry")
    drain(local)

    truth = {
        "jobs_enqueued_total": counted(
            local, f"SELECT p.name, 'upload', count(*)::int {JOBS} GROUP BY 1"
        ),
        "job_attempts_total": counted(
            local,
            "SELECT CASE a.cause WHEN 'finished' THEN 'completed' ELSE 'failed' END, p.name, "
            f"count(*)::int {JOBS} JOIN job_attempts a ON a.job_id = j.id GROUP BY 1, 2",
        ),
        "annotations_written_total": counted(
            local,
            "SELECT 'inserted', p.name, count(*)::int FROM annotations a "
            "JOIN post_processors p ON p.id = a.post_processor_id GROUP BY 2",
        ),
    }
    finished = counted(local, f"SELECT p.name, j.status, count(*)::int {JOBS} GROUP BY 1, 2")
    for name in ("echo", "slow"):
        again = sum(1 for job in local.jobs() if job.lease_token > 1 and job.post_processor == name)
        truth["jobs_enqueued_total"][name, "retry"] = again
        finished[name, "failed"] += again
    truth["jobs_finished_total"] = finished

    def all_told() -> bool:  # what is counted after a COMMIT may be scraped a moment later
        now = group.figures()
        return all(named(now, name) == +expected for name, expected in truth.items())

    wait_for(all_told, seconds=5, what="the sums: " + json.dumps(str(truth)))
    after = group.figures()
    attempts = truth["job_attempts_total"]
    assert named(after, "job_attempt_duration_seconds_count") == attempts
    assert named(after, "job_end_to_end_seconds_count") == finished
    assert after["claim_batch_jobs_sum",] == attempts.total()
    assert named(after, "job_queue_wait_seconds_count").total() == attempts.total()
    wait_for(
        lambda: group.figures().get(("jobs", "echo", "completed")) == 108,
        seconds=15, what="the gauges of the database",
    )  # fmt: skip
    status = json.loads(
        subprocess.run(
            [*PROGRAM, "status", "--json"], env=group.environment, capture_output=True, check=True
        ).stdout
    )
    assert (status["operations_live"], status["dead_letters"]) == (0, 0)
    assert [(each["state"], each["leases"]) for each in status["workers"]] == [("live", 0)] * 2
    shrunk = {
        key
        for one, other in zip(during, [*during[1:], after], strict=True)
        for key in one.keys() & other.keys()
        if is_counter(key) and other[key] < one[key]
    }
    assert shrunk == set()
    assert group.stop() == 0
    assert not list(group.log.parent.glob("ppworker-run-*"))
    assert "GET /metrics" not in group.log.read_text()


@pytest.mark.slow
def test_a_killed_worker_takes_its_gauges_with_it_and_leaves_its_counts(
    local: World, begin: Start
) -> None:
    group = begin("up", "--processes", "2", "--threads", "2")
    local.processor(
        "slow", runner="scripted_runners:DawdlingRunner", runner_config={"seconds": 0.02},
        batch_size=10, max_attempts=20,
    )  # fmt: skip
    upload(group, local, [f"word {n}" for n in range(150)])
    attempts = ("job_attempts_total", "completed", "slow")
    wait_for(lambda: group.figures().get(attempts, 0) > 10, seconds=20, what="progress")
    before = group.figures()
    victim, other = group.workers()
    os.kill(int(victim["pid"]), signal.SIGKILL)
    wait_for(lambda: group.figures()["worker_slots",] == 2, seconds=5, what="the end of the gauges")
    assert group.figures().get(("jobs_in_progress", "slow"), 0) <= 20
    assert group.health("live") == group.health("ready") == group.health("started") == 200
    wait_for(lambda: group.figures()["worker_slots",] == 4, seconds=20, what="its return")
    again = {each["slot"]: each["pid"] for each in group.workers()}
    assert again[other["slot"]] == other["pid"]
    assert again[victim["slot"]] != victim["pid"]

    api = group.children("api")
    os.kill(api[0], signal.SIGKILL)
    assert group.health("live") == 200, "the port outlives its process; the caller waits"
    assert group.children("api") != api
    drain(local)
    after = group.figures()
    assert {key for key in before if is_counter(key) and after[key] < before[key]} == set()
    assert after["jobs_enqueued_total", "slow", "upload"] == 150
    # A kill between a COMMIT and its count loses the count of a batch, and never adds one.
    ended = local.sql("SELECT count(*) FROM job_attempts WHERE cause = 'finished'")[0][0]
    assert ended - 20 <= after[attempts] <= ended
    rescued = local.sql("SELECT count(*) FROM job_attempts WHERE cause = 'rescued'")[0][0]
    assert named(after, "jobs_rescued_total").total() == rescued
    names = [re.sub(r"\d", "", path.name) for path in _folder(group).glob("*.db")]
    assert Counter(names) == {
        f"{kind}_{slot}.db": n
        for kind in ("counter", "histogram", "gauge_max")
        for slot, n in (("worker-", 2), ("api", 1))
    }
    assert group.stop() == 0


def _folder(group: Group) -> Path:
    (found,) = group.log.parent.glob("ppworker-run-*")
    return found


@pytest.mark.slow
def test_health_while_redis_and_the_database_are_away(
    local: World, begin: Start, servers: EmbeddedServers, tmp_path: Path
) -> None:
    group = begin("up", "--processes", "1")
    assert {check: group.health(check) for check in ("live", "started", "ready")} == {
        "live": 200, "started": 200, "ready": 200,
    }  # fmt: skip
    assert group.ask("/health/detail")[0] == 401

    redis = int((tmp_path / "d" / "redis" / "redis.pid").read_text())
    postmaster = int((tmp_path / "d" / "postgres" / "postmaster.pid").read_text().split()[0])
    os.kill(redis, signal.SIGSTOP)
    try:
        status, said = group.ask("/health/ready")
        assert (status, said["degraded"]) == (200, ["redis"])
        assert group.figures()["redis_up",] == 0
    finally:
        os.kill(redis, signal.SIGCONT)
    wait_for(lambda: group.ask("/health/ready")[1]["degraded"] == [], seconds=10, what="redis")

    backends = [int(pid) for (pid,) in local.sql("SELECT pid FROM pg_stat_activity")]
    silent = [postmaster, *backends]
    local.deps.db.close()
    try:
        for pid in silent:
            _send(pid, signal.SIGSTOP)
        _assert_bounded_without_database(group)  # one that says nothing
    finally:
        for pid in silent:
            _send(pid, signal.SIGCONT)
    wait_for(lambda: group.health("ready") == 200, seconds=40, what="the database")

    os.kill(postmaster, signal.SIGQUIT)
    wait_for(lambda: group.health("ready") == 503, seconds=10, what="the end of the database")
    _assert_bounded_without_database(group)  # one that refuses
    assert group.ask("/health/detail", key=str(group.ready["key"]))[0] == 503
    command = [*PROGRAM, "health", "ready", "--url", group.address]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert asked.returncode == 1
    assert asked.stdout.startswith("not ready\nreasons: the database does not answer\n")
    servers.ensure()
    wait_for(lambda: group.health("ready") == 200, seconds=40, what="the database")
    wait_for(lambda: group.figures()["database_up",] == 1, seconds=15, what="its gauges")
    found = group.figures()
    assert named(found, "db_errors_total").total() > 0
    assert found["db_reconnects_total",] >= 1
    asked = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert (asked.returncode, json.loads(asked.stdout)["is_ok"]) == (0, True)
    assert group.stop() == 0


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _assert_bounded_without_database(group: Group) -> None:
    wait_for(lambda: group.health("ready") == 503, seconds=10, what="the doubt")
    until = time.monotonic() + 12  # longer than gauges are kept
    while True:
        began = time.monotonic()
        found = group.figures()
        assert time.monotonic() - began < 2
        assert group.health("live") == 200
        assert group.health("started") == 200
        if found["database_up",] == 0:
            break
        assert time.monotonic() < until
        time.sleep(0.2)
    assert not {key for key in found if key[0] in {"jobs", "jobs_due", "workers"}}
    assert found["worker_slots",] == 2


@pytest.mark.slow
def test_workers_alone_have_a_port_of_their_own_and_say_when_they_drain_or_hang(
    local: World, begin: Start
) -> None:
    local.processor(
        "slow", runner="scripted_runners:DawdlingRunner", runner_config={"seconds": 3},
        batch_size=1,
    )  # fmt: skip
    group = begin("worker", "--processes", "2", "--threads", "1")
    assert group.ready["key"] is None
    assert group.ask("/api/v1/datasets")[0] == 404
    assert group.health("ready") == group.health("started") == group.health("live") == 200
    worker, _ = group.children("worker")

    os.kill(worker, signal.SIGSTOP)
    wait_for(lambda: group.health("live") == 503, seconds=20, what="the doubt")
    status, said = group.ask("/health/ready")
    assert (status, len(said["degraded"])) == (200, 1)
    os.kill(worker, signal.SIGCONT)
    wait_for(lambda: group.health("live") == 200, seconds=5, what="its return")

    local.add("one", "two")
    wait_for(lambda: group.figures()["worker_slots_in_use",] == 2, seconds=10, what="work")
    group.process.terminate()
    wait_for(lambda: group.health("ready") == 503, seconds=5, what="the drain")
    assert group.ask("/health/ready")[1]["reasons"][0] == "draining"
    assert group.health("live") == 200
    register = "SELECT count(*) FROM workers WHERE draining"
    wait_for(lambda: local.sql(register)[0][0] == 2, seconds=5, what="the register")
    assert named(group.figures(), "jobs_in_progress") == {("slow",): 2}
    assert group.process.wait(30) == 0
    assert set(local.statuses()) == {"completed"}


def test_a_port_that_is_used_is_said_and_nobody_else_takes_its_place(
    local: World, begin: Start
) -> None:
    group = begin("worker", "--processes", "1")
    port = str(urlsplit(group.address).port)
    done = subprocess.run(
        [*PROGRAM, "worker", "--port", port],
        env=group.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"127.0.0.1:{port} cannot be listened on" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert group.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["live", "--url", "http://127.0.0.1:1"], "no answer"),
        (["live", "--url", "nonsense"], "--url: is no address"),
        (["well"], "'well' is not one of 'live', 'started', 'ready'"),
    ],
)
def test_health_of_nobody_is_no(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [*PROGRAM, "health", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == (1 if "127" in arguments[-1] else 2)
    assert said in done.stdout + done.stderr
