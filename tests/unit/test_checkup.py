"""What doctor makes of what it finds: each trouble by its name, with a remedy."""

from dataclasses import replace
from pathlib import Path

import pytest

from ppworker import settings
from ppworker.errors import ConfigurationError
from ppworker.monitoring import checkup
from ppworker.monitoring.checkup import MachineFacts, RedisFacts, State
from ppworker.store.checkup import OldTransaction, ServerFacts

SOUND = ServerFacts(
    settings={
        "server_version_num": "160004",
        "server_encoding": "UTF8",
        "max_connections": "100",
        "superuser_reserved_connections": "3",
        "autovacuum": "on",
        "track_counts": "on",
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "default_transaction_isolation": "read committed",
        "default_transaction_read_only": "off",
        "statement_timeout": "0",
        "lock_timeout": "0",
    },
    is_standby=False,
    connections=10,
    old_transactions=[],
    held_slots=[],
    prepared=0,
    unvacuumed=[],
    live_rows=1_000_000,
    dead_rows=1_000,
    xid_age=1_000,
    ahead_s=0.001,
    round_trip_s=0.0003,
    through="",
)
REDIS = RedisFacts(
    version="7.2.4",
    policy="noeviction",
    used_bytes=1 << 20,
    is_persistent=True,
    round_trip_s=0.0001,
)
GIB = 2**30


def bad(findings):
    return {each.check: each for each in findings if each.state is not State.OK}


def of(**changed):
    return bad(checkup.of_server(replace(SOUND, **changed), settings.load()))


def with_setting(name, value):
    return of(settings={**SOUND.settings, name: value})


def test_a_sound_system_has_no_finding_that_is_not_ok():
    assert of() == {}
    assert bad(checkup.of_redis(REDIS)) == {}
    machine = MachineFacts(
        free_bytes=100 * GIB, total_bytes=200 * GIB, is_writable=True, open_files=4096
    )
    assert bad(checkup.of_machine(machine, Path("data"))) == {}
    assert bad(checkup.of_settings(settings.load())) == {}


@pytest.mark.parametrize(
    ("name", "value", "check", "state"),
    [
        ("server_version_num", "140010", "version", State.PROBLEM),
        ("server_encoding", "LATIN1", "encoding", State.PROBLEM),
        ("default_transaction_read_only", "on", "writing", State.PROBLEM),
        ("default_transaction_isolation", "serializable", "isolation", State.PROBLEM),
        ("statement_timeout", "5s", "statement_timeout", State.WARNING),
        ("lock_timeout", "900ms", "lock_timeout", State.WARNING),
        ("max_connections", "20", "connections", State.WARNING),
        ("autovacuum", "off", "autovacuum", State.PROBLEM),
        ("track_counts", "off", "autovacuum", State.PROBLEM),
        ("fsync", "off", "fsync", State.PROBLEM),
        ("full_page_writes", "off", "full_page_writes", State.PROBLEM),
        ("synchronous_commit", "off", "synchronous_commit", State.WARNING),
    ],
)
def test_a_setting_of_the_server_is_told_with_its_remedy(name, value, check, state):
    (found,) = with_setting(name, value).values()
    assert (found.check, found.state) == (check, state)
    assert found.remedy


def test_a_long_time_limit_is_none_of_our_business():
    assert with_setting("statement_timeout", "5min") == {}
    assert with_setting("lock_timeout", "1h") == {}


@pytest.mark.parametrize(
    ("changed", "check"),
    [
        ({"is_standby": True}, "writing"),
        ({"held_slots": ["gone"]}, "replication slot"),
        ({"prepared": 1}, "prepared transactions"),
        ({"unvacuumed": ["post_processor_jobs"]}, "autovacuum"),
        ({"dead_rows": 600_000}, "dead rows"),
        ({"xid_age": 1_600_000_000}, "wraparound"),
        ({"ahead_s": -600.0}, "clock of PostgreSQL"),
        ({"round_trip_s": 0.2}, "way to PostgreSQL"),
    ],
)
def test_what_the_server_does_is_told_with_its_remedy(changed, check):
    (found,) = of(**changed).values()
    assert found.check == check
    assert found.remedy


def test_an_old_transaction_is_named_with_the_statement_that_ends_it():
    old = OldTransaction(pid=4711, application="psql", state="idle in transaction", age_s=900)
    (found,) = of(old_transactions=[old]).values()
    assert "4711" in found.said
    assert "psql" in found.said
    assert "pg_terminate_backend(4711)" in found.remedy


@pytest.mark.parametrize(
    ("changed", "check", "state"),
    [
        ({"error": "TimeoutError: nobody"}, "redis", State.WARNING),
        ({"version": "5.0.7"}, "redis version", State.PROBLEM),
        ({"policy": "allkeys-lru", "max_bytes": GIB}, "redis eviction", State.PROBLEM),
        ({"policy": "allkeys-lru"}, "redis eviction", State.WARNING),
        ({"max_bytes": GIB, "used_bytes": GIB - 1}, "redis memory", State.WARNING),
        ({"is_persistent": False}, "redis persistence", State.WARNING),
        ({"ahead_s": 30.0}, "clock of redis", State.WARNING),
    ],
)
def test_what_redis_does_is_told_with_its_remedy(changed, check, state):
    (found,) = bad(checkup.of_redis(replace(REDIS, **changed))).values()
    assert (found.check, found.state) == (check, state)
    assert found.remedy


def test_a_redis_that_may_not_be_asked_is_not_blamed():
    assert bad(checkup.of_redis(replace(REDIS, policy=None, is_persistent=None))) == {}


@pytest.mark.parametrize(
    ("changed", "check"),
    [
        ({"free_bytes": GIB // 2}, "disk"),
        ({"free_bytes": 5 * GIB}, "disk"),
        ({"is_writable": False}, "data folder"),
        ({"open_files": 256}, "open files"),
    ],
)
def test_what_the_machine_lacks_is_told_with_its_remedy(changed, check):
    sound = MachineFacts(
        free_bytes=100 * GIB, total_bytes=200 * GIB, is_writable=True, open_files=4096
    )
    (found,) = bad(checkup.of_machine(replace(sound, **changed), Path("data"))).values()
    assert found.check == check
    assert found.remedy


def test_runners_that_are_not_here_are_named_and_paths_are_left_to_those_who_have_them():
    wanted = {("pages/ocr", "rapidocr"), ("pages/own", "mine"), ("pages/path", "module:Class")}
    (found,) = checkup.of_runners(wanted, ["rapidocr"])
    assert "pages/own" in found.said
    assert "stay pending" in found.said


def test_no_live_worker_and_mixed_versions_are_told():
    found = bad(checkup.of_workers(live=0, lost=2, versions=["0.9"], mine="1.0"))
    assert set(found) == {"workers", "versions"}


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_a_pool_smaller_than_the_slots_is_refused_with_its_reason(threads):
    with pytest.raises(ConfigurationError, match=r"PPWORKER_POOL_SIZE: .*too small for") as refused:
        settings.load(threads=threads, pool_size=threads + 1)
    assert f"{threads + 2} or more" in str(refused.value)
    assert settings.load(threads=threads, pool_size=threads + 2).connections == threads + 2
