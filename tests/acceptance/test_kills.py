"""Real worker processes, killed without mercy: nothing is lost, nothing is doubled."""

import os
import signal
import time
from functools import partial

import pytest

from factories import World
from live_workers import Start, wait_for
from ppworker import wiring
from ppworker.embedded import EmbeddedServers


def live_jobs(world: World) -> int:
    return int(
        world.sql(
            "SELECT count(*) FROM post_processor_jobs WHERE status IN ('pending','processing')"
        )[0][0]
    )


def _below(world: World, goal: int) -> bool:
    return live_jobs(world) < goal


def processing(world: World) -> int:
    return int(
        world.sql("SELECT count(*) FROM post_processor_jobs WHERE status = 'processing'")[0][0]
    )


@pytest.mark.timeout(170)
def test_kill_9_of_every_worker_five_times_loses_and_doubles_nothing(
    live: World, start: Start
) -> None:
    jobs = 2_500
    processor = live.processor(
        runner="scripted_runners:DawdlingRunner",
        runner_config={"seconds": 0.004},
        batch_size=50,
        max_attempts=20,
    )
    for chunk in range(0, jobs, 500):
        live.add(*(f"word {i}" for i in range(chunk, chunk + 500)))
    for kill in range(5):
        workers = [start(), start()]
        wait_for(lambda: processing(live) >= 2, seconds=20, what="work")
        goal = jobs - (kill + 1) * 60
        wait_for(partial(_below, live, goal), seconds=30, what="progress")
        wait_for(lambda: processing(live) >= 2, seconds=20, what="work")
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
        left = processing(live)
        assert left, "the kill was to land while jobs are processing"
        print(f"kill {kill + 1}: {left} jobs were processing, {live_jobs(live)} live")
    start(), start()
    wait_for(lambda: live_jobs(live) == 0, seconds=90, what="the end of the drain")
    assert set(live.statuses(processor)) == {"completed"}
    assert live.sql("SELECT count(*) FROM annotations")[0][0] == jobs
    assert (
        live.sql("SELECT count(*) FROM (SELECT 1 FROM annotations GROUP BY item_id) x")[0][0]
        == jobs
    )
    rescued = live.sql(
        "SELECT count(*), count(DISTINCT worker_id) FROM job_attempts WHERE cause = 'rescued'"
    )[0]
    print(f"rescued attempts: {rescued[0]} of {rescued[1]} workers")
    assert rescued[1] >= 5
    live.check()


@pytest.mark.timeout(120)
def test_redis_killed_in_the_middle_the_load_drains_and_redis_is_used_again(
    live: World, servers: EmbeddedServers, start: Start
) -> None:
    if servers.redis_url is None:
        pytest.fail("this platform has no redis wheel; the test needs a real redis")
    processor = live.processor(
        runner="scripted_runners:DawdlingRunner", runner_config={"seconds": 0.004}, batch_size=50
    )
    live.add(*(f"word {i}" for i in range(500)))
    live.add(*(f"more {i}" for i in range(500)))
    start(), start()
    wait_for(lambda: live_jobs(live) < 900, seconds=20, what="progress")
    redis_pid = redis_process(servers)
    os.kill(redis_pid, signal.SIGKILL)
    assert live_jobs(live) > 0
    wait_for(lambda: live_jobs(live) == 0, seconds=60, what="the drain without redis")
    live.add("picked up by polling")
    wait_for(lambda: live_jobs(live) == 0, seconds=10, what="polling")
    servers.ensure()
    broker = wiring.hint_broker(
        live.deps.settings.model_copy(update={"redis_url": _secret(servers.redis_url)})
    )
    assert redis_process(servers) != redis_pid
    time.sleep(3)  # workers look for redis every second or two
    hinted = wiring.build_deps(live.deps.settings, live.deps.db, broker=broker, emit=lambda _: None)
    world = World(hinted)
    fast = world.processor(runner="scripted_runners:EchoRunner")
    waits = []
    for i in range(10):
        world.add(f"hinted {i}")
        wait_for(lambda: live_jobs(world) == 0, seconds=10, what="the hinted job")
        time.sleep(0.2)
        waits = [job.seconds for job in world.jobs(fast)]
    picked = world.sql(
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - created_at)) "
        "FROM post_processor_jobs WHERE post_processor_id = :p",
        p=fast.id,
    )[0][0]
    print(f"pick-up with redis back: p50 {float(picked) * 1000:.1f} ms")
    assert waits
    assert float(picked) < 0.1, "polling alone would take 0.15 s at the median"
    assert broker.counts["sent"] > 0
    broker.close()
    live.check()
    assert set(live.statuses(processor)) == {"completed"}


def _secret(url: str):
    from pydantic import SecretStr

    return SecretStr(url)


def redis_process(servers: EmbeddedServers) -> int:
    import redis

    client = redis.Redis.from_url(servers.redis_url or "")
    pid = int(client.info("server")["process_id"])
    client.close()
    return pid


@pytest.mark.timeout(90)
def test_sigterm_refunds_what_the_grace_did_not_see_end(
    live: World, start: Start, monkeypatch
) -> None:
    processor = live.processor(
        runner="scripted_runners:SlowRunner", runner_config={"seconds": 60}, max_attempts=1
    )
    live.add("one")
    monkeypatch.setenv("PPWORKER_GRACE_S", "0.5")
    worker = start()
    wait_for(lambda: processing(live) == 1, seconds=20, what="work")
    worker.terminate()
    assert worker.wait(15) == 0
    (job,) = live.jobs(processor)
    assert (job.status, job.attempts, job.reason) == ("pending", 0, "released")
    assert live.sql("SELECT count(*) FROM workers")[0][0] == 0
    live.check()
