import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ppworker.errors import (
    Invalid,
    RunnerCrashed,
    RunnerError,
    RunnerTimeout,
    RunnerUnavailable,
)
from ppworker.runners.base import RawAnswer, RunnerInput
from ppworker.runners.pool import NOT_ASKED, RunnerPool, _ask_in_halves, longest_s

ECHO = "scripted_runners:EchoRunner"


def inputs(*texts):
    return [RunnerInput(key=str(number), text=text) for number, text in enumerate(texts)]


@pytest.fixture
def pool():
    pool = RunnerPool()
    yield pool
    pool.close()


@given(
    size=st.integers(1, 60),
    culprits=st.sets(st.integers(0, 59)),
    max_batch=st.integers(1, 70),
)
def test_a_failing_batch_blames_its_culprits_alone(size, culprits, max_batch):
    batch = inputs(*(str(number) for number in range(size)))
    calls = []

    def ask(part):
        calls.append(len(part))
        if any(int(item.key) in culprits for item in part):
            raise RunnerCrashed("died of it")
        return [RawAnswer(raw={"key": item.key}) for item in part]

    parts = [batch[i : i + max_batch] for i in range(0, size, max_batch)]
    answers = _ask_in_halves(ask, parts, 60)
    assert len(answers) == size
    for number, answer in enumerate(answers):
        if number in culprits:
            assert isinstance(answer, RunnerCrashed)
        else:
            assert isinstance(answer, RawAnswer)
            assert answer.raw == {"key": str(number)}
    assert max(calls) <= max_batch
    present = len(culprits & set(range(size)))
    assert len(calls) <= len(parts) + present * 2 * size.bit_length()


CALL_S = 10


@given(
    size=st.integers(1, 70),
    culprits=st.sets(st.integers(0, 69)),
    max_batch=st.integers(1, 70),
    took_s=st.integers(0, CALL_S),
)
@example(size=64, culprits={0, 63}, max_batch=64, took_s=0)
@example(size=64, culprits=set(range(64)), max_batch=64, took_s=0)
def test_however_many_hang_the_time_of_the_batch_is_kept_and_somebody_has_moved_on(
    size, culprits, max_batch, took_s
):
    now = [1000]

    def ask(part):
        if any(int(item.key) in culprits for item in part):
            now[0] += CALL_S
            raise RunnerTimeout("slow")
        now[0] += took_s
        return [RawAnswer(raw={"key": item.key}) for item in part]

    batch = inputs(*(str(number) for number in range(size)))
    parts = [batch[i : i + max_batch] for i in range(0, size, max_batch)]
    answers = _ask_in_halves(ask, parts, CALL_S, clock=lambda: now[0])
    assert now[0] - 1000 <= longest_s(size, CALL_S)
    assert len(answers) == size
    asked = [answer for answer in answers if answer is not NOT_ASKED]
    assert asked, "one at least is answered or blamed"
    assert answers[len(asked) :] == [NOT_ASKED] * (size - len(asked))
    for number, answer in enumerate(asked):
        assert isinstance(answer, RunnerTimeout if number in culprits else RawAnswer)


def test_a_batch_has_time_to_find_the_one_that_hangs():
    assert [longest_s(n, 10) for n in (0, 1, 2, 3, 4, 5, 64, 65)] == [
        10, 10, 20, 30, 30, 40, 70, 80,
    ]  # fmt: skip


def test_a_model_that_is_away_is_not_asked_again_for_the_rest():
    calls = []

    def ask(part):
        calls.append([item.text for item in part])
        if "b" in calls[-1]:
            raise RunnerUnavailable("no file")
        return [RawAnswer(raw={}) for _ in part]

    a, b, c, d = inputs("a", "b", "c", "d")
    answers = _ask_in_halves(ask, [[a], [b, c], [d]], 60)
    assert calls == [["a"], ["b", "c"]]
    assert [type(answer) for answer in answers] == [RawAnswer, *[RunnerUnavailable] * 3]


def test_an_empty_batch_asks_nobody(pool):
    with pool.acquire("scripted_runners:OverloadedRunner", {}) as permit:
        assert pool.predict(permit, [], 1) == []


def test_a_thread_safe_runner_is_shared_and_another_one_is_not(pool):
    first, second = pool.acquire(ECHO, {}), pool.acquire(ECHO, {})
    assert first is not None
    assert second is not None
    child = pool.acquire("scripted_runners:ChildEchoRunner", {})
    assert child is not None
    assert pool.acquire("scripted_runners:ChildEchoRunner", {}) is None
    other = pool.acquire("scripted_runners:ChildEchoRunner", {"prefix": "x"})
    assert other is not None, "other settings are another model"
    child.release()
    child.release()
    again = pool.acquire("scripted_runners:ChildEchoRunner", {})
    assert again is not None
    assert pool.acquire("scripted_runners:ChildEchoRunner", {}) is None, "released once, not twice"


def test_the_order_of_settings_makes_no_other_model(pool):
    name = "scripted_runners:LoosenedRunner"
    with pytest.raises(Invalid):
        pool.acquire(name, {})
    usaddress = pool.acquire("usaddress", {"max_chars": 5, "every_line": True})
    assert usaddress is not None
    assert pool.acquire("usaddress", {"every_line": True, "max_chars": 5}) is None


def test_bad_settings_are_refused_before_anything_is_claimed(pool):
    with pytest.raises(Invalid):
        pool.acquire(ECHO, {"unknown": 1})


def test_an_in_process_runner_answers_in_order_with_errors_as_values(pool):
    with pool.acquire(ECHO, {}) as permit:
        answers = pool.predict(permit, inputs("a x", "UNREADABLE", "b"), 1)
    assert answers[0].raw["predictions"] == [{"label": "a", "score": 1.0}]
    assert isinstance(answers[1], RunnerError)
    assert answers[2].raw["text"] == "b"


def test_an_overloaded_model_is_asked_once_and_its_wait_reaches_every_input(pool):
    with pool.acquire("scripted_runners:OverloadedRunner", {"retry_after_s": 7}) as permit:
        answers = pool.predict(permit, inputs("a", "b", "c"), 1)
        assert permit._slot.model._runner.calls == 1
    assert [(answer.code, answer.retry_after_s) for answer in answers] == [("overloaded", 7)] * 3


def test_a_flaky_runner_fails_retryably_while_its_file_exists(pool, tmp_path):
    trouble = tmp_path / "trouble"
    trouble.touch()
    name, config = "scripted_runners:FlakyRunner", {"path": str(trouble)}
    with pool.acquire(name, config) as permit:
        (answer,) = pool.predict(permit, inputs("a"), 1)
        assert answer.retryable
        trouble.unlink()
        (answer,) = pool.predict(permit, inputs("a"), 1)
        assert isinstance(answer, RawAnswer)


def test_a_closed_pool_gives_no_permits(pool):
    pool.close()
    assert pool.acquire(ECHO, {}) is None


def test_a_runner_that_is_not_thread_safe_never_meets_two_threads(pool):
    name = "scripted_runners:SerialRunner"
    answered = []

    def work():
        for _ in range(50):
            permit = pool.acquire(name, {})
            if permit is not None:
                with permit:
                    answered.extend(pool.predict(permit, inputs("a"), 1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answered
    permit = pool.acquire(name, {})
    assert permit is not None, "every permit came back"
    assert permit._slot.model._runner.most_inside == 1


def test_settings_that_nobody_uses_any_more_are_forgotten(pool):
    name = "scripted_runners:DawdlingRunner"
    for number in range(20):
        with pool.acquire(name, {"seconds": float(number)}):
            pass
    held = pool.acquire(name, {"seconds": 0.5})
    assert pool.close_idle(3600) == 0
    assert len(pool._slots) == 21
    pool.close_idle(0)
    assert len(pool._slots) == 1, "what is in use stays"
    held.release()
    pool.close_idle(0)
    assert pool._slots == {}
    with pool.acquire(name, {"seconds": 0.0}) as permit:
        assert pool.predict(permit, inputs("a"), 1.0)[0].raw
