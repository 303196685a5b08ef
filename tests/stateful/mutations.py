"""The faults that the tests must tell: one edit each, and the test that fails by it."""

from dataclasses import dataclass
from pathlib import Path

LOCKS = ("tests/integration/test_stats.py::test_two_finishes_of_one_item_count_it_once",)
"""One thread cannot tell that a lock is missing; this holds two transactions against each other."""
HISTORIES = ("tests/stateful/test_histories.py",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """An edit of the code that breaks a promise."""

    name: str
    path: str
    """Below ``src/ppworker``."""
    old: str
    new: str
    tests: tuple[str, ...] = HISTORIES

    def apply(self, package: Path) -> None:
        """Edit a copy of the package; what is to be replaced must stand there exactly once."""
        file = package / self.path
        text = file.read_text()
        if text.count(self.old) != 1:
            raise SystemExit(
                f"mutant '{self.name}': its words stand {text.count(self.old)} times in "
                f"{self.path}, not once; mend tests/stateful/mutations.py"
            )
        file.write_text(text.replace(self.old, self.new))


MUTANTS = (
    Mutant(
        name="fence: an answer is taken whatever its token",
        path="store/jobs.py",
        old="  ON j.id = w.id AND j.lease_token = w.token\nWHERE j.status = 'processing' ORDER BY",
        new="  ON j.id = w.id\nWHERE j.status = 'processing' ORDER BY",
    ),
    Mutant(
        name="fence: an answer is taken from a job that is over",
        path="store/jobs.py",
        old="  ON j.id = w.id AND j.lease_token = w.token\nWHERE j.status = 'processing' ORDER BY",
        new="  ON j.id = w.id AND j.lease_token = w.token\nWHERE j.status <> 'failed' ORDER BY",
    ),
    Mutant(
        name="fence: a heartbeat renews whatever the token",
        path="store/jobs.py",
        old="  WHERE j.status = 'processing' AND j.lease_token = w.token\n  ORDER BY j.id FOR NO KEY",
        new="  WHERE j.status = 'processing'\n  ORDER BY j.id FOR NO KEY",
    ),
    Mutant(
        name="fence: a heartbeat does not tell that a lease is lost",
        path="store/jobs.py",
        old="WHERE j.id IS NULL OR j.status <> 'processing' OR j.lease_token <> w.token",
        new="WHERE j.id IS NULL OR j.status <> 'processing'",
    ),
    Mutant(
        name="fence: a chunk of an operation is written under a lost lease",
        path="store/operations.py",
        old="WHERE o.id = :id AND o.lease_token = :token AND o.status = 'processing' FOR UPDATE",
        new="WHERE o.id = :id AND CAST(:token AS bigint) > 0 FOR UPDATE",
    ),
    Mutant(
        name="delta: forgotten by a finish",
        path="pipeline/runs/outputs.py",
        old="    stats.append_deltas(tx, stat_rule.deltas(plan.before, plan.after, plan.splits))",
        new="    stat_rule.deltas(plan.before, plan.after, plan.splits)",
    ),
    Mutant(
        name="delta: forgotten when an item leaves a split",
        path="store/deletions.py",
        old="    stats.append_members(tx, item_ids, split_ids, sign=-1)\n",
        new="",
    ),
    Mutant(
        name="delta: forgotten when an item joins a split",
        path="pipeline/inferences/additions.py",
        old="return stat_rule.merge([*left, *joined])",
        new="return stat_rule.merge([*left, *joined][: 2 * len(self._items)])",
    ),
    Mutant(
        name="delta: forgotten by a person's edit",
        path="pipeline/edits/held.py",
        old="    if before == after:",
        new="    if sum(map(len, before.values())) == sum(map(len, after.values())):",
    ),
    Mutant(
        name="delta: forgotten in a copy of a version",
        path="store/duplicates.py",
        old="    stats.append_members(tx, item_ids, frame.splits.values(), sign=1)\n",
        new="",
    ),
    Mutant(
        name="unlock: forgotten by a finish",
        path="pipeline/runs/finish.py",
        old="        woken = jobs.recompute_ready(tx, [job.item_id for job in held])\n        if any(",
        new="        woken: set[UUID] = set()\n        if any(",
    ),
    Mutant(
        name="unlock: done by the first of two that must be over",
        path="store/jobs.py",
        old="""      AND l.status IN ('pending','processing') AND l."order" < p."order"
      AND (b.enabled OR l.status = 'processing'))\"""",
        new="""      AND l.status IN ('pending') AND l."order" < p."order"
      AND (b.enabled OR l.status = 'processing'))\"""",
    ),
    Mutant(
        name="unlock: forgotten by a cancel",
        path="pipeline/control/operate.py",
        old="        return done, stopped, jobs.recompute_ready(tx, [job.item_id])",
        new="        return done, stopped, set()",
    ),
    Mutant(
        name="unlock: a retried job does not make the later ones wait",
        path="pipeline/control/operate.py",
        old="    woken = jobs.recompute_ready(tx, item_ids)\n    # Last:",
        new="    woken: set[UUID] = set()\n    # Last:",
    ),
    Mutant(
        name="tombstones: what a person deleted comes back",
        path="domain/replace.py",
        old="    tombstones = {row.fingerprint for row in own if row.deleted}",
        new="    tombstones: set[str | None] = set()",
    ),
    Mutant(
        name="tombstones: a deletion by a person leaves none",
        path="store/edits.py",
        old='    values = {"ids": bulk.uuids(ids)}\n    tx.execute(_BURY, {**values, "suggested": False})\n    tx.execute(_ERASE, values)',
        new='    values = {"ids": bulk.uuids(ids)}\n    tx.execute(sa.text("DELETE FROM annotations WHERE id = ANY(CAST(:ids AS uuid[]))"), values)',
    ),
    Mutant(
        name="review: what a person accepted is replaced",
        path="domain/replace.py",
        old='and self.source == "model" and not self.reviewed',
        new='and self.source == "model"',
    ),
    Mutant(
        name="review: a rejection of all suggestions takes what was accepted",
        path="store/suggestions.py",
        old="            f\"AND a.review = 'suggested' AND a.deleted_at IS NULL{also}\"",
        new='            f"AND a.deleted_at IS NULL{also}"',
    ),
    Mutant(
        name="input: a wish to run again is ignored",
        path="domain/job.py",
        old="    if attempt.rerun_requested or attempt.input_changed:",
        new="    if attempt.input_changed:",
    ),
    Mutant(
        name="input: the answer for another input is taken",
        path="pipeline/runs/finish.py",
        old="input_changed=seen != ended.job.input_revision)",
        new="input_changed=seen is None)",
    ),
    Mutant(
        name="input: a model writes over a person's text",
        path="pipeline/runs/finish.py",
        old="    if drafted.text is not None and item.text_edited:",
        new="    if drafted.text is not None and item.text_edited is None:",
    ),
    Mutant(
        name="attempts: not given back by a worker that stops",
        path="domain/job.py",
        old='            reason="released",\n            attempts=max(attempt.attempts - 1, 0),',
        new='            reason="released",\n            attempts=max(attempt.attempts - 1, attempt.attempts % 2),',
    ),
    Mutant(
        name="attempts: no fresh budget for a retry",
        path="store/job_operations.py",
        old="  status = 'pending', ready = false, attempts = 0,",
        new="  status = 'pending', ready = false, attempts = least(1, j.max_attempts - 1),",
    ),
    Mutant(
        name="attempts: a cancelled one leaves no trace",
        path="store/job_operations.py",
        old="    'cancelled', '' FROM live WHERE status = 'processing')",
        new="    'cancelled', '' FROM live WHERE status = 'pending' AND lease_token < 0)",
    ),
    Mutant(
        name="one label: two post-processors put one each",
        path="domain/replace.py",
        old="    if not multi_label:\n        wanted",
        new="    if multi_label is None:\n        wanted",
    ),
    Mutant(
        name="one label: a model puts its own beside a person's",
        path="domain/replace.py",
        old="    protected = [row for row in standing if not row.is_models]",
        new='    protected = [row for row in standing if row.source == "import"]',
    ),
    Mutant(
        name="stop: later jobs wait for ever behind a cancelled one",
        path="pipeline/control/operate.py",
        old="        stopped = jobs.stop_successors(tx, [each.id for each in done])",
        new="        stopped: list[jobs.Stopped] = []",
    ),
    Mutant(
        name="stop: later jobs run on behind a failed one",
        path="pipeline/runs/finish.py",
        old="        stopped = jobs.stop_successors(tx, failed)",
        new="        stopped = jobs.stop_successors(tx, failed[:0])",
    ),
    Mutant(
        name="trigger: what lost its last annotation is not listed as without any",
        path="store/migrations/versions/0003_contract.py",
        old='    ("annotations", "DELETE", "OLD", "annotations_gone"),\n',
        new="",
    ),
    Mutant(
        name="trigger: a tombstone counts as an annotation",
        path="store/migrations/versions/0003_contract.py",
        old='    + _ENTER.format(which="c.deleted_at IS NOT NULL AND", bare=_BARE),',
        new='    + _ENTER.format(which="false AND", bare=_BARE),',
    ),
    Mutant(
        name="trigger: an item that left one of two splits is still told to be in several",
        path="store/migrations/versions/0003_contract.py",
        old="AND o.item_id = c.item_id AND 2 > (SELECT count(*)",
        new="AND o.item_id = c.item_id AND 1 > (SELECT count(*)",
    ),
    Mutant(
        name="rescue: a job is rescued beyond its budget",
        path="domain/job.py",
        old='    if attempt.attempts >= attempt.max_attempts:\n        return _fail(attempt, outcome, cause="exhausted", crashes=crashes)',
        new='    if attempt.attempts > attempt.max_attempts:\n        return _fail(attempt, outcome, cause="exhausted", crashes=crashes)',
    ),
    Mutant(
        name="deletion: jobs of an item that is gone stay",
        path="store/deletions.py",
        old="    return job_removal.delete_jobs(tx, values)",
        new="    return 0 if len(parts) == 1 else job_removal.delete_jobs(tx, values)",
    ),
    Mutant(
        name="lock: items are read and not locked",
        path="store/items.py",
        old="_LOCK = sa.text(_LOCK_ITEMS)",
        new='_LOCK = sa.text(_LOCK_ITEMS.replace("FOR UPDATE", ""))',
        tests=LOCKS,
    ),
    Mutant(
        name="inferences: what a person rejected is added again",
        path="domain/given.py",
        old="        elif gone.knows(label_id, draft):",
        new="        elif gone.knows(label_id, draft) and standing.is_empty:",
    ),
)
"""Not among them, since it changes nothing that can be seen: the fence in ``jobs.move`` stands a
second time behind that of ``jobs.lock_leased``, which every caller passes in the same transaction.
"""
