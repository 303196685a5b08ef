"""Looking in vain: a flood of hints is slowed down, a wake-up is never lost."""

import time

import fakeredis
import pytest

from hint_words import QUEUE_KEY, A, B, Clock, consume, hint, names, ready
from ppworker.worker import looks as looks_module
from ppworker.worker.broker import HintBroker
from ppworker.worker.link import RedisLink
from ppworker.worker.looks import GAP_S, Looks


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def looks(clock):
    return Looks(clock=clock)


def in_vain(looks, times=4, who=A):
    for _ in range(times):
        assert looks.wait_s(who) == 0
        looks.ended(who, 0)


def test_a_few_looks_in_vain_cost_nobody_anything(looks):
    in_vain(looks, times=3)
    assert looks.wait_s(A) == 0


def test_after_several_looks_in_vain_the_next_waits_for_the_gap_and_one_alone_begins(looks, clock):
    in_vain(looks)
    assert looks.wait_s(A) == pytest.approx(GAP_S)
    assert looks.wait_s(B) == 0, "others are not held back"
    clock.now += GAP_S + 0.001
    assert looks.wait_s(A) == 0
    assert looks.wait_s(A) == pytest.approx(GAP_S), "until the one that began has ended"


def test_who_finds_jobs_is_looked_at_at_once_again(looks, clock):
    in_vain(looks)
    clock.now += GAP_S + 0.001
    assert looks.wait_s(A) == 0
    looks.ended(A, 1)
    assert looks.wait_s(A) == 0


def test_who_has_more_is_looked_at_at_once_again(looks):
    in_vain(looks)
    looks.has_more(A)
    assert looks.wait_s(A) == 0


def test_looks_in_vain_that_lie_apart_do_not_add_up(looks, clock):
    for _ in range(20):
        in_vain(looks, times=1)
        clock.now += 1
    assert looks.wait_s(A) == 0


def test_a_hundred_thousand_strange_ids_are_not_remembered(looks, clock):
    for number in range(100_000):
        looks.ended(number, 0)
        clock.now += 0.001
    assert len(looks._vain) <= 456


def test_hints_that_are_held_back_become_one_look_after_the_gap(monkeypatch):
    monkeypatch.setattr(looks_module, "GAP_S", 1.5)  # for a machine that is busy
    client = fakeredis.FakeRedis()
    broker = ready(HintBroker(link=RedisLink(client, client)))
    consumer = consume(broker, slots=2)
    for _ in range(4):
        hint(broker, A)
        message = next(consumer)
        broker.looks.ended(A, 0)
        consumer.ack(message)
    for _ in range(10):
        hint(broker, A)
        assert next(consumer) is None
    hint(broker, B)
    other = next(consumer)
    assert names([other]) == [B], "another post-processor does not wait"
    consumer.ack(other)
    started = time.monotonic()
    while (message := next(consumer)) is None:
        assert time.monotonic() < started + 10, "the look is forgotten"
    assert names([message]) == [A]
    consumer.ack(message)
    assert [next(consumer) for _ in range(3)] == [None] * 3, "ten hints are one look"
    broker.close()


def test_a_stopping_consumer_passes_on_what_it_held_back():
    client = fakeredis.FakeRedis()
    broker = ready(HintBroker(link=RedisLink(client, client)))
    consumer = consume(broker)
    for _ in range(4):
        broker.looks.ended(A, 0)
    hint(broker, A)
    assert next(consumer) is None
    assert client.llen(QUEUE_KEY) == 0
    consumer.close()
    assert broker.wait_sent()
    assert client.llen(QUEUE_KEY) == 1, "another process may follow it"
    broker.close()
