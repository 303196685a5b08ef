"""Who is served first, and which batches hang."""

from hypothesis import given
from hypothesis import strategies as st

from ppworker.domain.turns import BULK, INTERACTIVE, ROUND, first_priority, is_for_suspects
from ppworker.worker.inside import Inside


@given(st.integers(0, 10**9))
def test_each_round_serves_bulk_once_also_beside_suspects_who_have_every_second(start: int) -> None:
    claims = range(start, start + ROUND)
    assert sorted(first_priority(n) for n in claims) == [INTERACTIVE] * (ROUND - 1) + [BULK]
    two_rounds = range(start, start + 2 * ROUND)
    left = [first_priority(n) for n in two_rounds if not is_for_suspects(n)]
    assert sorted(left) == [INTERACTIVE] * (ROUND - 1) + [BULK]


def test_a_batch_hangs_when_it_is_long_past_its_limit_in_the_model() -> None:
    now = [1000.0]
    room = Inside(hangs_after_s=5, clock=lambda: now[0])
    with room.watched([], limit_s=10):
        now[0] += 14.9
        assert not room.hung()
        now[0] += 0.1
        assert len(room.hung()) == 1
    assert not room.hung()
