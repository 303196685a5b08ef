"""Who is served first, and who may be in a model together."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from ppworker.domain.turns import BULK, INTERACTIVE, ROUND, first_priority, is_for_suspects
from ppworker.worker.inside import Inside


@given(st.integers(0, 10**9))
def test_each_round_serves_bulk_once_and_suspects_once(start: int) -> None:
    claims = range(start, start + ROUND)
    assert sorted(first_priority(n) for n in claims) == [INTERACTIVE] * (ROUND - 1) + [BULK]
    assert sum(is_for_suspects(n) for n in claims) == 1


def inside(*, patience_s: float = 5.0) -> Inside:
    return Inside(threading.Event(), patience_s=patience_s)


def test_batches_are_inside_together_and_suspects_alone() -> None:
    room = inside()
    with room.together() as first, room.together() as second:
        assert first
        assert second
    with room.alone() as is_alone:
        assert is_alone
        with room.alone() as another:
            assert not another, "one at a time"


def test_newcomers_wait_for_those_who_are_alone() -> None:
    room = inside()
    entered = threading.Event()

    def enter() -> None:
        with room.together():
            entered.set()

    thread = threading.Thread(target=enter)
    with room.alone():
        thread.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)
    thread.join()


def test_suspects_wait_for_those_inside_and_come_before_newcomers() -> None:
    room = inside(patience_s=60)
    order: list[str] = []
    left, waiting = threading.Event(), threading.Event()

    def beside() -> None:
        with room.together():
            waiting.set()
            left.wait(30)
        order.append("left")

    def alone() -> None:
        with room.alone() as is_alone:
            order.append(f"alone {is_alone}")

    first, second = threading.Thread(target=beside), threading.Thread(target=alone)
    first.start()
    assert waiting.wait(10)
    second.start()
    left.set()
    first.join()
    second.join()
    assert sorted(order) == ["alone True", "left"]


def test_patience_ends_and_rests() -> None:
    now = [0.0]
    room = Inside(threading.Event(), patience_s=0, rest_s=30, clock=lambda: now[0])
    with room.together(), room.alone() as is_alone:
        assert not is_alone
    with room.alone() as is_alone:
        assert not is_alone, "it rests"
    now[0] = 31
    with room.alone() as is_alone:
        assert is_alone


def test_a_batch_hangs_when_its_deadline_is_long_over() -> None:
    now = [0.0]
    room = Inside(threading.Event(), hangs_after_s=5, clock=lambda: now[0])
    with room.watched([], deadline=10):
        now[0] = 14.9
        assert not room.hung()
        now[0] = 15
        assert len(room.hung()) == 1
    assert not room.hung()


def test_nobody_waits_in_a_stopping_process() -> None:
    stopping = threading.Event()
    room = Inside(stopping)
    with room.alone():
        stopping.set()
        with room.together() as is_inside:
            assert not is_inside
