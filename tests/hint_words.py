"""Short words for tests of hints: a job table as polling sees it, a clock, a broker on any redis."""

from uuid import UUID

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from ppworker.worker.actors import Handlers, declare_actors
from ppworker.worker.poller import Poll

A, B, C = (UUID(int=number) for number in (1, 2, 3))
QUEUE_KEY = "ppworker:default"


class Table:
    """The job table as polling sees it."""

    def __init__(self):
        self.due = []
        self.next_due_s = None
        self.error = None
        self.polls = 0

    def __call__(self):
        self.polls += 1
        if self.error is not None:
            raise self.error
        return Poll(tuple(self.due), self.next_due_s)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def nothing_more(_post_processor_id, _recruit, _woken_by):
    return False


def ready(broker, run_slice=nothing_more, refresh=lambda: None):
    declare_actors(broker, Handlers(run_slice=run_slice, refresh=refresh))
    return broker


def consume(broker, slots=2):
    return broker.consume("default", prefetch=slots)


def drain(consumer, looks=4):
    """Everything the consumer hands out in a few looks."""
    return [message for _ in range(looks) if (message := next(consumer)) is not None]


def names(messages):
    return [UUID(message.args[0]) for message in messages]


def hint(broker, *post_processor_ids):
    """Hints that are in redis, or given up, when this returns."""
    for post_processor_id in post_processor_ids:
        broker.hint(post_processor_id)
    assert broker.wait_sent()


def hint_refresh(broker):
    """The same for the label stats."""
    broker.refresh_label_stats()
    assert broker.wait_sent()


def stock_producer(client):
    """What another program writes with plain dramatiq."""
    other = RedisBroker(client=client, namespace="ppworker", middleware=[])

    @dramatiq.actor(broker=other)
    def run_jobs(post_processor_id):
        raise AssertionError

    return run_jobs
