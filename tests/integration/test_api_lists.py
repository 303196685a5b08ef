"""Lists of items and jobs by HTTP: filters against an oracle, cursors, totals, and who breaks them."""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID, uuid4

import httpx2
import pytest
import sqlalchemy as sa

from api_server import Api, new_user
from factories import World, classes
from ppworker.errors import UnreadableInput
from ppworker.pipeline.runs import refresh
from ppworker.pipeline.uploads import ingest
from ppworker.store import item_counts, item_lists
from ppworker.store.item_lists import Filters, Scope, Way, in_any_case

TEXTS = (
    "100% sure",
    "snake_case",
    "back\\slash",
    "a.b*c",
    "Grüße aus ÉVORA",
    "ΣΊΣΥΦΟΣ",
    "plain",
    "",
)
SCORES = (None, 0.1, 0.5, 0.9)


def walk(client: httpx2.Client, path: str, size: int, **asked: Any) -> list[dict[str, Any]]:
    """All rows of a list, from cursor to cursor."""
    rows: list[dict[str, Any]] = []
    for _ in range(1000):
        response = client.get(path, params={"pageSize": size, **asked})
        assert response.status_code == 200, response.text
        rows += response.json()
        assert len(response.json()) <= size
        cursor = response.headers.get("x-next-cursor")
        assert response.headers["x-has-more"] == ("false" if cursor is None else "true")
        if cursor is None:
            assert "link" not in response.headers
            return rows
        assert response.headers["link"].endswith('; rel="next"')
        asked["cursor"] = cursor
    raise AssertionError("the list has no end")


class Oracle:
    """Items with everything a list may be filtered by, and which of them fit, worked out plainly."""

    def __init__(self, world: World, seed: int, shared: float, count: int = 40) -> None:
        self.world, self.dice = world, random.Random(seed)
        world.processor()
        splits = [world.train, world.valid, world.test]
        for n in range(count):
            (id_,) = world.add(f"{n} {self.dice.choice(TEXTS)}", split=self.dice.choice(splits))
            if self.dice.random() < shared:
                self._also_in(id_, self.dice.choice(splits).id)
        self.labels: dict[str, UUID] = {}
        self._annotate()
        self._run_jobs()
        items = world.sql("SELECT id, name, text FROM dataset_items ORDER BY id")
        self.items = {row.id: row for row in items}
        self.members = {(r.item_id, r.split_id) for r in world.sql("SELECT * FROM item_splits")}
        self.annotations = world.sql("SELECT * FROM annotations WHERE deleted_at IS NULL")
        self.jobs = {(r.item_id, r.status) for r in world.sql("SELECT * FROM post_processor_jobs")}

    def _also_in(self, item_id: UUID, split_id: UUID) -> None:
        """With its stats, as whoever shares an item among splits writes them."""
        self.world.sql(
            "WITH m AS (INSERT INTO item_splits (split_id, item_id, version_id) "
            "VALUES (:split, :item, :version) ON CONFLICT DO NOTHING RETURNING split_id) "
            "INSERT INTO label_stat_deltas (split_id, bucket, annotation_count, item_count) "
            "SELECT split_id, b, 0, 1 FROM m, unnest(ARRAY['total', 'unlabelled']) b",
            split=split_id, item=item_id, version=self.world.train.version_id,
        )  # fmt: skip

    def _annotate(self) -> None:
        for row in self.world.sql("SELECT DISTINCT item_id FROM item_splits ORDER BY 1"):
            for label in self.dice.sample(["cat", "dog", "owl"], self.dice.choice([0, 0, 1, 2])):
                id_ = self.world.annotate(row.item_id, label)
                self.world.sql(
                    "UPDATE annotations SET score = :score, review = :review, source = :source "
                    "WHERE id = :id",
                    id=id_,
                    score=self.dice.choice(SCORES),
                    review=self.dice.choice(["suggested", "accepted", "edited"]),
                    source=self.dice.choice(["human", "import"]),
                )
        self.labels = {row.name: row.id for row in self.world.sql("SELECT id, name FROM labels")}

    def _run_jobs(self) -> None:
        for row in self.world.sql("SELECT id FROM post_processor_jobs"):
            status = self.dice.choice(["pending", "processing", "completed", "completed", "failed"])
            self.world.sql(
                "UPDATE post_processor_jobs SET status = :status, "
                "lease_owner = CASE WHEN :status = 'processing' THEN id END, "
                "lease_expires_at = CASE WHEN :status = 'processing' THEN now() END, "
                "completed_at = CASE WHEN :status IN ('completed', 'failed') THEN now() END "
                "WHERE id = :id",
                status=status, id=row.id,
            )  # fmt: skip

    def fits(self, item_id: UUID, wanted: Filters) -> bool:
        """Whether an item is in the list."""
        own = [a for a in self.annotations if a.item_id == item_id]
        found = [
            a for a in own
            if (wanted.label_id is None or a.label_id == wanted.label_id)
            and (wanted.min_score is None or (a.score is not None and a.score >= wanted.min_score))
            and (wanted.max_score is None or (a.score is not None and a.score <= wanted.max_score))
            and wanted.source in {None, a.source} and wanted.review in {None, a.review}
        ]  # fmt: skip
        asks = wanted.label_id is not None or wanted.is_about_annotation
        row = self.items[item_id]
        return (
            (not asks or bool(found))
            and (not wanted.only_unlabelled or not own)
            and (wanted.split_id is None or (item_id, wanted.split_id) in self.members)
            and (wanted.job_status is None or (item_id, wanted.job_status) in self.jobs)
            and (
                wanted.text is None
                or wanted.text.casefold() in (row.text or "").casefold()
                or wanted.text.casefold() in row.name.casefold()
            )
        )

    def wish(self) -> Filters:
        """Filters at random, mostly few at a time."""
        dice, splits = self.dice, [self.world.train, self.world.valid, self.world.test]
        asked: dict[str, Any] = {
            "split_id": dice.choice(splits).id,
            "label_id": dice.choice(list(self.labels.values())),
            "only_unlabelled": True,
            "job_status": dice.choice(["pending", "processing", "completed", "failed"]),
            "text": dice.choice(
                ["%", "_", "\\", ".", "ÜßE", "évora", "σίσυφοσ", "1", "item-", "zz"]
            ),
            "min_score": dice.choice([0.0, 0.5, 0.6]),
            "max_score": dice.choice([1.0, 0.5, 0.05]),
            "source": dice.choice(["human", "import"]),
            "review": dice.choice(["suggested", "accepted"]),
        }
        names = dice.sample(sorted(asked), dice.choice([0, 1, 1, 1, 2, 2, 3]))
        return Filters(**{name: asked[name] for name in names})


@pytest.mark.parametrize("shared", [0.3, 0.0], ids=["shared", "disjoint"])
def test_every_filter_finds_what_an_oracle_finds_page_by_page_and_counted(
    world: World, monkeypatch: pytest.MonkeyPatch, shared: float
) -> None:
    oracle = Oracle(world, seed=7, shared=shared)
    scope = Scope(
        version_id=world.train.version_id,
        dataset_id=world.dataset.id,
        split_ids=[world.train.id, world.valid.id, world.test.id],
    )
    assert refresh.verify(world.deps, scope.split_ids) == []
    counted = 0
    with world.deps.db.look() as tx:
        for _ in range(150):
            wanted = oracle.wish()
            right = [id_ for id_ in oracle.items if oracle.fits(id_, wanted)]
            # A look is short, or an item's text fills it, or neither.
            monkeypatch.setattr(item_lists, "LOOK_ITEMS", oracle.dice.choice([1, 3, 10_000]))
            monkeypatch.setattr(item_lists, "LOOK_BYTES", oracle.dice.choice([1, 40, 10_000]))
            monkeypatch.setattr(item_counts, "COUNTED", oracle.dice.choice([10, 20_000]))
            size = oracle.dice.choice([1, 2, 7, 1000])
            way = Way(by_split=oracle.dice.random() < 0.5)
            found: list[UUID] = []
            after = None
            for _ in range(200):
                page = item_lists.list_page(tx, scope, wanted, after=after, limit=size, way=way)
                assert len(page.ids) <= size
                assert page.is_cut or page.behind is None or len(page.ids) == size
                found += page.ids
                after = page.behind
                if after is None:
                    break
            assert found == right, wanted
            counts = item_counts.read_counts(tx, scope, wanted.label_id)
            for offset in (2, len(right) - 4, len(right) - 2, len(right), len(right) + 3):
                if offset >= 0:
                    way = item_counts.way_to(counts, wanted, offset=offset)
                    page = item_lists.list_page(tx, scope, wanted, offset=offset, limit=3, way=way)
                    assert page.ids == right[offset : offset + 3] or page.is_cut, wanted
                    is_end = not page.ids or page.ids[-1] == right[-1]
                    assert (page.behind is None) == is_end or wanted.is_bounded, wanted
            size_of = item_counts.size(tx, scope, wanted, counts)
            assert size_of.exactly in {None, len(right)}, wanted
            assert size_of.at_most is None or size_of.at_most >= len(right)
            counted += size_of.exactly is not None
    assert counted > 40


def test_a_list_is_walked_by_cursor_page_or_link_and_says_how_long_it_is(api: Api) -> None:
    made = [str(id_) for id_ in api.world.add(*(f"text {n}" for n in range(25)))]
    items = f"{api.version}/items"
    first = api.me.get(items, params={"splitId": str(api.world.train.id), "pageSize": "7"})
    assert first.headers["x-total-count"] == "25"
    link = first.headers["link"].partition(">")[0].removeprefix("<?")
    assert parse_qs(link)["splitId"] == [str(api.world.train.id)]
    second = api.me.get(f"{items}?{link}")
    assert [row["id"] for row in second.json()] == made[7:14]
    assert "x-total-count" not in second.headers, "who walks was told with the first page"
    for size in (1, 7, 25, 1000):
        assert [row["id"] for row in walk(api.me, items, size)] == made
    # What comes meanwhile is found behind; nothing comes twice.
    begun = api.me.get(items, params={"pageSize": 20}).headers["x-next-cursor"]
    (late,) = api.world.add("late")
    rest = walk(api.me, items, 4, cursor=begun)
    assert [row["id"] for row in rest] == [*made[20:], str(late)]

    def total(**params: Any) -> tuple[str | None, str | None]:
        headers = api.me.get(items, params=params).headers
        return headers.get("x-total-count"), headers.get("x-total-at-most")

    assert total() == ("26", None)
    assert total(pageCount=99) == ("26", None)
    assert total(onlyUnlabelled="True", splitId=str(api.world.valid.id)) == ("0", None)
    assert total(text="text 1") == (None, None)  # a full page: nobody counted
    assert total(text="text 1", pageSize=50) == ("11", None)  # the end was seen
    api.world.add("also", split=api.world.valid)
    assert total() == ("27", None)
    assert total(splitId=str(api.world.valid.id)) == ("1", None)


def test_where_many_splits_may_share_items_the_total_is_a_bound(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_counts, "COUNTED", 10)
    ids = api.world.add(*(f"text {n}" for n in range(12)))
    api.world.add("x", split=api.world.valid)
    items = f"{api.version}/items"

    def total() -> tuple[str | None, str | None]:
        headers = api.me.get(items, params={"pageSize": 3}).headers
        return headers.get("x-total-count"), headers.get("x-total-at-most")

    assert total() == ("13", None), "no item is in two of them"
    both = [{"id": str(split.id)} for split in (api.world.train, api.world.valid)]
    made = api.me.post(items, json={"text": "shared", "splits": both}).json()
    assert total() == (None, "15")
    listed = [row["id"] for n in range(6) for row in
              api.me.get(items, params={"pageSize": 3, "pageCount": n}).json()]  # fmt: skip
    assert len(listed) == len(set(listed)) == 14
    assert listed[0] == str(ids[0])
    gone = api.me.delete(f"{api.version}/splits/{api.world.valid.id}/items/{made['id']}")
    assert gone.status_code == 200, gone.text
    assert total() == ("14", None)
    api.world.check()


def test_a_cursor_is_good_for_its_list_alone_and_for_whoever_may_see_that(
    api: Api, worlds: Callable[..., World]
) -> None:
    api.world.add("a", "b", "c")
    items = f"{api.version}/items"
    cursor = api.me.get(items, params={"pageSize": 1}).headers["x-next-cursor"]
    assert len(walk(api.me, items, 1, cursor=cursor)) == 2
    other = worlds()
    other.add("d", "e", "f")
    stranger = api.client(other.user)
    theirs = f"/datasets/{other.dataset.id}/versions/{other.dataset.version_id}/items"
    assert stranger.get(items, params={"cursor": cursor}).status_code == 404
    flipped = cursor[:5] + ("A" if cursor[5] != "A" else "B") + cursor[6:]
    refused: list[tuple[httpx2.Client, str, dict[str, Any]]] = [
        (stranger, theirs, {"cursor": cursor}),
        (api.me, items, {"cursor": cursor, "onlyUnlabelled": "True"}),
        (api.me, items, {"cursor": cursor, "splitId": str(api.world.train.id)}),
        (api.me, items, {"cursor": cursor, "pageCount": 1}),
        (api.me, f"{api.dataset}/post-processors/jobs", {"cursor": cursor}),
        *((api.me, items, {"cursor": bad}) for bad in (
            flipped, cursor[:-1], cursor + "A", cursor + "=", cursor.lower(), cursor.swapcase(),
            str(uuid4()), "1", "-1", "é", "\0", "%00", "x" * 100, "x" * 101, "' OR 1=1 --",
        )),
    ]  # fmt: skip
    for client, path, asked in refused:
        response = client.get(path, params=asked)
        assert (response.status_code, response.json()["field"]) == (400, "cursor"), asked
    assert len(api.me.get(items, params={"cursor": ""}).json()) == 3


BAD_FILTERS: list[tuple[str, Any]] = [
    ("jobStatus", "done"), ("jobStatus", "PENDING"), ("minScore", "-0.1"), ("maxScore", "1.1"),
    ("minScore", "nan"), ("maxScore", "inf"), ("minScore", "x"), ("source", "me"),
    ("review", "rejected"), ("text", "x" * 201), ("pageCount", "-1"), ("pageCount", 10**18),
    ("pageCount", "9" * 5000), ("pageSize", "-5"), ("pageSize", 10**18), ("pageSize", "1e3"),
    ("onlyUnlabelled", "2"),
]  # fmt: skip


def test_what_makes_no_sense_is_refused_by_name(api: Api) -> None:
    for name, value in BAD_FILTERS:
        response = api.me.get(f"{api.version}/items", params={name: value})
        assert (response.status_code, response.json()["field"]) == (400, name), value
    crossed = api.me.get(f"{api.version}/items", params={"minScore": 0.8, "maxScore": 0.2})
    assert (crossed.status_code, crossed.json()["field"]) == (400, "minScore")
    for name in ("splitId", "labelId"):
        for value in ("nonsense", str(uuid4()), str(api.world.dataset.id), "\0", "é" * 300):
            response = api.me.get(f"{api.version}/items", params={name: value})
            assert (response.status_code, response.json()["field"]) == (404, name), value
    empty = dict.fromkeys(
        ("pageSize", "pageCount", "cursor", "splitId", "labelId", "onlyUnlabelled", "jobStatus",
         "text", "minScore", "maxScore", "source", "review"), "",
    )  # fmt: skip
    assert api.me.get(f"{api.version}/items", params=empty).status_code == 200
    deep = api.me.get(f"{api.version}/items", params={"pageCount": 10**6, "pageSize": 1000})
    assert (deep.status_code, deep.json()) == (200, [])


def test_a_text_is_looked_for_as_it_is_written_in_whatever_case(api: Api) -> None:
    for n, text in enumerate(TEXTS):
        upload = ingest.Upload(name=f"Datei-ÄÖ {n}.TXT", text=text)
        ingest.take_upload(api.deps, api.world.train, [upload])

    def found(text: str) -> set[str]:
        rows = api.me.get(f"{api.version}/items", params={"text": text, "pageSize": 1000})
        assert rows.status_code == 200, rows.text
        return {row["text"] for row in rows.json()}

    assert found("%") == {"100% sure"}
    assert found("_") == {"snake_case"}
    assert found("\\") == {"back\\slash"}
    assert found("a.b*") == {"a.b*c"}
    assert found("GRÜSSE") == set(), "a letter is a letter: ß is not SS"
    assert found("GRÜßE AUS évora") == {"Grüße aus ÉVORA"}
    assert found("σίσυφος") == {"ΣΊΣΥΦΟΣ"}
    assert found("datei-äö") == found("ei-Äö") == set(TEXTS), "names are looked at too"
    assert found("7.txt") == {""}
    hostile = (
        ".*",
        "(",
        "[",
        "***=",
        "***:(?i)",
        "(?i)plain",
        "^",
        "$",
        "a|b",
        "\\d",
        "' --",
        "\0%",
    )
    for text in hostile:
        right = {each for each in TEXTS if text.replace("\0", "") in each}
        assert found(text) == right, text
    assert found("\0") == set(TEXTS), "what no text can hold is not looked for"
    assert found("İ") == set()
    assert in_any_case("aé.") == "[Aa][\\U000000C9\\U000000E9]\\U0000002E"


def test_a_needle_is_found_behind_bounded_looks_and_pages_are_not_guessed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_lists, "LOOK_ITEMS", 5)
    ids = api.world.add(*(f"hay {n}" for n in range(23)), "needle")
    items = f"{api.version}/items"
    first = api.me.get(items, params={"text": "NEEDLE"})
    assert (first.json(), first.headers["x-has-more"]) == ([], "true")
    assert [row["id"] for row in walk(api.me, items, 10, text="needle")] == [str(ids[-1])]
    counted = api.me.get(items, params={"text": "needle", "pageCount": 1})
    assert (counted.status_code, counted.json()["field"]) == (400, "pageCount")
    assert "X-Next-Cursor" in counted.json()["message"]
    assert len(walk(api.me, items, 3, text="hay")) == 23


def test_items_by_the_state_of_their_jobs_and_jobs_by_theirs(api: Api) -> None:
    world = api.world
    first, second = world.processor("first"), world.processor("second", order=1)
    good, bad, waiting = world.add("good", "bad", "waiting")

    def say(given: Any) -> Any:
        return UnreadableInput("broken") if given.text == "bad" else classes("cat")

    world.run(first, say, limit=2)
    items, jobs = f"{api.version}/items", f"{api.dataset}/post-processors/jobs"

    def of(status: str) -> set[str]:
        return {row["id"] for row in walk(api.me, items, 1, jobStatus=status)}

    assert of("completed") == {str(good)}
    assert of("failed") == {str(bad)}
    assert of("pending") == {str(good), str(bad), str(waiting)}
    claimed = world.claim(second, limit=1)
    assert of("processing") == {str(job.item_id) for job in claimed.jobs}

    everything = api.me.get(jobs).json()
    assert [job["id"] for job in everything] == sorted(job["id"] for job in everything)
    assert len(everything) == 6
    for size in (1, 4, 1000):
        assert walk(api.me, jobs, size) == everything
    for asked in (
        {"status": "failed"}, {"status": "pending"}, {"post_processor_id": str(first.id)},
        {"item_id": str(good)}, {"item_id": str(good), "status": "completed"},
        {"status": "processing", "post_processor_id": str(second.id)},
    ):  # fmt: skip
        names = {"item_id": "dataset_item_id"}
        right = [
            job for job in everything
            if all(job[names.get(name, name)] == value for name, value in asked.items())
        ]  # fmt: skip
        assert right, asked
        assert walk(api.me, jobs, 2, **asked) == right, asked
    own = f"{items}/{good}/jobs"
    assert [job["post_processor_name"] for job in walk(api.me, own, 1)] == ["first", "second"]
    assert len(api.me.get(own, params={"status": "completed"}).json()) == 1
    assert (
        api.me.get(own, params={"pageSize": 1, "pageCount": 1}).json() == api.me.get(own).json()[1:]
    )
    for name, value in (("status", "done"), ("pageSize", 0), ("cursor", "x")):
        for path in (own, jobs):
            response = api.me.get(path, params={name: value})
            assert (response.status_code, response.json()["field"]) == (400, name)
    for name in ("item_id", "post_processor_id"):
        assert api.me.get(jobs, params={name: "x"}).status_code == 404
    stranger = api.client(new_user(api.deps, "stranger"))
    assert {stranger.get(path).status_code for path in (own, jobs, items)} == {404}
    # What another dataset's job is called is not told here, whoever asks.
    assert api.me.get(jobs, params={"item_id": str(uuid4())}).json() == []


def test_what_belongs_to_a_deleted_split_is_in_no_list(api: Api) -> None:
    world = api.world
    kept, gone = world.add("kept"), world.add("gone", split=world.valid)
    for id_ in (*kept, *gone):
        world.annotate(id_, "cat")
    world.sql("UPDATE dataset_splits SET deleted_at = now() WHERE id = :id", id=world.valid.id)
    (label,) = (each["id"] for each in api.me.get(f"{api.version}/labels").json())
    for asked in ({}, {"labelId": label}, {"text": "e"}, {"labelId": label, "text": "e"}):
        rows = walk(api.me, f"{api.version}/items", 10, **asked)
        assert [row["id"] for row in rows] == [str(kept[0])], asked
    assert api.me.get(f"{api.version}/items/{gone[0]}").status_code == 404
    refused = api.me.get(f"{api.version}/items", params={"splitId": str(world.valid.id)})
    assert refused.status_code == 404


@pytest.fixture
def sent(api: Api) -> Iterator[list[str]]:
    """Statements that go to the server."""
    captured: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        captured.append(statement)

    sa.event.listen(api.deps.db.engine, "before_cursor_execute", note)
    yield captured
    sa.event.remove(api.deps.db.engine, "before_cursor_execute", note)


def test_ten_items_cost_as_many_statements_as_a_thousand(api: Api, sent: list[str]) -> None:
    """With annotations, splits and the state of their jobs; so do jobs."""
    world = api.world
    world.processor()
    ids = world.add(*(f"text {n}" for n in range(1000)))
    for label in ("cat", "all"):
        world.annotate(ids[0], label)
    world.sql(
        "INSERT INTO annotations (id, version_id, item_id, label_id, user_id, kind, source, score) "
        "SELECT gen_random_uuid(), l.version_id, i.id, l.id, i.user_id, 'class', 'import', 0.7 "
        "FROM dataset_items i CROSS JOIN labels l"
    )
    (label_id,) = world.sql("SELECT id FROM labels WHERE name = 'all'")
    asked: list[dict[str, Any]] = [
        {}, {"splitId": str(world.train.id)}, {"labelId": str(label_id.id)}, {"text": "text"},
        {"jobStatus": "pending"}, {"minScore": 0.5, "source": "import"},
    ]  # fmt: skip
    paths = [(f"{api.version}/items", filters) for filters in asked]
    paths.append((f"{api.dataset}/post-processors/jobs", {}))
    for path, filters in paths:
        costs = []
        for size in (10, 1000):
            sent.clear()
            response = api.me.get(path, params={**filters, "pageSize": size})
            assert len(response.json()) == size, response.text
            costs.append(len([each for each in sent if "api_keys SET" not in each]))
        print(path, filters, costs)
        assert costs[0] == costs[1] <= 12, (path, filters)
    row = api.me.get(paths[0][0], params={"pageSize": 1000}).json()[-1]
    assert (len(row["annotations"]), row["job_status"]["pending"]) == (2, 1)
    assert [split["name"] for split in row["splits"]] == ["train"]


def test_what_is_left_to_do_is_kept_whoever_changes_what(world: World) -> None:
    """By the database itself, for persons, models, archives and deletions."""
    ids = world.add(*(f"text {n}" for n in range(6)))
    processor = world.processor()
    world.add("seen by a model", "and another")

    def left() -> set[UUID]:
        return {row.item_id for row in world.sql("SELECT item_id FROM unlabelled_items")}

    everything = left()
    assert len(everything) == 8
    world.run(processor, classes("cat"))
    assert left() == set(ids)
    one = world.annotate(ids[0], "dog")
    two = world.annotate(ids[0], "cat")
    world.sql(
        "UPDATE annotations SET deleted_at = now(), review = 'rejected' WHERE id = :id", id=one
    )
    assert ids[0] not in left(), "one of two is left"
    world.sql("DELETE FROM annotations WHERE id = :id", id=two)
    assert ids[0] in left()
    world.sql(
        "UPDATE annotations SET deleted_at = NULL, review = 'accepted' WHERE id = :id", id=one
    )
    assert ids[0] not in left()
    world.sql(
        "INSERT INTO item_splits SELECT :split, item_id, version_id FROM item_splits "
        "WHERE split_id = :train", split=world.valid.id, train=world.train.id,
    )  # fmt: skip
    rows = world.sql("SELECT item_id FROM unlabelled_items WHERE split_id = :s", s=world.valid.id)
    assert {row.item_id for row in rows} == set(ids[1:])
    world.sql("DELETE FROM item_splits WHERE split_id = :split", split=world.train.id)
    assert left() == set(ids[1:])
    pairs = itertools.pairwise(sorted(left()))
    assert all(a < b for a, b in pairs)
