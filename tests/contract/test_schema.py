"""The published schema against the running API: a fuzzer of APIs asks it whatever the schema allows,
and whatever it forbids, and compares every answer with what the schema says of it."""

import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api_cases import CASES
from api_server import Api
from api_things import Things, make_things, served_world
from ppworker.pipeline.deps import Deps

LEAST = int(os.environ.get("PPWORKER_TEST_API_CASES", "1000"))
"""Least cases; `make fuzz-api` asks for many more."""
SEED = int(os.environ.get("PPWORKER_TEST_API_SEED", "0")) or random.SystemRandom().randrange(2**31)
PARTS = sorted({part for case in CASES for part in case.parts})
"""Names of ids in paths."""
NAMED = ("label_id", "item_id", "split_id", "version_id")
"""Names of ids in bodies."""
PINNED = ("key_id", "user_id")
"""Always the same: the fuzzer collects ids from answers, and would lock itself out."""
_V = "/api/v1/datasets/{dataset_id}/versions/{version_id}"
_P = "/api/v1/datasets/{dataset_id}/post-processors"
MEANT = {
    f"POST {_V}/annotations": "names a label, an item and a split of the version",
    f"PUT {_V}/annotations/{{annotation_id}}": "names a label of the version",
    f"POST {_V}/annotations/review": "names what there is, by ids or by a filter",
    f"POST {_V}/items": "names labels and splits of the version",
    f"PUT {_V}/items/{{item_id}}": "If-Match names the version that is",
    f"PUT {_V}/items/{{item_id}}/state": "If-Match names the version that is",
    f"POST {_V}/items/bulk": "lines are JSON, which a schema of text does not say",
    f"POST {_V}/splits/{{split_id}}/add_inferences": "an inference has one of several fields",
    f"POST {_V}/upload": "the file is an archive",
    f"POST {_V}/upload/{{format}}": "the file is an archive of that format",
    f"POST {_P}": "settings fit each other and the runner",
    f"PUT {_P}/{{post_processor_id}}": "settings fit each other and the runner",
    f"POST {_P}/{{post_processor_id}}/undo": "names a version of the dataset",
    "POST /api/v1/datasets/{dataset_id}/share": "names somebody with an account",
    "POST /api/v1/datasets/{dataset_id}/upload": "the file is a picture",
}
"""Operations that refuse what the schema allows, for it cannot say the rule; why. Besides them all
lists with a cursor: it must be one that the list gave, and goes with no page number."""
TEXTS = {f"{_V}/items/bulk"}
"""Their body is text by its schema: on the wire nothing is any other."""
FINE = ["2xx", "3xx", "400", "401", "403", "404", "409", "412", "422", "429"]
_BESIDE = 250
"""Cases that examples and chains bring at least; fuzzing brings the rest."""
_ROOM = 1.1
"""Routes that can be asked little run out of cases; the others bring some more."""
_STATEFUL = 0.1
"""Share of the cases that are chains of requests, of which each uses what the one before made."""


@pytest.fixture(scope="module")
def api(module_deps: Deps) -> Iterator[Api]:
    with served_world(module_deps) as served:
        yield served


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_nothing_breaks_the_published_schema(api: Api, tmp_path: Path) -> None:
    things = [make_things(api, api.world.user, api.me) for _ in range(2)]
    schema = api.me.get("/openapi.json").json()
    count = sum(len(methods) for methods in schema["paths"].values())
    each = max(1, math.ceil((LEAST - _BESIDE) * _ROOM / count))
    meant = {*MEANT, *lists_with_cursors(schema)}
    (tmp_path / "schemathesis.toml").write_text(configuration(things, each, meant))
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
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
    report = json.loads((tmp_path / "report.json").read_text())
    nowhere = report["warnings"]["missing_test_data"]
    assert len(nowhere) < count / 3, f"little was reached: {nowhere}"


def lists_with_cursors(schema: dict[str, Any]) -> Iterator[str]:
    for path, methods in schema["paths"].items():
        if any(each["name"] == "cursor" for each in methods.get("get", {}).get("parameters", [])):
            yield f"GET {path}"


def configuration(things: list[Things], each: int, meant: set[str]) -> str:
    """The fuzzer's own settings: every check, and ids of what there is, most of the time."""
    lines = [
        f'hooks = "{Path(__file__).with_name("fuzzer_hooks.py")}"',
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
        # Else it would delete, by ids that it read, what the other operations need.
        "extra-data-sources.responses = false",
        "[phases.stateful]",
        "enabled = true",
        f"generation.max-examples = {max(1, round(each * _STATEFUL * 10))}",
    ]
    kept, gone = things
    for prefix, each_thing in (("kept", kept), ("gone", gone)):
        for name in PARTS:
            id_ = each_thing.ids["friend_id" if name == "user_id" else name]
            lines += [f"[dictionaries.{prefix}_{name}]", f'values = ["{id_}"]']
    lines += ["[parameters]", *bound("kept", 0.95)]
    lines += [
        f'"body.{name}" = {{ dictionary = "kept_{name}", probability = 0.8 }}' for name in NAMED
    ]
    # What is deleted is not what the others need.
    lines += ["[[operations]]", 'include-method = "DELETE"']
    lines += ["phases.examples.enabled = false", "[operations.parameters]", *bound("gone", 1.0)]
    for route in sorted(meant):
        method, path = route.split(" ")
        lines += ["[[operations]]", f'include-method = "{method}"', f'include-path = "{path}"']
        if path in TEXTS:
            lines += ['generation.mode = "positive"']
        lines += ["[operations.checks.positive_data_acceptance]", f"expected-statuses = {FINE}"]
    return "\n".join(lines)


def bound(prefix: str, probability: float) -> list[str]:
    """Parts of paths that are ids of what there is, so often."""
    return [
        f'"path.{name}" = {{ dictionary = "{prefix}_{name}", probability = '
        f"{1.0 if name in PINNED else probability} }}"
        for name in PARTS
    ]
