"""The published schema against the running API: a fuzzer of APIs asks it whatever the schema allows,
and whatever it forbids, and compares every answer with what the schema says of it."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_cases import CASES
from api_server import Api
from api_things import Things, make_things, served_world
from ppworker.pipeline.deps import Deps

LEAST = int(os.environ.get("PPWORKER_TEST_API_CASES", "1000"))
"""Least cases; `make fuzz-api` asks for many more."""
SEED = int(os.environ.get("PPWORKER_TEST_API_SEED", "0")) or random.SystemRandom().randrange(2**31)
PARTS = sorted({part for case in CASES for part in case.parts} - {"user_id", "key_id"})
"""Names of ids in paths; those of users and keys are drawn, so that nobody locks us out."""
_STATEFUL = 0.1
"""Share of the cases that are chains of requests, of which each uses what the one before made."""


@pytest.fixture(scope="module")
def api(module_deps: Deps) -> Iterator[Api]:
    with served_world(module_deps) as served:
        yield served


def test_nothing_breaks_the_published_schema(api: Api, tmp_path: Path) -> None:
    things = [make_things(api, api.world.user, api.me) for _ in range(2)]
    schema = api.me.get("/openapi.json").json()
    count = sum(len(methods) for methods in schema["paths"].values())
    each = max(1, round(LEAST / count))
    (tmp_path / "schemathesis.toml").write_text(configuration(things, each))
    command = [
        Path(sys.executable).with_name("schemathesis"),
        *("run", f"{api.address}/api/v1/openapi.json", "--no-color"),
        *("-H", f"Authorization: {api.me.headers['authorization']}"),
        *("--seed", str(SEED), "--report", "json", "--report-json-path", "report.json"),
    ]
    print(f"seed {SEED}; {each} cases for each of {count} operations")
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"NO_PROXY": "*", "COLUMNS": "160"},
    )  # fmt: skip
    print(done.stdout[-60_000:], done.stderr[-10_000:])
    assert done.returncode == 0, f"see above; again by PPWORKER_TEST_API_SEED={SEED}"
    ((generated,),) = [re.findall(r"(\d+) generated", done.stdout)]
    assert int(generated) >= LEAST


def configuration(things: list[Things], each: int) -> str:
    """The fuzzer's own settings: every check, and ids of what there is, most of the time."""
    lines = [
        "[cache]",
        "enabled = false",
        "[checks]",
        "enabled = true",
        "[generation]",
        f"max-examples = {each}",
        # Else it would try keys of its own making, and every answer were 401.
        "with-security-parameters = false",
        'database = "none"',
        "[phases.examples]",
        "enabled = true",
        "[phases.coverage]",
        "enabled = false",
        "[phases.fuzzing]",
        "enabled = true",
        "[phases.stateful]",
        "enabled = true",
        f"generation.max-examples = {max(1, round(each * _STATEFUL * 10))}",
    ]
    kept, gone = things
    for prefix, each_thing in (("kept", kept), ("gone", gone)):
        for name in PARTS:
            lines += [f"[dictionaries.{prefix}_{name}]", f'values = ["{each_thing.ids[name]}"]']
    lines += ["[parameters]", *bound("kept")]
    # What is deleted is not what the others need.
    lines += ["[[operations]]", 'include-method = "DELETE"', "[operations.parameters]"]
    return "\n".join([*lines, *bound("gone")])


def bound(prefix: str) -> list[str]:
    """Parts of paths that are ids of what there is, most of the time."""
    return [
        f'"path.{name}" = {{ dictionary = "{prefix}_{name}", probability = 0.9 }}' for name in PARTS
    ]
