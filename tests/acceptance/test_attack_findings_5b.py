"""What an attack on the programs found, each finding kept as a test."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from redis import Redis

from ppworker import embedded
from running_program import run


def examine(data_dir: Path, url: str, **more: str) -> dict[str, dict[str, Any]]:
    code, out, err = run(
        "doctor", "--json", PPWORKER_DATABASE_URL=url, PPWORKER_DATA_DIR=str(data_dir), **more
    )
    assert code in {0, 1}, err
    return {each["check"]: each for each in json.loads(out)}


def test_a_crash_point_left_armed_is_a_problem_to_doctor_and_told_by_each_process(
    tmp_path: Path, database_url: str
) -> None:
    """`PPWORKER_CRASH_AT` in production by mistake: workers died one by one, and nobody said why."""
    found = examine(tmp_path, database_url, PPWORKER_CRASH_AT="in_finish")
    assert found["crash point"]["state"] == "problem"
    own = {name: value for name, value in os.environ.items() if not name.startswith("PPWORKER_")}
    armed = {
        "PPWORKER_DATABASE_URL": database_url,
        "PPWORKER_DATA_DIR": str(tmp_path),
        "PPWORKER_CRASH_AT": "in_finish",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "ppworker.process", "worker"],
        env=own | armed,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.terminate()
    assert "will_crash" in first
    assert "PPWORKER_CRASH_AT" in first


def test_doctor_ends_though_a_table_is_locked(tmp_path: Path, database_url: str) -> None:
    """A migration, or a VACUUM FULL, of that night: doctor waited for its end without a word."""
    engine = sa.create_engine(sa.make_url(database_url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(sa.text("LOCK TABLE post_processors"))
        found = examine(tmp_path, database_url)
        assert found["PostgreSQL"]["state"] == "problem"
        assert "in time" in found["PostgreSQL"]["said"]
    engine.dispose()


def test_doctor_tells_a_redis_that_refuses_from_one_that_does_not_answer(
    tmp_path: Path, database_url: str
) -> None:
    """Without INFO or TIME it was called dead, and without scripts or our keys it was called fit."""
    hints_pass = {
        "~* +@all -info -config -time": True,
        "~* +@all -@scripting": False,
        "~elsewhere:* +@all": False,
    }
    with embedded.acquire(tmp_path / "d") as servers:
        assert servers.redis_url is not None
        url = f"unix://weak:hush@{servers.redis_url.removeprefix('unix://')}"
        for rights, is_fit in hints_pass.items():
            with Redis.from_url(servers.redis_url) as client:
                client.execute_command("ACL", "SETUSER", "weak", "reset")
                client.execute_command("ACL", "SETUSER", "weak", "on", ">hush", *rights.split())
            found = examine(tmp_path, database_url, PPWORKER_REDIS_URL=url)
            assert found["redis"]["state"] == "ok"
            assert ("redis rights" not in found) == is_fit
            assert "redis version" not in found
            assert "hush" not in json.dumps(found)
