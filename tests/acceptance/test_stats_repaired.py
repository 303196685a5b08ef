"""A real worker sets spoiled label stats right while it works."""

import pytest

from drifted_stats import many_rows, spoil
from factories import World
from live_workers import Start, wait_for
from ppworker.store import stats


@pytest.mark.timeout(60)
def test_a_worker_repairs_them_and_stays_exact_under_load(
    live: World,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PPWORKER_RECOUNT_S", "1")
    many_rows(live)
    echo = live.processor(runner="scripted_runners:EchoRunner")
    spoil(live, 20)
    start()
    live.add(*(f"w{i}" for i in range(300)))

    def is_exact() -> bool:
        with live.deps.db.begin() as tx:
            return not stats.find_drift(tx, stats.list_split_ids(tx))

    wait_for(is_exact, seconds=30, what="the repair")
    wait_for(lambda: set(live.statuses(echo)) == {"completed"}, seconds=30, what="the drain")
    assert is_exact()
