"""The chaos kit's own cluster: it ends what it started, and sees what is wrong."""

from uuid import uuid4

import pytest

from ppworker.chaos import load, measure, programs
from ppworker.chaos.cluster import open_cluster


@pytest.mark.timeout(280)
def test_everything_is_ended_after_an_exception_what_stands_still_too(tmp_path) -> None:
    pids: list[int] = []

    def break_off() -> None:
        with open_cluster(tmp_path / "d") as cluster:
            workers = cluster.start_workers(processes=2, threads=1)
            pids.extend([*workers.pids(), cluster.postgres_pid or 0, cluster.redis_pid or 0])
            workers.pause(workers.workers()[0])
            raise LookupError("the scenario went wrong")

    with pytest.raises(LookupError):
        break_off()
    assert len(pids) >= 6
    assert [pid for pid in pids if programs.state(pid) not in {"", "Z"}] == []


@pytest.mark.timeout(280)
def test_a_killed_workers_jobs_are_seen_to_run_again_and_forged_rows_to_be_wrong() -> None:
    with open_cluster() as cluster:
        work = load.make(cluster, least_s=0.2, most_s=0.2, slow_share=0.0, batch_size=2)
        work.add(12)
        workers = cluster.start_workers(
            processes=2, threads=1, PPWORKER_LEASE_S="2", PPWORKER_SWEEP_S="0.5"
        )
        busy = "SELECT count(*) FROM post_processor_jobs WHERE lease_owner = :id"
        deaths: list[measure.Death] = []

        def has_died() -> bool:
            seen = measure.death(cluster, workers.workers()[0])
            if seen.worker_id is None or not cluster.one(busy, id=seen.worker_id):
                return False
            workers.kill(seen.pid)
            deaths.append(seen)
            return True

        programs.wait_for(has_died, seconds=30, what="a worker with work")
        cluster.drain(seconds=60)
        found = measure.totals(cluster, planned=12)
        assert (found.lost, found.doubled, found.completed) == (0, 0, 12)
        assert found.rescues == len(measure.reclaim_delays(cluster, deaths))
        assert cluster.check() == []
        cluster.sql(
            "DELETE FROM chaos_markers WHERE job = (SELECT min(job::text)::uuid FROM chaos_markers)"
        )
        cluster.sql(
            "INSERT INTO chaos_markers (job, run, pid) SELECT id, CAST(:run AS uuid), 1 "
            "FROM post_processor_jobs ORDER BY id DESC LIMIT 1",
            run=uuid4(),
        )
        cluster.sql(
            "DELETE FROM annotations WHERE id = (SELECT min(id::text)::uuid FROM annotations)"
        )
        said = " ".join(cluster.check())
        for sentence in (
            "code ran: 1",
            "at most once per lease: 1",
            "its one annotation: 1",
            "recount",
        ):
            assert sentence in said
        assert measure.totals(cluster, planned=13).broken() == ["1 jobs lost"]
