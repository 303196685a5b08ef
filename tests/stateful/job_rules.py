"""Rules of jobs: claimed, renewed, ended, rescued, retried, cancelled; with stale tokens, too."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from factories import Model
from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import (
    Conflict,
    RunnerCrashed,
    RunnerError,
    RunnerOverloaded,
    RunnerUnavailable,
)
from ppworker.pipeline.control import operate
from ppworker.pipeline.runs import execute, finish, rescue
from ppworker.pipeline.runs.label_cache import LabelCache
from ppworker.runners.base import RunnerInput
from ppworker.store import jobs, model_entries
from stateful.base import LABELS, TEXTS, WHICH, Base, Taken
from stateful.snapshot import Row

Word = Literal["answer", "permanent", "transient", "snooze", "crash"]

_ERRORS: dict[str, RunnerError] = {
    "permanent": RunnerError("the model says no"),
    "transient": RunnerUnavailable("gone"),
    "snooze": RunnerOverloaded("too much", retry_after_s=30),
    "crash": RunnerCrashed("its process died"),
}
_MOST_TAKEN = 8
"""Batches that are remembered, so that one may be ended long after it was lost."""
MAX_CRASHES = 3


class Said(NamedTuple):
    """What the model says of one input."""

    word: Word
    labels: tuple[str, ...]
    text: str | None
    score: float


SAID = st.builds(
    Said,
    st.sampled_from([*["answer"] * 8, "permanent", "transient", "snooze", "crash"]),
    st.sampled_from([(), LABELS[:1], LABELS[1:2], LABELS[:2], LABELS[2:], LABELS]),
    st.sampled_from([None, *TEXTS]),
    st.sampled_from([0.9, 0.3]),
)

ANSWERS = st.lists(SAID, min_size=1, max_size=3)

CLAIM: dict[str, Any] = {"which": WHICH, "limit": st.integers(1, 6), "worker": st.integers(0, 1)}
TURN: dict[str, Any] = {**CLAIM, "said": ANSWERS}


def raw(processor: PostProcessor, said: Said) -> Mapping[str, Any]:
    """A raw answer in the shape of the task."""
    if processor.model_type == "ner":
        return {
            "predictions": [
                {"label": label, "start": place, "end": place + 1, "score": said.score}
                for place, label in enumerate(said.labels)
            ]
        }
    predictions = [{"label": label, "score": said.score} for label in said.labels]
    answer: dict[str, Any] = {"predictions": predictions}
    if processor.model_type == "llm" and said.text is not None:
        answer["text"] = said.text
    return answer


class JobRules(Base):
    """What workers, sweeps and operators do to jobs."""

    @rule(**CLAIM)
    def claim(self, which: int, limit: int, worker: int) -> None:
        self._claim(which, limit, worker)

    def turn(self, which: int, limit: int, worker: int, said: list[Said]) -> None:
        """A batch from its claim to its end, with nothing in between."""
        if self._claim(which, limit, worker):
            self._finish(self.taken[-1], said, cached=False)

    # What happens most in life happens most here: a rule under several names is chosen more often.
    turn_once = rule(**TURN)(turn)
    turn_twice = rule(**TURN)(turn)
    turn_thrice = rule(**TURN)(turn)

    def _claim(self, which: int, limit: int, worker: int, *, any_: bool = False) -> bool:
        self.make_due()
        processor = self.processor(which) if any_ else self._with_work(which)
        with self.step("worker"):
            batch = execute.claim(self.workers[worker], processor, limit=limit)
        if batch.suspects_wait and not batch.jobs:
            with self.step("worker"):
                batch = execute.claim_suspects(self.workers[worker], processor, limit=limit)
        if batch.jobs:
            self.taken = [*self.taken, Taken(processor, batch)][-_MOST_TAKEN:]
        return bool(batch.jobs)

    def _with_work(self, which: int) -> PostProcessor:
        """A post-processor that has something to do, if there is one."""
        due = {
            job.post_processor_id
            for job in self.now.jobs.values()
            if job.ready and job.status == "pending"
        }
        rows = list(self.now.processors.values())
        places = [n for n, row in enumerate(rows) if row.id in due and row.enabled]
        return self.processor(self.pick(places, which) if places else which)

    def make_due(self) -> None:
        """Let time pass until nobody waits for it."""
        self.sql("UPDATE post_processor_jobs SET run_at = now() WHERE status = 'pending'")
        self.sql("UPDATE post_processor_circuits SET open_until = now() WHERE open_until > now()")
        self.now = self.look()

    @precondition(lambda self: self.taken)
    @rule(
        which=WHICH, what=st.sampled_from(["finish", "heartbeat", "release", "abandon"]),
        said=ANSWERS, flags=st.tuples(st.booleans(), st.booleans()),
    )  # fmt: skip
    def go_on(self, which: int, what: str, said: list[Said], flags: tuple[bool, bool]) -> None:
        """Somebody goes on with a batch that may be lost, or over, or is heard of no more."""
        taken = self.pick(self.taken, which)
        if what == "finish":
            self._finish(taken, said, cached=flags[0])
        elif what == "heartbeat":
            self._heartbeat(taken)
        elif what == "release":
            self._release(taken)
        else:
            self._abandon(taken, in_model=flags[0])
            if flags[1]:
                self._rescue()

    def _heartbeat(self, taken: Taken) -> None:
        """Leases that are ours are renewed, all others are told to be lost and left alone."""
        before = self.now
        held = before.held_by(taken.tokens)
        with self.step("worker"), self.deps.db.begin() as tx:
            lost = jobs.extend_leases(tx, taken.tokens, lease_s=self.deps.settings.lease_s)
        assert lost == taken.tokens.keys() - held
        for id_ in lost & self.now.jobs.keys():
            assert self.now.jobs[id_] == before.jobs[id_], "a lease of somebody else was renewed"
        for id_ in held:
            assert self.now.jobs[id_].lease_expires_at > datetime.now(UTC)

    def _finish(self, taken: Taken, said: list[Said], *, cached: bool) -> None:
        """A batch ends, however late and however often: its leases decide whose answer counts."""
        before, processor = self.now, taken.processor
        held = before.held_by(taken.tokens)
        by_key = {
            str(job.id): said[place % len(said)] for place, job in enumerate(taken.batch.jobs)
        }

        def say(given: RunnerInput) -> Mapping[str, Any] | RunnerError:
            answer = by_key[given.key]
            return _ERRORS.get(answer.word) or raw(processor, answer)

        cache = self.labels if cached else LabelCache(self.deps.db)
        is_probe = taken.batch.is_probe
        wanted = {
            id_: self._cause(before.jobs[id_], by_key[str(id_)], is_probe=is_probe) for id_ in held
        }
        with self.step("worker", may_end=held):
            report = execute.run(self.deps, cache, processor, Model(say), taken.batch)
        ends = [self.now.attempts[id_, taken.tokens[id_]].cause for id_ in sorted(held)]
        assert ends == [wanted[id_] for id_ in sorted(held)]
        assert report.lost == len(taken.tokens) - len(held)
        assert report.completed == ends.count("finished")
        for id_ in taken.tokens.keys() - held:
            old, new = before.jobs.get(id_), self.now.jobs.get(id_)
            if old and new and old.status not in {"pending", "failed"}:
                assert new == old, ("a stale answer changed a job", old, new)
        for id_ in held:
            if wanted[id_] == "finished":
                self._is_written(before.jobs[id_], by_key[str(id_)], cached=cached)
            self._stopped(self.now.jobs[id_])

    def _cause(self, job: Row, said: Said, *, is_probe: bool) -> str:
        """How the attempt must end, by the rules of the reference."""
        item, processor = self.now.items[job.item_id], self.now.processors[job.post_processor_id]
        read = {
            "text": item.text_sha256,
            "file": item.content_sha256,
            "any": item.content_sha256 or item.text_sha256,
        }[processor.reads]
        is_there = job.version_id in self.now.versions
        if job.rerun_requested or (is_there and (read or "") != job.input_revision):
            return "input_changed"
        if not is_there or (processor.reads == "text" and item.text is None):
            return "permanent_error"
        word = said.word
        if word == "transient" and is_probe:
            word = "snooze"  # it tried out a model that had failed, and is not charged
        if word == "crash" and job.crash_count + 1 >= MAX_CRASHES:
            return "crashed"
        spent = job.attempts >= job.max_attempts
        again = "exhausted" if spent else "transient_error"
        known = {"answer": "finished", "permanent": "permanent_error", "snooze": "snoozed"}
        return known.get(word, again)

    def _is_written(self, job: Row, said: Said, *, cached: bool) -> None:
        """What was answered is there: every prediction stands, or a person took it away."""
        processor = self.now.processors[job.post_processor_id]
        result = self.now.results[job.item_id, job.version_id, processor.id]
        assert result.job_id == job.id
        if said.score < processor.confidence_threshold or not self.multi_label or cached:
            return
        own = [
            row
            for row in self.now.annotations.values()
            if (row.item_id, row.version_id) == (job.item_id, job.version_id)
            and row.post_processor_id == processor.id
        ]
        assert len(own) >= len(said.labels), ("predictions are missing", said, own)

    def _release(self, taken: Taken) -> None:
        """A stopping worker gives back what it holds, and its attempts."""
        held = self.now.held_by(taken.tokens)
        names = {taken.processor.id: taken.processor.name}
        claimed = {job.id: (job.item_id, job.lease_token) for job in taken.batch.jobs}
        with self.step("worker", may_end=held):
            assert finish.release(self.deps, names, claimed) == len(held)

    def _abandon(self, taken: Taken, *, in_model: bool) -> None:
        """A worker is not heard of any more."""
        if in_model and self.now.held_by(taken.tokens):
            # As `execute.run` notes of a model that shares its worker's process.
            with self.deps.db.begin() as tx:
                model_entries.enter(tx, taken.batch.id)
        self.sql(
            "UPDATE post_processor_jobs SET lease_expires_at = clock_timestamp() - interval '1 s' "
            "WHERE id = ANY(:ids) AND status = 'processing'",
            ids=list(taken.tokens),
        )
        self.now = self.look()

    def _rescue(self) -> None:
        """Jobs whose lease is over move on, and no other."""
        expired = self.expired()
        with self.step("worker", may_end=expired):
            assert rescue.rescue(self.deps) >= len(expired)  # those that it stopped count too
        for id_ in expired:
            assert self.now.jobs[id_].status != "processing"
            self._stopped(self.now.jobs[id_])

    def expired(self) -> set[UUID]:
        """Processing jobs whose lease is over."""
        at = datetime.now(UTC)
        return {
            id_
            for id_, job in self.now.jobs.items()
            if job.status == "processing" and job.lease_expires_at < at
        }

    @rule(
        which=WHICH, what=st.sampled_from(["retry", "retry", "retry_all", "cancel"]),
        successors=st.booleans(),
    )  # fmt: skip
    def operate(self, which: int, what: str, *, successors: bool) -> None:
        """An operator steps in."""
        states = ("failed", "completed", "processing")
        if what == "cancel":
            states = ("pending", "processing", "completed")
        job = self.pick_job(which, *states)
        if job is None or job.version_id not in self.now.versions:
            return
        if what == "cancel":
            self._cancel(job)
        elif what == "retry":
            self._retry(job, successors=successors)
        else:
            self._retry_all(successors=successors)

    def _retry(self, job: Row, *, successors: bool) -> None:
        """A failed job begins anew, unless a newer one lives or its post-processor is gone."""
        may = job.status == "failed" and not self._lives(job)
        may = may and self.now.processors[job.post_processor_id].deleted_at is None
        with self.step("person"):
            try:
                operate.retry(self.deps, self.user, job.id, successors=successors)
            except Conflict:
                assert not may
            else:
                assert may
        if may:
            self._successors_wait(job)

    def _lives(self, job: Row) -> bool:
        return any(
            other.status in {"pending", "processing"}
            for other in self.now.jobs.values()
            if (other.item_id, other.version_id, other.post_processor_id)
            == (job.item_id, job.version_id, job.post_processor_id)
        )

    def _successors_wait(self, job: Row) -> None:
        """Later jobs of the item wait for one that was retried, or run again after it."""
        assert self.now.jobs[job.id].status == "pending"
        for other in self.now.jobs.values():
            if (other.item_id, other.version_id) == (job.item_id, job.version_id):
                is_later = other.order > job.order and other.status == "processing"
                assert not is_later or other.rerun_requested, (
                    "it goes on as if nothing was",
                    other,
                )

    def _retry_all(self, *, successors: bool) -> None:
        """The newest failed job of each key begins anew."""
        with self.step("person"):
            operate.retry_failed(self.deps, self.user, successors=successors)
        for job in self.now.jobs.values():
            if job.status == "failed":
                is_gone = self.now.processors[job.post_processor_id].deleted_at is not None
                assert self._lives(job) or is_gone, ("a failed job was left behind", job)

    def _cancel(self, job: Row) -> None:
        may = job.status in {"pending", "processing"}
        with self.step("person", may_end={job.id}):
            try:
                operate.cancel(self.deps, self.user, job.id)
            except Conflict:
                assert not may
            else:
                assert may
        if may:
            assert (self.now.jobs[job.id].status, self.now.jobs[job.id].reason) == (
                "failed",
                "cancelled",
            )
            self._stopped(self.now.jobs[job.id])

    def _stopped(self, job: Row) -> None:
        """Where a post-processor says stop, no later job of the item waits for a failed one."""
        if (
            self.now.processors[job.post_processor_id].on_failure != "stop"
            or job.status != "failed"
        ):
            return
        for other in self.now.jobs.values():
            if (other.item_id, other.version_id) == (job.item_id, job.version_id):
                assert other.order <= job.order or other.status != "pending", ("it runs on", other)
