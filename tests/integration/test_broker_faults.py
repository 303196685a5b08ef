"""What hints cost when redis hangs, fails or is away: tests that wait for real time-outs."""

import socket
import threading
import time
from uuid import uuid4

import fakeredis
import pytest
import redis

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
)
from ppworker.worker.broker import HintBroker, connect
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


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_thousand_hints_to_a_redis_that_hangs_make_nobody_wait(tmp_path, family):
    """Not even the first one waits; the thread that sends them waits once for all of them."""
    path = str(tmp_path / "hung.sock")
    with socket.socket(family) as listener:
        listener.bind(path if family == socket.AF_UNIX else ("127.0.0.1", 0))
        listener.listen(64)  # connections open, nothing ever answers
        address = listener.getsockname()
        is_unix = family == socket.AF_UNIX
        broker = connect(f"unix://{path}" if is_unix else f"redis://127.0.0.1:{address[1]}/0")
        assert broker.link is not None
        offer, senders = broker.link.offer, set[threading.Thread]()

        def noted(hint):
            senders.add(threading.current_thread())
            return offer(hint)

        broker.link.offer = noted  # type: ignore[method-assign]  # to see who calls it
        for _ in range(1000):
            broker.hint(uuid4())
        broker.close()
    assert threading.current_thread() not in senders, "whoever hints must not speak to redis"
    assert len(senders) == 1
    assert broker.counts["failed"] == 1000


def test_a_redis_that_answers_errors_at_once_is_not_asked_in_a_loop(client, monkeypatch):
    link = RedisLink(client, client)
    takes = []

    def fail(*args, **kwargs):
        takes.append(time.monotonic())
        raise redis.ResponseError("unknown command 'BLMOVE'")

    monkeypatch.setattr(link, "take", fail)
    assert drain(consume(ready(HintBroker(link=link))), looks=2) == []
    assert len(takes) == 1


def test_ack_nack_and_requeue_never_raise_while_redis_is_away():
    server = fakeredis.FakeServer()
    client = fakeredis.FakeRedis(server=server)
    broker = ready(HintBroker(link=RedisLink(client, client)))
    for post_processor_id in (A, B, C):
        hint(broker, post_processor_id)
    consumer = consume(broker, slots=3)
    first, second, third = drain(consumer)
    server.connected = False
    consumer.ack(first)
    consumer.nack(second)
    consumer.requeue([third])
    consumer.close()
    assert broker.slots.running().total() == 0


# Refresh


def test_one_refresh_runs_at_a_time_and_takes_no_slot(broker, client):
    hint_refresh(broker)
    consumer = consume(broker, slots=1)
    (refresh,) = drain(consumer)
    assert refresh.actor_name == "refresh_label_stats"
    hint_refresh(broker)  # queued again: deltas may have come after the fold's snapshot
    assert drain(consumer, looks=2) == []
    hint(broker, A)
    assert names(drain(consumer)) == [A]
    consumer.ack(refresh)
    (again,) = drain(consumer, looks=1)
    assert again.actor_name == "refresh_label_stats"


def test_the_consumer_takes_no_more_than_it_has_slots(broker, client):
    for post_processor_id in (A, B, C):
        hint(broker, post_processor_id)
    consumer = consume(broker, slots=2)
    first, second = drain(consumer, looks=3)
    assert client.llen(QUEUE_KEY) == 1
    consumer.ack(first)
    (third,) = drain(consumer, looks=1)
    assert names([first, second, third]) == [A, B, C]


def test_polls_fill_only_idle_slots(table, clock, poller):
    table.due = [A, B, C]
    broker = ready(HintBroker(poller=poller))
    consumer = consume(broker, slots=2)
    first, second = drain(consumer, looks=2)
    assert names([first, second]) == [A, B]
    clock.now += 10
    assert next(consumer) is None
    assert table.polls == 1  # without an idle slot the database is not asked
    consumer.ack(first)
    table.due = [B, C, A]
    assert names([next(consumer)]) == [C]  # B is served already
