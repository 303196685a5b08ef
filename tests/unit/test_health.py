"""The rules of the health endpoints, on vitals as processes write them."""

import json
import os
import threading
import time

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ppworker.monitoring import vitals
from ppworker.monitoring.detail import describe
from ppworker.monitoring.folder import Place, RuntimeFolder
from ppworker.monitoring.health import Health
from ppworker.monitoring.patience import Bounded
from ppworker.monitoring.router import PATHS, build
from ppworker.monitoring.scrape import Scrape
from ppworker.monitoring.vitals import Journal

LEASE_S = 30.0
KEY = "ppw_good"


class Group:
    """Processes that wrote their vitals, servers that answer or not, and a clock to turn."""

    def __init__(self, workers, door="api"):
        self.runtime = RuntimeFolder.make(workers, door=door)
        self.ahead_s = 0.0
        self.database = True
        self.redis = True
        self.asked: list[str] = []
        self.health = Health(
            place=self.runtime.path,
            lease_s=LEASE_S,
            poll_s=1.0,
            database=lambda: self.ask("database"),
            redis=lambda: self.ask("redis"),
            clock=lambda: time.monotonic() + self.ahead_s,
        )

    def ask(self, name):
        self.asked.append(name)
        return getattr(self, name)

    def write(self, slot, **told):
        journal = Journal(Place(slot, self.runtime.path), version="1", slots=2)
        now = time.monotonic()
        given = {"heartbeat_at": now, "renewed_at": now, "looked_at": now, "started_at": now}
        for name, value in {**given, **told}.items():
            setattr(journal.vitals, name, value)
        journal.note(now=True)
        return journal


@pytest.fixture
def group():
    made = Group(["worker-0", "worker-1"])
    for slot in ("worker-0", "worker-1", "api"):
        made.write(slot)
    yield made
    made.runtime.remove()


@pytest.fixture
def client(group):
    app = FastAPI()
    scrape = Scrape(
        group.runtime.path, version="1", schema_version="2", database=lambda: None,
        redis=lambda: group.redis,
    )  # fmt: skip
    app.include_router(
        build(
            health=group.health,
            scrape=scrape,
            detail=lambda: describe(group.health, version="1", schema_version="2"),
            allowed=lambda key: key == KEY if group.database else None,
        )
    )
    with TestClient(app) as client:
        yield client


# Live.


def test_what_gets_on_is_live_and_nobody_else_is_asked(group):
    assert group.health.live().is_ok
    assert group.asked == []


def test_a_main_loop_that_is_blocked_is_not_live(group):
    group.ahead_s = 11
    verdict = group.health.live()
    assert not verdict.is_ok
    assert verdict.reasons == [f"worker-{n}: its main loop is blocked for 11 s" for n in range(2)]


def test_a_heartbeat_that_does_not_turn_is_not_live(group):
    group.write("worker-1", heartbeat_at=time.monotonic() - LEASE_S - 61)
    assert group.health.live().reasons == ["worker-1: its heartbeat is blocked for 91 s"]


def test_a_heartbeat_that_the_database_keeps_waiting_is_live(group):
    """A silent network holds a call for half a minute; the fleet must not be restarted for it."""
    group.write("worker-1", heartbeat_at=time.monotonic() - LEASE_S - 30, renewed_at=None)
    assert group.health.live().is_ok


def test_a_process_that_died_is_being_restarted_and_does_not_count_against_live(group):
    group.runtime.forget("worker-0")
    assert group.health.live().is_ok


# Started.


def test_started_is_when_each_has_begun_once(group):
    group.write("worker-1", started_at=None)
    assert group.health.started().reasons == ["worker-1: has not started yet"]
    group.write("worker-1")
    assert group.health.started().is_ok
    group.runtime.forget("worker-1")
    assert group.health.started().is_ok, "a restart does not undo it"
    assert group.asked == []


def test_the_process_with_the_port_must_have_started_too(group):
    group.write("api", started_at=None)
    assert group.health.started().reasons == ["api: has not started yet"]


# Ready.


def test_ready_is_when_the_database_answers_and_workers_look(group):
    verdict = group.health.ready()
    assert verdict.is_ok
    assert verdict.degraded == []


def test_without_the_database_nothing_is_ready(group):
    group.database = False
    assert group.health.ready().reasons == ["the database does not answer"]


def test_without_redis_work_is_done_all_the_same(group):
    group.redis = False
    verdict = group.health.ready()
    assert verdict.is_ok
    assert verdict.degraded == ["redis"]
    group.redis = None
    assert group.health.ready().degraded == [], "none is configured: that is as it should be"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"is_draining": True}, "draining"),
        ({"started_at": None}, "starting"),
        ({"looked_at": -100.0}, "has not looked for jobs for"),
    ],
)
def test_one_worker_of_two_that_does_not_work_is_degraded_and_both_are_not_ready(group, told, why):
    group.write("worker-0", **told)
    verdict = group.health.ready()
    assert verdict.is_ok
    assert [each.startswith(f"worker-0: {why}") for each in verdict.degraded] == [True]
    group.runtime.forget("worker-1")
    verdict = group.health.ready()
    assert not verdict.is_ok
    assert verdict.reasons[0] == "no worker looks for jobs"
    assert "worker-1: does not run" in verdict.reasons


def test_a_loop_may_miss_two_of_three_polls(group):
    group.ahead_s = 6.5
    assert group.health.ready().is_ok
    group.ahead_s = 7.5
    assert not group.health.ready().is_ok


def test_who_polls_seldom_is_ready_for_longer(group):
    slow = Health(
        place=group.runtime.path, lease_s=300.0, poll_s=60.0, database=lambda: True,
        redis=lambda: None, clock=lambda: time.monotonic() + 170,
    )  # fmt: skip
    assert slow.ready().is_ok


def test_a_worker_that_renewed_no_lease_for_a_lease_is_not_ready_though_others_reach_the_database(
    group,
):
    group.write("worker-1", renewed_at=time.monotonic() - LEASE_S - 10)
    verdict = group.health.ready()
    assert verdict.is_ok
    assert verdict.degraded == ["worker-1: the database has not answered it for 40 s"]
    group.write("worker-0", renewed_at=time.monotonic() - LEASE_S - 10)
    assert not group.health.ready().is_ok


def test_a_group_that_is_about_to_stop_is_live_and_not_ready(group):
    group.runtime.drain()
    assert group.health.ready().reasons == ["draining"]
    assert group.health.live().is_ok


def test_a_worker_without_room_to_write_is_live_and_ready_and_says_so(group, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = group.runtime.path / "vitals-worker-0.json"
    long_ago = time.monotonic() - 300
    ages = dict.fromkeys(("noted_at", "started_at", "heartbeat_at", "looked_at"), long_ago)
    path.write_text(json.dumps(json.loads(path.read_text()) | ages))
    os.utime(path, (0, 0))
    assert not group.health.live().is_ok, "its loop is blocked, as far as anybody knows"
    monkeypatch.setattr("ppworker.monitoring.folder.write", full)
    Journal(Place("worker-0", group.runtime.path), version="1").note(now=True)
    assert group.health.live().is_ok
    ready = group.health.ready()
    assert (ready.is_ok, ready.degraded) == (True, ["worker-0: cannot write its signs of life"])
    tomorrow = time.time() + 86_400
    os.utime(path, (tomorrow, tomorrow))
    assert not group.health.live().is_ok, "a clock that was set back makes nobody live"


def test_an_api_without_workers_is_ready_when_the_database_answers():
    alone = Group([])
    alone.write("api")
    assert alone.health.ready().is_ok
    assert alone.health.started().is_ok
    alone.database = False
    assert not alone.health.ready().is_ok
    alone.runtime.remove()


def test_a_process_without_a_supervisor_speaks_for_itself():
    lone = Health(
        place=None, lease_s=LEASE_S, poll_s=1.0, database=lambda: True, redis=lambda: None
    )
    assert lone.live().is_ok
    assert lone.started().is_ok
    assert lone.ready().is_ok


# The endpoints.


def wait(event):
    """What a silent database answers."""
    event.wait(60)


def test_answers_are_json_with_their_status(client, group):
    assert client.get("/health/live").json() == {"status": "live", "reasons": [], "degraded": []}
    assert client.get("/health/started").status_code == 200
    group.redis = False
    found = client.get("/health/ready")
    assert (found.status_code, found.json()["degraded"]) == (200, ["redis"])
    group.database = False
    found = client.get("/health/ready")
    assert (found.status_code, found.json()["status"]) == (503, "not ready")
    assert found.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", PATHS)
def test_every_path_can_be_asked_for_its_head(client, path):
    found = client.head(path)
    assert found.status_code == (401 if path == "/health/detail" else 200)
    assert found.content == b""


def test_metrics_are_answered_in_the_text_format(client):
    found = client.get("/metrics")
    assert found.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "ppworker_worker_slots 4.0" in found.text


@pytest.mark.parametrize(
    "header", ["", "ppw_good", "Basic ppw_good", "Bearer", "Bearer ", "Bearer ppw_bad", "bearer x"]
)
def test_detail_is_for_holders_of_a_key(client, header):
    found = client.get("/health/detail", headers={"Authorization": header} if header else {})
    assert found.status_code == 401
    assert found.headers["WWW-Authenticate"] == "Bearer"
    assert found.json().keys() == {"error"}


def test_detail_tells_of_each_process(client, group):
    group.write("worker-1", is_draining=True, in_progress={"ocr": 3}, busy=1, looked_at=None)
    found = client.get("/health/detail", headers={"Authorization": f"bearer {KEY}"})
    assert found.status_code == 200
    told = found.json()
    assert told["live"]["is_ok"]
    assert told["ready"]["degraded"] == ["worker-1: draining"]
    first, second = told["workers"]
    assert (first["slot"], second["slot"]) == ("worker-0", "worker-1")
    assert (second["leases"], second["slots_in_use"], second["looked_s"]) == (3, 1, None)
    assert 0 <= first["renewed_s"] < 60
    assert json.dumps(told)


def test_a_key_that_cannot_be_checked_is_neither_good_nor_bad(client, group):
    group.database = False
    found = client.get("/health/detail", headers={"Authorization": f"Bearer {KEY}"})
    assert found.status_code == 503


def test_a_probe_is_answered_while_the_gauges_of_a_silent_database_are_waited_for(group):
    silent, app = threading.Event(), FastAPI()
    scrape = Scrape(
        group.runtime.path, version="1", schema_version="2",
        database=Bounded(lambda: wait(silent), limit_s=60), redis=lambda: None,
    )  # fmt: skip
    app.include_router(
        build(health=group.health, scrape=scrape, detail=dict, allowed=lambda _: None)
    )
    with TestClient(app) as client:
        scrapes = [
            threading.Thread(target=lambda: client.get("/metrics"), daemon=True) for _ in range(10)
        ]
        for each in scrapes:
            each.start()
        assert client.get("/health/live").status_code == 200
        assert all(each.is_alive() for each in scrapes)
        silent.set()
        for each in scrapes:
            each.join(10)


# Bounded questions.


def test_a_bounded_question_gives_up_and_the_next_asker_gets_the_late_answer():
    may_answer = threading.Event()
    ask = Bounded(lambda: may_answer.wait(10) and "late", limit_s=0.1)
    began = time.monotonic()
    assert ask() is None
    assert time.monotonic() - began < 1
    may_answer.set()
    assert Bounded(lambda: 7, limit_s=1)() == 7
    until = time.monotonic() + 5
    while (answer := ask()) is None:  # its thread has not come to it yet
        assert time.monotonic() < until
    assert answer == "late"


def test_who_asks_after_the_limit_of_a_silent_question_waits_for_nothing():
    may_answer = threading.Event()
    ask = Bounded(lambda: may_answer.wait(10), limit_s=0.5)
    began = time.monotonic()
    assert [ask() for _ in range(20)] == [None] * 20
    assert time.monotonic() - began < 1.5
    may_answer.set()
    while ask() is None:
        assert time.monotonic() - began < 5


def test_an_answer_is_kept_and_a_failure_is_asked_about_again_sooner(monkeypatch):
    answers, clock = [1, RuntimeError("away"), 2], [1000.0]
    monkeypatch.setattr("ppworker.monitoring.patience.time.monotonic", lambda: clock[0])

    def answer():
        said = answers.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    ask = Bounded(answer, limit_s=5, keep_s=10)
    assert [ask(), ask()] == [1, 1]
    clock[0] += 11
    assert [ask(), ask()] == [None, None]
    clock[0] += 1.5
    assert [ask(), ask()] == [2, 2]


def test_many_who_ask_at_once_ask_once():
    asked, may_answer = [], threading.Event()

    def answer():
        asked.append(1)
        return may_answer.wait(10)

    ask = Bounded(answer, limit_s=5, keep_s=10)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask())) for _ in range(5)]
    for each in threads:
        each.start()
    may_answer.set()
    for each in threads:
        each.join(10)
    assert answers == [True] * 5
    assert len(asked) == 1


def test_vitals_are_written_about_once_a_second(group, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("ppworker.monitoring.vitals.time.monotonic", lambda: clock[0])
    journal = group.write("worker-0")
    path = group.runtime.path
    for ahead, expected in ((0.5, 1000.0), (0.4, 1000.0), (0.2, 1001.1)):
        clock[0] = round(clock[0] + ahead, 3)
        journal.note()
        found = vitals.read(path, "worker-0")
        assert found is not None
        assert found.noted_at == expected
