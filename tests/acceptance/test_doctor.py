"""``ppworker doctor`` on real servers: what is wrong is found before the night."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import redis
import sqlalchemy as sa

from live_workers import TESTS
from ppworker import embedded
from running_program import run

if TYPE_CHECKING:
    from factories import World
    from promises import Keep


def plain_url(url: str) -> str:
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def examine(data_dir: Path, **environment: str) -> tuple[int, dict[str, dict[str, Any]]]:
    code, out, err = run("doctor", "--json", "--data-dir", str(data_dir), **environment)
    assert code in {0, 1}, err
    return code, {each["check"]: each for each in json.loads(out)}


def test_a_fresh_system_is_sound_and_each_trouble_made_by_hand_is_found(tmp_path: Path) -> None:
    with embedded.acquire(tmp_path / "d") as servers:
        assert run("migrate", "--data-dir", str(tmp_path / "d"))[0] == 0
        code, found = examine(tmp_path / "d")
        assert code == 0
        assert {each["check"] for each in found.values() if each["state"] != "ok"} == {"workers"}

        with psycopg.connect(plain_url(servers.database_url), autocommit=True) as link:
            link.execute("ALTER TABLE post_processor_jobs SET (autovacuum_enabled = false)")
            link.execute("ALTER SYSTEM SET full_page_writes = off")
            link.execute("SELECT pg_reload_conf()")
            link.execute("UPDATE alembic_version SET version_num = '9999'")
        assert servers.redis_url is not None
        with redis.Redis.from_url(servers.redis_url) as client:
            client.config_set("maxmemory", 2**30)
            client.config_set("maxmemory-policy", "allkeys-lru")
        code, found = examine(tmp_path / "d")
        assert code == 1
        problems = {each["check"] for each in found.values() if each["state"] == "problem"}
        assert problems == {"autovacuum", "full_page_writes", "schema", "redis eviction"}


def test_servers_that_do_not_answer_are_findings_and_no_traceback(tmp_path: Path) -> None:
    url = "postgresql://nobody:hush@127.0.0.1:1/none"
    code, found = examine(
        tmp_path, PPWORKER_DATABASE_URL=url, PPWORKER_REDIS_URL="redis://127.0.0.1:1/0"
    )
    assert code == 1
    assert found["PostgreSQL"]["state"] == "problem"
    assert found["redis"]["state"] == "warning"
    assert "hush" not in json.dumps(found)


@pytest.mark.promise
def test_a_wrong_configuration_ends_the_worker_before_any_claim(
    tmp_path: Path, database_url: str, world: "World", promise: "Keep"
) -> None:
    world.processor(runner="scripted_runners:EchoRunner")
    world.add("due")
    wrong = {
        "PPWORKER_POOL_SIZE": ("2", "PPWORKER_POOL_SIZE"),
        "PPWORKER_LEASE_S": ("soon", "PPWORKER_LEASE_S"),
        "PPWORKER_DATABASE_URL": ("mysql://a/b", "PPWORKER_DATABASE_URL"),
        "PPWORKER_REDIS_URL": ("http://a", "PPWORKER_REDIS_URL"),
        "PPWORKER_CRASH_AT": ("nowhere", "PPWORKER_CRASH_AT"),
        "PPWORKER_PROCESSES": ("0", "PPWORKER_PROCESSES"),
        "PPWORKER_LOG_LEVEL": ("loud", "PPWORKER_LOG_LEVEL"),
    }
    said: dict[str, tuple[int, str]] = {}
    for name, (value, _) in wrong.items():
        given = {
            "PPWORKER_DATABASE_URL": database_url,
            "PPWORKER_DATA_DIR": str(tmp_path),
            "PYTHONPATH": str(TESTS),
        }
        code, _, err = run("worker", **(given | {name: value}))
        said[name] = (code, err)
    right = [n for n, (code, err) in said.items() if code == 2 and wrong[n][1] in err]
    assert not any("Traceback" in err for _, err in said.values())
    (job,) = world.jobs()
    workers = world.sql("SELECT count(*) FROM workers")[0][0]
    world.check()
    promise(
        "F39",
        promise="A wrong configuration ends the program with exit code 2 and names the setting.",
        fault=f"{len(wrong)} wrong settings, one at a time, among them a pool smaller than slots; a "
        "job is due",
        target="exit code 2 with a named reason before any claim, each time",
        figure=f"{len(right)} of {len(wrong)}; afterwards the job is {job.status} with "
        f"{job.attempts} attempts, {workers} workers in the register",
        passed=len(right) == len(wrong)
        and (job.status, job.attempts) == ("pending", 0)
        and not world.attempts(job.id)
        and not workers,
        figures={name: {"code": code, "said": err[-300:]} for name, (code, err) in said.items()},
    )
