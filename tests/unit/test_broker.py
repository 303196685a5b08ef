"""The rules of hints, on fakeredis (with Lua) below dramatiq's own redis scripts."""

import json
import logging
import time
from threading import Event

import fakeredis
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker

from hint_words import (
    QUEUE_KEY,
    A,
    B,
    C,
    Clock,
    Table,
    consume,
    drain,
    hint,
    hint_refresh,
    names,
    ready,
    stock_producer,
)
from ppworker.errors import ConfigurationError, StoreUnavailable
from ppworker.worker.broker import HintBroker, connect
from ppworker.worker.hints import Hint
from ppworker.worker.link import RedisLink
from ppworker.worker.poller import Poller


@pytest.fixture
def client():
    return fakeredis.FakeRedis()


@pytest.fixture
def table():
    return Table()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def poller(table, clock):
    return Poller(table, interval_s=1.0, clock=clock)


@pytest.fixture
def broker(client):
    """A broker without polling, so that only redis speaks."""
    return ready(HintBroker(link=RedisLink(client, client)))


# One hint per post-processor


def test_at_most_one_hint_of_a_post_processor_is_queued(broker, client):
    for _ in range(100):
        broker.hint(A)
    assert broker.wait_sent()
    assert client.llen(QUEUE_KEY) == 1
    assert broker.counts["sent"] == 1
    assert broker.counts["coalesced"] == 99
    client.delete(Hint(A).mark)
    hint(broker, A)
    assert client.llen(QUEUE_KEY) == 2


def test_who_dies_with_a_hint_in_hand_holds_up_no_other_hint(broker, client):
    hint(broker, A)
    hint(broker, B)
    assert len(RedisLink(client, client).take(1, block_s=0)) == 1  # and is killed in that moment
    hint(broker, A)
    hint(broker, B)
    assert client.llen(QUEUE_KEY) == 2, "A is asked for again, B still waits"
    assert client.hlen(f"{QUEUE_KEY}.msgs") == 2


def test_hints_of_different_post_processors_do_not_swallow_each_other(broker, client):
    hint(broker, A)
    hint(broker, B)
    hint_refresh(broker)
    hint_refresh(broker)
    assert client.llen(QUEUE_KEY) == 3


def test_a_lost_hint_is_forgotten_when_its_mark_expires(broker, client):
    hint(broker, A)
    (mark,) = client.keys("ppworker:hint:*")
    assert 0 < client.ttl(mark) <= 60


def test_mark_and_hint_are_written_in_one_round_trip(broker, client, monkeypatch):
    hint(broker, B)  # loads the script
    sent = []
    inner = client.execute_command

    def note(*args, **kwargs):
        sent.append(args[0])
        return inner(*args, **kwargs)

    monkeypatch.setattr(client, "execute_command", note)
    hint(broker, A)
    assert sent == ["EVALSHA"]


def test_a_hint_that_arrives_during_the_claim_is_not_lost(client):
    """The mark is cleared before the claim's snapshot: a later hint is queued, not swallowed."""
    broker = HintBroker(link=RedisLink(client, client))
    queued_during_claim = []

    def claim(post_processor_id, recruit, woken_by):
        before = client.llen(QUEUE_KEY)
        hint(broker, post_processor_id)
        queued_during_claim.append(client.llen(QUEUE_KEY) - before)
        return False

    ready(broker, claim)
    hint(broker, A)
    (message,) = drain(consume(broker))
    broker.get_actor("run_jobs")(*message.args)
    assert queued_during_claim == [1]


def test_a_polled_message_leaves_the_mark_of_the_queued_hint(client, table, poller):
    """A poll is no take: clearing the mark would let a second hint into the queue."""
    broker = ready(HintBroker(link=RedisLink(client, client), poller=poller))
    table.due = [A]
    hint(broker, A)
    assert names([next(consume(broker, slots=1))]) == [A]
    hint(broker, A)
    assert client.llen(QUEUE_KEY) == 1


# Redis away


def test_a_failed_hint_is_swallowed_counted_and_logged_once(caplog):
    server = fakeredis.FakeServer()
    client = fakeredis.FakeRedis(server=server)
    broker = ready(HintBroker(link=RedisLink(client, client)))
    server.connected = False
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            hint(broker, A)
        hint_refresh(broker)
    assert broker.counts["failed"] == 6
    assert len(caplog.records) == 1


def test_a_url_cannot_undo_our_time_outs(tmp_path):
    link = RedisLink.from_url(f"unix://{tmp_path}/redis.sock?socket_timeout=60&retry_on_timeout=1")
    assert link._client.connection_pool.connection_kwargs["socket_timeout"] <= 1
    assert link._blocking.connection_pool.connection_kwargs["socket_timeout"] > 0.5


def test_only_one_caller_probes_a_failed_redis(clock):
    from ppworker.worker.circuit import Circuit

    circuit = Circuit("test", cooldown_s=1.5, clock=clock)
    assert circuit.allows()
    circuit.failed(redis.ConnectionError("gone"))
    assert not circuit.allows()
    clock.now += 1.5
    assert [circuit.allows() for _ in range(3)] == [True, False, False]
    circuit.succeeded()
    assert [circuit.allows() for _ in range(3)] == [True, True, True]


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("refused"),
        redis.TimeoutError("slow"),
        redis.exceptions.BusyLoadingError("LOADING"),
        redis.exceptions.ReadOnlyError("READONLY"),
        redis.exceptions.OutOfMemoryError("OOM"),
        redis.ResponseError("unknown command 'BLMOVE'"),
        OSError("bad descriptor"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_polling_goes_on_whatever_redis_answers(client, table, poller, error, monkeypatch):
    link = RedisLink(client, client)
    takes = []

    def fail(*args, **kwargs):
        takes.append(time.monotonic())
        raise error

    monkeypatch.setattr(link, "take", fail)
    broker = ready(HintBroker(link=link, poller=poller))
    consumer = consume(broker)
    assert next(consumer) is None  # the first poll finds nothing
    assert next(consumer) is None  # redis fails
    table.due = [A]
    poller._next_at = poller._clock()
    assert names([next(consumer)]) == [A]
    assert len(takes) == 1


def test_without_redis_nothing_is_sent_counted_or_raised(table, clock, poller):
    broker = ready(HintBroker(poller=poller))
    consumer = consume(broker)
    assert drain(consumer, looks=1) == []
    table.due = [A]
    clock.now += 0.06
    hint(broker, A)
    assert names([next(consumer)]) == [A]  # long before the timer: a hint makes it poll soon
    assert broker.counts["failed"] == 0
    hint_refresh(broker)
    assert next(consumer).actor_name == "refresh_label_stats"


def test_a_malformed_url_is_a_configuration_error_that_does_not_repeat_it():
    with pytest.raises(ConfigurationError, match="PPWORKER_REDIS_URL") as caught:
        connect("http://user:secret@host")
    assert "secret" not in str(caught.value)


# Taking


def test_a_stock_producers_message_is_taken_and_leaves_nothing_behind(broker, client):
    stock_producer(client).send(str(A))
    (message,) = drain(consume(broker))
    assert (message.actor_name, message.args) == ("run_jobs", (str(A),))
    assert client.keys("ppworker:default*") == []
    assert client.keys("ppworker:__acks__*") == []


def test_a_stock_consumer_can_read_our_hint(broker, client):
    hint(broker, A)
    other = RedisBroker(client=client, namespace="ppworker", middleware=[])
    message = next(other.consume("default", prefetch=1, timeout=10))
    assert message is not None
    assert (message.actor_name, message.args) == ("run_jobs", (str(A),))
    assert message.options["max_retries"] == 0
    assert message.options["max_age"] == 60_000


def test_a_freed_slot_ends_the_wait_at_once(broker):
    hint(broker, A)
    consumer = consume(broker, slots=1)
    message = next(consumer)
    consumer.ack(message)
    started = time.monotonic()
    hint(broker, B)
    assert names(drain(consumer, looks=1)) == [B]
    assert time.monotonic() - started < 0.3


def test_a_stopping_consumer_takes_nothing(broker, client):
    hint(broker, A)
    broker.stopping.set()
    assert drain(consume(broker), looks=2) == []
    assert client.llen(QUEUE_KEY) == 1


def test_requeue_passes_hints_on_and_forgets_polled_ones(client, table, poller):
    broker = ready(HintBroker(link=RedisLink(client, client), poller=poller))
    table.due = [A]
    consumer = consume(broker, slots=2)
    polled = next(consumer)
    hint(broker, B)
    taken = next(consumer)
    consumer.requeue([polled, taken])
    assert broker.wait_sent()
    assert client.llen(QUEUE_KEY) == 1
    assert names(drain(consume(broker), looks=2)) == [B]


def test_no_delay_queue_is_declared(broker):
    assert broker.get_declared_queues() == {"default"}
    assert broker.get_declared_delay_queues() == set()
    with pytest.raises(ValueError, match="no delay"):
        broker.get_actor("run_jobs").send_with_options(args=(str(A),), delay=1000)


def test_the_actors_own_send_is_a_hint_like_any_other(broker, client):
    broker.get_actor("run_jobs").send(str(A))
    hint(broker, A)
    assert client.llen(QUEUE_KEY) == 1


# What is no hint


def envelope(**changes):
    fields = {
        "queue_name": "default",
        "actor_name": "run_jobs",
        "args": [str(A)],
        "kwargs": {},
        "options": {},
        "message_id": "1",
        "message_timestamp": int(time.time() * 1000),
    }
    return json.dumps({**fields, **changes}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        envelope(args=["no-uuid"]),
        envelope(args=[]),
        envelope(args=[str(A), str(B)]),
        envelope(args=[7]),
        envelope(args=[None]),
        envelope(args=str(A)),
        envelope(kwargs={"other": 1}),
        envelope(kwargs=[1]),
        envelope(actor_name="no_such_actor"),
        envelope(actor_name=["run_jobs"]),
        envelope(actor_name="refresh_label_stats"),
        envelope(message_timestamp="soon"),
        envelope(message_timestamp=None),
        envelope(message_timestamp=True),
    ],
)
def test_a_malformed_hint_is_dropped_with_one_warning(broker, client, body, caplog):
    client.hset(f"{QUEUE_KEY}.msgs", "poison", body)
    client.rpush(QUEUE_KEY, "poison")
    hint(broker, B)
    with caplog.at_level(logging.WARNING):
        assert names(drain(consume(broker))) == [B]
    assert [record.exc_info for record in caplog.records] == [None]
    assert broker.counts["malformed"] == 1
    assert client.keys("ppworker:default*") == []
    assert client.keys("ppworker:__acks__*") == []


def test_an_id_without_a_body_is_dropped(broker, client):
    client.rpush(QUEUE_KEY, "ghost")
    assert drain(consume(broker)) == []
    assert client.keys("ppworker:__acks__*") == []


def test_a_keyword_argument_and_options_of_a_stranger_are_read_and_ignored(broker, client):
    body = envelope(
        args=[],
        kwargs={"post_processor_id": str(A)},
        options={"eta": 1, "max_retries": 99, "pipe_target": {"x": 1}},
    )
    client.hset(f"{QUEUE_KEY}.msgs", "1", body)
    client.rpush(QUEUE_KEY, "1")
    (message,) = drain(consume(broker))
    assert names([message]) == [A]
    assert set(message.options) == {"max_retries", "max_age", "local"}


def test_a_stale_hint_is_dropped_silently(broker, client, caplog):
    old = int((time.time() - 61) * 1000)
    client.hset(f"{QUEUE_KEY}.msgs", "1", envelope(message_timestamp=old))
    client.rpush(QUEUE_KEY, "1")
    with caplog.at_level(logging.INFO):
        assert drain(consume(broker)) == []
    assert broker.counts["stale"] == 1
    assert caplog.records == []


@pytest.mark.parametrize("stamp", [10**400, -(10**400), float("inf"), float("nan")])
def test_an_absurd_time_stamp_does_not_stop_the_consumer(broker, client, stamp):
    client.hset(f"{QUEUE_KEY}.msgs", "1", envelope(message_timestamp=stamp))
    client.rpush(QUEUE_KEY, "1")
    drain(consume(broker), looks=1)
    assert client.llen(QUEUE_KEY) == 0


# Polling


def test_the_first_poll_is_at_the_start(table, poller):
    table.due = [A]
    broker = ready(HintBroker(poller=poller))
    assert names([next(consume(broker))]) == [A]


def test_polled_work_never_goes_through_redis(client, table, poller):
    table.due = [A, B]
    broker = ready(HintBroker(link=RedisLink(client, client), poller=poller))
    assert len(drain(consume(broker), looks=2)) == 2
    assert client.keys() == []


def test_a_deep_backlog_may_hold_several_slots(table, clock, poller):
    table.due = [A]
    consumer = consume(ready(HintBroker(poller=poller)), slots=2)
    assert names([next(consumer)]) == [A]
    clock.now += 2
    assert names([next(consumer)]) == [A]


def test_the_one_that_waits_longest_does_not_take_every_turn(table, clock, poller):
    table.due = [A, B, C]  # turns are longer than the pause between polls: each begins with one
    consumer = consume(ready(HintBroker(poller=poller)), slots=1)
    turns = []
    for _ in range(6):
        message = next(consumer)
        turns.append(message)
        clock.now += 2
        consumer.ack(message)
    assert names(turns) == [A, B, C, A, B, C]


def test_a_turn_by_a_hint_counts_as_a_turn(client, table, clock, poller):
    broker = ready(HintBroker(link=RedisLink(client, client), poller=poller))
    hint(broker, A)
    consumer = consume(broker, slots=1)
    drain(consumer, looks=1)  # nobody is due: the poll passes
    (hinted,) = drain(consumer, looks=1)
    table.due = [A, B]
    clock.now += 2
    consumer.ack(hinted)
    assert names([hinted, next(consumer)]) == [A, B]


def test_the_timer_is_jittered_by_half(table, clock, poller):
    waits = []
    for _ in range(300):
        poller.due(1, poller_running())
        waits.append(poller.seconds_left())
        clock.now += waits[-1]
    assert 0.5 <= min(waits) < 0.6
    assert 1.4 < max(waits) <= 1.5


def test_the_next_run_at_is_honoured(table, poller):
    table.next_due_s = 0.3
    poller.due(1, poller_running())
    assert poller.seconds_left() == pytest.approx(0.3)
    table.next_due_s = 3600
    poller.due(1, poller_running())
    assert poller.seconds_left() <= 1.5


def test_while_more_are_due_than_slots_are_idle_the_next_poll_is_near(table, poller):
    table.due = [A, B]
    poller.due(2, poller_running())
    assert poller.seconds_left() >= 0.5
    poller.due(1, poller_running())
    assert poller.seconds_left() <= 0.25


def test_many_requests_to_poll_make_one_poll(table, clock, poller):
    poller.due(1, poller_running())
    for _ in range(1000):
        poller.soon()
    assert 0 < poller.seconds_left() <= 0.05
    clock.now += 0.05
    assert poller.seconds_left() == 0
    poller.due(1, poller_running())
    assert poller.seconds_left() >= 0.5


def test_polling_goes_on_while_hints_flow(client, table, clock, poller):
    broker = ready(HintBroker(link=RedisLink(client, client), poller=poller))
    consumer = consume(broker, slots=1)
    seen = []
    for number in range(8):
        hint(broker, A)
        table.due = [B] if number > 3 else []
        clock.now += 0.4
        for message in drain(consumer, looks=1):
            seen += names([message])
            consumer.ack(message)
    assert B in seen


def test_a_database_that_is_away_is_logged_once_and_asked_less_often(table, clock, poller, caplog):
    table.error = StoreUnavailable("PostgreSQL is away")
    waits = []
    with caplog.at_level(logging.INFO):
        for _ in range(6):
            assert poller.due(1, poller_running()) == []
            poller.soon()  # an impatient actor does not undo the back-off
            waits.append(poller.seconds_left())
            clock.now += waits[-1]
        assert len(caplog.records) == 1
        assert caplog.records[0].exc_info in {None, False}
        assert max(waits) <= 5
        assert waits[-1] > waits[0]
        table.error, table.due = None, [A]
        assert poller.due(1, poller_running()) == [A]
        assert len(caplog.records) == 2


def test_a_bug_in_polling_does_not_end_it(table, poller, caplog):
    table.error = KeyError("bug")
    assert poller.due(1, poller_running()) == []
    assert caplog.records[0].exc_info
    table.error, table.due = None, [A]
    assert poller.due(1, poller_running()) == [A]


def poller_running():
    from collections import Counter

    return Counter()


# Actors


def act(broker, post_processor_id=A):
    broker.get_actor("run_jobs")(str(post_processor_id))
    assert broker.wait_sent()


def test_a_turn_that_ends_with_more_passes_the_hint_to_the_tail(client):
    broker = ready(
        HintBroker(link=RedisLink(client, client)), lambda _id, _recruit, _woken_by: True
    )
    hint(broker, B)
    act(broker, A)
    assert names(drain(consume(broker, slots=4))) == [B, A]


def test_a_turn_that_did_nothing_and_has_more_does_not_spin(client):
    broker = ready(
        HintBroker(link=RedisLink(client, client)), lambda _id, _recruit, _woken_by: True
    )
    started = time.monotonic()
    act(broker)
    assert time.monotonic() - started >= 0.05


def test_recruiting_passes_one_hint_on_however_often_it_is_called(client):
    link = RedisLink(client, client)
    broker = HintBroker(link=link)
    lengths = []

    def run_slice(_id, recruit, _woken_by):
        for _ in range(3):
            recruit()
            assert broker.wait_sent()
            client.delete(Hint(A).mark)  # another slot took it and began
            lengths.append(client.llen(QUEUE_KEY))
        return False

    act(ready(broker, run_slice))
    assert lengths == [1, 1, 1]


def test_without_redis_recruiting_polls_soon(table, clock, poller):
    broker = HintBroker(poller=poller)
    poller.due(1, poller_running())

    def run_slice(_id, recruit, _woken_by):
        recruit()
        return False

    act(ready(broker, run_slice))
    assert poller.seconds_left() <= 0.05


@pytest.mark.parametrize(
    ("error", "has_traceback"),
    [(StoreUnavailable("away"), False), (RuntimeError("bug"), True)],
)
def test_an_error_out_of_a_turn_is_logged_once_and_drops_the_hint(
    client, caplog, error, has_traceback
):
    def run_slice(_id, _recruit, _woken_by):
        raise error

    broker = ready(HintBroker(link=RedisLink(client, client)), run_slice)
    act(broker)
    assert [bool(record.exc_info) for record in caplog.records] == [has_traceback]
    assert client.llen(QUEUE_KEY) == 0


def test_an_error_out_of_a_refresh_is_logged_once(client, caplog):
    def refresh():
        raise RuntimeError("bug")

    broker = ready(HintBroker(link=RedisLink(client, client)), refresh=refresh)
    broker.get_actor("refresh_label_stats")()
    assert len(caplog.records) == 1


def test_a_stopping_process_passes_the_hint_on_instead_of_beginning(client):
    ran = Event()

    def run_slice(_id, _recruit, _woken_by):
        ran.set()
        return False

    broker = ready(HintBroker(link=RedisLink(client, client)), run_slice)
    broker.stopping.set()
    act(broker)
    assert not ran.is_set()
    assert client.llen(QUEUE_KEY) == 1
