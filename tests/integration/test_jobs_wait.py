"""``jobs wait`` says why what it waits for does not run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from factories import World

OPENED = "INSERT INTO post_processor_circuits (post_processor_id, open_until) SELECT id, "


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("UPDATE post_processors SET paused_by_operator = true", "processors resume"),
        ("UPDATE post_processors SET enabled = false", "is disabled"),
        (OPENED + "now() + interval '1 hour' FROM post_processors", "is paused by failures until"),
        (OPENED + "now() - interval '1 hour' FROM post_processors", ""),
    ],
)
def test_a_wait_for_what_is_paused_says_so_once(
    worlds: Callable[..., World], database_url: str, tmp_path: Path, settings: str, said: str
) -> None:
    world = worlds(username="local")
    world.processor("held")
    world.processor("idle", splits=["valid"])
    world.add("one", "two")
    theirs = worlds()
    theirs.processor("other")
    theirs.add("one")
    world.sql(settings)
    done = subprocess.run(
        [sys.executable, "-m", "ppworker", "jobs", "wait", "--timeout", "1.2", "--json"],
        env={
            "PATH": os.environ["PATH"],
            "PPWORKER_DATABASE_URL": database_url,
            "PPWORKER_DATA_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["pending"] == 2
    lines = [line for line in done.stderr.splitlines() if "no worker runs" not in line]
    assert len(lines) == (1 if said else 0), lines
    if said:
        assert f"{world.dataset.name}/held" in lines[0]
        assert said in lines[0]
