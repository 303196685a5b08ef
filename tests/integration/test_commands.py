"""Commands by message, on a real redis and a real PostgreSQL: each is followed once, or kept."""

import errno
import json
import os
import runpy
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from uuid import uuid4

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker

from api_server import served_api
from factories import classes
from ppworker import wiring
from ppworker.domain.events import CommandFollowed, CommandRefused, JobMoved
from ppworker.errors import RequestError, RunnerError, StoreUnavailable
from ppworker.pipeline.uploads import sources
from ppworker.pipeline.uploads.inbox import Outcome
from ppworker.store import accounts, datasets, dead_letters
from ppworker.worker import commands, messages
from ppworker.worker.broker import connect
from ppworker.worker.command_consumer import CommandConsumer, NotNow
from ppworker.worker.command_link import CommandLink
from redis_words import RedisServer, eventually

SILENCE_S = 1.0


@pytest.fixture
def server(tmp_path):
    redis_server = RedisServer(tmp_path)
    redis_server.start()
    yield redis_server
    redis_server.stop()


@pytest.fixture
def client(server):
    with redis.Redis.from_url(server.url) as connected:
        yield connected


@pytest.fixture
def inbox(tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def world(deps, events, inbox, worlds):
    """A world whose workers look into an inbox."""
    given = deps.settings.model_copy(update={"inbox_dir": inbox})
    world = worlds()
    world.deps = wiring.build_deps(given, deps.db, emit=events.extend)
    world.username = world.sql("SELECT username FROM users WHERE id = :id", id=world.user)[0][0]
    world.split = f"{world.dataset.name}/train"
    return world


class Producer:
    """Another program: plain dramatiq on the same redis."""

    def __init__(self, client):
        self.client = client
        self.broker = RedisBroker(client=client, namespace="ppworker", middleware=[])

    def send(self, actor_name, *args, queue="commands", delay=None, **fields):
        message: dramatiq.Message[None] = dramatiq.Message(
            queue_name=queue, actor_name=actor_name, args=args, kwargs=fields, options={}
        )
        return self.broker.enqueue(message, delay=delay)

    def send_raw(self, body):
        self.broker.do_enqueue("commands", str(uuid4()), body)

    def left(self):
        """Messages that redis still holds, taken or not."""
        return self.client.hlen("ppworker:commands.msgs")


@pytest.fixture
def producer(client):
    return Producer(client)


@pytest.fixture
def link(server):
    link = CommandLink.from_url(server.url, silence_s=SILENCE_S)
    yield link
    link.close()


def drain(deps, link):
    """Follow everything that is queued, in this thread."""
    while (taken := link.take(block_s=0.01)) is not None:
        commands.follow(deps, taken)
        link.done(taken)


def beat_and_take(link):
    """Look for what dead workers hold, and take what there is."""
    link.beat()
    return link.take(block_s=0.01)


@contextmanager
def consuming(server, deps, *, follow=None, probe=lambda: None):
    """The threads of one worker."""
    consumer = CommandConsumer(
        CommandLink.from_url(server.url, silence_s=SILENCE_S),
        follow or (lambda taken: commands.follow(deps, taken)),
        probe,
        stopping=Event(),
    )
    consumer.start()
    try:
        yield consumer
    finally:
        consumer.stop(wait_s=5)


def upload(world, **changes):
    fields = {
        "schema_version": 1,
        "key": uuid4().hex,
        "user": world.username,
        "split": world.split,
        "items": [{"name": "a.txt", "text": "a word"}],
    }
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def retry(world, job_id, **changes):
    fields = {
        "schema_version": 1,
        "key": uuid4().hex,
        "user": world.username,
        "job": str(job_id),
    }
    return fields | changes


def letters(world, **options):
    with world.deps.db.begin() as tx:
        return dead_letters.list_letters(tx, limit=10_000, **options)


def count(world, table="dataset_items"):
    return world.sql(f"SELECT count(*) FROM {table}")[0][0]


def outcomes(events):
    return [event.outcome for event in events if isinstance(event, CommandFollowed)]


# What commands do


def test_an_upload_becomes_items_with_their_jobs_and_is_acknowledged(
    world, producer, link, inbox, tmp_path, events
):
    processor = world.processor()
    (inbox / "scans").mkdir()
    (inbox / "scans" / "two.txt").write_text("from the inbox")
    (tmp_path / "three.txt").write_text("from a blob")
    blob = sources.keep_file(world.deps, world.user, tmp_path / "three.txt")
    sent = [
        {"name": "one.txt", "text": "inline", "metadata": "kept"},
        {"name": "two.txt", "path": "scans/two.txt"},
        {"name": "three.txt", "blob": blob},
    ]
    producer.send(
        "take_upload", **upload(world, items=sent, priority="bulk", comes_from="the future")
    )
    drain(world.deps, link)
    rows = world.sql("SELECT name, text, metadata FROM dataset_items ORDER BY id")
    assert [tuple(row) for row in rows] == [
        ("one.txt", "inline", "kept"),
        ("two.txt", "from the inbox", ""),
        ("three.txt", "from a blob", ""),
    ]
    assert world.statuses(processor) == ["pending"] * 3
    assert world.sql("SELECT DISTINCT priority FROM post_processor_jobs")[0][0] == 1
    assert outcomes(events) == ["done"]
    assert producer.left() == 0
    world.check()


def test_a_message_that_names_one_file_often_does_not_fill_the_disk(
    world, producer, link, inbox, tmp_path, monkeypatch
):
    (inbox / "a.bin").write_bytes(b"\0" * 100_000)
    (tmp_path / "b.bin").write_bytes(b"\1" * 100_000)
    blob = sources.keep_file(world.deps, world.user, tmp_path / "b.bin")
    incoming = world.deps.blobs.root / "incoming"
    copies = []
    monkeypatch.setattr(
        "ppworker.store.blobs.sync", lambda _: copies.append(len([*incoming.iterdir()]))
    )
    sent = [{"name": f"a-{n}.bin", "path": "./" * n + "a.bin"} for n in range(20)]
    sent += [{"name": f"b-{n}.bin", "blob": blob} for n in range(20)]
    producer.send("take_upload", **upload(world, items=sent))
    drain(world.deps, link)
    assert len(copies) == 20, "what is stored is not copied"
    assert max(copies) == 2, "the first one, and the one in hand"
    assert [*incoming.iterdir()] == []
    rows = world.sql("SELECT content_sha256, count(*) FROM dataset_items GROUP BY 1")
    assert sorted(tuple(row)[1] for row in rows) == [20, 20]
    assert count(world, "blobs") == 2


def test_no_text_is_longer_than_a_text_may_be(world, producer, link):
    world.deps = wiring.build_deps(
        world.deps.settings.model_copy(update={"max_text_bytes": 9}), world.deps.db
    )
    for text in ("ä" * 5, "ä" * 4 + "b"):
        producer.send("take_upload", **upload(world, items=[{"name": "a.txt", "text": text}]))
    drain(world.deps, link)
    (letter,) = letters(world)
    assert (letter.field, count(world)) == ("items[0].text", 1)


def test_the_content_of_an_item_that_is_gone_is_nobodys(world, producer, link, inbox):
    (inbox / "a.bin").write_bytes(b"\0\1\2")
    sent = [{"name": "a.bin", "path": "a.bin"}]
    producer.send("take_upload", **upload(world, items=sent))
    drain(world.deps, link)
    blob = world.sql("SELECT content_sha256 FROM dataset_items")[0][0]
    again = [{"name": "b.bin", "blob": blob}]
    producer.send("take_upload", **upload(world, items=again))
    drain(world.deps, link)
    assert (count(world), letters(world)) == (2, [])
    world.sql("UPDATE dataset_items SET deleted_at = now()")
    producer.send("take_upload", **upload(world, items=again))
    drain(world.deps, link)
    assert [letter.field for letter in letters(world)] == ["items[0].blob"]


def test_a_message_that_names_one_long_text_often_is_refused_before_it_swells(
    world, producer, link, inbox, monkeypatch
):
    monkeypatch.setattr("ppworker.pipeline.uploads.inbox._MOST_TEXT_BYTES", 1_000_000)
    world.deps = wiring.build_deps(
        world.deps.settings.model_copy(update={"max_text_bytes": 500_000}), world.deps.db
    )
    (inbox / "a.txt").write_text("ab " * 100_000)
    sent = [{"name": f"a-{n}.txt", "path": "a.txt"} for n in range(4)]
    producer.send("take_upload", **upload(world, items=sent))
    producer.send("take_upload", **upload(world, items=sent[:3]))
    drain(world.deps, link)
    (letter,) = letters(world)
    assert (letter.field, count(world)) == ("items", 3)
    assert "1000000 bytes together" in letter.error


def test_an_absolute_path_below_the_inbox_is_one_in_it(world, producer, link, inbox):
    (inbox / "a.txt").write_text("here")
    producer.send(
        "take_upload", **upload(world, items=[{"name": "a.txt", "path": str(inbox / "a.txt")}])
    )
    drain(world.deps, link)
    assert count(world) == 1


def test_a_command_sent_again_is_followed_once_whatever_became_of_its_file(
    world, producer, link, inbox, events
):
    (inbox / "a.txt").write_text("here for a moment")
    fields = upload(world, items=[{"name": "a.txt", "path": "a.txt"}])
    producer.send("take_upload", **fields)
    drain(world.deps, link)
    (inbox / "a.txt").unlink()
    producer.send("take_upload", **fields)
    drain(world.deps, link)
    assert count(world) == 1
    assert outcomes(events) == ["done", "repeated"]
    assert letters(world) == []


def test_a_key_that_stood_for_another_command_is_refused_whoever_looks_first(
    world, worlds, producer, link, events
):
    first = upload(world)
    producer.send("take_upload", **first)
    producer.send("take_upload", **first | {"items": [{"name": "b.txt", "text": "other words"}]})
    producer.send("retry_job", **retry(world, uuid4(), key=first["key"]))
    drain(world.deps, link)
    assert [(each.actor, each.field) for each in letters(world)] == [
        ("take_upload", "key"),
        ("retry_job", "key"),
    ]
    assert "another command" in letters(world)[0].error
    assert outcomes(events) == ["done"]
    other = worlds()
    name = other.sql("SELECT username FROM users WHERE id = :id", id=other.user)[0][0]
    producer.send("take_upload", **first | {"user": name, "split": f"{other.dataset.name}/train"})
    drain(world.deps, link)
    assert outcomes(events) == ["done", "done"], "somebody else's key is another one"


def test_a_key_names_its_user_and_a_repetition_may_name_the_user_instead(
    world, producer, link, events
):
    with world.deps.db.begin() as tx:
        key = accounts.create_key(tx, world.user, scopes=["write"])
    fields = upload(world, user=..., api_key=key)
    producer.send("take_upload", **fields)
    del fields["api_key"]
    producer.send("take_upload", **fields, user=world.username)
    drain(world.deps, link)
    assert outcomes(events) == ["done", "repeated"]


def test_inferences_become_an_operation(world, producer, link, tmp_path, inbox, events):
    given = [{"id": "i-1", "name": "seen elsewhere", "inference_items": [{"prediction": "cat"}]}]
    path = inbox / "i.jsonl"
    path.write_text("\n".join(json.dumps({**given[0], "id": f"line-{n}"}) for n in range(3)))
    blob = sources.keep_file(world.deps, world.user, path)
    shared = {"schema_version": 1, "user": world.username, "split": world.split}
    producer.send("apply_inferences", **shared, key="a", inferences=given, keep_annotations=False)
    producer.send("apply_inferences", **shared, key="b", path="i.jsonl")
    producer.send("apply_inferences", **shared, key="c", blob=blob)
    producer.send("apply_inferences", **shared, key="b", path="i.jsonl")
    drain(world.deps, link)
    assert letters(world) == []
    assert outcomes(events) == ["done", "done", "done", "repeated"]
    rows = world.sql(
        "SELECT kind, total, arguments->>'keep_annotations' FROM operations ORDER BY id"
    )
    assert [tuple(row) for row in rows] == [
        ("apply_inferences", 1, "false"),
        ("apply_inferences", 3, "true"),
        ("apply_inferences", 3, "true"),
    ]


def failed_jobs(world, number):
    processor = world.processor(max_attempts=1)
    world.add(*(f"text {n}" for n in range(number)))
    world.run(processor, lambda _: RunnerError("no", code="model_error"))
    return processor, [job.id for job in world.jobs(processor)]


def test_a_retry_starts_a_failed_job_once_and_leaves_others_alone(world, producer, link, events):
    processor, (job_id,) = failed_jobs(world, 1)
    fields = retry(world, job_id)
    producer.send("retry_job", **fields)
    producer.send("retry_job", **fields)
    producer.send("retry_job", **retry(world, job_id))
    drain(world.deps, link)
    assert outcomes(events) == ["done", "repeated", "nothing"]
    assert world.statuses(processor) == ["pending"]
    # A late copy of the first message must not start what failed after it was sent.
    world.run(processor, lambda _: RunnerError("no again", code="model_error"))
    producer.send("retry_job", **fields)
    drain(world.deps, link)
    assert world.statuses(processor) == ["failed"]
    assert letters(world) == []


@pytest.mark.promise
@pytest.mark.slow
def test_50_callers_at_once_by_http_and_by_message_retry_each_job_exactly_once(
    world, producer, server, events, promise
):
    processor, ids = failed_jobs(world, 100)
    items = {job.id: job.item_id for job in world.jobs(processor)}
    with ExitStack() as running:
        api = running.enter_context(served_api(world.deps, world))
        callers = [api.client(world.user) for _ in range(25)]

        def ask(caller):
            return [
                caller.post(f"{api.version}/items/{items[id_]}/jobs/{id_}/retry").status_code
                for id_ in ids
            ]

        pool = running.enter_context(ThreadPoolExecutor(len(callers)))
        answers = [pool.submit(ask, caller) for caller in callers]
        for _ in range(3):
            running.enter_context(consuming(server, world.deps))
        for id_ in reversed(ids):  # from the other end, so that each way comes first at times
            for _ in range(25):
                producer.send("retry_job", **retry(world, id_))
        told = Counter(status for answer in answers for status in answer.result())
        eventually(lambda: producer.left() == 0, within_s=90)
    by_message = outcomes(events)
    assert told.keys() <= {200, 409}
    assert told.total() == 25 * len(ids)
    assert told[200] + by_message.count("done") == len(ids)
    assert by_message.count("done") + by_message.count("nothing") == 25 * len(ids)
    retried = [e for e in events if isinstance(e, JobMoved) and e.cause == "retried"]
    assert Counter(e.job_id for e in retried) == dict.fromkeys(ids, 1)
    assert set(world.statuses(processor)) == {"pending"}
    assert letters(world) == []
    world.run(processor, classes("cat"))
    assert set(world.statuses(processor)) == {"completed"}
    world.check()
    promise(
        "F19",
        promise="However many retry a job, over HTTP and by message at the same time, it is "
        "started once; the others are told so.",
        fault=f"25 callers over HTTP and 25 messages for each of {len(ids)} failed jobs, at once",
        target="exactly one transition of each job, every other caller told 409 or that nothing "
        "was done (50 x 1,000 in the reference, cut to 50 x 100); both ways win some",
        figure=f"{len(retried)} transitions of {len(ids)} jobs: {told[200]} over HTTP and "
        f"{by_message.count('done')} by message; {told[409]} conflicts, "
        f"{by_message.count('nothing')} messages that did nothing",
        passed=bool(told[200] and by_message.count("done")),
        figures={"http": told[200], "message": by_message.count("done")},
    )


def test_a_command_that_was_sent_to_the_queue_of_hints_is_moved_to_its_own(
    world, producer, server, link
):
    """As a stub does that names no queue."""
    producer.send("take_upload", queue="default", **upload(world))
    producer.send("nonsense", queue="default")
    hints = connect(server.url)
    consumer = hints.consume("default", prefetch=2)
    assert next(consumer) is None
    hints.close()
    drain(world.deps, link)
    assert count(world) == 1
    assert letters(world) == []
    assert producer.client.hlen("ppworker:default.msgs") == 0


ASYNCAPI = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "asyncapi.py"))


def test_every_example_of_the_published_schema_is_followed(
    worlds, world, producer, link, inbox, events
):
    """In a world as the examples have it: a user, a dataset, two files in the inbox, and so on."""
    local = worlds(username="local")
    with local.deps.db.begin() as tx:
        datasets.create_dataset(tx, local.user, "mine")
    for path, text in {
        "scans/page-1.txt": "a page",
        "inferences/night-run-8.jsonl": '{"id": "8-1", "name": "seen elsewhere"}\n',
        "files/hello.txt": "hello\n",
    }.items():
        (inbox / path).parent.mkdir()
        (inbox / path).write_text(text)
    sources.keep_file(local.deps, local.user, inbox / "files" / "hello.txt")
    _, (failed,) = failed_jobs(local, 1)
    examples = ASYNCAPI["EXAMPLES"]
    job = examples["retry_job"]["job"]["job"]
    local.sql("UPDATE post_processor_jobs SET id = :new WHERE id = :old", new=job, old=failed)
    sent = 0
    for actor in messages.COMMANDS:
        for fields in examples[actor].values():
            producer.send_raw(json.dumps(ASYNCAPI["envelope"](actor, "commands", fields)).encode())
            sent += 1
    drain(world.deps, link)
    assert [(letter.actor, letter.field, letter.error) for letter in letters(world)] == []
    assert outcomes(events) == ["done"] * sent
    assert local.sql("SELECT count(*) FROM operations")[0][0] == 2
    assert local.statuses() == ["pending"]


# What cannot be followed


def malformed(world, theirs, inbox, tmp_path):
    """Kinds of malformed messages: what is wrong, and the field that is at fault."""
    (inbox / "folder").mkdir()
    (inbox / "good.txt").write_text("good")
    (tmp_path / "secret.txt").write_text("secret")
    (inbox / "link.txt").symlink_to(tmp_path / "secret.txt")
    (inbox / "inner.txt").symlink_to(inbox / "good.txt")
    (inbox / "linked").symlink_to(tmp_path)
    os.mkfifo(inbox / "pipe.txt")
    (tmp_path / "theirs.txt").write_text("theirs")
    blob = sources.keep_file(theirs.deps, theirs.user, tmp_path / "theirs.txt")
    theirs.processor()
    theirs.add("theirs")
    with world.deps.db.begin() as tx:
        read_only = accounts.create_key(tx, world.user, scopes=["read"])

    def item(**source):
        return [{"name": "a.txt", **source}]

    return {
        "unknown dataset": ("split", {"split": "nowhere/train"}),
        "unknown split": ("split", {"split": f"{world.dataset.name}/nowhere"}),
        "their split by name": ("split", {"split": f"{theirs.dataset.name}/train"}),
        "their split by id": ("split", {"split": str(theirs.train.id)}),
        "items is no list": ("items", {"items": {"name": "a.txt", "text": "x"}}),
        "items is empty": ("items", {"items": []}),
        "too many items": ("items", {"items": item(text="x") * 501}),
        "name is a number": ("items[0].name", {"items": [{"name": 1, "text": "x"}]}),
        "no content": ("items[0]", {"items": item()}),
        "two contents": ("items[0]", {"items": item(text="x", path="good.txt")}),
        "huge text": ("items[0].text", {"items": item(text="x" * 65_537)}),
        "path climbs": ("items[0].path", {"items": item(path="folder/../../secret.txt")}),
        "path elsewhere": ("items[0].path", {"items": item(path=str(tmp_path / "secret.txt"))}),
        "path over a link": ("items[0].path", {"items": item(path="link.txt")}),
        "path over a link inside": ("items[0].path", {"items": item(path="inner.txt")}),
        "path through a link": ("items[0].path", {"items": item(path="linked/secret.txt")}),
        "path to nothing": ("items[0].path", {"items": item(path="nothing.txt")}),
        "path to a folder": ("items[0].path", {"items": item(path="folder")}),
        "path to a pipe": ("items[0].path", {"items": item(path="pipe.txt")}),
        "path with NUL": ("items[0].path", {"items": item(path="good.txt\0.png")}),
        "path with half a pair": ("items[0].path", {"items": item(path="\ud800.txt")}),
        "their blob": ("items[0].blob", {"items": item(blob=blob)}),
        "unknown blob": ("items[0].blob", {"items": item(blob="0" * 64)}),
        "unknown version": ("schema_version", {"schema_version": 2}),
        "no version": ("schema_version", {"schema_version": ...}),
        "no key": ("key", {"key": ...}),
        "key with NUL": ("key", {"key": "a\0b"}),
        "unknown user": ("user", {"user": "nobody"}),
        "no user": ("user", {"user": ...}),
        "user and key": ("user", {"api_key": "ppw_" + "x" * 43}),
        "unknown key": ("api_key", {"user": ..., "api_key": "ppw_" + "x" * 43}),
        "key that only reads": ("api_key", {"user": ..., "api_key": read_only}),
        "metadata with NUL": ("items[0].metadata", {"items": item(text="x", metadata="\0")}),
        "unknown priority": ("priority", {"priority": "urgent"}),
        "job of nobody": ("job", uuid4()),
        "their job": ("job", theirs.jobs()[0].id),
        "no job": ("job", "no id"),
    }


RAW = {
    "no JSON": (b"\xff\x00 not JSON", "message"),
    "JSON cut off": (b'{"queue_name": "commands", "actor', "message"),
    "a list": (b"[1, 2]", "message"),
    "deeper than anybody reads": (b"[" * 200_000, "message"),
    "no envelope": (b'{"kwargs": {"key": "k"}}', "message_id"),
}


def test_200_malformed_messages_are_kept_with_their_field_and_can_be_replayed(  # noqa: PLR0917
    world, worlds, producer, server, client, inbox, tmp_path, events
):
    kinds = malformed(world, worlds(), inbox, tmp_path)
    expected, good = {}, 0
    for number in range(200):
        name = list(kinds)[number % len(kinds)]
        field, change = kinds[name]
        if field == "job":
            sent = producer.send("retry_job", **retry(world, change))
        else:
            sent = producer.send("take_upload", **upload(world, **change))
        expected[sent.message_id] = (name, field)
        if number % 4 == 0:
            producer.send("take_upload", **upload(world))
            good += 1
    conflicting = upload(world, key="taken")
    taken = producer.send("take_upload", **conflicting)
    sent = producer.send("take_upload", **conflicting | {"split": f"{world.dataset.name}/test"})
    other = sent.message_id
    expected[other] = ("another command with the key", "key")
    expected[producer.send("take_uploads", **upload(world)).message_id] = ("actor", "actor_name")
    expected[producer.send("take_upload", upload(world)).message_id] = ("by position", "args")
    delayed = producer.send("take_upload", delay=60_000, **upload(world))
    expected[delayed.message_id] = ("delayed", "options.eta")
    for body, _ in RAW.values():
        producer.send_raw(body)

    with consuming(server, world.deps), consuming(server, world.deps):
        eventually(
            lambda: producer.left() + client.hlen("ppworker:commands.DQ.msgs") == 0, within_s=60
        )

    kept = letters(world)
    by_id = {letter.message_id: letter for letter in kept}
    if taken.message_id in by_id:  # two consumers: whichever of the two was first has the key
        expected[taken.message_id] = expected.pop(other)
    assert len(kept) == len(expected) + len(RAW)
    for message_id, (name, field) in expected.items():
        assert (name, by_id[message_id].field) == (name, field), by_id[message_id].error
    assert sorted(letter.field for letter in kept if letter.message_id not in expected) == sorted(
        field for _, field in RAW.values()
    )
    assert count(world) == good + 1 + 1  # the first with the key "taken", and their one item
    assert "secret" not in {row[0] for row in world.sql("SELECT text FROM dataset_items")}
    assert len([e for e in events if isinstance(e, CommandRefused)]) == len(kept)
    assert client.zcard("ppworker:commands.XQ") == 0
    for letter in kept:
        name, field = expected.get(letter.message_id, ("raw", "message"))
        is_known = name != "raw" and field not in {"user", "api_key", "args"}
        assert letter.user_id == (world.user if is_known else None), name

    # The world is mended: what named an unknown dataset is followed as it is.
    with world.deps.db.begin() as tx:
        datasets.create_dataset(tx, world.user, "nowhere")
    before, mended = count(world), 0
    for letter in kept:
        if expected.get(letter.message_id, ("",))[0] == "unknown dataset":
            assert commands.replay(world.deps, letter) == Outcome.DONE
            mended += 1
        elif letter.field == "job":
            with pytest.raises(RequestError) as refused:
                commands.replay(world.deps, letter)
            assert refused.value.field == "job"
        else:  # the body is mended
            fixed = upload(world, key=f"mended {letter.id}")
            done = commands.replay(world.deps, letter, fields=fixed, actor="take_upload")
            assert done == Outcome.DONE
            mended += 1
    assert count(world) == before + mended
    assert {letter.field for letter in letters(world)} == {"job"}
    with pytest.raises(RequestError, match="replayed"):
        commands.replay(world.deps, letters(world, replayed=True)[0])
    world.check()


def test_a_redelivered_message_makes_no_second_letter(world, producer, server, link):
    producer.send("take_upload", **upload(world, split="nowhere/train"))
    taken = link.take(block_s=0.01)
    commands.follow(world.deps, taken)  # and die before the acknowledgement
    other = CommandLink.from_url(server.url, silence_s=SILENCE_S)
    eventually(lambda: beat_and_take(other))
    other.give_back()
    drain(world.deps, other)
    other.close()
    assert len(letters(world)) == 1
    assert producer.left() == 0


def test_no_secret_is_kept_and_a_replay_acts_for_the_user_whose_key_it_was(
    world, producer, link, events
):
    with world.deps.db.begin() as tx:
        key = accounts.create_key(tx, world.user)
    producer.send("take_upload", **upload(world, user=..., api_key=key, split="later/train"))
    producer.send("take_upload", **upload(world, split=key))
    drain(world.deps, link)
    first, second = letters(world)
    assert (first.username, first.is_cut) == (world.username, False)
    assert "redacted" in first.body
    assert second.is_cut  # the part that was taken out cannot be replayed
    for letter in (first, second):
        assert key not in letter.body + letter.error
    with pytest.raises(RequestError, match="only a part"):
        commands.replay(world.deps, second)
    with world.deps.db.begin() as tx:
        datasets.create_dataset(tx, world.user, "later")
    assert commands.replay(world.deps, first) == Outcome.DONE
    assert count(world) == 1


def test_a_message_of_megabytes_is_kept_in_part_and_says_so(world, producer, link):
    producer.send(
        "take_upload", **upload(world, items=[{"name": "a", "text": "long " * 1_000_000}])
    )
    producer.send_raw(b'{"x": "' + b"y" * messages.MAX_MESSAGE_BYTES + b'"}')
    drain(world.deps, link)
    first, second = letters(world)
    assert (first.field, second.field) == ("items[0].text", "message")
    for letter in (first, second):
        assert letter.is_cut
        assert "[cut: " in letter.body
        assert len(letter.body) < 1_100_000


@pytest.mark.parametrize("nasty", ["\0", "\ud800", "a\0b\udfffc", "\U0001f600", "x" * 5000])
def test_whatever_a_message_holds_its_letter_can_be_written(world, producer, link, nasty):
    producer.send(
        f"take_upload{nasty}", **{nasty: nasty, "key": nasty, "user": nasty, "api_key": None}
    )
    producer.send("take_upload", **upload(world, key=nasty, user=nasty, split=nasty))
    drain(world.deps, link)
    kept = letters(world)
    assert len(kept) == 2
    assert all(json.loads(letter.body) for letter in kept)
    assert producer.left() == 0


# When something is away, or wrong


def test_while_postgresql_is_away_nothing_is_taken_and_then_everything_is_followed(
    world, producer, server, client
):
    is_away = Event()
    is_away.set()
    asked = []

    def probe():
        asked.append(client.hlen("ppworker:commands.msgs"))
        if is_away.is_set():
            raise StoreUnavailable("away")

    def follow(taken):
        if is_away.is_set():
            raise StoreUnavailable("away")
        commands.follow(world.deps, taken)

    for _ in range(5):
        producer.send("take_upload", **upload(world))
    with consuming(server, world.deps, follow=follow, probe=probe):
        eventually(lambda: len(asked) >= 3)
        assert client.llen("ppworker:commands") == 5  # the one in hand was put back
        assert set(asked) == {5}
        is_away.clear()
        eventually(lambda: producer.left() == 0)
    assert count(world) == 5
    assert client.hlen("ppworker:commands.tries") == 0


def test_a_command_in_hand_when_the_worker_stops_is_put_back(world, producer, server, client):
    holds, let_go = Event(), Event()

    def follow(taken):
        holds.set()
        let_go.wait(10)
        commands.follow(world.deps, taken)

    producer.send("take_upload", **upload(world))
    with consuming(server, world.deps, follow=follow) as consumer:
        assert holds.wait(5)
        assert client.llen("ppworker:commands") == 0
        assert consumer.stop(wait_s=0.1) is False
        assert client.llen("ppworker:commands") == 1
        let_go.set()
    with consuming(server, world.deps):
        eventually(lambda: producer.left() == 0)
    assert count(world) == 1


def test_a_worker_that_waits_for_postgresql_stops_at_once(world, producer, server, client):
    asked = Event()

    def away(*_):
        asked.set()
        raise StoreUnavailable("away")

    producer.send("take_upload", **upload(world))
    with consuming(server, world.deps, follow=away, probe=away) as consumer:
        assert asked.wait(5)
        started = time.monotonic()
        assert consumer.stop(wait_s=5)
        assert time.monotonic() - started < 1
    assert client.llen("ppworker:commands") == 1


def test_what_a_dead_worker_held_is_followed_by_another_within_seconds(
    world, producer, server, link
):
    producer.send("take_upload", **upload(world))
    assert link.take(block_s=0.1) is not None  # and no life sign ever again
    with consuming(server, world.deps):
        started = time.monotonic()
        eventually(lambda: producer.left() == 0)
    assert time.monotonic() - started > SILENCE_S / 2
    assert count(world) == 1


def test_a_living_worker_keeps_what_it_holds_however_long_it_takes(world, producer, server, client):
    holds, let_go = Event(), Event()
    calls = []

    def slow(taken):
        calls.append(taken.id)
        holds.set()
        let_go.wait(10)
        commands.follow(world.deps, taken)

    producer.send("take_upload", **upload(world))
    with consuming(server, world.deps, follow=slow):
        assert holds.wait(5)
        with consuming(server, world.deps, follow=slow):
            time.sleep(2.5 * SILENCE_S)  # nothing is to happen
            let_go.set()
            eventually(lambda: producer.left() == 0)
    assert len(calls) == 1


def test_a_worker_that_was_stopped_for_long_and_goes_on_does_no_harm(world, producer, server, link):
    other = CommandLink.from_url(server.url, silence_s=SILENCE_S)
    fields = [upload(world), upload(world)]
    producer.send("take_upload", **fields[0])
    zombie = link.take(block_s=0.1)
    commands.follow(world.deps, zombie)  # and before it is acknowledged, the machine sleeps
    time.sleep(1.2 * SILENCE_S)
    again = eventually(lambda: beat_and_take(other))
    producer.send("take_upload", **fields[1])
    link.done(zombie)
    assert producer.left() == 2, "what another worker holds is not the sleeper's to acknowledge"
    commands.follow(world.deps, again)
    other.done(again)
    drain(world.deps, link)
    other.close()
    assert (count(world), producer.left(), letters(world)) == (2, 0, [])


def test_redis_killed_and_started_again_is_found_again_and_never_keeps_a_worker(
    world, producer, server
):
    with consuming(server, world.deps) as consumer:
        producer.send("take_upload", **upload(world))
        eventually(lambda: count(world) == 1)
        server.kill()
        time.sleep(0.7)  # it notices
        server.start()
        producer.send("take_upload", **upload(world))
        eventually(lambda: count(world) == 2)
        server.kill()
        started = time.monotonic()
        assert consumer.stop(wait_s=5)
        assert time.monotonic() - started < 4


def test_a_worker_stops_while_redis_hangs(world, producer, server):
    with consuming(server, world.deps) as consumer:
        producer.send("take_upload", **upload(world))
        eventually(lambda: count(world) == 1)
        os.kill(server.process.pid, signal.SIGSTOP)
        started = time.monotonic()
        assert consumer.stop(wait_s=5)
        assert time.monotonic() - started < 3


def test_redis_hangs_between_the_commit_and_the_acknowledgement(world, producer, server, events):
    """The message comes again, whatever redis remembers, and its key lets nothing happen."""
    hangs = Event()

    def follow(taken):
        commands.follow(world.deps, taken)
        if not hangs.is_set():
            os.kill(server.process.pid, signal.SIGSTOP)
            hangs.set()

    producer.send("take_upload", **upload(world))
    with consuming(server, world.deps, follow=follow):
        assert hangs.wait(5)
        time.sleep(2.5)  # longer than the acknowledgement waits
        os.kill(server.process.pid, signal.SIGCONT)
        eventually(lambda: producer.left() == 0)
    assert count(world) == 1
    assert outcomes(events)[0] == "done"
    assert set(outcomes(events)[1:]) <= {"repeated"}


def test_a_command_that_fails_for_no_known_reason_is_tried_three_times_and_then_kept(
    world, producer, server, monkeypatch
):
    real = commands._OBEY[messages.TakeUpload]
    calls = []

    def obey(deps, ask, command):
        if command.items[0].name == "bad":
            calls.append(1)
            raise ZeroDivisionError("a fault of ours")
        return real(deps, ask, command)

    monkeypatch.setitem(commands._OBEY, messages.TakeUpload, obey)
    bad = producer.send("take_upload", **upload(world, items=[{"name": "bad", "text": "x"}]))
    producer.send("take_upload", **upload(world))
    with consuming(server, world.deps):
        eventually(lambda: producer.left() == 0)
    assert count(world) == 1
    assert len(calls) == commands.MOST_TRIES
    (letter,) = letters(world)
    assert letter.message_id == bad.message_id
    assert "ZeroDivisionError" in letter.error


def test_a_command_that_kills_its_workers_does_not_kill_them_for_ever(
    world, producer, server, client
):
    producer.send("take_upload", **upload(world))
    for _ in range(commands.MOST_TRIES):
        link = CommandLink.from_url(server.url, silence_s=0.05)
        eventually(lambda link=link: beat_and_take(link))
        link.close()  # killed with the message in hand
        time.sleep(0.1)
    with consuming(server, world.deps):
        eventually(lambda: producer.left() == 0)
    (letter,) = letters(world)
    assert "3 workers died of it" in letter.error
    assert count(world) == 0
    assert commands.replay(world.deps, letter) == Outcome.DONE


def test_a_full_disk_is_no_fault_of_the_message(world, producer, link, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    producer.send("take_upload", **upload(world))
    monkeypatch.setitem(commands._OBEY, messages.TakeUpload, full)
    for _ in range(5):
        taken = link.take(block_s=0.1)
        assert taken.tries == 1
        with pytest.raises(StoreUnavailable):
            commands.follow(world.deps, taken)
        link.give_back(taken)
    monkeypatch.undo()
    drain(world.deps, link)
    assert count(world) == 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_a_file_that_cannot_be_opened_now_is_no_fault_of_the_message(
    world, producer, link, inbox, monkeypatch, number
):
    (inbox / "a.txt").write_text("here")
    original = os.open

    def fail(path, *args, **options):
        if path == "a.txt":
            raise OSError(number, "not now")
        return original(path, *args, **options)

    producer.send("take_upload", **upload(world, items=[{"name": "a.txt", "path": "a.txt"}]))
    monkeypatch.setattr(os, "open", fail)
    taken = link.take(block_s=0.1)
    with pytest.raises((StoreUnavailable, NotNow)):
        commands.follow(world.deps, taken)
    link.give_back(taken)
    monkeypatch.undo()
    drain(world.deps, link)
    assert (count(world), letters(world)) == (1, [])


@pytest.mark.parametrize("fault", [ZeroDivisionError, GeneratorExit])
def test_a_message_whose_letter_cannot_be_written_blocks_nobody(
    world, producer, server, client, fault
):
    def follow(taken):
        if b"nobody-follows-this" in taken.body:  # no hexadecimal word, as ids are
            raise fault("not even its letter")
        commands.follow(world.deps, taken)

    producer.send("take_upload", **upload(world, key="nobody-follows-this"))
    producer.send("take_upload", **upload(world))
    with consuming(server, world.deps, follow=follow):
        eventually(lambda: producer.left() == 0)
    assert count(world) == 1
    assert client.zcard("ppworker:commands.XQ") == 1


def test_the_same_command_followed_by_two_at_once_happens_once(world, producer, server, events):
    fields = upload(world)
    for _ in range(20):
        producer.send("take_upload", **fields)
    with consuming(server, world.deps), consuming(server, world.deps):
        eventually(lambda: producer.left() == 0)
    assert count(world) == 1
    assert sorted(outcomes(events)) == ["done"] + ["repeated"] * 19
