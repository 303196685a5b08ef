"""Each invariant that `ppworker verify` checks is one that it would find broken."""

import pytest
import sqlalchemy as sa

from factories import World, classes
from ppworker.errors import RunnerUnavailable
from ppworker.pipeline.control import operations
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.inferences import inferences
from ppworker.store import verify

_ONE = "(SELECT id FROM post_processor_jobs WHERE status = '{}' ORDER BY id LIMIT 1)"
_DONE, _RUNS, _WAITS = _ONE.format("completed"), _ONE.format("processing"), _ONE.format("pending")
_MODELS = "(SELECT id FROM annotations WHERE source = 'model' ORDER BY id LIMIT 1)"
_ITEM = "(SELECT id FROM dataset_items ORDER BY id LIMIT 1)"

BROKEN = {
    "no job is processing long after its lease": f"UPDATE post_processor_jobs SET lease_expires_at = now() - interval '1 h' WHERE id = {_RUNS}",
    "a pending job is due within the longest wait there is": f"UPDATE post_processor_jobs SET run_at = now() + interval '1 day' WHERE id = {_WAITS}",
    "a pending job is ready if and only if no job of lower order of its item lives": f"UPDATE post_processor_jobs SET ready = NOT ready WHERE id = {_WAITS}",
    "a job that runs belongs to a batch and has a deadline": f"UPDATE post_processor_jobs SET deadline_at = NULL WHERE id = {_RUNS}",
    "a batch has one worker and one post-processor": f"UPDATE post_processor_jobs SET lease_owner = gen_random_uuid() WHERE id = {_RUNS}",
    "suspects run with suspects alone": f"UPDATE post_processor_jobs SET is_suspect = true WHERE id = {_RUNS}",
    "a job that answered is no suspect": f"UPDATE post_processor_jobs SET is_suspect = true WHERE id = {_DONE}",
    "a job's item is in the job's version": f"UPDATE post_processor_jobs SET version_id = gen_random_uuid() WHERE id = {_DONE}",
    "a job's post-processor belongs to the dataset of its item": "UPDATE post_processors SET dataset_id = gen_random_uuid()",
    "a post-processor that was deleted has no live jobs for long": "UPDATE post_processors SET deleted_at = now() - interval '1 h'",
    "a job has as many ended attempts as leases it ended": f"DELETE FROM job_attempts WHERE job_id = {_DONE}",
    "a terminal job's last attempt says how it ended": f"UPDATE job_attempts SET cause = 'exhausted' WHERE job_id = {_DONE}",
    "every step of a job's history is a legal edge": f"UPDATE job_attempts SET cause = 'lost' WHERE job_id = {_DONE}",
    "the attempts of a job count on, but for those that were given back": "UPDATE job_attempts SET attempt = 3 WHERE lease_token = 2",
    "a job's attempts are its claims but for those that were given back": f"UPDATE post_processor_jobs SET attempts = attempts + 1 WHERE id = {_DONE}",
    "an attempt does not begin before the one before it ended": "UPDATE job_attempts SET started_at = now() - interval '1 h' WHERE lease_token = 2",
    "an attempt belongs to a job": f"DELETE FROM post_processor_jobs WHERE id = {_DONE}",
    "a completed job kept its raw answer": f"DELETE FROM job_results WHERE job_id = {_DONE}",
    "a kept answer comes from a job that completed": f"UPDATE job_results SET job_id = {_RUNS} WHERE job_id = {_DONE}",
    "a kept answer's item is in the answer's version": "UPDATE job_results SET version_id = gen_random_uuid()",
    "a model's annotation stands only for a post-processor that answered for the item": "DELETE FROM job_results",
    "a model's annotation comes from a job that completed": f"UPDATE annotations SET job_id = {_RUNS} WHERE id = {_MODELS}",
    "an item of a single-label dataset has one class annotation at most": "UPDATE datasets SET multi_label = false",
    "what a person took away is marked as rejected": f"UPDATE annotations SET deleted_at = now() WHERE id = {_MODELS}",
    "an annotated item belongs to a split of that version": "DELETE FROM item_splits",
    "an inference's annotation stands on the item that the inference became": "DELETE FROM inferences",
    "an inference belongs to the dataset of its item": "UPDATE inferences SET user_id = gen_random_uuid()",
    "what is told to be without annotations is just that": f"INSERT INTO unlabelled_items SELECT split_id, item_id FROM item_splits WHERE item_id = {_ITEM}",
    "an item of several splits of a version, and no other, is known as one": f"INSERT INTO split_overlaps SELECT version_id, item_id FROM item_splits WHERE item_id = {_ITEM}",
    "an item belongs to a version of its dataset": "UPDATE dataset_versions SET dataset_id = gen_random_uuid()",
    "an item is in a split": "DELETE FROM item_splits",
    "an item with a state is in the state's version": f"INSERT INTO item_states (version_id, item_id, id, user_id, state, version) SELECT gen_random_uuid(), {_ITEM}, gen_random_uuid(), gen_random_uuid(), '', 1",
    "label stats are of splits that are there": "INSERT INTO label_stat_deltas (split_id, bucket, annotation_count, item_count) VALUES (gen_random_uuid(), 'total', 0, 1)",
    "the default split of a version is one of its own": "UPDATE dataset_versions SET default_split = gen_random_uuid()",
    "no operation is processing long after its lease": "UPDATE operations SET status = 'processing', lease_owner = gen_random_uuid(), completed_at = NULL, lease_expires_at = now() - interval '1 h'",
    "inferences that were applied were applied to the last one": "UPDATE operations SET total = total + 1",
    "a post-processor that is paused by its failures says why and until when": "INSERT INTO post_processor_circuits (post_processor_id, open_until) SELECT id, now() FROM post_processors LIMIT 1",
    verify.STATS: "INSERT INTO label_stat_deltas (split_id, bucket, annotation_count, item_count) SELECT id, 'total', 0, 1 FROM dataset_splits LIMIT 1",
}  # fmt: skip
"""A fault for each invariant; constraints and triggers are switched off for it."""
BY_INDEX = {
    "a job has at most one live row per version, item and post-processor",
    "a prediction stands once",
}
"""Only a broken index could let these happen."""


@pytest.fixture(scope="module")
def world(module_deps: Deps) -> World:
    """Jobs in every state, annotations of every source."""
    world = World(module_deps)
    first, _ = world.processor(max_attempts=3), world.processor(order=1)
    world.add(*(f"t{i}" for i in range(4)))
    world.run(first, RunnerUnavailable("gone"), limit=2)
    world.make_due()
    world.run(first, classes("cat", "dog"), limit=2)
    world.claim(first)
    line = {"name": "text", "inference_items": [{"prediction": "cat", "confidence": 0.8}]}
    added = inferences.add(world.deps, world.train, [line])
    operations.run(world.deps, STEPS, operation_id=added.operation_id)
    world.check()
    return world


def test_every_invariant_has_a_fault_here() -> None:
    assert BROKEN.keys() | BY_INDEX == {*verify.INVARIANTS, verify.STATS}


@pytest.mark.parametrize("sentence", BROKEN)
def test_a_fault_is_told(world: World, sentence: str) -> None:
    with world.deps.db.engine.connect() as tx:
        tx.execute(sa.text("SET LOCAL session_replication_role = replica"))
        for table in ("post_processor_jobs", "post_processor_circuits"):
            for name in tx.execute(
                sa.text("SELECT conname FROM pg_constraint WHERE conrelid = CAST(:t AS regclass) AND contype = 'c'"),
                {"t": table},
            ).scalars().all():  # fmt: skip
                tx.execute(sa.text(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"'))
        tx.execute(sa.text(BROKEN[sentence]))
        assert sentence in {found.invariant for found in verify.run(tx)}
        tx.rollback()
