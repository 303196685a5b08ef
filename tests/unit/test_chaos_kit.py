"""The parts of the chaos kit that need no server: how runs are judged, what is read of processes."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from ppworker import crash_points
from ppworker.chaos import growth, measure, programs, runner, scenarios
from ppworker.chaos.growth import Growth, Sample
from ppworker.chaos.results import Result, current_commit, has_result, read_all
from ppworker.chaos.scenario import Measured, Options, Run, Scenario, combined
from ppworker.errors import ConfigurationError, Invalid

DYING = """
import sys
from ppworker import crash_points
crash_points.arm(sys.argv[1] or None)
for number in range(1, 6):
    print(number, flush=True)
    crash_points.reach(*sys.argv[2:])
"""


def reached(armed: str, *point: str) -> tuple[int, int]:
    """Exit code of a process, and how often it had come to the point."""
    done = subprocess.run(
        [sys.executable, "-c", DYING, armed, *point], capture_output=True, text=True, check=False
    )
    return done.returncode, len(done.stdout.split())


@pytest.mark.parametrize(
    ("armed", "point", "times"),
    [
        ("in_finish", ["in_finish"], 1),
        ("in_finish:3", ["in_finish"], 3),
        ("in_operation_step", ["in_operation_step", "delete"], 1),
        ("in_operation_step.delete:2", ["in_operation_step", "delete"], 2),
    ],
)
def test_a_process_dies_by_sigkill_the_nth_time_it_reaches_its_point(armed, point, times):
    assert reached(armed, *point) == (-signal.SIGKILL, times)


@pytest.mark.parametrize(
    ("armed", "point"),
    [
        ("", ["in_finish"]),
        ("in_finish", ["before_model"]),
        ("in_operation_step.delete", ["in_operation_step", "export"]),
        ("in_finish:9", ["in_finish"]),
    ],
)
def test_a_process_that_is_told_nothing_of_the_kind_lives_on(armed, point):
    assert reached(armed, *point) == (0, 5)


@pytest.mark.parametrize("wanted", ["nowhere", "in_finish:0", "in_finish.delete", "in_finish:x"])
def test_a_point_that_is_not_there_is_refused(wanted):
    with pytest.raises(ConfigurationError, match="PPWORKER_CRASH_AT"):
        crash_points.arm(wanted)


def measured(ratio: float | None = None, **values) -> Measured:
    return Measured(figure=f"run {ratio}", ratio=ratio, **values)


def test_the_median_of_the_ratios_is_judged_and_its_run_is_shown():
    whole = combined([measured(0.90), measured(1.02), measured(0.97)])
    assert (whole.ratio, whole.missed) == (0.97, [])
    assert whole.figure == "run 0.97; 97% of the throughput before (median of 3)"
    assert whole.figures["ratios"] == [0.9, 0.97, 1.02]


def test_a_median_below_the_target_is_missed():
    whole = combined([measured(0.90), measured(1.02), measured(0.94)])
    assert whole.missed == ["94% of the throughput before, not 95%"]


def test_what_broke_in_any_run_is_broken():
    whole = combined([measured(1.0, broken=["1 jobs lost"]), measured(1.0), measured(1.0)])
    assert whole.broken == ["1 jobs lost"]
    assert combined([measured(broken=["x"]), measured()]).broken == ["x"]


def scenario(once) -> Scenario:
    return Scenario(
        name="one", faults=["F1"], promise="p", fault="f", target="t", once=once, repeat=2
    )


def test_a_run_that_breaks_off_fails_its_scenario_and_no_other(capsys):
    def once(run: Run) -> Measured:
        raise ValueError("gone")

    result = scenario(once).run(Options(), lambda _: None)
    assert not result.passed
    assert "it broke off: ValueError: gone" in result.figure
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("judge_speed", "passed"), [(True, False), (False, True)])
def test_a_missed_speed_fails_only_where_speed_is_judged(judge_speed, passed):
    result = scenario(lambda _: measured(0.5)).run(Options(judge_speed=judge_speed), lambda _: None)
    assert result.passed is passed
    assert "50% of the throughput before, not 95%" in result.figure


def test_broken_correctness_fails_however_it_is_judged():
    said: list[object] = []
    result = scenario(lambda _: measured(broken=["2 jobs lost"])).run(
        Options(judge_speed=False, repeat=2), said.append
    )
    assert not result.passed
    assert len(said) == 2


def test_each_run_of_a_seed_meets_the_same_chance_and_no_other_runs():
    def chance(seed: int, number: int) -> float:
        return Run(Options(seed=seed), number, lambda _: None).random.random()

    assert chance(1, 0) == chance(1, 0)
    assert chance(1, 0) != chance(1, 1)


def test_loads_and_times_shrink_with_the_scale_and_stay_of_use():
    run = Run(Options(scale=0.1), 0, lambda _: None)
    assert (run.times(1000), run.times(3), run.times(3, least=2)) == (100, 1, 2)
    assert (run.seconds(60), run.seconds(10), run.seconds(10, least=5)) == (6, 2, 5)


def test_rates_of_windows_and_percentiles():
    rates = measure.Rates(datetime.now(UTC), 2.0, [10, 20, 60])
    assert (rates.per_second, rates.median, rates.mean) == ([5, 10, 30], 10, 15)
    empty = measure.Rates(datetime.now(UTC), 2.0, [])
    assert (empty.median, empty.mean) == (0, 0)
    values = list(range(1, 101))
    assert [measure.percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert measure.percentile([], 0.5) == 0


def test_a_metric_is_summed_over_the_samples_that_have_the_labels():
    scraped = """# TYPE stale_total counter
stale_total{operation="complete",processor="a"} 2.0
stale_total{operation="complete",processor="b"} 3.0
stale_total{operation="heartbeat",processor="a"} 7.0
stale_total_other{operation="complete"} 100.0
"""
    assert programs.sum_of(scraped, "stale_total", operation="complete") == 5
    assert programs.sum_of(scraped, "stale_total") == 12
    assert programs.sum_of(scraped, "absent") == 0


def test_programs_inherit_no_setting_of_the_kits_environment(monkeypatch):
    monkeypatch.setenv("PPWORKER_LEASE_S", "7")
    monkeypatch.setenv("OTHER", "there")
    found = programs.own_environment({"PPWORKER_POLL_S": "1", "PPWORKER_REDIS_URL": None})
    assert "PPWORKER_LEASE_S" not in found
    assert "PPWORKER_REDIS_URL" not in found
    assert (found["PPWORKER_POLL_S"], found["OTHER"]) == ("1", "there")


def test_processes_are_seen_with_their_children_memory_files_and_threads():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in programs.descendants(os.getpid())
        assert programs.state(child.pid) in {"R", "S", "D"}
        assert programs.memory_mb(child.pid) > 0
        assert programs.open_files(child.pid) >= 3
        assert programs.threads(child.pid) == 1
    finally:
        child.communicate(b"\n")
    assert programs.state(child.pid) == ""
    assert (programs.memory_mb(child.pid), programs.open_files(child.pid)) == (0, 0)


def test_waiting_ends_with_the_condition_or_says_what_did_not_happen():
    answers = iter([False, False, True])
    programs.wait_for(lambda: next(answers), seconds=30, what="it", every_s=0.001)
    with pytest.raises(programs.LateError, match="the end did not happen within"):
        programs.wait_for(lambda: False, seconds=0.01, what="the end", every_s=0.001)


def test_growth_is_told_of_processes_that_were_looked_at_long_enough():
    seen = Growth()
    seen.samples["worker worker", 1] = [Sample(50 + n * 0.5, 20, 9) for n in range(12)]
    seen.samples["api api", 2] = [Sample(60, 20 + n // 2, 9 + n // 2) for n in range(60)]
    seen.samples["api api", 3] = [Sample(60 * (n + 1), 20, 9) for n in range(3)]
    filled = [Sample(60, 10 + min(n, 9), 9) for n in range(60)]  # a pool, on its first use
    seen.samples["monitor", 4] = filled
    seen.connections = [10, 12] * 30 + [10, 18] * 2
    assert seen.memory() == {"api api": 0.0, "monitor": 0.0, "worker worker": 0.089}
    assert seen.missed() == [
        "memory of worker worker grew by 8.9%",
        "files of api api 2 grew from 34 to 49",
        "threads of api api 2 grew from 23 to 38",
        "database connections grew from 12 to 18",
    ]
    assert growth.ends([1, 1, 2, 2, 3, 3, 9, 9]) == (1, 9)


def test_a_job_sleeps_the_same_each_time_a_share_of_them_long():
    model = runner.ChaosRunner(least_s=0.1, most_s=0.2, slow_share=0.1, slow_s=5.0)
    jobs = [uuid4() for _ in range(2_000)]
    slept = [model.seconds(job) for job in jobs]
    assert slept == [model.seconds(job) for job in jobs]
    slow = [seconds for seconds in slept if seconds == 5.0]
    assert 100 < len(slow) < 320
    assert all(0.1 <= seconds <= 0.2 for seconds in slept if seconds != 5.0)
    with pytest.raises(Invalid, match="most_s"):
        runner.ChaosRunner(least_s=2, most_s=1)


def result(**values) -> Result:
    given: dict[str, Any] = {
        "name": "kills", "faults": ["F1"], "promise": "p", "fault": "f", "how": "h",
        "target": "t", "figure": "done", "passed": True,
    }  # fmt: skip
    return Result(**(given | values))


def test_results_are_kept_by_name_and_commit_and_the_newest_is_read(tmp_path):
    assert not has_result(tmp_path, "kills")
    result(commit="0001", date="2026-01-01T00:00:00+00:00", figure="old").save(tmp_path)
    result().save(tmp_path)
    result(name="zombies", faults=["F3"], passed=False).save(tmp_path)
    assert [(each.name, each.figure) for each in read_all(tmp_path)] == [
        ("kills", "done"),
        ("zombies", "done"),
    ]
    assert has_result(tmp_path, "kills")
    assert (tmp_path / "kills" / f"{current_commit()}.json").exists()


@pytest.mark.parametrize("name", scenarios.every())
def test_every_scenario_says_what_it_does_and_what_must_be(name):
    found = scenarios.every()[name]
    assert found.name == name
    assert all(each.startswith("F") and each[1:].isdecimal() for each in found.faults)
    assert found.promise.endswith(".")
    assert found.fault
    assert found.target
    assert 0 < found.quick_scale <= 1
