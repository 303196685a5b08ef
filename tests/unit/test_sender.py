"""Hints off the request path: who asks never waits, nothing asked for is forgotten."""

import threading
import time
from collections import Counter
from uuid import UUID, uuid4

import pytest
import redis

from hint_words import A, B, C
from ppworker.worker.hints import Hint
from ppworker.worker.sender import Sender


class Link:
    """A way to redis that a test opens and closes."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.is_open.set()
        self.is_asked = threading.Event()
        self.error: Exception | None = None
        self.offered: list[UUID | None] = []

    def offer(self, hint: Hint) -> bool:
        self.is_asked.set()
        self.is_open.wait(10)
        if self.error is not None:
            raise self.error
        self.offered.append(hint.post_processor_id)
        return True


def nobody(_):
    pass


@pytest.fixture
def link():
    return Link()


@pytest.fixture
def counts():
    return Counter()


@pytest.fixture
def given_up():
    return []


@pytest.fixture
def sender(link, counts, given_up):
    made = Sender(
        link,
        cooldown_s=60,
        counted=lambda name: counts.update([name]),
        given_up=given_up.append,
    )
    yield made
    link.is_open.set()
    assert made.close(wait_s=5)


def hold(sender, link):
    """Have the thread stand in redis with a first hint."""
    link.is_open.clear()
    sender.send(Hint(uuid4()))
    assert link.is_asked.wait(5)


def test_while_redis_does_not_answer_each_kind_waits_once_in_the_order_asked(sender, link, counts):
    hold(sender, link)
    for _ in range(10_000):
        for id_ in (B, A, C):
            sender.send(Hint(id_))
    assert len(sender._waiting) == 3
    link.is_open.set()
    assert sender.flush(5)
    assert link.offered[1:] == [B, A, C]
    assert counts == {"sent": 4, "coalesced": 3 * 9_999}


def test_what_is_asked_for_while_the_same_is_being_sent_is_sent_again(sender, link):
    """The hint under way may be followed by a claim that came before the second commit."""
    link.is_open.clear()
    sender.send(Hint(A))
    assert link.is_asked.wait(5)
    sender.send(Hint(A))
    link.is_open.set()
    assert sender.flush(5)
    assert link.offered == [A, A]


def test_after_a_failure_the_rest_is_given_up_at_once_and_told(sender, link, counts, given_up):
    hold(sender, link)
    link.error = redis.TimeoutError("slow")
    for id_ in (A, B):
        sender.send(Hint(id_))
    link.is_open.set()
    assert sender.flush(5)
    assert [hint.post_processor_id for hint in given_up][1:] == [A, B]
    assert counts == {"failed": 3}


def test_an_error_of_any_kind_leaves_the_thread_alive(sender, link, counts):
    link.error = ValueError("a bug")
    sender.send(Hint(A))
    assert sender.flush(5)
    sender.send(Hint(B))
    assert sender.flush(5)
    assert counts == {"failed": 2}


def test_closing_sends_what_waits(link):
    sender = Sender(link, cooldown_s=1, counted=nobody, given_up=nobody)
    for id_ in (A, B, C):
        sender.send(Hint(id_))
    assert sender.close(wait_s=5)
    assert link.offered == [A, B, C]


def test_closing_does_not_wait_for_a_redis_that_hangs(link):
    sender = Sender(link, cooldown_s=1, counted=nobody, given_up=nobody)
    hold(sender, link)
    sender.send(Hint(A))
    started = time.monotonic()
    assert not sender.close(wait_s=0.1)
    assert time.monotonic() - started < 3
    link.is_open.set()


def test_what_comes_after_the_end_is_given_up(link, counts, given_up):
    sender = Sender(
        link, cooldown_s=1, counted=lambda name: counts.update([name]), given_up=given_up.append
    )
    assert sender.close(wait_s=1)
    sender.send(Hint(A))
    assert given_up == [Hint(A)]
    assert counts == {"failed": 1}


def test_many_threads_lose_no_hint(sender, link):
    ids = [uuid4() for _ in range(200)]

    def ask(mine):
        for id_ in mine:
            sender.send(Hint(id_))

    threads = [threading.Thread(target=ask, args=(ids[i::8],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sender.flush(10)
    assert sorted(link.offered) == sorted(ids)


def test_a_process_that_sends_nothing_has_no_thread(link):
    before = threading.active_count()
    sender = Sender(link, cooldown_s=1, counted=nobody, given_up=nobody)
    assert threading.active_count() == before
    assert sender.close(wait_s=0)
