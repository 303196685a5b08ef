"""Leases by the worker's own clock: what could not be renewed is in doubt before it is over."""

from collections.abc import Mapping
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from ppworker.errors import StoreUnavailable
from ppworker.worker.heartbeat import Heartbeat

LEASE_S = 30.0


class Server:
    """Renews what is not in ``taken``, as long as it is there."""

    def __init__(self) -> None:
        self.is_away = False
        self.taken: set[UUID] = set()
        self.asked = 0

    def extend(self, held: Mapping[UUID, int]) -> set[UUID]:
        self.asked += 1
        if self.is_away:
            raise StoreUnavailable("away")
        return self.taken & set(held)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def heartbeat(server: Server, clock: Clock) -> Heartbeat:
    return Heartbeat(server.extend, lambda: None, lease_s=LEASE_S, clock=clock)


def job(**values: Any) -> Any:
    return SimpleNamespace(**{"id": uuid4(), "item_id": uuid4(), "lease_token": 1} | values)


def test_a_lease_is_in_doubt_before_the_server_ends_it(heartbeat: Heartbeat, clock: Clock) -> None:
    one = job()
    with heartbeat.holding(uuid4(), [one]):
        clock.now += 0.8 * LEASE_S
        assert heartbeat.in_doubt() == set()
        clock.now += 0.15 * LEASE_S
        assert heartbeat.in_doubt() == {one.id}
        heartbeat.beat()
        assert heartbeat.in_doubt() == set()
    clock.now += LEASE_S
    assert heartbeat.in_doubt() == set()


def test_its_time_counts_from_when_the_claim_was_sent(heartbeat: Heartbeat, clock: Clock) -> None:
    with heartbeat.holding(uuid4(), [job()], since=clock.now - LEASE_S):
        assert len(heartbeat.in_doubt()) == 1


def test_sure_leases_cost_no_question(heartbeat: Heartbeat, server: Server) -> None:
    one, two = job(), job()
    with heartbeat.holding(uuid4(), [one, two]):
        assert heartbeat.confirmed({one.id: 1, two.id: 1}) == {one.id, two.id}
    assert server.asked == 0


def test_a_lease_in_doubt_is_confirmed_or_lost(
    heartbeat: Heartbeat, server: Server, clock: Clock
) -> None:
    one, two = job(), job()
    with heartbeat.holding(uuid4(), [one, two]):
        clock.now += LEASE_S
        server.is_away = True
        with pytest.raises(StoreUnavailable):
            heartbeat.confirmed({one.id: 1, two.id: 1})
        server.is_away, server.taken = False, {two.id}
        assert heartbeat.confirmed({one.id: 1, two.id: 1}) == {one.id}
        assert heartbeat.held().keys() == {one.id}


def test_a_beat_that_fails_leaves_its_leases_in_doubt(
    heartbeat: Heartbeat, server: Server, clock: Clock
) -> None:
    one = job()
    with heartbeat.holding(uuid4(), [one]):
        server.is_away = True
        for _ in range(3):
            clock.now += LEASE_S / 3
            with pytest.raises(StoreUnavailable):
                heartbeat.beat()
        assert heartbeat.in_doubt() == {one.id}
        assert one.id in heartbeat.held(), "it is renewed again when the server is back"


def test_the_end_of_a_batch_lets_go_of_no_newer_lease_on_its_jobs(
    heartbeat: Heartbeat, clock: Clock
) -> None:
    """Another slot of this process may have claimed what a batch lost while its model ran."""
    processor, old, ended = uuid4(), job(), ExitStack()
    new = job(id=old.id, item_id=old.item_id, lease_token=2)
    ended.enter_context(heartbeat.holding(processor, [old]))
    with heartbeat.holding(processor, [new]):
        assert heartbeat.confirmed({old.id: 1}) == set()
        ended.close()
        assert heartbeat.held() == {new.id: (processor, new.item_id, 2)}
        clock.now += LEASE_S
        assert heartbeat.in_doubt() == {new.id}
        assert heartbeat.confirmed({new.id: 2}) == {new.id}
    assert heartbeat.held() == {}


def test_a_lease_whose_end_is_being_written_is_renewed_and_never_called_lost(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    lost: list[str] = []
    heartbeat = Heartbeat(server.extend, lambda: None, lease_s=LEASE_S, lost=lost.extend)
    written, cancelled = job(), job()
    with (
        heartbeat.holding(uuid4(), [written], name="written"),
        heartbeat.holding(uuid4(), [cancelled], name="cancelled"),
    ):
        heartbeat.ending([written])
        heartbeat.beat()
        assert heartbeat.held().keys() == {written.id, cancelled.id}
        server.taken = {written.id, cancelled.id}
        heartbeat.beat()
        assert heartbeat.held() == {}
    assert lost == ["cancelled"]
    assert caplog.messages == ["1 leases are lost; their answers will be refused"]
    with heartbeat.holding(uuid4(), [written], name="again"):
        heartbeat.beat()
    assert lost == ["cancelled", "again"], "what ended is forgotten"
