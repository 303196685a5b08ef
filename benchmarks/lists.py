"""``python -m benchmarks.lists``: what every list costs the database at a million items.

Makes a dataset of a million items, five million annotations and a million jobs on a server of its
own, asks the API for lists over HTTP, and explains every statement that it sends.
"""

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the dataset and the server are those of the tests

from api_server import Api, served_api  # noqa: E402
from benchmarks.report import RESULTS  # noqa: E402
from benchmarks.servers import Servers  # noqa: E402
from factories import World  # noqa: E402
from long_lists import cost, fill  # noqa: E402
from ppworker import settings, wiring  # noqa: E402
from ppworker.store import item_lists, schema  # noqa: E402
from ppworker.store.db import Database  # noqa: E402

TARGET_MS = 50.0
RUNS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """One list and what it cost."""

    what: str
    rows: int
    statements: int
    database_ms: float
    http_ms: float
    index: str
    is_deep: bool
    """Whether it counts rows far into the list, which no index does at once."""


def main() -> int:
    """Run it; exits 1 when a list misses the target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lists", description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results alone")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ppl") as folder:
        servers = Servers(Path(folder))
        try:
            url = servers.fresh_database("lists")
            facts = servers.facts()
            db = Database(url, connections=12)
            schema.migrate(db)
            deps = wiring.build_deps(
                settings.load(database_url=url, data_dir=Path(folder) / "data"), db
            )
            world = World(deps)
            began = time.monotonic()
            fill(world, asked.items)
            sys.stderr.write(f"filled in {time.monotonic() - began:.0f} s\n")
            with served_api(deps, world) as api:
                lines = [
                    _measured(api, what, path, params, is_deep=is_deep)
                    for what, path, params, is_deep in _cases(api, asked.items)
                ]
                lines.append(_after_work(api))
            db.close()
        finally:
            servers.close()
    page = _markdown(lines, facts, asked.items)
    sys.stdout.write("\n" + page)
    if not asked.no_save:
        RESULTS.joinpath("lists.md").write_text(page)
        document = {"items": asked.items, "lines": [asdict(line) for line in lines]}
        RESULTS.joinpath("lists.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(line.is_deep or line.database_ms < TARGET_MS for line in lines) else 1


Case = tuple[str, str, dict[str, Any], bool]


def _cases(api: Api, items: int) -> list[Case]:
    labels = {each["name"]: each["id"] for each in api.me.get(f"{api.version}/labels").json()}
    train, test = str(api.world.train.id), str(api.world.test.id)
    path, jobs = f"{api.version}/items", f"{api.dataset}/post-processors/jobs"
    half, end = items // 2, items - 10

    def behind(listed: str, offset: int, **params: Any) -> str:
        asked = {"pageSize": 10, "pageCount": offset // 10, **params}
        return str(api.me.get(listed, params=asked).headers["x-next-cursor"])

    first = api.me.get(path, params={"pageSize": 1}).json()[0]["id"]
    frequent, rare = labels["l3"], labels["l19"]
    one = {"pageSize": 10}
    return [
        ("items, 10", path, one, False),
        ("items, 100", path, {"pageSize": 100}, False),
        ("items, 1,000", path, {"pageSize": 1000}, False),
        ("items, cursor in the middle", path, {**one, "cursor": behind(path, half)}, False),
        ("items, cursor at the end", path, {**one, "cursor": behind(path, end - 20)}, False),
        ("items, pageCount at 10,000", path, {**one, "pageCount": 1_000}, False),
        ("items, pageCount at 100,000", path, {**one, "pageCount": items // 100}, False),
        ("items, pageCount in the middle", path, {**one, "pageCount": half // 10}, True),
        ("items, pageCount at the end", path, {**one, "pageCount": end // 10}, True),
        ("items of a split", path, {**one, "splitId": train}, False),
        (
            "items of a split, pageCount at its end",
            path, {**one, "splitId": train, "pageCount": items * 8 // 100 - 1}, True,
        ),
        ("items of a frequent label", path, {**one, "labelId": frequent}, False),
        ("items of a rare label", path, {**one, "labelId": rare}, False),
        ("items of a label in a split", path, {**one, "labelId": frequent, "splitId": test}, False),
        (
            "items of a rare label in a split",
            path, {**one, "labelId": rare, "splitId": train}, False,
        ),
        ("unlabelled items", path, {**one, "onlyUnlabelled": "True"}, False),
        ("unlabelled, 1,000", path, {"pageSize": 1000, "onlyUnlabelled": "True"}, False),
        ("unlabelled of a split", path, {**one, "onlyUnlabelled": "True", "splitId": test}, False),
        *(
            (f"items with a job {state}", path, {**one, "jobStatus": state}, False)
            for state in ("pending", "processing", "completed", "failed")
        ),
        ("items by text that many have", path, {**one, "text": "JUMPS over"}, False),
        ("items by text that none has: one look", path, {**one, "text": "zebra"}, False),
        ("items by frequent scores", path, {**one, "minScore": 0.6, "maxScore": 0.7}, False),
        ("items by a score that none has: one look", path, {**one, "minScore": 0.9999}, False),
        ("items by source and review", path, {**one, "source": "model"}, False),
        ("jobs, 10", jobs, one, False),
        ("jobs, 1,000", jobs, {"pageSize": 1000}, False),
        ("jobs, cursor in the middle", jobs, {**one, "cursor": behind(jobs, half)}, False),
        ("jobs, pageCount in the middle", jobs, {**one, "pageCount": half // 10}, True),
        *(
            (f"jobs {state}", jobs, {**one, "status": state}, False)
            for state in ("pending", "processing", "completed", "failed")
        ),
        ("jobs of an item", jobs, {"item_id": first}, False),
        ("an item's jobs", f"{path}/{first}/jobs", {}, False),
        ("one item", f"{path}/{first}", {}, False),
        ("label stats of a split", f"{api.version}/labels/splits/{train}", {}, False),
        ("item count of a split", f"{api.version}/labels/stats/splits/{train}", {}, False),
        ("datasets", "/datasets", {}, False),
        ("versions", f"{api.dataset}/versions", {}, False),
        ("post-processors", f"{api.dataset}/post-processors", {}, False),
        ("operations", "/operations", {}, False),
    ]  # fmt: skip


def _measured(api: Api, what: str, path: str, params: dict[str, Any], *, is_deep: bool) -> Line:
    found = cost(api, path, runs=RUNS, **params)
    line = Line(
        what=what,
        rows=found.rows,
        statements=found.statements,
        database_ms=round(found.ms, 1),
        http_ms=round(_http_ms(api, path, params), 1),
        index=found.leading_index,
        is_deep=is_deep,
    )
    sys.stderr.write(f"{line.database_ms:8.1f} ms  {line.http_ms:8.1f} ms  {what}\n")
    return line


def _after_work(api: Api) -> Line:
    """What is left to do when half of it was just done, and nobody has tidied up yet."""
    api.world.sql("ALTER TABLE unlabelled_items SET (autovacuum_enabled = off)")
    api.world.sql(
        "DELETE FROM unlabelled_items WHERE item_id IN "
        "(SELECT item_id FROM unlabelled_items ORDER BY item_id "
        "LIMIT (SELECT count(*) / 2 FROM unlabelled_items))"
    )
    params = {"pageSize": 10, "onlyUnlabelled": "True"}
    what = "unlabelled items, half of them just labelled, no vacuum yet"
    return _measured(api, what, f"{api.version}/items", params, is_deep=False)


def _http_ms(api: Api, path: str, params: dict[str, Any]) -> float:
    """What a client waits for the answer, on loopback."""
    host, port = api.address.removeprefix("http://").split(":")
    key = {"Authorization": api.me.headers["authorization"]}
    taken = []
    for _ in range(RUNS):
        connection = http.client.HTTPConnection(host, int(port))
        began = time.perf_counter()
        connection.request("GET", f"/api/v1{path}?{urlencode(params)}", headers=key)
        connection.getresponse().read()
        taken.append((time.perf_counter() - began) * 1000)
        connection.close()
    return statistics.median(taken)


def _markdown(lines: list[Line], facts: dict[str, str], items: int) -> str:
    heads = ["list", "rows", "statements", "database ms", "HTTP ms", "< 50 ms", "walks"]
    rows = [
        [
            line.what, f"{line.rows:,}", str(line.statements), f"{line.database_ms:.1f}",
            f"{line.http_ms:.1f}", _met(line), line.index,
        ]
        for line in lines
    ]  # fmt: skip
    table = [heads, ["---", "--:", "--:", "--:", "--:", "---", "---"], *rows]
    on = ", ".join(f"{name} {value}" for name, value in facts.items())
    return "\n".join(
        [
            "# Lists",
            "",
            f"{items:,} items in three splits, five annotations for each, a job for each. People",
            "labelled from the front: what is left to do lies behind nine tenths of the items.",
            "",
            *("| " + " | ".join(row) + " |" for row in table),
            "",
            "Database ms: execution and planning of all statements of one request, with those that",
            f"check the key and the path; EXPLAIN (ANALYZE, TIMING OFF), median of {RUNS}, warm.",
            f"One look: {item_lists.LOOK_ITEMS:,} items at most; the next page goes on from there.",
            "A pageCount far into a list counts all rows before it; a cursor does not.",
            "",
            f"On: {on}.",
            "",
        ]
    )


def _met(line: Line) -> str:
    if line.database_ms < TARGET_MS:
        return "yes"
    return "no, counts" if line.is_deep else "NO"


if __name__ == "__main__":
    sys.exit(main())
